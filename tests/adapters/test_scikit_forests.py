"""Forests, single trees and bags of trees of scikit-learn as frozen views."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import make_classification, make_regression
from sklearn.ensemble import (
    BaggingClassifier,
    BaggingRegressor,
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import Ridge
from sklearn.tree import (
    DecisionTreeClassifier,
    DecisionTreeRegressor,
    ExtraTreeClassifier,
    ExtraTreeRegressor,
)

from fimoda import AXIL, LeafKernel, LeaveOneOut
from fimoda.adapters import as_refittable, as_tree_model
from fimoda.rows import RawRows, Rows

N = 60


def classes(n_classes=3):
    return make_classification(
        N, 5, n_informative=4, n_redundant=0, n_classes=n_classes, random_state=0
    )


def numbers(n_targets=1):
    X, y = make_regression(N, 5, n_targets=n_targets, noise=20, random_state=0)
    return X, y - y.min() + 1


def few(cls, **params):
    return cls(n_estimators=5, random_state=0, **params)


CLASSIFIERS = {
    "forest": few(RandomForestClassifier),
    "shallow": few(RandomForestClassifier, max_depth=2, criterion="entropy"),
    "subsample": few(RandomForestClassifier, max_depth=3, class_weight="balanced_subsample"),
    "balanced": few(RandomForestClassifier, max_depth=3, class_weight="balanced", max_samples=0.5),
    "extra": few(ExtraTreesClassifier, max_depth=3, class_weight="balanced", criterion="log_loss"),
    "extra, subsample": few(ExtraTreesClassifier, max_depth=3, class_weight="balanced_subsample"),
    "tree": DecisionTreeClassifier(max_depth=2, class_weight={0: 1, 1: 3, 2: 2}),
    "one extra": ExtraTreeClassifier(max_depth=2, random_state=0),
    "bags": few(BaggingClassifier),
    "some features": few(
        BaggingClassifier,
        estimator=DecisionTreeClassifier(max_depth=2, class_weight="balanced"),
        max_features=0.6,
        bootstrap=False,
        max_samples=0.5,
    ),
}
REGRESSORS = {
    "forest": few(RandomForestRegressor),
    "poisson": few(RandomForestRegressor, max_depth=3, criterion="poisson"),
    "constrained": few(RandomForestRegressor, max_depth=3, monotonic_cst=[1, 0, 0, -1, 0]),
    "drawn": few(RandomForestRegressor, max_samples=20),
    "extra": few(ExtraTreesRegressor, bootstrap=True),
    "tree": DecisionTreeRegressor(max_depth=3),
    "pruned": DecisionTreeRegressor(ccp_alpha=200),
    "one extra": ExtraTreeRegressor(max_leaf_nodes=5, random_state=0),
    "bags": few(BaggingRegressor, bootstrap_features=True),
}


def view_of(model, X, y, weights=None):
    """The frozen view of a fitted model, and its training rows in their leaves."""
    view = as_tree_model(model, X, y, weights)
    targets = view.encode_y(y, view.ensemble.n_outputs)
    return view, view.forest_rows(Rows(RawRows(X), targets))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_probabilities_and_leaves_of_classifiers(name, weighted):
    X, y = classes()
    weights = np.random.default_rng(0).uniform(0.5, 2, N) if weighted else None
    model = CLASSIFIERS[name].fit(X, y, sample_weight=weights)
    view, _ = view_of(model, X, y, weights)
    outputs = view.outputs(RawRows(X + 0.1)).numpy()
    assert_allclose(outputs, model.predict_proba(X + 0.1), atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", REGRESSORS)
def test_predictions_and_leaves_of_regressors(name, weighted):
    X, y = numbers()
    weights = np.random.default_rng(0).uniform(0.5, 2, N) if weighted else None
    model = REGRESSORS[name].fit(X, y, sample_weight=weights)
    view, rows = view_of(model, X, y, weights)
    outputs = view.outputs(RawRows(X + 0.1)).numpy()
    assert_allclose(outputs[:, 0], model.predict(X + 0.1), rtol=1e-6)
    if name != "constrained":
        for t, tree in enumerate(view.ensemble.trees):
            weight, total, _ = rows._means(t)
            assert_allclose(total, weight[:, None] * tree.values * len(view.ensemble.trees))


@pytest.mark.parametrize(
    "model",
    [
        few(RandomForestRegressor, max_depth=3),
        few(BaggingRegressor),
        DecisionTreeRegressor(max_depth=3),
    ],
)
def test_several_outputs(model):
    X, y = numbers(2)
    view, _ = view_of(model.fit(X, y), X, y)
    assert_allclose(view.outputs(RawRows(X)), model.predict(X), rtol=1e-6)
    assert LeafKernel(model).fit(X, y).transform(X[:3], y[:3]).shape == (3, N)


@pytest.mark.parametrize("cls", [RandomForestRegressor, ExtraTreesRegressor, BaggingRegressor])
def test_missing_values(cls):
    X, y = numbers()
    X[np.random.default_rng(1).uniform(size=X.shape) < 0.2] = np.nan
    model = few(cls).fit(X, y)
    view, _ = view_of(model, X, y)
    assert_allclose(view.outputs(RawRows(X))[:, 0], model.predict(X), rtol=1e-6)


def test_bags_count_draws():
    X, y = numbers()
    model = few(RandomForestRegressor, max_samples=30).fit(X, y)
    bags = as_tree_model(model, X, y).ensemble.bags
    assert_array_equal(bags.sum(1), 30)
    for bag, drawn in zip(bags, model.estimators_samples_, strict=True):
        assert_array_equal(np.flatnonzero(bag), np.unique(drawn))
    assert (as_tree_model(few(ExtraTreesRegressor).fit(X, y), X, y).ensemble.bags == 1).all()


def test_bags_have_the_weights_of_their_classes():
    X, y = classes()
    model = few(RandomForestClassifier, class_weight="balanced_subsample").fit(X, y)
    for bag in as_tree_model(model, X, y).ensemble.bags:
        assert_allclose([bag[y == c].sum() for c in range(3)], bag.sum() / 3)


@pytest.mark.parametrize("depth", [1, None])
def test_the_loss_is_that_of_refitting(depth):
    X, y = classes(2)
    model = few(RandomForestClassifier, max_depth=depth).fit(X, y)
    view, refittable = as_tree_model(model, X, y), as_refittable(model, RawRows(X), y)
    targets = view.encode_y(y, 2)
    outputs = view.outputs(RawRows(X))
    assert_allclose(view.loss(outputs, targets), refittable.loss(outputs, targets), rtol=1e-12)
    assert (view.loss.n_rows is None) == (depth == 1)
    measured = LeaveOneOut(model, n_seeds=1, leave_out=[0], random_state=0).fit(X, y)
    assert np.isfinite(measured.transform(X[:2], y[:2])).all()


def test_a_class_that_is_missing_in_a_bag():
    X, y = classes(2)
    y = np.array(["a", "b", "rare"])[y]
    y[:2] = "rare"
    with sklearn.config_context(enable_metadata_routing=True):  # bags are rows, not weights
        model = few(BaggingClassifier, max_samples=15).fit(X, y)
        assert min(len(tree.classes_) for tree in model.estimators_) == 2
        view, _ = view_of(model, X, y)
        assert_allclose(view.outputs(RawRows(X)), model.predict_proba(X), atol=1e-12)


# ---- what is refused ------------------------------------------------------------------------


def test_several_labels_are_refused():
    X, y = classes(2)
    model = few(RandomForestClassifier).fit(X, np.stack([y, 1 - y], 1))
    with pytest.raises(TypeError, match=r"classifier of one label a row, got 2 labels"):
        as_tree_model(model, X, np.stack([y, 1 - y], 1))


def test_medians_have_a_view_and_no_removal():
    X, y = numbers()
    model = few(RandomForestRegressor, criterion="absolute_error", max_depth=3).fit(X, y)
    outputs = as_tree_model(model, X, y).outputs(RawRows(X))
    assert_allclose(outputs[:, 0], model.predict(X), rtol=1e-6)
    for method in (LeafKernel, AXIL):
        with pytest.raises(TypeError, match=r"leaves that are means.*absolute_error"):
            method(model).fit(X, y)


def test_bags_of_other_models_are_refused():
    X, y = numbers()
    model = few(BaggingRegressor, estimator=Ridge()).fit(X, y)
    with pytest.raises(TypeError, match="estimator must be fitted trees"):
        LeafKernel(model).fit(X, y)


def test_other_rows_are_refused():
    X, y = numbers()
    model = few(RandomForestRegressor).fit(X, y)
    with pytest.raises(ValueError, match=r"in the order of its fit.*its leaves would hold others"):
        LeafKernel(model).fit(X[::-1], y[::-1])
    with pytest.raises(ValueError, match=r"in the order of its fit.*would differ by \d+%"):
        LeafKernel(model).fit(X, y[::-1])
    with pytest.raises(ValueError, match=r"X must have the 60 rows .* got 59 rows"):
        LeafKernel(model).fit(X[1:], y[1:])
    tree = DecisionTreeRegressor(max_depth=3).fit(X, y)
    with pytest.raises(ValueError, match="must be the rows that the model was trained on"):
        LeafKernel(tree).fit(X, y, sample_weight=np.linspace(0.1, 5, N))


def test_unknown_bags_are_refused():
    X, y = numbers()
    model = few(BaggingRegressor, warm_start=True).fit(X, y).set_params(n_estimators=8).fit(X, y)
    with pytest.raises(ValueError, match=r"tells 3 of 8\. Fit all trees at once"):
        LeafKernel(model).fit(X, y)


def test_a_view_can_be_pickled():
    X, y = numbers()
    view = as_tree_model(few(BaggingRegressor).fit(X, y), X, y)
    again = pickle.loads(pickle.dumps(view))
    assert_array_equal(again.outputs(RawRows(X)), view.outputs(RawRows(X)))
