"""Batch normalisation that is trained, against torch's own on the rows that are there."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from fimoda import as_final_model
from fimoda.batch_statistics import TrainedBatchNorm, statistics_of, with_trained_statistics

LAYERS = {
    "numbers": (lambda **k: nn.BatchNorm1d(3, **k), (7, 3)),
    "sequences": (lambda **k: nn.BatchNorm1d(3, **k), (7, 3, 4)),
    "images": (lambda **k: nn.BatchNorm2d(3, **k), (7, 3, 4, 2)),
    "volumes": (lambda **k: nn.BatchNorm3d(3, **k), (7, 3, 2, 2, 2)),
}


def layer(name, **settings):
    made, shape = LAYERS[name]
    torch.manual_seed(0)
    part = made(**settings).double()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.normal_()
    part.running_mean.normal_()
    part.running_var.uniform_(0.5, 2)
    return part, torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"momentum": None}, {"momentum": 0.3}])
@pytest.mark.parametrize("absent", [[], [2], [0, 6]])
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_statistics_and_gradients_are_torch_s(name, absent, settings):
    part, x = layer(name, **settings)
    own = with_trained_statistics(copy.deepcopy(part))
    there = torch.ones(len(x), dtype=torch.bool)
    there[absent] = False
    torchs, ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    for _ in range(2):
        expected = part(torchs[there])
        with statistics_of(there if absent else None) as found:
            outputs = own(ours)[there]
        torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-12)
        for key, value in found.items():
            torch.testing.assert_close(value, getattr(part, key).to(value), rtol=1e-10, atol=1e-12)
            getattr(own, key).copy_(value)
    slopes = [
        torch.autograd.grad((outputs.pow(3)).sum(), [inputs, *module.parameters()])
        for outputs, inputs, module in ((expected, torchs, part), (outputs, ours, own))
    ]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("absent", [[0, 1], [1]])
def test_less_than_two_numbers_are_normalised_by_what_is_known(absent):
    part, x = layer("numbers")
    own = with_trained_statistics(copy.deepcopy(part))
    there = torch.ones(2, dtype=torch.bool)
    there[absent] = False
    with statistics_of(there) as found:
        outputs = own(x[:2])
    torch.testing.assert_close(outputs, part.eval()(x[:2]))
    for key, value in found.items():
        torch.testing.assert_close(value, getattr(part, key))
    torch.testing.assert_close(own(x[:1]), part.eval()(x[:1]))


def test_a_layer_that_is_used_twice_and_one_that_is_somebody_s_own():
    class Twice(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm = self.same = norm

        def forward(self, x):
            return self.same(torch.tanh(self.norm(x)))

    class Own(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x) + 1

    part, x = layer("numbers")
    module = Twice(part)
    own = with_trained_statistics(copy.deepcopy(module))
    assert own.norm is own.same
    with statistics_of(None) as found:
        own(x)
    module(x)
    torch.testing.assert_close(found["norm.running_var"], part.running_var)
    kept = with_trained_statistics(nn.Sequential(Own(3), nn.InstanceNorm1d(3)))
    assert not any(isinstance(one, TrainedBatchNorm) for one in kept)


def test_a_model_s_vector_may_hold_its_statistics():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(2, 3), nn.BatchNorm1d(3, momentum=None), nn.Linear(3, 2)
    ).eval()
    X = torch.randn(5, 2)
    frozen = as_final_model(module, X, criterion=nn.MSELoss())
    model = replace(frozen, batch_statistics="update")
    assert torch.equal(frozen.state, frozen.theta)
    assert frozen.fingerprint != model.fingerprint
    assert model.state.shape == (model.n_parameters + 7,)
    state = model.state.clone()
    state[model.n_parameters :] += 1
    assert torch.equal(model.flatten(model.views(state)), state)
    moved = model.at(state)
    assert moved.module[1].num_batches_tracked == 1
    torch.testing.assert_close(moved.outputs(X), model.outputs(X, state))
    torch.testing.assert_close(model.stacked_outputs(state[None], X)[0], moved.outputs(X))
    assert not torch.allclose(model.outputs(X, state), model.outputs(X))
    assert torch.equal(model.outputs(X, model.theta), frozen.outputs(X))
