"""Columns of very different sizes, against refits by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge

from fimoda import CGInfluence, ExactInfluence

rng = np.random.default_rng(0)
N = 80
FLAG = rng.integers(2, size=N).astype(float)
X = np.c_[rng.normal(5e6, 2e6, N), FLAG, rng.normal(40, 10, N)]
Y = X[:, 0] / 1e6 + 3 * FLAG + X[:, 2] / 10 + rng.normal(size=N)


def refits(model, X, y, rows, measure):
    whole = measure(model)
    kept = [np.delete(np.arange(len(X)), i) for i in rows]
    return np.array([measure(clone(model).fit(X[k], y[k])) - whole for k in kept]).T


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_a_newton_step_is_exact_whatever_the_size_of_a_column(size):
    scaled = X * [size / 1e6, 1, 1]
    model = Ridge(solver="svd").fit(scaled, Y)
    rows = np.arange(0, N, 8)
    expected = refits(model, scaled, Y, rows, lambda m: m.predict(scaled[:9]))
    method = ExactInfluence(model, newton_step=True, measurement="output")
    found = method.fit(scaled, Y).transform(scaled[:9], Y[:9])
    assert_allclose(found[:, rows], expected, rtol=1e-5, atol=1e-9 * np.abs(expected).max())


def test_logistic_regression_on_unscaled_columns():
    y = (Y > np.median(Y)).astype(int)
    model = LogisticRegression(solver="newton-cholesky", tol=1e-10).fit(X, y)
    rows = np.arange(0, N, 8)
    expected = refits(model, X, y, rows, lambda m: -m.predict_log_proba(X[:9])[np.arange(9), y[:9]])
    found = ExactInfluence(model, newton_step=True).fit(X, y).transform(X[:9], y[:9])[:, rows]
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99


def test_other_solvers_say_that_damping_drowns_a_column():
    with pytest.warns(UserWarning, match="columns of X differ so much in size"):
        CGInfluence(Ridge().fit(X, Y)).fit(X, Y)
