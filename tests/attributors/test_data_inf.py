"""DataInf against the loop that defines it, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from naive import refits
from numpy.testing import assert_allclose
from sklearn.linear_model import LogisticRegression
from torch import nn

from fimoda import DataInf, as_final_model
from fimoda.curvature.datainf import parameter_layers
from fimoda.measured import Measured
from fimoda.rows import Rows

N, M, D = 11, 4, 5


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 2)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, X):
        hidden = torch.tanh(self.conv(X.reshape(-1, 1, 2, 3)))
        return self.head(self.norm(hidden.flatten(1)))


class OwnParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(D))
        self.head = nn.Linear(D, 3)

    def forward(self, X):
        return self.head(X * self.scale)


CASES = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, 3, bias=False)),
        D,
        ["0", "2"],
    ),
    "one layer": (lambda: nn.Linear(D, 3), D, ["Linear"]),
    "conv": (Conv, 6, ["conv", "norm", "head"]),
    "own parameter": (OwnParameter, D, ["OwnParameter", "head"]),
}


def problem(case: str):
    make, width, _ = CASES[case]
    torch.manual_seed(0)
    net = make().double()
    X = torch.randn(N, width, dtype=torch.float64)
    return net, X, torch.arange(N) % 3


def layer_gradients(net, measure, X, y) -> list[list[torch.Tensor]]:
    """Gradient of each row (outer list), in each module that owns parameters, by plain autograd."""
    rows = []
    for x, target in zip(X, y, strict=True):
        value = measure(net(x[None]), target[None])
        of_row = []
        for module in net.modules():
            own = list(module.parameters(recurse=False))
            if own:
                parts = torch.autograd.grad(value, own, retain_graph=True)
                of_row.append(torch.cat([g.flatten() for g in parts]))
        rows.append(of_row)
    return rows


def loop(test, train, weights, damping) -> np.ndarray:
    """The defining sum, one training row's inverse at a time."""
    share = weights / weights.sum()
    scores = np.zeros((len(test), len(train)))
    for z, of_test in enumerate(test):
        for k, v in enumerate(of_test):
            solved = torch.zeros_like(v)
            for w, of_row in zip(share, train, strict=True):
                g = of_row[k]
                solved += w / damping[k] * (v - (g @ v) / (damping[k] + g @ g) * g)
            for i, of_row in enumerate(train):
                scores[z, i] += share[i] * float(of_row[k] @ solved)
    return scores


def auto(train, weights) -> list[float]:
    share = weights / weights.sum()
    layers = zip(*train, strict=True)
    return [
        0.1 * sum(w * float((g**2).mean()) for w, g in zip(share, k, strict=True)) for k in layers
    ]


WEIGHTS = {"equal": np.ones(N), "weighted": np.linspace(0, 2, N)}
criterion = nn.CrossEntropyLoss()


def margin(outputs, targets):
    probability = outputs.softmax(1)[0, targets[0]]
    return torch.log(probability / (1 - probability))


def margin_of_rows(outputs, targets):
    probability = outputs.softmax(1).gather(1, targets[:, None])[:, 0]
    return torch.log(probability / (1 - probability))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("damping", ["auto", 0.02])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_defining_loop(case, damping, weights):
    net, X, y = problem(case)
    weights = WEIGHTS[weights]
    train = layer_gradients(net, criterion, X, y)
    used = auto(train, weights) if damping == "auto" else [damping] * len(train[0])
    for chunk_size in (None, 1, 4):
        attributor = DataInf(net, criterion=criterion, damping=damping, chunk_size=chunk_size)
        attributor.fit(X, y, sample_weight=weights)
        assert_allclose(list(attributor.damping_.values()), used, rtol=1e-12)
        expected = loop(train[:M], train, weights, used)
        found = attributor.transform(X[:M], y[:M])
        assert_allclose(found, expected, rtol=1e-10, atol=1e-12 * abs(expected).max())
        assert_allclose(attributor.self_influence()[:M], expected.diagonal(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("order", ["_by_pairs", "_by_vectors"])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_both_orders_of_the_sums(order, chunk_size):
    net, X, y = problem("mlp")
    weights = WEIGHTS["weighted"]
    solver = DataInf(net, criterion=criterion, chunk_size=chunk_size)
    solver = solver.fit(X, y, sample_weight=weights)._solver
    train = layer_gradients(net, criterion, X, y)
    test = layer_gradients(net, margin, X[:M], y[:M])
    expected = loop(test, train, weights, [0.02, 0.3])
    damping = torch.tensor([0.02, 0.3], dtype=torch.float64)
    test_rows = Measured(Rows(X[:M], y[:M]), margin_of_rows)
    found = getattr(solver, order)(test_rows, damping) * solver.objective.rows.shares
    assert_allclose(found, expected, rtol=1e-10, atol=1e-12 * abs(expected).max())


def test_the_cheaper_order_is_taken():
    """Pairs of rows are of the order n squared: for few rows and many parameters."""
    net, X, y = problem("mlp")
    few = DataInf(net, criterion=criterion).fit(X[:2], y[:2])._solver
    many = DataInf(net, criterion=criterion).fit(X.repeat(50, 1), y.repeat(50))._solver
    assert few._pairs_are_cheaper(M)
    assert not many._pairs_are_cheaper(M)


@pytest.mark.parametrize("case", CASES)
def test_measurement_of_the_test_rows(case):
    net, X, y = problem(case)
    train = layer_gradients(net, criterion, X, y)
    test = layer_gradients(net, margin, X[:M], y[:M])
    attributor = DataInf(net, criterion=criterion, measurement="margin").fit(X, y)
    expected = loop(test, train, np.ones(N), auto(train, np.ones(N)))
    assert_allclose(attributor.transform(X[:M], y[:M]), expected, rtol=1e-8, atol=1e-11)
    diagonal = attributor.self_influence()[:M]
    assert_allclose(diagonal, expected.diagonal(), rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_memory_and_order_do_not_matter(case):
    net, X, y = problem(case)
    whole = DataInf(net, criterion=criterion).fit(X, y)
    small = DataInf(net, criterion=criterion, memory_budget=1000).fit(X, y)
    assert small._solver._kept is None
    assert (whole._solver._kept is not None) == whole._solver._differentiate.factors
    expected = whole.transform(X, y)
    assert_allclose(small.transform(X, y), expected, rtol=1e-10, atol=1e-13)
    order = torch.randperm(N)
    permuted = DataInf(net, criterion=criterion).fit(X[order], y[order]).transform(X, y)
    assert_allclose(permuted, expected[:, order], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("case", CASES)
def test_layers_are_the_modules_that_own_parameters(case):
    net, X, y = problem(case)
    model = as_final_model(net, X, criterion=criterion)
    layers = parameter_layers(model)
    assert list(layers) == CASES[case][2]
    covered = sorted(i for place in layers.values() for s in place for i in range(s.start, s.stop))
    assert covered == list(range(model.n_parameters))
    assert list(DataInf(net, criterion=criterion).fit(X, y).damping_) == list(layers)


def test_damping_may_change_after_fit():
    net, X, y = problem("mlp")
    attributor = DataInf(net, criterion=criterion).fit(X, y)
    attributor.damping_ = dict.fromkeys(attributor.damping_, 0.5)
    other = DataInf(net, criterion=criterion, damping=0.5).fit(X, y)
    assert_allclose(attributor.transform(X, y), other.transform(X, y), rtol=1e-12)


def test_a_layer_without_gradients_gives_nothing():
    """The second layer is zero, so no gradient reaches the first."""
    net, X, y = problem("mlp")
    nn.init.zeros_(net[2].weight)
    attributor = DataInf(net, criterion=criterion).fit(X, y)
    assert attributor.damping_["0"] == 1.0
    train = layer_gradients(net, criterion, X, y)
    expected = loop(train, train, np.ones(N), [1.0, attributor.damping_["2"]])
    assert np.abs(expected).max() > 0
    assert_allclose(attributor.transform(X, y), expected, rtol=1e-10, atol=1e-13)


def test_zero_damping_is_refused():
    net, X, y = problem("mlp")
    with pytest.raises(ValueError, match="'damping' parameter of DataInf"):
        DataInf(net, criterion=criterion, damping=0.0).fit(X, y)


def test_large_damping_is_a_gradient_product():
    net, X, y = problem("conv")
    train = layer_gradients(net, criterion, X, y)
    g = torch.stack([torch.cat(row) for row in train])
    scores = DataInf(net, criterion=criterion, damping=1e9).fit(X, y).transform(X, y)
    assert_allclose(scores, (g @ g.T).numpy() / (1e9 * N), rtol=1e-7)


def test_sign_agrees_with_leave_one_out():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4))
    y = (X @ [1.0, -1, 0.5, 0] + rng.logistic(size=60) > 0).astype(int)

    final = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(X, y)

    def losses(model):
        return -model.predict_log_proba(X)[np.arange(60), y]

    truth = refits(final, X, y, losses)
    scores = DataInf(final).fit(X, y).transform(X, y)
    assert np.corrcoef(scores.ravel(), truth.ravel())[0, 1] > 0.8
    assert (scores.diagonal() > 0).all()  # a row helps on itself
    assert (truth.diagonal() > 0).all()
