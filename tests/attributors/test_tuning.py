"""``damping="tuned"``: the damping that agrees best with a small gold standard."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from problems import tanh_network
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.preprocessing import scale
from torch import nn

from fimoda import (
    ArnoldiInfluence,
    CGInfluence,
    EKFACInfluence,
    ExactInfluence,
    FurtherTraining,
    LiSSAInfluence,
)
from fimoda.curvature.operators import GaussNewton

X, Y = load_diabetes(return_X_y=True)
X, Y = scale(X)[:120].astype(np.float32), scale(Y)[:120, None].astype(np.float32)
GIVEN = {"criterion": nn.MSELoss(), "random_state": 0}
TRAINING = {"optimizer": "SGD", "lr": 0.05, "batch_size": 32, "n_seeds": 3, "leave_out": 20}


@pytest.fixture(scope="module")
def net():
    net = tanh_network(10, 16, 1).float()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        (net(torch.from_numpy(X)) - torch.from_numpy(Y)).square().mean().backward()
        optimizer.step()
    return net


@pytest.mark.parametrize("n_epochs", [1, 40])
def test_is_the_best_of_its_candidates(net, n_epochs):
    tuned = ExactInfluence(
        net, damping="tuned", tuning={**TRAINING, "n_epochs": n_epochs}, **GIVEN
    ).fit(X, Y)
    assert tuned.damping_ == max(tuned.damping_agreement_, key=tuned.damping_agreement_.get)
    assert len(tuned.damping_agreement_) == 13
    fixed = ExactInfluence(net, damping=tuned.damping_, **GIVEN).fit(X, Y)
    assert_allclose(tuned.transform(X[:5], Y[:5]), fixed.transform(X[:5], Y[:5]), rtol=1e-10)


def test_agreement_is_that_of_the_scores(net):
    """By hand: further training of the same rows and seeds, at the rows that stand in for tests."""
    settings = {**TRAINING, "n_epochs": 5, "correction": "mean"}
    tuned = ExactInfluence(net, damping="tuned", tuning=settings, **GIVEN).fit(X, Y)
    gold = FurtherTraining(net, **settings, **GIVEN).fit(X, Y)
    others = np.setdiff1d(np.arange(120), gold.train_indices_)
    rows = np.sort(np.random.RandomState(0).choice(others, 50, replace=False))
    truth = gold.transform(X[rows], Y[rows])
    for damping in list(tuned.damping_agreement_)[::4]:
        scores = ExactInfluence(net, damping=damping, **GIVEN).fit(X, Y).transform(X[rows], Y[rows])
        cosines = [
            np.corrcoef(s, t)[0, 1]
            for s, t in zip(scores[:, gold.train_indices_], truth, strict=True)
        ]
        assert_allclose(tuned.damping_agreement_[damping], np.mean(cosines), rtol=1e-6)


def test_more_training_wants_less_damping(net):
    dampings = [
        ExactInfluence(net, damping="tuned", tuning={**TRAINING, "n_epochs": e}, **GIVEN)
        .fit(X, Y)
        .damping_
        for e in (1, 100)
    ]
    assert dampings[0] > dampings[1]


@pytest.mark.parametrize("cls", [ArnoldiInfluence, EKFACInfluence])
def test_other_solvers(net, cls):
    tuned = cls(net, damping="tuned", tuning={**TRAINING, "n_epochs": 2}, **GIVEN).fit(X, Y)
    assert tuned.damping_ in tuned.damping_agreement_
    assert max(tuned.damping_agreement_.values()) > 0.8


@pytest.mark.parametrize("cls", [CGInfluence, LiSSAInfluence])
def test_iterative_solvers_compare_all_dampings_at_once(net, cls, monkeypatch):
    """The agreement is that of the exact solution, without a solution for each damping."""
    settings = {"damping": "tuned", "tuning": {**TRAINING, "n_epochs": 2}, **GIVEN}
    exact = ExactInfluence(net, **settings).fit(X, Y)
    products = []
    product = GaussNewton.matmat
    monkeypatch.setattr(
        GaussNewton, "matmat", lambda self, V: products.append(len(V)) or product(self, V)
    )
    tuned = cls(net, **settings).fit(X, Y)
    assert list(tuned.damping_agreement_) == list(exact.damping_agreement_)
    assert_allclose(
        list(tuned.damping_agreement_.values()), list(exact.damping_agreement_.values()), atol=0.01
    )
    assert tuned.damping_ == exact.damping_
    assert len(products) <= 1000


def test_dampings_below_negative_curvature_are_left_out(net):
    settings = {"damping": "tuned", "tuning": {**TRAINING, "n_epochs": 2}, **GIVEN}
    for cls in (CGInfluence, LiSSAInfluence):
        tuned = cls(net, curvature="hessian", **settings).fit(X, Y)
        exact = ExactInfluence(net, curvature="hessian", **settings).fit(X, Y)
        assert list(tuned.damping_agreement_) == list(exact.damping_agreement_)
        assert len(exact.damping_agreement_) < 13
        assert tuned.damping_ == exact.damping_


def test_errors(net):
    with pytest.raises(ValueError, match="at least two left-out rows and one other"):
        ExactInfluence(net, damping="tuned", tuning={"leave_out": 120, "n_epochs": 1}, **GIVEN).fit(
            X, Y
        )
    with pytest.raises(TypeError, match="epoch"):
        ExactInfluence(net, damping="tuned", tuning={"epochs": 3}, **GIVEN).fit(X, Y)
    with pytest.raises(ValueError, match="'damping' parameter"):
        ExactInfluence(Ridge(), damping="best").fit(X, Y[:, 0])
