"""Whether a fit depends on its seeds."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import is_classifier
from sklearn.datasets import make_classification, make_regression
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier, SGDRegressor
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import KBinsDiscretizer, StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from fimoda.adapters import is_random

X, Y = make_classification(120, 6, random_state=0)
XR, YR = make_regression(120, 6, noise=1.0, random_state=0)

FITS = [
    (Ridge(), False),
    (Ridge(solver="sag", max_iter=5), True),
    (LogisticRegression(), False),
    (LogisticRegression(solver="saga", max_iter=20), True),
    (RandomForestClassifier(5), True),
    (RandomForestRegressor(5), True),
    (SGDClassifier("log_loss"), True),
    (SGDClassifier(), True),
    (SGDClassifier("log_loss", shuffle=False), False),
    (SGDRegressor(), True),
    (HistGradientBoostingClassifier(max_iter=5), False),
    (HistGradientBoostingClassifier(max_iter=5, early_stopping=True, n_iter_no_change=2), True),
    (GradientBoostingClassifier(n_estimators=5, max_depth=1), False),
    (GradientBoostingClassifier(n_estimators=5, subsample=0.5), True),
    (DecisionTreeClassifier(max_features=2), True),
    (DecisionTreeRegressor(splitter="random"), True),
    (SVC(), False),
    (MLPClassifier((4,), max_iter=3), True),
    (make_pipeline(StandardScaler(), LogisticRegression()), False),
    (make_pipeline(StandardScaler(), SGDClassifier("log_loss")), True),
    (make_pipeline(KBinsDiscretizer(subsample=50), Ridge()), True),
    (make_pipeline(StandardScaler(), Ridge()), False),
]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("estimator", "expected"), FITS, ids=repr)
def test_is_random(estimator, expected):
    rows, targets = (X, Y) if is_classifier(estimator) else (XR, YR)
    before = repr(estimator.get_params())
    assert is_random(estimator, rows, targets) is expected
    assert repr(estimator.get_params()) == before
    assert not hasattr(estimator, "n_features_in_")


def test_weights_are_passed_on():
    """With weight on the rows of one leaf alone there is nothing to tie."""
    tied = np.hstack([np.tile([[0], [1]], (30, 1))] * 4)
    noisy = np.random.default_rng(0).integers(0, 2, 60)
    forest = RandomForestClassifier(3, bootstrap=False, max_features=1)
    assert is_random(RandomForestClassifier(3), tied, noisy)
    assert not is_random(forest, tied, noisy, np.where(tied[:, 0], 1.0, 0.0) * (noisy == 1))


def test_a_grown_tree():
    """It predicts the rows that it was fitted on alike, whatever its seed is, and others not."""
    rows = np.random.default_rng(0).integers(0, 2, (60, 40))
    labels = rows.sum(1) % 2
    fits = [DecisionTreeClassifier(random_state=s).fit(rows, labels) for s in (0, 1)]
    assert np.array_equal(*(tree.predict(rows) for tree in fits))
    assert is_random(DecisionTreeClassifier(), rows, labels)


def test_few_rows_of_a_class_are_all_kept():
    """A class that is set aside would be missing from the fit."""
    labels = np.array(["often"] * 40 + ["rare"] * 2)
    assert is_random(RandomForestClassifier(3), X[:42], labels)
    assert not is_random(LogisticRegression(), X[:42], labels)
