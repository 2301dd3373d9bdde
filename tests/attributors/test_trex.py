"""TREX against a ridge regression on shared leaves that is solved again without each row."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit, softmax
from sklearn.datasets import make_classification, make_regression
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.exceptions import NotFittedError
from sklearn.tree import DecisionTreeRegressor
from sklearn.utils._param_validation import InvalidParameterError

from fimoda import TREX

N = 40
TEST = slice(0, 6)


def regression():
    return make_regression(N, 4, noise=30, random_state=0)


def classification(n_classes=2):
    return make_classification(
        N, 4, n_informative=3, n_redundant=0, n_classes=n_classes, flip_y=0.1, random_state=1
    )


def kernel(model, X, Z):
    """Mean over trees of one over the rows in the leaf that two rows share, in a loop, with a constant."""
    here, there = (model.apply(rows).reshape(len(rows), -1) for rows in (X, Z))
    found, own = np.zeros((len(Z), len(X))), np.zeros(len(X))
    for t in range(here.shape[1]):
        size = np.array([(here[:, t] == leaf).sum() for leaf in here[:, t]])
        found += (there[:, t, None] == here[:, t]) / size / here.shape[1]
        own += 1 / size / here.shape[1]
    return found + 1e3 * own.mean()


def solved(K, K_test, r, weights, alpha):
    """Predictions of the ridge regression, about the weighted mean of all rows."""
    keep = np.flatnonzero(weights > 0)
    dual = np.linalg.solve(K[np.ix_(keep, keep)] + alpha * np.diag(1 / weights[keep]), r[keep])
    return K_test[:, keep] @ dual


def changes(model, X, Z, r, weights, alpha):
    """Changes (m, n) of predictions of the regression when it is solved without each row."""
    K, K_test = kernel(model, X, X), kernel(model, X, Z)
    r = r - (weights * r).sum() / weights.sum()
    full = solved(K, K_test, r, weights, alpha)
    without = [
        solved(K, K_test, r, np.where(np.arange(N) == i, 0, weights), alpha) for i in range(N)
    ]
    return np.stack(without, 1) - full[:, None]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("model", "alpha"),
    [
        (GradientBoostingRegressor(n_estimators=8, max_depth=2), "model"),
        (GradientBoostingRegressor(n_estimators=2, max_depth=2), "model"),  # fewer leaves than rows
        (RandomForestRegressor(5, random_state=0), "leave-one-out"),
        (DecisionTreeRegressor(max_depth=3), 0.1),
    ],
)
def test_regression_by_hand(model, alpha, weighted):
    X, y = regression()
    weights = np.random.default_rng(0).uniform(0.5, 2, N) if weighted else np.ones(N)
    model.fit(X, y, sample_weight=weights)
    trex = TREX(model, alpha=alpha).fit(X, y, sample_weight=weights)
    Z, target = X[TEST] + 0.1, y[TEST]
    change = changes(model, X, Z, y, weights, trex.alpha_[0])
    f = model.predict(Z)
    expected = (f[:, None] + change - target[:, None]) ** 2 - (f - target)[:, None] ** 2
    scores = trex.transform(Z, target)
    assert_allclose(scores, expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())
    output = TREX(model, alpha=alpha, measurement="output").fit(X, y, sample_weight=weights)
    assert_allclose(output.transform(Z), change, rtol=1e-6, atol=1e-7 * np.abs(change).max())


def relabelled(model, X, Z, r, weights, alpha, row, wanted, weight):
    """Change (m,) of predictions where a row wants something else, by another weight, solved anew."""
    K, K_test = kernel(model, X, X), kernel(model, X, Z)
    centre = (weights * r).sum() / weights.sum()
    others, by = r.copy(), weights.copy()
    others[row], by[row] = wanted, weight
    before, after = (
        solved(K, K_test, one - centre, w, alpha) for one, w in ((r, weights), (others, by))
    )
    return after - before


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "model",
    [
        GradientBoostingRegressor(n_estimators=8, max_depth=2),
        GradientBoostingRegressor(n_estimators=2, max_depth=2),  # fewer leaves than rows
        RandomForestRegressor(5, random_state=0),
    ],
)
def test_another_target_by_hand(model, weighted):
    X, y = regression()
    weights = np.random.default_rng(0).uniform(0.5, 2, N) if weighted else np.ones(N)
    weights[3] = 0 if weighted else 1
    model.fit(X, y, sample_weight=weights)
    trex = TREX(model, measurement="output").fit(X, y, sample_weight=weights)
    rows, targets, Z = [7, 3], [50.0, -20.0], X[TEST] + 0.1
    expected = [
        relabelled(model, X, Z, y, weights, trex.alpha_[0], row, target, weights[row])
        for row, target in zip(rows, targets, strict=True)
    ]
    found = trex.relabel(Z, rows=rows, targets=targets)
    assert_allclose(found, np.transpose(expected), rtol=1e-6, atol=1e-7 * np.abs(expected).max())
    assert (found[:, 1] == 0).all() == weighted


def test_another_class_by_hand():
    """The curvature does not move with the label; that of the other class weighs more."""
    X, y = classification()
    model = HistGradientBoostingClassifier(
        max_iter=4, min_samples_leaf=5, class_weight={0: 1.0, 1: 3.0}
    ).fit(X, y)
    row = int(np.flatnonzero(y == 0)[2])
    f, w = model.decision_function(X), np.where(y == 1, 3.0, 1.0)
    p = expit(f)
    h, trex = p * (1 - p), TREX(model, measurement="output", alpha=0.1).fit(X, y)
    leaves = trex.model_.leaves(trex.model_.encode_X(X))
    known = SimpleNamespace(apply=lambda rows: leaves[: len(rows)])  # of the first rows only
    change = relabelled(
        known, X, X[TEST], f - (p - y) / h, w * h, 0.1, row, f[row] - (p[row] - 1) / h[row],
        3 * h[row],
    )  # fmt: skip
    found = trex.relabel(X[TEST], rows=[row], targets=[1])[:, 0]
    assert_allclose(found, change, rtol=1e-6, atol=1e-9)


def test_two_classes_by_hand():
    X, y = classification()
    model = GradientBoostingClassifier(n_estimators=8, max_depth=2).fit(X, y)
    f = model.decision_function(X)
    p = expit(f)
    trex = TREX(model).fit(X, y)
    change = changes(model, X, X[TEST], f - (p - y) / (p * (1 - p)), p * (1 - p), trex.alpha_[0])
    sign = 2 * y[TEST] - 1
    expected = np.logaddexp(0, -sign[:, None] * (f[TEST, None] + change))
    expected -= np.logaddexp(0, -sign * f[TEST])[:, None]
    scores = trex.transform(X[TEST], y[TEST])
    assert_allclose(scores, expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())


def test_several_classes_by_hand():
    X, y = classification(3)
    model = GradientBoostingClassifier(n_estimators=4, max_depth=2).fit(X, y)
    f = model.decision_function(X)
    p, hits = softmax(f, axis=1), np.eye(3)[y]
    h = 1.5 * p * (1 - p)
    trex = TREX(model).fit(X, y)
    changed = np.stack(
        [
            changes(model, X, X[TEST], (f - (p - hits) / h)[:, c], h[:, c], trex.alpha_[c])
            + f[TEST, c, None]
            for c in range(3)
        ],
        -1,
    )
    own = np.arange(6)
    after = -np.log(softmax(changed, axis=2)[own, :, y[TEST]])
    expected = after + np.log(p[own, y[TEST]])[:, None]
    scores = trex.transform(X[TEST], y[TEST])
    assert_allclose(scores, expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())


def test_a_forest_of_classes_by_hand():
    X, y = classification()
    model = RandomForestClassifier(6, max_depth=3, random_state=0).fit(X, y)
    trex = TREX(model, measurement="output", alpha=0.3).fit(X, y)
    assert_array_equal(trex.alpha_, [0.3, 0.3])
    change = changes(model, X, X[TEST], y.astype(float), np.ones(N), 0.3)
    signed = np.where(y[TEST] == 1, 1, -1)[:, None] * change
    assert_allclose(trex.transform(X[TEST], y[TEST]), signed, atol=1e-9)


def test_the_ridge_is_the_best_of_those_tried():
    X, y = regression()
    model = GradientBoostingRegressor(n_estimators=20, max_depth=2).fit(X, y)
    K, r, f = kernel(model, X, X), y - y.mean(), model.predict(X) - y.mean()
    near, left = TREX(model).fit(X, y), TREX(model, alpha="leave-one-out").fit(X, y)

    def distance(alpha):
        return ((solved(K, K, r, np.ones(N), alpha) - f) ** 2).sum()

    def error(alpha):
        weights = [(np.arange(N) != i).astype(float) for i in range(N)]
        return sum((solved(K, K[[i]], r, w, alpha)[0] - r[i]) ** 2 for i, w in enumerate(weights))

    for factor in (0.3, 3):
        assert distance(near.alpha_[0]) < distance(factor * near.alpha_[0])
        assert error(left.alpha_[0]) < error(factor * left.alpha_[0])
    assert near.alpha_[0] > left.alpha_[0]
    fitted = solved(K, K, r, np.ones(N), near.alpha_[0])
    assert near.fidelity_ == pytest.approx(np.corrcoef(fitted, f)[0, 1], abs=1e-6)
    assert near.fidelity_ > max(0.98, left.fidelity_)


@pytest.mark.parametrize(
    "model",
    [
        HistGradientBoostingRegressor(loss="absolute_error", max_iter=5, min_samples_leaf=4),
        RandomForestRegressor(3, criterion="absolute_error", max_depth=3, random_state=0),
    ],
)
def test_medians_are_taken_for_means(model):
    X, y = regression()
    trex = TREX(model.fit(X, y)).fit(X, y)
    assert trex.fidelity_ > 0.9
    assert np.abs(trex.transform(X[TEST], y[TEST])).max() > 0


def test_a_row_of_no_weight_has_no_score():
    X, y = regression()
    weights = np.ones(N)
    weights[5] = 0
    model = GradientBoostingRegressor(n_estimators=5).fit(X, y, sample_weight=weights)
    scores = TREX(model).fit(X, y, sample_weight=weights).transform(X[TEST], y[TEST])
    assert not scores[:, 5].any()
    assert np.isfinite(scores).all()


def test_rows_help_themselves_and_a_wrong_one_harms():
    X, y = regression()
    y[3] += 2000
    model = RandomForestRegressor(20, min_samples_leaf=3, random_state=0).fit(X, y)
    trex = TREX(model).fit(X, y)
    assert np.median(trex.self_influence()) > 0
    neighbour = np.abs(X - X[3]).sum(1).argsort()[1]
    assert trex.transform(X[[neighbour]], y[[neighbour]]).argmin() == 3


def test_blocks_and_order_do_not_matter():
    X, y = classification()
    model = GradientBoostingClassifier(n_estimators=5, max_depth=2, random_state=0).fit(X, y)
    scores = TREX(model).fit(X, y).transform(X, y)
    close = {"rtol": 1e-6, "atol": 1e-8 * np.abs(scores).max()}
    small = TREX(model, memory_budget=8 * 6 * N**2).fit(X, y)
    assert_allclose(small.transform(X[::-1], y[::-1]), scores[::-1], **close)
    order = np.random.default_rng(0).permutation(N)
    assert_allclose(TREX(model).fit(X[order], y[order]).transform(X, y), scores[:, order], **close)


def test_too_little_memory():
    X, y = regression()
    model = GradientBoostingRegressor(n_estimators=30, random_state=0).fit(X, y)
    with pytest.raises(MemoryError, match=r"kernel of 40 rows in \d+ leaves.*Raise memory_budget"):
        TREX(model, memory_budget=10_000).fit(X, y)


@pytest.mark.parametrize("alpha", [0, -1.0, "ridge", None])
def test_bad_ridges(alpha):
    X, y = regression()
    with pytest.raises(InvalidParameterError, match="'alpha' parameter of TREX must be"):
        TREX(alpha=alpha).fit(X, y)


def test_transform_needs_a_fit():
    with pytest.raises(NotFittedError, match="TREX"):
        TREX().transform(regression()[0])


def test_probabilities_that_would_be_negative_change_to_first_order():
    """A ridge regression may take more from a probability than there is."""
    X, y = make_classification(100, 5, n_informative=3, n_redundant=0, flip_y=0.15, random_state=1)
    forest = RandomForestClassifier(2, random_state=0).fit(X, y)
    rows = np.random.default_rng(0).normal(size=(40, 5))
    for labels in (np.zeros(40, int), np.ones(40, int)):
        assert np.isfinite(TREX(forest).fit(X, y).transform(rows, labels)).all()
