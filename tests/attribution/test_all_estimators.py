"""`attribute` on every classifier and regressor of scikit-learn, against refitting by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from sklearn.base import clone, is_classifier
from sklearn.datasets import make_classification, make_regression
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.utils import all_estimators

from fimoda import attribute

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:sklearn"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:sklearn"),
    pytest.mark.filterwarnings("ignore::FutureWarning:sklearn"),
]

N_TRAIN, N_TEST, N_BY_HAND = 100, 6, 10

#: The cheapest settings of what needs some, or takes long without.
SETTINGS: dict[str, dict[str, Any]] = {
    "AdaBoostClassifier": {"n_estimators": 2},
    "AdaBoostRegressor": {"n_estimators": 2},
    "BaggingClassifier": {"n_estimators": 2},
    "BaggingRegressor": {"n_estimators": 2},
    "CalibratedClassifierCV": {"estimator": LogisticRegression(), "cv": 2},
    "CategoricalNB": {"min_categories": 5},
    "ClassifierChain": {"estimator": LogisticRegression()},
    "ElasticNetCV": {"alphas": 3, "cv": 2},
    "ExtraTreesClassifier": {"n_estimators": 2},
    "ExtraTreesRegressor": {"n_estimators": 2},
    "FixedThresholdClassifier": {"estimator": LogisticRegression()},
    "GaussianProcessClassifier": {"optimizer": None},
    "GaussianProcessRegressor": {"optimizer": None, "alpha": 1.0},
    "GradientBoostingClassifier": {"n_estimators": 2},
    "GradientBoostingRegressor": {"n_estimators": 2},
    "HistGradientBoostingClassifier": {"max_iter": 3},
    "HistGradientBoostingRegressor": {"max_iter": 3},
    "LarsCV": {"cv": 2},
    "LassoCV": {"alphas": 3, "cv": 2},
    "LassoLarsCV": {"cv": 2},
    "LinearSVC": {"tol": 1e-8, "max_iter": 100_000},
    "LinearSVR": {"tol": 1e-8, "max_iter": 100_000, "C": 0.01},
    "LogisticRegressionCV": {"Cs": 2, "cv": 2},
    "MLPClassifier": {"hidden_layer_sizes": (4,), "max_iter": 20},
    "MLPRegressor": {"hidden_layer_sizes": (4,), "max_iter": 20},
    "MultiOutputClassifier": {"estimator": LogisticRegression()},
    "MultiOutputRegressor": {"estimator": Ridge()},
    "MultiTaskElasticNetCV": {"alphas": 3, "cv": 2},
    "MultiTaskLassoCV": {"alphas": 3, "cv": 2},
    "NuSVR": {"tol": 1e-8},
    "OneVsOneClassifier": {"estimator": LogisticRegression()},
    "OneVsRestClassifier": {"estimator": LogisticRegression()},
    "OrthogonalMatchingPursuitCV": {"cv": 2},
    "OutputCodeClassifier": {"estimator": LogisticRegression()},
    "RadiusNeighborsClassifier": {"radius": 3.0, "outlier_label": "most_frequent"},
    "RadiusNeighborsRegressor": {"radius": 10.0},
    "RandomForestClassifier": {"n_estimators": 2},
    "RandomForestRegressor": {"n_estimators": 2},
    "RANSACRegressor": {"max_trials": 5},
    "RegressorChain": {"estimator": Ridge()},
    "SelfTrainingClassifier": {"estimator": LogisticRegression()},
    "StackingClassifier": {
        "estimators": [("a", LogisticRegression()), ("b", LogisticRegression(C=0.1))],
        "cv": 2,
    },
    "StackingRegressor": {"estimators": [("a", Ridge()), ("b", Ridge(10.0))], "cv": 2},
    "SVC": {"tol": 1e-8},
    "NuSVC": {"tol": 1e-8},
    "SVR": {"tol": 1e-8},
    "TheilSenRegressor": {"max_subpopulation": 50},
    "TunedThresholdClassifierCV": {"estimator": LogisticRegression(), "cv": 2, "thresholds": 3},
    "VotingClassifier": {"estimators": [("a", LogisticRegression()), ("b", LogisticRegression())]},
    "VotingRegressor": {"estimators": [("a", Ridge()), ("b", Ridge(10.0))]},
}

#: Estimators that `attribute` refuses, and the sentence.
REFUSED = {
    "ClassifierChain": "one label a row",
    "MultiOutputClassifier": "one label a row",
}

#: Estimators whose scores are not those of refitting, and why.
OF_ANOTHER_PROCESS = {
    "MLPClassifier": "a network: its scores are of further training",
    "MLPRegressor": "a network: its scores are of further training",
}

#: Trees: their scores hold the splits.
TREES = {
    "GradientBoostingClassifier", "GradientBoostingRegressor", "HistGradientBoostingClassifier",
    "HistGradientBoostingRegressor",
    "BaggingClassifier", "BaggingRegressor", "DecisionTreeClassifier", "DecisionTreeRegressor",
    "ExtraTreeClassifier", "ExtraTreeRegressor", "ExtraTreesClassifier", "ExtraTreesRegressor",
    "RandomForestClassifier", "RandomForestRegressor",
}  # fmt: skip

SEVERAL_OUTPUTS = {
    "CCA", "MultiOutputRegressor", "MultiTaskElasticNet", "MultiTaskElasticNetCV", "MultiTaskLasso",
    "MultiTaskLassoCV", "PLSCanonical", "RegressorChain",
}  # fmt: skip

ESTIMATORS = dict(all_estimators(type_filter=["classifier", "regressor"]))


def rows_for(name: str, estimator: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows that the estimator takes."""
    n = N_TRAIN + N_TEST
    if name in REFUSED:
        X, y = make_classification(n, n_features=4, random_state=0)
        return X, np.c_[y, X[:, 0] > 0].astype(int)
    if is_classifier(estimator):
        X, y = make_classification(
            n,
            n_features=5,
            n_informative=3,
            n_redundant=0,
            flip_y=0.15,
            class_sep=0.7,
            random_state=1,
        )
        if name in ("ComplementNB", "MultinomialNB"):
            X = X - X.min(0)
        if name == "CategoricalNB":
            X = np.digitize(X, [-1, -0.3, 0.3, 1])
        return X, y
    n_targets = 2 if name in SEVERAL_OUTPUTS else 1
    X, y = make_regression(
        n, n_features=4, n_informative=4, n_targets=n_targets, noise=20.0, random_state=1
    )
    y = y / y.std()
    if name == "IsotonicRegression":
        X = X[:, :1]
    if name in ("GammaRegressor", "PoissonRegressor"):
        y = np.exp(y / 2)
    return X, y


def losses(fitted: Any, like: Any, X: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
    """Loss of each test row: that of the estimator if it has one, else what the docs promise."""
    if not is_classifier(fitted):
        wrong = np.asarray(fitted.predict(X), dtype=float).reshape(len(y), -1) - y.reshape(
            len(y), -1
        )
        half = 0.5 if type(fitted).__name__ == "SGDRegressor" else 1.0
        return half * (wrong**2).sum(1)
    if not hasattr(fitted, "predict_proba") and hasattr(fitted, "decision_function"):
        f = fitted.decision_function(X)
        codes = np.searchsorted(fitted.classes_, y)
        if f.ndim == 1:
            return np.maximum(0, 1 - (2 * codes - 1) * f)
        return np.maximum(0, 1 + (1 - 2 * np.eye(f.shape[1])[codes]) * f).sum(1)
    if not hasattr(fitted, "predict_proba"):
        return (fitted.predict(X) != y).astype(float)
    p = fitted.predict_proba(X)[np.arange(len(y)), np.searchsorted(fitted.classes_, y)]
    if (like == 0).any():  # the probabilities are counts
        p = (N_TRAIN * p + 1 / len(fitted.classes_)) / (N_TRAIN + 1)
    return -np.log(p + np.finfo(float).eps)


def refitted(estimator: Any, seed: int, X: NDArray[Any], y: NDArray[Any]) -> Any:
    """A clone with this seed, fitted."""
    fresh = clone(estimator)
    names = [n for n in fresh.get_params() if n.split("__")[-1] == "random_state"]
    return fresh.set_params(**dict.fromkeys(names, int(seed))).fit(X, y)


def by_hand(estimator, like, X, y, X_test, y_test, rows, seeds) -> NDArray[np.float64]:
    """Change of the losses without each of the rows, (n_test, n_rows, n_seeds)."""
    change = np.empty((len(X_test), len(rows), len(seeds)))
    for s, seed in enumerate(seeds):
        whole = losses(refitted(estimator, seed, X, y), like, X_test, y_test)
        for k, row in enumerate(rows):
            some = np.delete(np.arange(len(X)), row)
            without = losses(refitted(estimator, seed, X[some], y[some]), like, X_test, y_test)
            change[:, k, s] = without - whole
    return change


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_attribute_agrees_with_refitting_by_hand(name):
    estimator = ESTIMATORS[name](**SETTINGS.get(name, {}))
    if "random_state" in estimator.get_params():
        estimator.set_params(random_state=0)
    X, y = rows_for(name, estimator)
    X, X_test, y, y_test = X[:N_TRAIN], X[N_TRAIN:], y[:N_TRAIN], y[N_TRAIN:]
    estimator.fit(X, y)
    if name in REFUSED:
        with pytest.raises((TypeError, ValueError), match=REFUSED[name]):
            attribute(estimator, X, y, X_test, y_test)
        return
    found = attribute(estimator, X, y, X_test, y_test, budget=600, random_state=0)
    assert found.scores.shape == (N_TEST, N_TRAIN)
    assert np.isfinite(found.scores).all()
    if name in OF_ANOTHER_PROCESS:
        assert "further training" in found.process
        assert "exact" not in found.trust
        return
    if name in TREES:
        assert "with the splits of the trees held" in found.process
        assert "splits of the trees do not move" in found.trust
        return
    assert "training anew" in found.process
    rows = np.linspace(0, N_TRAIN - 1, N_BY_HAND).astype(int)
    like = estimator.predict_proba(X) if hasattr(estimator, "predict_proba") else np.ones(1)
    problem = (estimator, like, X, y, X_test, y_test, rows)
    seeds = found.attributor.seeds_
    scores = found.scores[:, rows]
    expected = by_hand(*problem, seeds).mean(-1)
    # the same seeds: the same numbers
    if np.abs(expected).max() == 0:  # no prediction changes its class
        assert np.abs(scores).max() == 0
        return
    slope = (scores * expected).sum() / (expected**2).sum()
    assert slope == pytest.approx(1, abs=0.01)
    assert np.corrcoef(scores.ravel(), expected.ravel())[0, 1] > 0.999
    if len(seeds) == 1:
        assert found.errors is None
        return
    # other seeds: as far off as the standard errors say
    assert found.errors is not None
    other = by_hand(*problem, range(len(seeds)))
    error = np.hypot(found.errors[:, rows], other.std(-1, ddof=1) / np.sqrt(len(seeds)))
    moved = error > 0
    assert_allclose(scores[~moved], other.mean(-1)[~moved], atol=1e-12)
    if moved.any():
        far = ((scores - other.mean(-1))[moved] / error[moved]) ** 2
        assert far.mean() < 4
