"""Newton-step influence: exact removal for least squares, leverage for one output."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from naive import refits
from numpy.testing import assert_allclose
from problems import tanh_network
from sklearn.datasets import make_classification, make_regression
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from torch import nn

from fimoda import ExactInfluence

X, Y = make_regression(40, 5, n_targets=2, noise=5.0, random_state=0)


@pytest.mark.parametrize("model", [LinearRegression(), Ridge(alpha=3.0)])
def test_equals_leave_one_out_refits(model):
    """The prediction is linear in the parameters, so one Newton step without the row is exact."""
    y = Y[:, 0]
    final = model.fit(X[:30], y[:30])
    found = ExactInfluence(final, damping=0.0, measurement="output", newton_step=True)
    scores = found.fit(X[:30], y[:30]).transform(X[30:])
    expected = refits(model, X[:30], y[:30], lambda fitted: fitted.predict(X[30:]))
    assert_allclose(scores, expected, rtol=1e-8, atol=1e-9)


def dense_scores(net, criterion, targets, weights, damping):
    """A plain loop: curvature without the row, solved for the row's gradient."""
    rows = torch.from_numpy(X)
    share = weights / weights.sum()
    jacobians, curvatures, gradients = [], [], []
    for x, t in zip(rows, targets, strict=True):
        f = net(x)
        J = torch.stack(
            [
                torch.cat(
                    [
                        g.flatten()
                        for g in torch.autograd.grad(o, net.parameters(), retain_graph=True)
                    ]
                )
                for o in f
            ]
        )
        leaf = f.detach().requires_grad_()
        (slope,) = torch.autograd.grad(criterion(leaf, t), leaf, create_graph=True)
        W = torch.stack([torch.autograd.grad(s, leaf, retain_graph=True)[0] for s in slope])
        jacobians.append(J)
        curvatures.append(W)
        gradients.append(J.mT @ slope.detach())
    parts = [s * J.mT @ W @ J for s, J, W in zip(share, jacobians, curvatures, strict=True)]
    total = sum(parts) + damping * torch.eye(len(gradients[0]), dtype=torch.float64)
    G = torch.stack(gradients)
    return torch.stack(
        [share[i] * G @ torch.linalg.solve(total - parts[i], G[i]) for i in range(len(G))], dim=1
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["one target", "two targets", "three classes"])
def test_equals_a_plain_loop(kind, weighted):
    damping = 0.05
    rng = np.random.default_rng(0)
    weights = torch.from_numpy(rng.integers(1, 4, 40).astype(float) if weighted else np.ones(40))
    if kind == "three classes":
        net, criterion = tanh_network(5, 9, 3), nn.CrossEntropyLoss()
        y = rng.integers(3, size=40)
        targets, loss = (
            torch.from_numpy(y),
            lambda f, t: nn.functional.cross_entropy(f[None], t[None]),
        )
    else:
        n_outputs = 1 if kind == "one target" else 2
        net, criterion = tanh_network(5, 9, n_outputs), nn.MSELoss()
        y = Y[:, :n_outputs] / 100
        targets, loss = torch.from_numpy(y), lambda f, t: ((f - t) ** 2).mean()
    expected = dense_scores(net, loss, targets, weights, damping).detach().numpy()
    found = ExactInfluence(
        net, damping=damping, criterion=criterion, newton_step=True, reweight_others=False
    )
    scores = found.fit(X, y, sample_weight=weights.numpy()).transform(X, y)
    assert_allclose(scores, expected, rtol=1e-8, atol=1e-11)


def test_one_output_divides_by_one_minus_leverage():
    y = Y[:, :1] / 100
    net = tanh_network(5, 9, 1)
    given = {"criterion": nn.MSELoss(), "damping": 0.05, "reweight_others": False}
    plain = ExactInfluence(net, **given).fit(X, y).transform(X, y)
    newton = ExactInfluence(net, newton_step=True, **given).fit(X, y).transform(X, y)
    ratio = newton / plain
    assert_allclose(ratio, np.broadcast_to(ratio[:1], ratio.shape), rtol=1e-8)
    assert (ratio > 1).all()


def test_logistic_regression_comes_closer_to_the_refits():
    X, y = make_classification(60, 4, n_informative=3, n_redundant=0, random_state=0)
    settings = {"C": 10.0, "tol": 1e-10, "max_iter": 10_000}
    final = LogisticRegression(**settings).fit(X, y)
    truth = np.empty((60, 60))
    before = final.decision_function(X)
    for i in range(60):
        rest = np.arange(60) != i
        truth[:, i] = (
            LogisticRegression(**settings).fit(X[rest], y[rest]).decision_function(X) - before
        )
    errors = [
        np.linalg.norm(
            ExactInfluence(final, damping=0.0, measurement="output", newton_step=newton)
            .fit(X, y)
            .transform(X, y)
            - truth
        )
        for newton in (False, True)
    ]
    assert errors[1] < 0.5 * errors[0]


def test_errors():
    ridge = Ridge().fit(X, Y[:, 0])
    with pytest.raises(ValueError, match=r"newton_step=True .* got 'hessian'"):
        ExactInfluence(ridge, newton_step=True, curvature="hessian").fit(X, Y[:, 0])
    alone = np.zeros((41, 6))
    alone[:40, :5] = X
    alone[40, 5] = 1.0  # the only row that its feature rests on
    y = np.append(Y[:, 0], 2.0)
    line = LinearRegression(fit_intercept=False).fit(alone, y)
    found = ExactInfluence(line, damping=0.0, newton_step=True).fit(alone, y)
    with pytest.raises(ValueError, match="training row 40 has leverage one"):
        found.transform(alone, y)
