"""Jackknife+ and CV+ intervals: scikit-learn's checks, refits by a plain loop, coverage, bad inputs."""

from __future__ import annotations

from math import ceil

import numpy as np
import pandas as pd
import pytest
from joblib import parallel_config
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.datasets import make_friedman1, make_regression
from sklearn.ensemble import (
    GradientBoostingRegressor,
    HistGradientBoostingRegressor,
    RandomForestRegressor,
)
from sklearn.feature_selection import SelectKBest, f_regression
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import KFold, ShuffleSplit
from sklearn.model_selection import LeaveOneOut as EachRowOut
from sklearn.neighbors import KNeighborsRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler, TargetEncoder
from sklearn.utils.estimator_checks import parametrize_with_checks

from fimoda import (
    CVPlusRegressor,
    Downsampling,
    ExactInfluence,
    GradCos,
    JackknifePlusRegressor,
    LeafInfluence,
    LeafKernel,
    LeaveOneOut,
)
from fimoda.selection._intervals import quantile

ALL = [JackknifePlusRegressor(), CVPlusRegressor(cv=3, random_state=0)]


@parametrize_with_checks(ALL)
def test_sklearn(estimator, check):
    check(estimator)


def rows(n=40):
    X, y = make_regression(n + 9, 4, noise=20.0, random_state=0)
    return X[:n], X[n:], y[:n], y[n:]


def by_refits(model, X, y, X_test):
    """Return the error of each row without it, and predictions (n_test, n) without each row."""
    errors, without = [], []
    for i in range(len(X)):
        rest = np.arange(len(X)) != i
        one = clone(model).fit(X[rest], y[rest])
        errors.append(abs(y[i] - one.predict(X[[i]])[0]))
        without.append(one.predict(X_test))
    return np.array(errors), np.array(without).T


def plus(errors, without, level):
    """Return the jackknife+ interval of each row by sorting."""
    n = len(errors)
    place = ceil((n + 1) * level - 1e-9)
    if place > n:
        return np.full((len(without), 2), [-np.inf, np.inf])
    lower = [np.sort(one - errors)[n - place] for one in without]
    upper = [np.sort(one + errors)[place - 1] for one in without]
    return np.array([lower, upper]).T


EXACT = [
    JackknifePlusRegressor(Ridge(2.0)),
    JackknifePlusRegressor(Ridge(2.0), attributor=LeaveOneOut(n_seeds=1)),
    CVPlusRegressor(Ridge(2.0), cv=EachRowOut()),
]


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("regressor", EXACT, ids=["influence", "leave-one-out", "folds of one"])
def test_exact_jackknife_plus(regressor, level):
    X, X_test, y, _ = rows()
    errors, without = by_refits(Ridge(2.0), X, y, X_test)
    model = clone(regressor).fit(X, y)
    # a Newton step is exact, but for the rounding of a model in float32
    np.testing.assert_allclose(model.residuals_, errors, rtol=1e-4, atol=1e-4)
    found = model.predict_interval(X_test, level)
    np.testing.assert_allclose(found, plus(errors, without, level), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(model.predict(X_test), Ridge(2.0).fit(X, y).predict(X_test))


@pytest.mark.parametrize("regressor", EXACT, ids=["influence", "leave-one-out", "folds of one"])
def test_exact_minmax(regressor):
    X, X_test, y, _ = rows()
    errors, without = by_refits(Ridge(2.0), X, y, X_test)
    largest = np.sort(errors)[ceil(0.8 * 41) - 1]
    expected = np.stack([without.min(1) - largest, without.max(1) + largest], 1)
    model = clone(regressor).set_params(method="minmax").fit(X, y)
    found = model.predict_interval(X_test, 0.8)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    narrow = clone(regressor).fit(X, y).predict_interval(X_test, 0.8)
    assert (found[:, 0] <= narrow[:, 0]).all()
    assert (narrow[:, 1] <= found[:, 1]).all()


def test_folds_by_hand():
    X, X_test, y, _ = rows()
    cv, model = KFold(4), KNeighborsRegressor(3)
    errors, without = np.zeros(40), np.zeros((9, 40))
    for train, held_out in cv.split(X):
        one = clone(model).fit(X[train], y[train])
        errors[held_out] = np.abs(y[held_out] - one.predict(X[held_out]))
        without[:, held_out] = one.predict(X_test)[:, None]
    found = CVPlusRegressor(model, cv=cv).fit(X, y)
    np.testing.assert_allclose(found.residuals_, errors)
    np.testing.assert_allclose(found.predict_interval(X_test, 0.8), plus(errors, without, 0.8))


@pytest.mark.parametrize("n", [9, 10, 19, 20])
def test_quantiles(n):
    values = np.random.default_rng(0).normal(size=(3, n))
    for level in (0.1, 0.5, 0.9, 0.95):
        place = ceil(round(level * (n + 1), 9))
        expected = np.inf if place > n else np.sort(values, 1)[:, place - 1]
        np.testing.assert_array_equal(quantile(values, level), np.broadcast_to(expected, 3))
    # 0.9 * 10 is a whole number, whatever its rounding
    assert np.isfinite(quantile(values, 0.9)).all()


def test_too_few_rows_for_the_level():
    X, X_test, y, _ = rows()
    model = JackknifePlusRegressor().fit(X[:8], y[:8])
    assert np.isinf(model.predict_interval(X_test, 0.9)).all()
    assert np.isfinite(model.predict_interval(X_test, 0.8)).all()


# ---- models ---------------------------------------------------------------------------------

MODELS = {
    "network": JackknifePlusRegressor(
        MLPRegressor(hidden_layer_sizes=(8,), alpha=0.1, max_iter=300, random_state=0)
    ),
    "boosting": JackknifePlusRegressor(GradientBoostingRegressor(n_estimators=30, random_state=0)),
    "forest": JackknifePlusRegressor(RandomForestRegressor(60, random_state=0)),
    "folds": CVPlusRegressor(RandomForestRegressor(20, random_state=0), cv=5, random_state=0),
}


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.parametrize("name", MODELS)
def test_coverage(name):
    """Most new targets are inside, and not by intervals as wide as the targets."""
    X, y = make_friedman1(400, noise=1.0, random_state=0)
    X, y = StandardScaler().fit_transform(X), (y - y.mean()) / y.std()
    model = clone(MODELS[name]).fit(X[:150], y[:150])
    lower, upper = model.predict_interval(X[150:], 0.9).T
    assert 0.8 < ((lower <= y[150:]) & (y[150:] <= upper)).mean() < 0.98
    assert np.median(upper - lower) < np.ptp(np.quantile(y, [0.05, 0.95]))


def test_approximated_scores_are_scaled_to_held_out_errors():
    X, y = make_friedman1(150, noise=1.0, random_state=0)
    forest, folds = RandomForestRegressor(30, random_state=0), KFold(4)
    bare = JackknifePlusRegressor(forest, cv=None).fit(X, y)
    known = CVPlusRegressor(forest, cv=folds).fit(X, y)
    scaled = JackknifePlusRegressor(forest, cv=folds).fit(X, y)
    assert bare.scale_ == 1
    assert bare.residuals_.mean() < 0.8 * known.residuals_.mean()
    np.testing.assert_allclose(scaled.residuals_.mean(), known.residuals_.mean(), rtol=1e-5)
    assert scaled.scale_ > 1
    own = LeafKernel(forest.fit(X, y), measurement="output").fit(X, y).self_influence()
    expected = np.abs(y - forest.predict(X) - scaled.scale_ * own)
    np.testing.assert_allclose(scaled.residuals_, expected, rtol=1e-6, atol=1e-8)
    assert JackknifePlusRegressor(attributor=LeaveOneOut(n_seeds=1)).fit(X, y).scale_ == 1


def test_predictions_behind_a_link():
    """A model of logarithms: scores are of its raw output, predictions are exponentials."""
    X, X_test, y, _ = rows()
    y = np.exp(y / 100)
    model = HistGradientBoostingRegressor(loss="poisson", max_iter=10, min_samples_leaf=5)
    found = JackknifePlusRegressor(model, cv=None).fit(X, y)
    influence = LeafInfluence(model.fit(X, y), measurement="output").fit(X, y)
    own = influence.self_influence()
    expected = np.abs(y - model.predict(X) * np.exp(own))
    np.testing.assert_allclose(found.residuals_, expected, rtol=1e-5)
    without = model.predict(X_test)[:, None] * np.exp(influence.transform(X_test))
    np.testing.assert_allclose(
        found.predict_interval(X_test, 0.8), plus(expected, without, 0.8), rtol=1e-5
    )


def test_frames_pipelines_and_categories():
    X, X_test, y, _ = rows()
    names = [f"f{i}" for i in range(4)]
    frame = pd.DataFrame(X, columns=names).assign(kind=np.where(X[:, 0] > 0, "a", "b"))
    test = pd.DataFrame(X_test, columns=names).assign(kind="a")
    encode = make_column_transformer((OneHotEncoder(), ["kind"]), remainder=StandardScaler())
    pipeline = make_pipeline(encode, Ridge())
    kept = JackknifePlusRegressor(pipeline).fit(frame, y).predict_interval(test)
    refitted = CVPlusRegressor(pipeline, cv=EachRowOut()).fit(frame, y).predict_interval(test)
    assert kept.shape == (9, 2)
    np.testing.assert_allclose(kept, refitted, rtol=0.2, atol=10)  # the scaler is not refitted


def test_steps_that_learn_are_no_refits():
    """Columns are chosen by the targets of all rows: rows without themselves are predicted far too well."""
    held, covered = [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        X, y = rng.normal(size=(260, 200)), rng.normal(size=260)
        model = make_pipeline(SelectKBest(f_regression, k=15), LinearRegression())
        found = JackknifePlusRegressor(model, random_state=0).fit(X[:60], y[:60])
        lower, upper = found.predict_interval(X[60:], confidence_level=0.9).T
        covered.append(np.mean((lower <= y[60:]) & (y[60:] <= upper)))
        held.append(found.scale_)
    assert min(held) > 1.5
    assert 0.84 < np.mean(covered) < 0.97
    plain = make_pipeline(FunctionTransformer(np.sinh), Ridge())
    assert JackknifePlusRegressor(plain).fit(X[:, :3], y).scale_ == 1.0


def test_steps_that_are_fitted_crosswise():
    rng = np.random.default_rng(0)
    X = rng.choice(list("abcdef"), (80, 2)).astype(object)
    y = rng.normal(size=80) + 3 * (X[:, 0] == "a")
    model = make_pipeline(TargetEncoder(target_type="continuous", random_state=0), Ridge())
    lower, upper = JackknifePlusRegressor(model, random_state=0).fit(X, y).predict_interval(X).T
    assert 0.8 < np.mean((lower <= y) & (y <= upper)) <= 1


def test_weights():
    X, X_test, y, _ = rows()
    weights = np.linspace(0.5, 2, len(y))
    both = [
        model.fit(X, y, weights).predict_interval(X_test)
        for model in (JackknifePlusRegressor(), CVPlusRegressor(cv=EachRowOut()))
    ]
    np.testing.assert_allclose(both[0], both[1], rtol=1e-3, atol=1e-2)


# ---- invariance -----------------------------------------------------------------------------


def test_blocks_and_workers(monkeypatch):
    X, X_test, y, _ = rows()
    whole = JackknifePlusRegressor().fit(X, y).predict_interval(X_test)
    monkeypatch.setattr("fimoda.selection._intervals._BLOCK", 80)
    parts = JackknifePlusRegressor().fit(X, y).predict_interval(X_test)
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    one = CVPlusRegressor(random_state=0).fit(X, y).predict_interval(X_test)
    with parallel_config("threading"):
        two = CVPlusRegressor(random_state=0, n_jobs=2).fit(X, y).predict_interval(X_test)
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("regressor", EXACT, ids=["influence", "leave-one-out", "folds of one"])
def test_unit(regressor):
    X, X_test, y, _ = rows()
    first = clone(regressor).fit(X, y).predict_interval(X_test)
    second = clone(regressor).fit(X, 100 * y + 7).predict_interval(X_test)
    np.testing.assert_allclose(second, 100 * first + 7, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("regressor", EXACT, ids=["influence", "leave-one-out", "folds of one"])
def test_order_of_rows(regressor):
    X, X_test, y, _ = rows()
    mixed = np.random.default_rng(0).permutation(len(y))
    first = clone(regressor).fit(X, y).predict_interval(X_test)
    second = clone(regressor).fit(X[mixed], y[mixed]).predict_interval(X_test)
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-4)


# ---- bad inputs -----------------------------------------------------------------------------

X, X_TEST, Y, _ = rows()


@pytest.mark.parametrize("cls", [JackknifePlusRegressor, CVPlusRegressor])
def test_no_classes_and_no_several_targets(cls):
    with pytest.raises(ValueError, match="estimator must be a regressor, got the classifier"):
        cls(LogisticRegression()).fit(X, Y > 0)
    with pytest.raises(ValueError, match="y must be one number a row"):
        cls(LinearRegression()).fit(X, np.stack([Y, Y], 1))
    with pytest.raises(ValueError, match="y must be one number a row"):
        cls().fit(X, np.where(Y > 0, "yes", "no"))


@pytest.mark.parametrize("level", [0, 1, -0.1, 90, np.nan, "0.9"])
def test_levels(level):
    model = JackknifePlusRegressor().fit(X, Y)
    with pytest.raises(ValueError, match="confidence_level must be in"):
        model.predict_interval(X_TEST, level)


def test_attributors_that_do_not_fit():
    with pytest.raises(ValueError, match="only rank"):
        JackknifePlusRegressor(attributor=GradCos()).fit(X, Y)
    with pytest.raises(ValueError, match="must score all 40 training rows"):
        JackknifePlusRegressor(attributor=LeaveOneOut(leave_out=[0, 1], n_seeds=1)).fit(X, Y)
    with pytest.raises(ValueError, match="CVPlusRegressor takes any"):
        JackknifePlusRegressor(KNeighborsRegressor()).fit(X, Y)
    sinh = TransformedTargetRegressor(Ridge(), func=np.arcsinh, inverse_func=np.sinh)
    with pytest.raises(ValueError, match="its targets are transformed"):
        JackknifePlusRegressor(sinh).fit(X, Y)
    assert CVPlusRegressor(sinh).fit(X, Y).predict_interval(X_TEST).shape == (9, 2)


def test_splits_that_are_no_partition():
    with pytest.raises(ValueError, match="hold out each of the 40 rows once"):
        CVPlusRegressor(cv=ShuffleSplit(3, test_size=0.4, random_state=0)).fit(X, Y)


def test_missing_numbers_and_other_columns():
    for cls in (JackknifePlusRegressor, CVPlusRegressor):
        with pytest.raises(ValueError, match="NaN"):
            cls().fit(np.where(X > 1, np.nan, X), Y)
        with pytest.raises(ValueError, match="features"):
            cls().fit(X, Y).predict_interval(X_TEST[:, :2])
        with pytest.raises(ValueError, match=r"at least 2 rows|minimum of"):
            cls().fit(X[:1], Y[:1])


def test_any_attributor_with_a_unit():
    """Methods of other kinds give intervals too, with scores of the output."""
    for method in (ExactInfluence(), Downsampling(n_subsets=30, n_seeds=1, random_state=0)):
        model = JackknifePlusRegressor(attributor=method).fit(X, Y)
        assert model.attributor_.measurement == "output"
        assert np.isfinite(model.predict_interval(X_TEST)).all()
