"""Fits of many subsets at once against fits of each."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.datasets import make_classification, make_regression
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fimoda import DataBanzhaf
from fimoda.games.bags import BaggedRefits, bagged, draw_bags
from fimoda.games.closed_fits import ClosedFits, LinearFits
from fimoda.games.ways import fast_way
from fimoda.training.refits import Refits
from fimoda.training.subsets import SubsetUnit

EXACT = {"tol": 1e-12, "max_iter": 10_000}


def problem(kind: str, n: int = 24):
    if kind == "regression":
        X, y = make_regression(n, 4, noise=5, random_state=0)
        return X, y / 50
    if kind == "two outputs":
        X, y = make_regression(n, 4, n_targets=2, noise=5, random_state=0)
        return X, y / 50
    classes = 2 if kind == "binary" else 3
    X, y = make_classification(
        n, 4, n_informative=4, n_redundant=0, n_classes=classes, flip_y=0.2, random_state=0
    )
    return X, np.array(["a", "b", "c"])[y]


CASES = {
    "ridge": (Ridge(), "regression"),
    "ridge without intercept": (Ridge(0.3, fit_intercept=False), "regression"),
    "ridge of two outputs": (Ridge(), "two outputs"),
    "least squares": (LinearRegression(), "regression"),
    "least squares without intercept": (LinearRegression(fit_intercept=False), "regression"),
    "logistic": (LogisticRegression(**EXACT), "binary"),
    "logistic without intercept": (LogisticRegression(C=3, fit_intercept=False, **EXACT), "binary"),
    "softmax": (LogisticRegression(**EXACT), "multiclass"),
    "softmax without intercept": (LogisticRegression(fit_intercept=False, **EXACT), "multiclass"),
    "neighbours": (KNeighborsClassifier(3), "multiclass"),
    "means of neighbours": (KNeighborsRegressor(2), "regression"),
    "means of two outputs": (KNeighborsRegressor(2), "two outputs"),
}


def readings(name, weights=None, bags=False):
    """Return what both ways measure of the rows, after training on subsets or bags."""
    model, kind = CASES[name]
    X, y = problem(kind)
    method = DataBanzhaf(model, random_state=0).fit(X, y, sample_weight=weights)
    slow = method._retrained_with([0]).way
    assert type(slow) is Refits
    if bags:
        masks = draw_bags(len(X), 6, np.random.RandomState(0))
        slow, fast = BaggedRefits(**vars(slow)), bagged(slow, method.n_outputs_)
    else:
        masks = np.random.default_rng(0).random((12, len(X))) < np.linspace(0.25, 0.9, 12)[:, None]
        fast = fast_way(slow, method.n_outputs_)
    unit = SubsetUnit(0, np.arange(len(masks)), masks)
    test = method._test(X + 0.1, y)
    return fast, *(way.measure(way.train(unit), test) for way in (fast, slow))


@pytest.mark.parametrize("name", CASES)
def test_as_if_each_were_fitted(name):
    fast, found, expected = readings(name)
    assert isinstance(fast, ClosedFits)
    known = expected["reason"] == ""
    assert known.sum() >= 8
    assert ((found["reason"] == "") == known).all()
    assert_allclose(found["measured"][known], expected["measured"][known], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["ridge", "least squares", "logistic", "softmax"])
def test_with_weights(name):
    weights = np.random.default_rng(1).uniform(0.2, 3, size=24)
    fast, found, expected = readings(name, weights)
    assert isinstance(fast, ClosedFits)
    known = expected["reason"] == ""
    assert_allclose(found["measured"][known], expected["measured"][known], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["ridge", "softmax", "logistic"])
def test_bags(name):
    """A row that comes twice has twice the weight."""
    fast, found, expected = readings(name, bags=True)
    assert isinstance(fast, LinearFits)
    assert_allclose(found["measured"], expected["measured"], rtol=1e-5, atol=1e-7)


def test_least_squares_of_fewer_rows_than_features():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(8, 20)), rng.normal(size=8)
    method = DataBanzhaf(LinearRegression(), random_state=0).fit(X, y)
    slow = method._retrained_with([0]).way
    fast = fast_way(slow, 1)
    masks = np.tril(np.ones((8, 8), dtype=bool))[2:]
    unit = SubsetUnit(0, np.arange(6), masks)
    coefficients = fast.train(unit)[:, 0]
    for mask, own in zip(masks, coefficients, strict=True):
        centred = X[mask] - X[mask].mean(0)
        shortest = np.linalg.pinv(centred, rcond=1e-10) @ (y[mask] - y[mask].mean())
        assert_allclose(own[:-1], shortest, rtol=1e-7, atol=1e-9)
        assert_allclose(X[mask] @ own[:-1] + own[-1], y[mask], atol=1e-9)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (Ridge(positive=True), "regression"),
        (Ridge([1.0, 2.0]), "two outputs"),
        (Ridge(solver="sag"), "regression"),
        (LogisticRegression(class_weight="balanced"), "binary"),
        (LogisticRegression(solver="liblinear"), "binary"),
        (LogisticRegression(C=np.inf), "binary"),
        (LogisticRegression(l1_ratio=1, solver="saga"), "binary"),
        (KNeighborsClassifier(weights="distance"), "binary"),
        (make_pipeline(StandardScaler(), Ridge()), "regression"),
    ],
)
def test_whatever_has_no_form_is_fitted(model, kind):
    X, y = problem(kind)
    method = DataBanzhaf(random_state=0)
    if isinstance(model, LogisticRegression) and model.solver == "liblinear":
        model = model.set_params(fit_intercept=False)
    method.set_params(estimator=model).fit(X, y)
    way = method._retrained_with([0]).way
    assert fast_way(way, method.n_outputs_) is way
