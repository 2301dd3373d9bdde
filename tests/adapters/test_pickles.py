"""Modules with parametrisations in pickles, for workers and for what is stored."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import skorch
import torch
from torch import nn
from torch.nn.utils import parametrizations

from fimoda import FurtherTraining, LeaveOneOut
from fimoda.adapters.pickles import let_be_pickled

rng = np.random.default_rng(0)
X, Y = rng.normal(size=(6, 4)).astype(np.float32), np.arange(6) % 3


class Parametrised(nn.Module):
    def __init__(self, norm: str = "weight_norm"):
        super().__init__()
        torch.manual_seed(0)
        self.first = getattr(parametrizations, norm)(nn.Linear(4, 4))
        self.last = parametrizations.weight_norm(nn.Linear(4, 3))

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm", "orthogonal"])
def test_a_pickle_is_the_same_module(norm):
    module = Parametrised(norm).eval()
    let_be_pickled(module)
    again = pickle.loads(pickle.dumps(module))
    assert torch.equal(again(torch.as_tensor(X)), module(torch.as_tensor(X)))
    assert [k for k, _ in again.named_parameters()] == [k for k, _ in module.named_parameters()]
    with torch.no_grad():  # its weights are still computed of its own parameters
        next(again.last.parametrizations.weight.parameters()).mul_(2)
    assert torch.equal(again.last.weight, 2 * module.last.weight)
    third = pickle.loads(pickle.dumps(again))
    assert torch.equal(third(torch.as_tensor(X)), again(torch.as_tensor(X)))


def test_workers():
    settings = {"n_epochs": 1, "lr": 0.5, "optimizer": "SGD", "n_seeds": 2, "random_state": 0}
    alone, apart = (
        FurtherTraining(
            Parametrised().eval(), criterion=nn.CrossEntropyLoss(), n_jobs=n_jobs, **settings
        )
        .fit(X, Y)
        .transform(X, Y)
        for n_jobs in (1, 2)
    )
    np.testing.assert_array_equal(alone, apart)


def test_nets_that_are_trained_by_their_own_fit():
    net = skorch.NeuralNetClassifier(
        Parametrised, module__norm="spectral_norm", criterion=nn.CrossEntropyLoss, max_epochs=1,
        train_split=None, verbose=0,
    ).fit(X, Y)  # fmt: skip
    method = LeaveOneOut(net, n_seeds=1, leave_out=[1, 4], random_state=0).fit(X, Y)
    found = method.transform(X[:2], Y[:2])
    assert "its own fit (a parametrisation with a buffer" in method.process
    assert found.shape == (2, 2)
    assert np.abs(found).min() > 0
