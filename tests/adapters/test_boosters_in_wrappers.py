"""Estimators of XGBoost and LightGBM in other estimators, copied, and the boosters inside them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from boosting_by_hand import problem
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fimoda import BoostIn, GradDot, LeafInfluence, LeafRefit, LeaveOneOut


def classifier(library):
    module = pytest.importorskip(library)
    if library == "xgboost":
        return module.XGBClassifier(n_estimators=4, max_depth=2, n_jobs=1)
    return module.LGBMClassifier(n_estimators=4, max_depth=2, min_child_samples=4, verbosity=-1)


def booster(model):
    return model.booster_ if hasattr(model, "booster_") else model.get_booster()


def rows():
    X, y, _ = problem("binary")
    return np.nan_to_num(X), y.astype(int)


def scores(model, X, y, method=LeafRefit):
    return method(model).fit(X, y).transform(X[:3], y[:3])


libraries = pytest.mark.parametrize("library", ["xgboost", "lightgbm"])


@libraries
@pytest.mark.parametrize("method", [LeafRefit, LeafInfluence, BoostIn])
def test_wrappers_are_looked_through(library, method):
    X, y = rows()
    piped = make_pipeline(StandardScaler(), classifier(library)).fit(X, y)
    expected = scores(piped[-1], piped[0].transform(X), y, method)
    np.testing.assert_array_equal(scores(piped, X, y, method), expected)
    search = GridSearchCV(classifier(library), {"max_depth": [1, 2]}, cv=2).fit(X, y)
    expected = scores(search.best_estimator_, X, y, method)
    for model in (search, FrozenEstimator(search.best_estimator_)):
        np.testing.assert_array_equal(scores(model, X, y, method), expected)


@libraries
def test_boosters_and_copies_have_the_same_scores(library):
    X, y = rows()
    unfitted = classifier(library)
    fitted = LeafRefit(unfitted).fit(X, y)
    assert fitted.estimator_ is not unfitted
    expected = fitted.transform(X[:3], y[:3])
    for model in (fitted.estimator_, booster(fitted.estimator_)):
        method = LeafRefit(model).fit(X, y)
        assert clone(method).estimator is model
        for one in (method, pickle.loads(pickle.dumps(method))):
            np.testing.assert_array_equal(one.transform(X[:3], y[:3]), expected)


@libraries
def test_boosters_are_for_methods_of_trees(library):
    X, y = rows()
    model = booster(classifier(library).fit(X, y))
    for method in (LeaveOneOut(model), GradDot(model)):
        with pytest.raises(TypeError, match=f"bare Booster of {library}"):
            method.fit(X, y)
    for labels in (["a", "b"], np.array(["a", "b"], dtype=object), [1, 2]):
        with pytest.raises(ValueError, match="labels that the model was not trained on"):
            LeafRefit(model).fit(X, np.array(labels)[y])


@libraries
def test_leave_one_out_fits_again(library):
    X, y = rows()
    found = LeaveOneOut(classifier(library)).fit(X[:12], y[:12]).transform(X[:2], y[:2])
    assert found.shape == (2, 12)
    assert np.isfinite(found).all()
