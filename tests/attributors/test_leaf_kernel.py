"""LeafKernel against leaves whose means are taken again without each row, node by node."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import binom
from sklearn.datasets import make_classification, make_regression
from sklearn.ensemble import (
    BaggingRegressor,
    ExtraTreesRegressor,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeRegressor
from sklearn.utils._param_validation import InvalidParameterError

from fimoda import LeafKernel
from fimoda.measurements import Output

N = 40
TEST = slice(0, 6)


def regression(n_targets=1):
    return make_regression(N, 4, n_targets=n_targets, noise=30, random_state=0)


def classification():
    return make_classification(N, 4, n_informative=3, n_redundant=0, n_classes=3, random_state=1)


def without_each_row(trees, bags, X, targets, Z):
    """Outputs (m, n, C) of the mean of the trees without each training row, and (m, C) with all."""
    found = np.zeros((len(Z), len(X), targets.shape[1]))
    full = np.zeros((len(Z), targets.shape[1]))
    for tree, bag in zip(trees, bags, strict=True):
        inside = tree.decision_path(X).toarray().astype(bool)
        for z, path in enumerate(tree.decision_path(Z).toarray().astype(bool)):
            nodes = np.flatnonzero(path)  # from the root to the leaf
            held = inside[:, nodes[-1]] & (bag > 0)
            mean = np.average(targets[held], axis=0, weights=bag[held])
            full[z] += mean / len(trees)
            for i in range(len(X)):
                rest = bag * (np.arange(len(X)) != i)
                value = mean
                for node in nodes[::-1] if held[i] else []:
                    rows = inside[:, node] & (rest > 0)
                    if rows.any():
                        value = np.average(targets[rows], axis=0, weights=rest[rows])
                        break
                found[z, i] += value / len(trees)
    return found, full


def bags_of(model, n):
    return [np.bincount(rows, minlength=n) for rows in model.estimators_samples_]


def with_new_draws(trees, X, targets, units, chance, Z):
    """Changes (m, n, C): the mean, over how often a row may be drawn, of what a tree loses with it."""
    found = np.zeros((len(Z), len(X), targets.shape[1]))
    for tree, bag, unit in zip(trees.estimators_, bags_of(trees, len(X)), units, strict=True):
        inside = tree.decision_path(X).toarray().astype(bool)
        for z, path in enumerate(tree.decision_path(Z).toarray().astype(bool)):
            nodes = np.flatnonzero(path)
            for i in np.flatnonzero(inside[:, nodes[-1]]):
                rest = bag * unit * (np.arange(len(X)) != i)
                in_leaf = inside[:, nodes[-1]] & (rest > 0)
                node = next((n for n in nodes[::-1] if rest[inside[:, n]].any()), None)
                if node is None:
                    continue
                value = np.average(targets[inside[:, node]], axis=0, weights=rest[inside[:, node]])
                for times, p in enumerate(chance):
                    weights = np.append(rest[in_leaf], times * unit[i])
                    if times and weights.sum():
                        rows = np.append(np.flatnonzero(in_leaf), i)
                        with_it = np.average(targets[rows], axis=0, weights=weights)
                        found[z, i] += p * (value - with_it) / len(trees.estimators_)
    return found


def squared(outputs, targets):
    return ((outputs - targets) ** 2).sum(-1)


@pytest.mark.parametrize("n_targets", [1, 2])
@pytest.mark.parametrize("depth", [2, 4, None])
def test_regression_by_hand(depth, n_targets):
    X, y = regression(n_targets)
    model = RandomForestRegressor(6, max_depth=depth, random_state=0).fit(X, y)
    targets = y.reshape(N, -1)
    Z, z = X[TEST] + 0.2, targets[TEST]
    found, full = without_each_row(model.estimators_, bags_of(model, N), X, targets, Z)
    expected = squared(found, z[:, None]) - squared(full, z)[:, None]
    scores = LeafKernel(model, bags="held").fit(X, y).transform(Z, y[TEST])
    assert_allclose(scores, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
    assert np.abs(expected).max() > 0


@pytest.mark.parametrize("depth", [2, None])
@pytest.mark.parametrize("weighting", [None, "balanced_subsample"])
def test_classification_by_hand(depth, weighting):
    X, y = classification()
    model = RandomForestClassifier(
        6, max_depth=depth, class_weight=weighting, random_state=0, min_samples_leaf=2
    ).fit(X, y)
    bags = [bag.astype(float) for bag in bags_of(model, N)]
    if weighting:
        for bag in bags:
            counts = np.bincount(y, bag, 3)
            bag *= (bag.sum() / (3 * counts))[y]
    Z = X[TEST] + 0.2
    found, full = without_each_row(model.estimators_, bags, X, np.eye(3)[y], Z)
    at = np.arange(6), y[TEST]
    attributor = LeafKernel(model, bags="held", measurement="output").fit(X, y)
    expected = found[at[0], :, at[1]] - full[at][:, None]
    assert_allclose(attributor.transform(Z, y[TEST]), expected, atol=1e-12)
    smooth = np.log((N * found[at[0], :, at[1]] + 1 / 3) / (N + 1))
    smooth -= np.log((N * full[at] + 1 / 3) / (N + 1))[:, None]
    attributor = LeafKernel(model, bags="held").fit(X, y)
    if attributor.model_.loss.n_rows is not None:
        assert_allclose(attributor.transform(Z, y[TEST]), -smooth, atol=1e-10)
    assert attributor.model_.loss.n_rows is not None or depth == 2


@pytest.mark.parametrize("bags", ["held", "redrawn"])
@pytest.mark.parametrize("depth", [3, None])
def test_another_target_by_hand(depth, bags):
    """Leaves' means with it, row by row; over what may be drawn, as often as a row may be."""
    X, y = regression()
    weights = np.random.default_rng(0).uniform(0.5, 2, N)
    model = RandomForestRegressor(5, max_depth=depth, random_state=0).fit(X, y)
    Z, rows, targets = X[TEST] + 0.2, [4, 11, 20], [100.0, -50.0, y[20]]
    chance = binom.pmf(np.arange(30), N, 1 / N)
    expected = np.zeros((len(Z), 3))
    for tree, bag in zip(model.estimators_, bags_of(model, N), strict=True):
        at, there = tree.apply(X), tree.apply(Z)
        for k, (row, target) in enumerate(zip(rows, targets, strict=True)):
            draws = {int(bag[row]): 1.0} if bags == "held" else dict(enumerate(chance))
            for times, p in draws.items():
                drawn = np.where(np.arange(N) == row, times, bag) * (at == at[row])
                if times:
                    means = [
                        np.average(np.where(np.arange(N) == row, one, y), weights=drawn)
                        for one in (y[row], target)
                    ]
                    expected[:, k] += p * (there == at[row]) * (means[1] - means[0]) / 5
    kernel = LeafKernel(model, bags=bags, measurement="output").fit(X, y)
    assert_allclose(kernel.relabel(Z, rows=rows, targets=targets), expected, atol=1e-9)
    assert np.abs(expected[:, 0]).max() > 0
    tree = DecisionTreeRegressor(max_depth=3).fit(X, y, sample_weight=weights)
    found = LeafKernel(tree, bags=bags, measurement="output").fit(X, y, sample_weight=weights)
    other = np.where(np.arange(N) == 4, 100.0, y)
    _, before = without_each_row([tree], [weights], X, y[:, None], Z)
    _, after = without_each_row([tree], [weights], X, other[:, None], Z)
    effect = found.relabel(Z, rows=[4], targets=[100.0])
    assert_allclose(effect, after - before, atol=1e-9)


def test_another_class_by_hand():
    X, y = classification()
    model = RandomForestClassifier(6, max_depth=3, random_state=0).fit(X, y)
    kernel = LeafKernel(model, bags="held", measurement="output").fit(X, y)
    row, label = 7, (y[7] + 1) % 3
    other = np.where(np.arange(N) == row, label, y)
    outputs = [
        without_each_row(model.estimators_, bags_of(model, N), X, np.eye(3)[t], X[TEST])[1]
        for t in (y, other)
    ]
    moved = (outputs[1] - outputs[0])[np.arange(6), y[TEST]]
    found = kernel.relabel(X[TEST], y[TEST], rows=[row], targets=[label])[:, 0]
    assert_allclose(found, moved, atol=1e-12)
    weighted = RandomForestClassifier(3, class_weight="balanced_subsample").fit(X, y)
    with pytest.raises(TypeError, match="LeafKernel must have a forest without class_weight"):
        LeafKernel(weighted).fit(X, y).relabel(X[TEST], rows=[row], targets=[label])


def test_weights_and_a_single_tree_by_hand():
    X, y = regression()
    weights = np.random.default_rng(0).uniform(0.5, 2, N)
    model = DecisionTreeRegressor(max_depth=3).fit(X, y, sample_weight=weights)
    Z = X[TEST] + 0.2
    found, full = without_each_row([model], [weights], X, y[:, None], Z)
    scores = LeafKernel(model, bags="held", measurement="output").fit(X, y, sample_weight=weights)
    assert_allclose(scores.transform(Z), found[..., 0] - full, atol=1e-9)


def test_bags_with_features_by_hand():
    X, y = regression()
    model = BaggingRegressor(n_estimators=1, max_features=0.5, max_samples=0.7, random_state=0)
    model.fit(X, y)
    seen = X[:, model.estimators_features_[0]]
    found, full = without_each_row(
        model.estimators_, bags_of(model, N), seen, y[:, None], seen[TEST]
    )
    scores = LeafKernel(model, bags="held", measurement="output").fit(X, y).transform(X[TEST])
    assert_allclose(scores, found[..., 0] - full, atol=1e-9)


@pytest.mark.parametrize("depth", [3, None])
@pytest.mark.parametrize("most", [None, 0.4])
def test_new_draws_by_hand(depth, most):
    X, y = regression()
    model = RandomForestRegressor(4, max_depth=depth, max_samples=most, random_state=0).fit(X, y)
    size = N if most is None else 16
    chance = binom.pmf(np.arange(13), size, 1 / N)
    units = np.ones((4, N))
    expected = with_new_draws(model, X, y[:, None], units, chance, X[TEST] + 0.2)[..., 0]
    scores = LeafKernel(model, measurement="output").fit(X, y).transform(X[TEST] + 0.2)
    assert_allclose(scores, expected, atol=1e-8 * np.abs(expected).max())


def test_new_draws_of_weighted_classes_by_hand():
    X, y = classification()
    model = RandomForestClassifier(
        4, max_depth=3, class_weight="balanced_subsample", random_state=0
    ).fit(X, y)
    counts = [np.bincount(y, bag, 3) for bag in bags_of(model, N)]
    units = np.stack([(N / (3 * count))[y] for count in counts])
    chance = binom.pmf(np.arange(13), N, 1 / N)
    changes = with_new_draws(model, X, np.eye(3)[y], units, chance, X[TEST])
    scores = LeafKernel(model, measurement="output").fit(X, y).transform(X[TEST], y[TEST])
    assert_allclose(scores, changes[np.arange(6), :, y[TEST]], atol=1e-9)


def test_new_draws_without_replacement_by_hand():
    X, y = regression()
    model = BaggingRegressor(n_estimators=4, max_samples=0.5, bootstrap=False, random_state=0)
    model.fit(X, y)
    args = X, y[:, None], np.ones((4, N)), [0.5, 0.5], X[TEST]
    expected = with_new_draws(model, *args)[..., 0]
    scores = LeafKernel(model, measurement="output").fit(X, y).transform(X[TEST])
    assert_allclose(scores, expected, atol=1e-8 * np.abs(expected).max())


def test_weights_are_chances_to_be_drawn():
    X, y = regression()
    weights = np.random.default_rng(0).uniform(0.5, 2, N)
    model = RandomForestRegressor(20, random_state=0).fit(X, y, sample_weight=weights)
    forest = LeafKernel(model).fit(X, y, sample_weight=weights).model_.ensemble
    if hasattr(model, "_sample_weight"):  # newer ones draw by weight
        assert_allclose(forest.chances.sum(0), 1)
        size = len(model.estimators_samples_[0])
        drawn = np.arange(len(forest.chances)) @ forest.chances
        assert_allclose(drawn, size * weights / weights.sum(), rtol=1e-6)


def test_new_draws_change_nothing_where_none_are_made():
    X, y = regression()
    model = ExtraTreesRegressor(5, max_depth=4, random_state=0).fit(X, y)
    scores = LeafKernel(model).fit(X, y).transform(X, y)
    held = LeafKernel(model, bags="held").fit(X, y).transform(X, y)
    assert_allclose(scores, held, atol=1e-10 * np.abs(held).max())


def test_bad_bags():
    X, y = regression()
    with pytest.raises(InvalidParameterError, match="'bags' parameter of LeafKernel must be"):
        LeafKernel(bags="new").fit(X, y)


def test_held_leaves_do_not_change():
    X, y = regression()
    model = ExtraTreesRegressor(8, max_depth=3, monotonic_cst=[1, 1, -1, 0], random_state=0)
    attributor = LeafKernel(model.fit(X, y), measurement="output").fit(X, y)
    rows = attributor._rows
    held = [rows._means(t)[2] for t in range(8)]
    assert any(h.any() for h in held)
    changes = attributor._changes[0].toarray()
    assert not changes[np.concatenate(held)].any()


def test_a_row_alone_in_its_bag_changes_nothing():
    X, y = regression()
    model = RandomForestRegressor(3, max_samples=1, random_state=0).fit(X, y)
    for bags in ("held", "redrawn"):
        scores = LeafKernel(model, bags=bags).fit(X, y).transform(X[TEST], y[TEST])
        own = np.unique(np.concatenate(model.estimators_samples_))
        assert not scores[:, own].any() or bags == "redrawn"
        assert np.isfinite(scores).all()


def test_a_copy_helps_and_a_mislabelled_row_harms():
    X, y = regression()
    y[3] += 2000
    model = ExtraTreesRegressor(20, min_samples_leaf=3, random_state=0).fit(X, y)
    scores = LeafKernel(model, bags="held").fit(X, y).transform(X[:3], y[:3])
    assert np.diag(scores).min() > 0
    neighbour = np.abs(X - X[3]).sum(1).argsort()[1]
    scores = LeafKernel(model, bags="held").fit(X, y).transform(X[[neighbour]], y[[neighbour]])
    assert scores.argmin() == 3


@pytest.mark.parametrize("measurement", ["loss", "log_prob", "margin", Output(1)])
def test_blocks_and_order_do_not_matter(measurement):
    X, y = classification()
    model = RandomForestClassifier(10, random_state=0).fit(X, y)
    scores = LeafKernel(model, bags="held", measurement=measurement).fit(X, y).transform(X, y)
    small = LeafKernel(model, bags="held", measurement=measurement, memory_budget=1).fit(X, y)
    assert_allclose(small.transform(X, y), scores, rtol=1e-12)
    assert_allclose(small.transform(X[::-1], y[::-1]), scores[::-1], rtol=1e-12)
    assert_allclose(small.self_influence(), np.diag(scores), rtol=1e-12)


def test_training_rows_in_another_order():
    X, y = regression()
    model = ExtraTreesRegressor(5, max_depth=3, random_state=0).fit(X, y)
    scores = LeafKernel(model, bags="held").fit(X, y).transform(X[TEST], y[TEST])
    order = np.random.default_rng(0).permutation(N)
    again = LeafKernel(model, bags="held").fit(X[order], y[order]).transform(X[TEST], y[TEST])
    assert_allclose(again, scores[:, order], atol=1e-8 * np.abs(scores).max())


def test_in_a_pipeline():
    X, y = regression()
    model = RandomForestRegressor(5, random_state=0)
    pipeline = make_pipeline(StandardScaler(), model).fit(X, y)
    seen = pipeline[0].transform(X)
    scores = LeafKernel(pipeline, bags="held").fit(X, y).transform(X[TEST], y[TEST])
    assert_array_equal(
        scores, LeafKernel(model, bags="held").fit(seen, y).transform(seen[TEST], y[TEST])
    )


def test_boosted_trees_are_refused():
    X, y = regression()
    model = GradientBoostingRegressor(n_estimators=3).fit(X, y)
    with pytest.raises(TypeError, match=r"estimator must be a forest.* Use LeafRefit"):
        LeafKernel(model, bags="held").fit(X, y)
