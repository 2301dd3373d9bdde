"""Trainings that all fail for the same reason are stopped before all of them were tried."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from torch import nn

from fimoda import Downsampling, LeaveOneOut

N = 60
X = np.random.default_rng(0).normal(size=(N, 2))
Y = X[:, 0]


class Fails(RegressorMixin, BaseEstimator):
    """Fits once; clones fail but where they have fewer than `few` rows, and count their trials."""

    tried = 0

    def __init__(self, few=0):
        self.few = few

    def fit(self, X, y):
        type(self).tried += 1
        if type(self).tried > 1 and len(y) >= self.few:
            raise ValueError("there is no solution")
        self.mean_ = np.mean(y)
        return self

    def predict(self, X):
        return np.full(len(X), self.mean_)


@pytest.mark.parametrize("stored", [False, True])
def test_the_rest_is_not_tried(stored, tmp_path):
    Fails.tried = 0
    directory = tmp_path if stored else None
    model = Fails().fit(X, Y)
    method = LeaveOneOut(model, n_seeds=1, checkpoint_dir=directory)
    told = r"ValueError: there is no solution: the first 16 of 61 trainings failed for this reason"
    with pytest.raises(FloatingPointError, match=told):
        method.fit(X, Y).transform(X[:2], Y[:2])
    assert Fails.tried == 17


def test_one_that_succeeds_goes_on():
    Fails.tried = 0
    model = Fails(few=N).fit(X, Y)  # all rows fail, and those without one do not
    method = LeaveOneOut(model, n_seeds=2).fit(X, Y)
    assert Fails.tried == 1 + 1 + 2 * (N + 1)  # once to see whether anything is random
    with pytest.raises(FloatingPointError, match="2 of 122 models failed"):
        method.transform(X[:2], Y[:2])


def test_networks_that_diverge():
    torch.manual_seed(0)
    net = nn.Linear(2, 1)
    settings = {"criterion": nn.MSELoss(), "n_epochs": 30, "lr": 1e12, "n_seeds": 1}
    method = Downsampling(net, n_subsets=50, chunk_size=20, random_state=0, **settings)
    with pytest.raises(FloatingPointError, match="lower lr: the first 17 of 50 trainings failed"):
        method.fit(X.astype(np.float32), Y[:, None].astype(np.float32))
