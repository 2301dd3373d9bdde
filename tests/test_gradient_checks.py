"""What is refused or warned of before scores are trusted: masks, NaN, rounding, other rows."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, make_classification
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.preprocessing import scale
from torch import nn

from fimoda import (
    TRAK,
    ArnoldiInfluence,
    CGInfluence,
    DataInf,
    EKFACInfluence,
    ExactInfluence,
    FurtherTraining,
    GradCos,
    GradDot,
    LeaveOneOut,
    LiSSAInfluence,
    mislabel_detection,
)

METHODS = [
    ExactInfluence,
    CGInfluence,
    LiSSAInfluence,
    ArnoldiInfluence,
    EKFACInfluence,
    GradDot,
    GradCos,
    TRAK,
    DataInf,
]
X, Y = load_diabetes(return_X_y=True)
X, Y = scale(X[:60]), scale(Y[:60])


# ---- measurements that are no numbers -------------------------------------------------------


def nothing(outputs, targets):
    """NaN, but for the two rows on which a measurement is tried."""
    return outputs[:, 0] * (float("nan") if len(outputs) > 2 else 1.0)


def nothing_for_some(outputs, targets):
    return torch.where((outputs[:, 0] > 0) & (len(outputs) > 2), float("nan"), 1.0) * outputs[:, 0]


def without_slope(outputs, targets):
    """Zero, with a derivative of 0/0."""
    return (0 * outputs[:, 0]).sqrt()


@pytest.mark.parametrize("measure", [nothing, nothing_for_some, without_slope])
@pytest.mark.parametrize("method", METHODS)
def test_a_measurement_or_its_gradient_that_is_nan_raises(method, measure):
    fitted = method(Ridge().fit(X, Y), measurement=measure).fit(X, Y)
    with pytest.raises(FloatingPointError, match="finite"):
        fitted.transform(X, Y)
    with pytest.raises(FloatingPointError, match="finite"):
        fitted.self_influence()


# ---- masks ----------------------------------------------------------------------------------


def masked(values):
    mask = np.zeros(np.shape(values), dtype=bool)
    mask[3] = True
    return np.ma.array(values, mask=mask)


@pytest.mark.parametrize("method", [GradDot, FurtherTraining, LeaveOneOut])
def test_masks_are_refused(method):
    model = Ridge().fit(X, Y)
    weights = np.ones(60)
    with pytest.raises(ValueError, match=r"X is a masked array in which 10 values are masked"):
        method(model).fit(masked(X), Y)
    with pytest.raises(ValueError, match="y is a masked array in which 1 values are masked"):
        method(model).fit(X, masked(Y))
    with pytest.raises(ValueError, match="sample_weight is a masked array"):
        method(model).fit(X, Y, sample_weight=masked(weights))
    fitted = GradDot(model).fit(np.ma.array(X), np.ma.array(Y))  # nothing is masked
    with pytest.raises(ValueError, match="X is a masked array"):
        fitted.transform(masked(X), Y)
    with pytest.raises(ValueError, match="y is a masked array"):
        fitted.transform(X, masked(Y))
    with pytest.raises(ValueError, match="is_mislabelled is a masked array"):
        mislabel_detection(np.arange(60.0), masked(weights > 1))


# ---- gradients that are rounding ------------------------------------------------------------


def warned(make, X, y, **given):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make.fit(X, y, **given)
    return [str(w.message) for w in caught if "training row" in str(w.message)]


def not_minimum(make, X, y, **given):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make.fit(X, y, **given)
    return [str(w.message) for w in caught if "at the minimum of its objective" in str(w.message)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", [m for m in METHODS if m is not LiSSAInfluence])
def test_an_interpolating_model_is_said_to_have_no_gradients(method, dtype):
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(20, 40)).astype(dtype)
    y = (rng.normal(size=20) + 10).astype(dtype)
    model = LinearRegression().fit(wide, y)
    found = warned(method(model), wide, y)
    assert len(found) == 1
    assert "no training row has a gradient left" in found[0]
    y = (
        y + rng.normal(size=20).astype(dtype) * 1e-3
    )  # the smallest noise is something to learn from
    damping = {} if method in (GradDot, GradCos) else {"damping": 0.1}
    assert warned(method(model, **damping), wide, y) == []


def test_a_saturated_classifier_has_gradients():
    separable = np.linspace(-1, 1, 20)[:, None]
    net = nn.Linear(1, 1)
    with torch.no_grad():
        net.weight.fill_(200.0)
        net.bias.zero_()
    y = (separable[:, 0] > 0).astype(int)
    made = GradDot(net, criterion=nn.BCEWithLogitsLoss())
    assert warned(made, separable.astype("float32"), y) == []


def test_damping_that_is_lost_in_rounding():
    model = Ridge().fit(X, Y)
    made = DataInf(model, damping=1e-300).fit(X, Y)
    with pytest.raises(ValueError, match=r"damping=1e-300 of the layer .* is lost in rounding"):
        made.transform(X, Y)
    with pytest.raises(ValueError, match="is lost in rounding"):
        made.self_influence()


# ---- rows of another fit --------------------------------------------------------------------


SOLVERS = [
    {},
    {"C": 0.01},
    {"solver": "newton-cg"},
    {"solver": "newton-cholesky"},
    {"solver": "sag", "max_iter": 1000},
    {"solver": "saga", "max_iter": 1000},
    {"class_weight": "balanced"},
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("settings", SOLVERS)
def test_converged_solvers_are_at_their_minimum(settings, dtype):
    wide = make_classification(100, 300, n_informative=8, random_state=0)
    long = make_classification(20_000, 10, n_informative=8, n_classes=2, random_state=0)
    stochastic = settings.get("solver", "").startswith(
        "sag"
    )  # stops early on wide rows, and says so
    for features, y in (load_iris(return_X_y=True), long, *(() if stochastic else (wide,))):
        features = scale(features).astype(dtype)
        weights = np.random.default_rng(0).uniform(0.5, 1.5, len(y))
        model = LogisticRegression(**settings).fit(features, y, weights)
        assert not_minimum(GradDot(model), features, y, sample_weight=weights) == []


def test_separable_classes_are_no_alarm():
    """Gradients of all rows are as small as what the solver leaves."""
    features, y = load_breast_cancer(return_X_y=True)
    model = LogisticRegression(C=1e6, max_iter=1000).fit(scale(features), y)
    assert not_minimum(GradDot(model), scale(features), y) == []


@pytest.mark.parametrize("solver", ["auto", "svd", "lsqr", "sparse_cg", "sag", "saga"])
def test_ridge_is_at_its_minimum(solver):
    for dtype in (np.float32, np.float64):
        rows, y = X.astype(dtype), Y.astype(dtype)
        assert not_minimum(GradDot(Ridge(solver=solver).fit(rows, y)), rows, y) == []


@pytest.mark.parametrize("method", METHODS)
def test_forgotten_weights_and_other_rows_are_said(method):
    weights = np.random.default_rng(0).uniform(0.5, 1.5, 60)
    model = Ridge().fit(X, Y, weights)
    assert not_minimum(method(model), X, Y, sample_weight=weights) == []
    assert len(not_minimum(method(model), X, Y)) == 1
    assert len(not_minimum(method(Ridge().fit(X, Y)), X, -Y)) == 1
    half = Ridge().fit(X[:30], Y[:30])
    assert len(not_minimum(method(half), X[30:], Y[30:])) == 1


def test_forgotten_weights_of_a_classifier():
    features, y = make_classification(500, 6, n_redundant=0, flip_y=0.1, random_state=0)
    weights = np.random.default_rng(0).integers(1, 3, 500)
    model = LogisticRegression().fit(features, y, weights)
    assert not_minimum(GradDot(model), features, y, sample_weight=weights) == []
    assert len(not_minimum(GradDot(model), features, y)) == 1
    some = slice(250)
    assert len(not_minimum(GradDot(model), features[some], y[some], sample_weight=weights[some]))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_solver_that_stopped_early_is_said():
    X, y = load_breast_cancer(return_X_y=True)
    with pytest.warns(UserWarning, match="its solver stopped early"):
        ExactInfluence(LogisticRegression(max_iter=100).fit(X, y)).fit(X, y)
