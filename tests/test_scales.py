"""Columns of very different sizes, against refits by hand."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from naive import refits
from numpy.testing import assert_allclose
from scipy import sparse
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fimoda import CGInfluence, ExactInfluence, attribute

rng = np.random.default_rng(0)
N = 80
FLAG = rng.integers(2, size=N).astype(float)
X = np.c_[rng.normal(5e6, 2e6, N), FLAG, rng.normal(40, 10, N)]
Y = X[:, 0] / 1e6 + 3 * FLAG + X[:, 2] / 10 + rng.normal(size=N)


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_a_newton_step_is_exact_whatever_the_size_of_a_column(size):
    scaled = X * [size / 1e6, 1, 1]
    model = Ridge(solver="svd").fit(scaled, Y)
    rows = np.arange(0, N, 8)
    expected = refits(model, scaled, Y, lambda m: m.predict(scaled[:9]), rows)
    method = ExactInfluence(model, newton_step=True, measurement="output")
    found = method.fit(scaled, Y).transform(scaled[:9], Y[:9])
    assert_allclose(found[:, rows], expected, rtol=1e-5, atol=1e-9 * np.abs(expected).max())


def test_logistic_regression_on_unscaled_columns():
    y = (Y > np.median(Y)).astype(int)
    model = LogisticRegression(solver="newton-cholesky", tol=1e-10).fit(X, y)
    rows = np.arange(0, N, 8)
    expected = refits(model, X, y, lambda m: -m.predict_log_proba(X[:9])[np.arange(9), y[:9]], rows)
    found = ExactInfluence(model, newton_step=True).fit(X, y).transform(X[:9], y[:9])[:, rows]
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99


def test_other_solvers_say_that_damping_drowns_a_column():
    with pytest.warns(UserWarning, match="columns of X differ so much in size"):
        CGInfluence(Ridge().fit(X, Y)).fit(X, Y)


# ---- fits that are not the least-squares minimum because of the columns' sizes --------------


FLAGS = np.random.default_rng(1).integers(2, size=(120, 2)).astype(float)
LARGE = np.random.default_rng(2).uniform(0.5, 1.5, (120, 2))
TARGET = np.c_[LARGE, FLAGS] @ [1, 2, 1, -1] + np.random.default_rng(3).normal(size=120)
SCALED = make_pipeline(StandardScaler(), LinearRegression())


def scores_and_warnings(model, X, y, measurement="output"):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method = ExactInfluence(model, newton_step=True, measurement=measurement).fit(X, y)
    said = [w for w in caught if "not at the minimum of its objective" in str(w.message)]
    return method.transform(X[:9], y[:9]), bool(said)


@pytest.mark.parametrize("size", [1.0, 1e7, 1e10])
@pytest.mark.parametrize(
    "model",
    [
        LinearRegression(),
        Ridge(1e-9, solver="lsqr", tol=1e-6),
        TransformedTargetRegressor(LinearRegression(), transformer=StandardScaler()),
        SCALED,
    ],
    ids=["LinearRegression", "Ridge", "TransformedTargetRegressor", "Pipeline"],
)
def test_scores_are_those_of_least_squares_or_a_warning_says_that_they_are_not(model, size):
    X, rows = np.c_[LARGE * size, FLAGS], np.arange(0, 120, 8)
    fitted = clone(model).fit(X, TARGET)
    measure = lambda m: m.predict(X[:9])  # noqa: E731
    expected = refits(SCALED, X, TARGET, measure, rows)
    found, said = scores_and_warnings(fitted, X, TARGET)
    if isinstance(model, TransformedTargetRegressor):
        expected = expected / TARGET.std()
    assert said == (not np.allclose(found[:, rows], expected, rtol=1e-4, atol=1e-6))
    if model is SCALED or size == 1:
        assert not said


def test_a_solver_that_cut_small_columns_is_said():
    X = np.c_[LARGE * 1e7, FLAGS]
    from_sparse = LinearRegression().fit(sparse.csr_array(X), TARGET)  # by lsqr
    assert scores_and_warnings(from_sparse, X, TARGET)[1]
    X = (X - X.mean(0)) * [1, 1, 1e-9, 1e-9]  # less than any version of scikit-learn keeps
    model = LinearRegression().fit(X, TARGET)
    assert model.rank_ == 2
    assert scores_and_warnings(model, X, TARGET)[1]
    with pytest.warns(UserWarning, match="StandardScaler before the model"):
        attribute(model, X, TARGET, X[:3], TARGET[:3], budget=5)


ONE_HOT = np.eye(40)[np.random.default_rng(0).integers(40, size=120)]
LONELY = np.eye(120)[:, :3]  # each fits its row exactly
COLLINEAR = np.c_[
    LARGE, LARGE.sum(1), FLAGS, 1 - FLAGS, ONE_HOT, LONELY, np.full(120, 7.0), FLAGS * 0
]


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_collinear_lonely_and_constant_columns_are_no_alarm(fit_intercept):
    X, rows, kept = COLLINEAR, np.arange(3, 120, 9), ONE_HOT.sum(0)[ONE_HOT.argmax(1)] > 1
    rows = rows[kept[rows]]  # the others' predictions are free once they are left out
    for model in (LinearRegression(fit_intercept=fit_intercept), Ridge(1e-3), Ridge(100.0)):
        fitted = clone(model).fit(X, TARGET)
        expected = refits(fitted, X, TARGET, lambda m: m.predict(X[:9]), rows)
        found, said = scores_and_warnings(fitted, X, TARGET)
        assert not said
        assert_allclose(found[:, rows], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [1e-3, 100.0])
def test_floats_of_single_precision_and_outputs_of_very_different_size_are_no_alarm(alpha):
    for X in (COLLINEAR, COLLINEAR + 1e3):
        for y in (TARGET, np.c_[TARGET * 1e6, TARGET[::-1]]):
            X, y = X.astype(np.float32), y.astype(np.float32)
            assert not scores_and_warnings(Ridge(alpha).fit(X, y), X, y, "loss")[1]
