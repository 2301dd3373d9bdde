"""KNNShapley against the game of nearest rows, by loops over all sets."""

from __future__ import annotations

import games_by_hand
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fimoda import DataShapley, KNNShapley

N, M = 8, 4


def rows(kind: str):
    rng = np.random.default_rng(0)
    X, X_test = rng.normal(size=(N, 3)), rng.normal(size=(M, 3))
    if kind == "classes":
        return X, rng.integers(3, size=N), X_test, rng.integers(3, size=M)
    shape = () if kind == "numbers" else (2,)
    return X, rng.normal(size=(N, *shape)), X_test, rng.normal(size=(M, *shape))


def by_hand(X, y, x, goal, k, kind, weight=lambda d: 1.0):
    distance = np.linalg.norm(X - x, axis=1)

    def value(own):
        nearest = sorted(own, key=lambda j: distance[j])[:k]
        if kind == "classes":
            return sum(weight(distance[j]) * (y[j] == goal) for j in nearest) / k
        return -(((sum(y[j] for j in nearest) / k) - goal) ** 2).sum()

    return games_by_hand.shapley(value, len(X))


@pytest.mark.parametrize("k", [1, 3, 5, N, N + 1])
@pytest.mark.parametrize("kind", ["classes", "numbers", "two numbers"])
def test_against_all_sets(kind, k):
    X, y, X_test, y_test = rows(kind)
    found = KNNShapley(n_neighbors=k).fit(X, y).transform(X_test, y_test)
    for own, x, goal in zip(found, X_test, y_test, strict=True):
        assert_allclose(own, by_hand(X, y, x, goal, k, kind), atol=1e-12)


@pytest.mark.parametrize("k", [1, 3])
def test_weights(k):
    X, y, X_test, y_test = rows("classes")
    method = KNNShapley(n_neighbors=k, weights=lambda d: np.exp(-d)).fit(X, y)
    for own, x, goal in zip(method.transform(X_test, y_test), X_test, y_test, strict=True):
        expected = by_hand(X, y, x, goal, k, "classes", weight=lambda d: np.exp(-d))
        assert_allclose(own, expected, atol=1e-12)


def test_output_is_the_vote():
    """Without a row that has the target's class the vote falls: a negative score."""
    X, y, X_test, y_test = rows("classes")
    vote = KNNShapley(n_neighbors=3, measurement="output").fit(X, y).transform(X_test, y_test)
    assert_array_equal(vote, -KNNShapley(n_neighbors=3).fit(X, y).transform(X_test, y_test))
    X, y, X_test, _ = rows("numbers")
    found = KNNShapley(n_neighbors=3, measurement="output").fit(X, y).transform(X_test, np.zeros(M))
    order = np.argsort(np.linalg.norm(X - X_test[:, None], axis=2), axis=1)
    assert_allclose(-found.sum(1), y[order[:, :3]].sum(1) / 3)
    assert_array_equal(KNNShapley(n_neighbors=3).fit(X, y).transform(X_test), found)


def test_many_rows_sum_to_the_vote_in_any_block():
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(300, 5)), rng.integers(2, size=300)
    method = KNNShapley().fit(X[:200], y[:200])
    scores = method.transform(X[200:], y[200:])
    order = np.argsort(np.linalg.norm(X[:200] - X[200:, None], axis=2), axis=1)[:, :5]
    assert_allclose(scores.sum(1), (y[order] == y[200:, None]).mean(1), atol=1e-14)
    assert_allclose(method.values_, scores.mean(0))
    small = KNNShapley(memory_budget=200 * 64 * 3).fit(X[:200], y[:200])
    assert_array_equal(small.transform(X[200:], y[200:]), scores)


def test_earlier_steps_of_a_pipeline_and_metric():
    X, y, X_test, y_test = rows("classes")
    X, X_test = X * [1, 100, 1], X_test * [1, 100, 1]
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y)
    scaled = model[0].transform
    found = KNNShapley(model, n_neighbors=2).fit(X, y).transform(X_test, y_test)
    expected = KNNShapley(n_neighbors=2).fit(scaled(X), y).transform(scaled(X_test), y_test)
    assert_allclose(found, expected)
    assert not np.allclose(found, KNNShapley(n_neighbors=2).fit(X, y).transform(X_test, y_test))
    cosine = KNNShapley(n_neighbors=2, metric="cosine")
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    unit_test = X_test / np.linalg.norm(X_test, axis=1, keepdims=True)
    assert_allclose(
        cosine.fit(X, y).transform(X_test, y_test),
        KNNShapley(n_neighbors=2).fit(unit, y).transform(unit_test, y_test),
    )


def test_a_sampled_game_of_numbers_agrees():
    """The nearest row's value by DataShapley, where no set is too small to be fitted."""
    X, y, X_test, y_test = rows("numbers")
    y, y_test = (
        y - y.mean(),
        y_test - y.mean(),
    )  # no rows at all predict zero, as in the closed form
    model = KNeighborsRegressor(1).fit(X, y)
    exact = DataShapley(model, n_samples="exact").fit(X, y).transform(X_test, y_test)
    assert_allclose(KNNShapley(n_neighbors=1).fit(X, y).transform(X_test, y_test), exact, atol=1e-7)


@pytest.mark.parametrize(
    ("params", "kind", "match"),
    [
        ({"measurement": "margin"}, "classes", "measurement must be 'loss' or 'output'.*'margin'"),
        ({"weights": np.exp}, "numbers", "weights must be 'uniform'"),
        ({"weights": lambda d: d[0]}, "classes", "weights must give finite numbers of shape"),
        ({"weights": lambda d: d / 0}, "classes", "weights must give finite numbers"),
        ({"metric": "no such metric"}, "classes", "Unknown Distance Metric"),
        ({"n_neighbors": 0}, "classes", "n_neighbors"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_bad_inputs(params, kind, match):
    X, y, X_test, y_test = rows(kind)
    with pytest.raises(ValueError, match=match):
        KNNShapley(**params).fit(X, y).transform(X_test, y_test)
