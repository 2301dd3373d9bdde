"""The run of CatBoost's boosting beside a plain loop over rounds, steps and leaves."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from catboost_cases import SMOOTH, TARGETS, WEIGHTS, N, X, fitted, raw

from fimoda import BoostIn, LeafInfluence, LeafRefit


def derivatives(loss, method, scores, y):
    """Return g (n, C) and h (n, C, C) of rows."""
    first = scores[:, 0]
    if loss == "MultiClass":
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        each = np.eye(p.shape[1])
        g, h = p - each[y], p[:, :, None] * (each - p[:, None, :])
        return g, np.broadcast_to(each, h.shape) if method == "Gradient" else h
    if loss == "RMSE":
        g, h = first - y, np.ones(len(y))
    elif loss == "Logloss":
        p = 1 / (1 + np.exp(-first))
        g, h = p - y, p * (1 - p)
    elif loss == "Poisson":
        g, h = np.exp(first) - y, np.exp(first)
    else:
        a, b = np.exp(0.5 * first), y * np.exp(-0.5 * first)
        g, h = a - b, 0.5 * a + 0.5 * b
    return g[:, None], (np.ones(len(y)) if method == "Gradient" else h)[:, None, None]


class Loop:
    """The training of a model made again with its splits, from weights; the penalty's scale is held."""

    def __init__(self, model, loss, y, weights):
        self.params = model.get_all_params()
        self.loss, self.y, self.penalty = loss, y, self.params["l2_leaf_reg"] * weights.mean()
        self.leaves, self.model = model.calc_leaf_indexes(X), model
        self.eta = self.params["learning_rate"]

    def with_copy(self, row, target):
        """Return the same with one more row, a copy with another target."""
        found = copy.copy(self)
        found.leaves = np.concatenate([self.leaves, self.leaves[row : row + 1]])
        found.y = np.append(self.y, np.asarray(target, self.y.dtype))
        return found

    def start(self, weights):
        if self.params["boost_from_average"]:
            mean = np.average(self.y, weights=weights)
            return np.array([np.log(mean / (1 - mean)) if self.loss == "Logloss" else mean])
        return np.atleast_1d(self.model.get_scale_and_bias()[1])

    def values(self, t, scores, weights):
        """Return the values of the leaves of a round from the scores before it."""
        leaf, C = self.leaves[:, t], scores.shape[1]
        total, scores = np.zeros((leaf.max() + 1, C)), scores.copy()
        for _ in range(self.params["leaf_estimation_iterations"]):
            g, h = derivatives(self.loss, self.params["leaf_estimation_method"], scores, self.y)
            for number in np.unique(leaf):
                own = leaf == number
                H = (weights[own, None, None] * h[own]).sum(0) + self.penalty * np.eye(C)
                step = -np.linalg.solve(H, (weights[own, None] * g[own]).sum(0))
                scores[own] += step
                total[number] += step
        return self.eta * total

    def scores(self, weights):
        """Return the scores before each round, and after the last."""
        found = [np.tile(self.start(weights), (len(weights), 1))]
        for t in range(self.leaves.shape[1]):
            found.append(found[-1] + self.values(t, found[-1], weights)[self.leaves[:, t]])
        return found


def measured(loss, scores, y):
    """Return the loss of rows from raw scores, as "loss" has it."""
    first = scores[:, 0]
    if loss == "MultiClass":
        return np.log(np.exp(scores).sum(1)) - scores[np.arange(len(y)), y]
    if loss == "RMSE":
        return (first - y) ** 2
    if loss == "Logloss":
        return np.log1p(np.exp(first)) - y * first
    if loss == "Poisson":
        return np.exp(first) - y * first
    return 2 * np.exp(0.5 * first) + 2 * y * np.exp(-0.5 * first)


def without(weights, i, by=1.0):
    found = weights.copy()
    found[i] -= by * weights[i]
    return found


WAYS = [
    (loss, method, steps)
    for loss in SMOOTH
    for method in ("Newton", "Gradient")
    for steps in (1, 3)
]


@pytest.fixture(params=WAYS, ids=lambda way: "-".join(map(str, way)))
def trained(request):
    loss, method, steps = request.param
    model = fitted(
        loss,
        WEIGHTS,
        leaf_estimation_method=method,
        leaf_estimation_iterations=steps,
        leaf_estimation_backtracking="No",
    )
    return model, loss, Loop(model, loss, TARGETS[loss], WEIGHTS)


def test_scores_of_the_plain_loop_are_the_raw_predictions(trained):
    model, _, loop = trained
    # The library keeps targets and weights in float32.
    np.testing.assert_allclose(loop.scores(WEIGHTS)[-1], raw(model, X), rtol=1e-6, atol=1e-6)


def test_leaf_refit_is_the_plain_loop_without_the_row(trained):
    model, loss, loop = trained
    y, rows = TARGETS[loss], np.arange(0, N, 7)
    found = LeafRefit(model).fit(X, y, sample_weight=WEIGHTS).transform(X[:8], y[:8])[:, rows]
    before = measured(loss, loop.scores(WEIGHTS)[-1][:8], y[:8])
    after = [measured(loss, loop.scores(without(WEIGHTS, i))[-1][:8], y[:8]) for i in rows]
    expected = (np.stack(after) - before).T
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_leaf_influence_is_the_slope_of_the_plain_loop(trained):
    model, loss, loop = trained
    y, rows, step = TARGETS[loss], np.arange(0, N, 7), 1e-4
    found = LeafInfluence(model).fit(X, y, sample_weight=WEIGHTS).transform(X[:8], y[:8])[:, rows]
    ends = [
        [measured(loss, loop.scores(without(WEIGHTS, i, by))[-1][:8], y[:8]) for i in rows]
        for by in (step, -step)
    ]
    expected = np.subtract(*ends).T / (2 * step)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=3e-6 * np.abs(expected).max())


def test_boost_in_is_the_slope_of_each_round_on_its_own(trained):
    model, loss, loop = trained
    y, rows, step = TARGETS[loss], np.arange(0, N, 7), 1e-4
    found = (
        BoostIn(model, shrunken=False)
        .fit(X, y, sample_weight=WEIGHTS)
        .transform(X[:8], y[:8])[:, rows]
    )
    expected, before = np.zeros((8, len(rows))), loop.scores(WEIGHTS)
    for t in range(loop.leaves.shape[1]):
        for column, i in enumerate(rows):
            low, high = (
                loop.values(t, before[t], without(WEIGHTS, i, by))[loop.leaves[:8, t]]
                for by in (-step, step)
            )
            ends = [measured(loss, before[t][:8] + by * (high - low), y[:8]) for by in (0.5, -0.5)]
            expected[:, column] += (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_another_target_is_that_of_a_copy_of_the_row(trained):
    model, loss, loop = trained
    y, rows, step = TARGETS[loss], [5, 22], 1e-4
    targets = y[[8, 31]] + (loss == "Tweedie:variance_power=1.5")
    if loss in ("Logloss", "MultiClass", "Poisson"):
        targets = (y[rows] + 1) % (3 if loss == "MultiClass" else 2)
    ends = []
    for row, target in zip(rows, targets, strict=True):
        with_copy = loop.with_copy(row, target)
        parts = [
            np.append(without(WEIGHTS, row, part), part * WEIGHTS[row])
            for part in (0, 1, step, -step)
        ]
        ends.append([measured(loss, with_copy.scores(w)[-1][:8], y[:8]) for w in parts])
    before, after, up, down = np.array(ends).transpose(1, 2, 0)
    for method, expected in ((LeafRefit, after - before), (LeafInfluence, (up - down) / 2 / step)):
        found = method(model).fit(X, y, sample_weight=WEIGHTS)
        effect = found.relabel(X[:8], y[:8], rows=rows, targets=targets)
        np.testing.assert_allclose(effect, expected, rtol=1e-5, atol=3e-6 * np.abs(expected).max())
    one = BoostIn(model, shrunken=False).fit(X, y, sample_weight=WEIGHTS)
    assert np.abs(one.relabel(X[:8], y[:8], rows=rows, targets=y[rows])).max() < 1e-12
