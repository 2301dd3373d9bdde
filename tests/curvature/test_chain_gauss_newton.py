"""Products with the Gauss-Newton matrix of chains with many outputs, against Jacobians by plain autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from fimoda.adapters import as_final_model
from fimoda.curvature.chain_gauss_newton import MANY_OUTPUTS, ChainGaussNewton
from fimoda.curvature.operators import GaussNewton
from fimoda.objective import Objective
from fimoda.rows import Rows

N, D, C = 9, 4, MANY_OUTPUTS


def objective(network: nn.Module, **limits) -> Objective:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(N, D)), rng.integers(C, size=N)
    model = as_final_model(network.double(), X, y, criterion=nn.CrossEntropyLoss())
    weights = torch.from_numpy(rng.uniform(0.5, 2, size=N))
    return Objective(model, Rows(model.encode_X(X), model.encode_y(y, C), weights), **limits)


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "linear": nn.Linear(D, C),
        "tanh": nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, C, bias=False)),
        "deep": nn.Sequential(
            nn.Flatten(), nn.Linear(D, 6, bias=False), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, C),
        ),
        "pointwise first": nn.Sequential(nn.Tanh(), nn.Linear(D, C)),
    }  # fmt: skip


def by_hand(one: Objective) -> np.ndarray:
    """The sum over rows of share times J' W J, from the derivatives of each output of each row."""
    model, total = one.model, 0.0
    for x, share in zip(one.rows.inputs, one.rows.shares, strict=True):
        J = torch.autograd.functional.jacobian(
            lambda theta, x=x: model.forward(theta, x[None])[0], model.theta
        )
        p = torch.softmax(model.forward(model.theta, x[None])[0], 0)
        total += float(share) * (J.mT @ (torch.diag(p) - torch.outer(p, p)) @ J).detach().numpy()
    return total


@pytest.mark.parametrize("name", networks())
def test_products(name):
    one = objective(networks()[name])
    matrix = GaussNewton(one)
    V = np.random.default_rng(1).normal(size=(3, one.model.n_parameters))
    expected = V @ by_hand(one)
    assert isinstance(matrix._chain, ChainGaussNewton)
    assert_allclose(matrix.matmat(torch.from_numpy(V)), expected, rtol=1e-10, atol=1e-12)
    rows = np.array([5, 0, 7])
    some = matrix.restricted(rows)
    assert some._chain.kept[0].shape[0] == 3
    part = GaussNewton(one.restricted(rows)).dense()
    assert_allclose(some.dense(), part, rtol=1e-10, atol=1e-12)


def test_ways_agree_where_memory_does_not_hold_activations():
    one = objective(networks()["deep"], memory_budget=2000)
    matrix = GaussNewton(one)
    assert matrix._chain is None
    V = torch.from_numpy(np.random.default_rng(1).normal(size=(2, one.model.n_parameters)))
    whole = GaussNewton(objective(networks()["deep"]))
    assert_allclose(matrix.matmat(V), whole.matmat(V), rtol=1e-10, atol=1e-12)


def test_other_networks_and_few_outputs_go_another_way():
    class Residual(nn.Linear):
        def forward(self, X):
            return super().forward(X) + X.repeat(1, C // D)

    torch.manual_seed(0)
    other = objective(Residual(D, C))
    assert ChainGaussNewton.of(other, 2**20) is None
    assert_allclose(GaussNewton(other).dense(), by_hand(other), rtol=1e-10, atol=1e-12)
