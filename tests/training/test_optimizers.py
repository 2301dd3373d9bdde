"""Optimisers that act on each coordinate, and those that do not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fimoda.model import Recipe
from fimoda.training.optimizers import OptimizerSpec, acts_elementwise, resolve_optimizer


class ClippedByNorm(torch.optim.SGD):
    """SGD on gradients scaled down to a largest norm."""

    def __init__(self, params, lr, max_norm=1.0):
        super().__init__(params, lr=lr)
        self.max_norm = max_norm

    def step(self, closure=None):
        for group in self.param_groups:
            nn.utils.clip_grad_norm_(group["params"], self.max_norm)
        return super().step(closure)


class RowNormalised(torch.optim.Optimizer):
    """Mixes the coordinates of a model, but not the models of a stack."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data -= group["lr"] * p.grad / p.grad.norm(dim=-1, keepdim=True)


class Signed(torch.optim.Optimizer):
    """A user's own optimiser that acts on each coordinate."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data -= group["lr"] * p.grad.sign()


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("SGD", {}),
        ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        ("SGD", {"foreach": True}),
        ("SGD", {"maximize": True, "dampening": 0.1, "momentum": 0.5}),
        ("Adam", {}),
        ("Adam", {"amsgrad": True, "weight_decay": 0.1}),
        ("Adam", {"foreach": True}),
        ("Adam", {"differentiable": False}),
        *[(name, {}) for name in ("AdamW", "RMSprop", "Adagrad", "NAdam", "RAdam")],
        *[(name, {}) for name in ("Adamax", "Adadelta", "ASGD", "Rprop")],
        ("RMSprop", {"momentum": 0.9, "centered": True}),
    ],
)
def test_elementwise_optimizers(name, params):
    assert acts_elementwise(OptimizerSpec(getattr(torch.optim, name), 0.01, params))


def test_custom_optimizers():
    assert acts_elementwise(OptimizerSpec(Signed, 0.01))
    for max_norm in (1e-2, 1.0, 1e3):
        assert not acts_elementwise(OptimizerSpec(ClippedByNorm, 0.01, {"max_norm": max_norm}))
    assert not acts_elementwise(OptimizerSpec(RowNormalised, 0.01))


@pytest.mark.parametrize("name", ["LBFGS", "Muon", "Adafactor", "SparseAdam"])
def test_optimizers_that_mix_coordinates(name):
    cls = getattr(torch.optim, name, None)
    if cls is None:
        pytest.skip(f"this torch has no {name}")
    assert not acts_elementwise(OptimizerSpec(cls, 0.01))
    with pytest.raises(ValueError, match=f"{name} mixes coordinates"):
        resolve_optimizer(name, 0.01, None, Recipe())


def test_identity_knows_the_whole_schedule():
    """Two schedules that part late are two runs."""
    steady = OptimizerSpec(torch.optim.SGD, lambda epoch: 0.1)
    late = OptimizerSpec(torch.optim.SGD, lambda epoch: 0.1 if epoch < 30 else 0.01)
    assert steady.describe(30) == late.describe(30)
    assert steady.describe(31) != late.describe(31)
