"""Greedy choices, against trying every row after each choice."""

from __future__ import annotations

import numpy as np
import pytest
from problems import tanh_network
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

from fimoda import ExactInfluence, GradDot, LeafRefit, greedy_removal

N, D, M, K = 30, 3, 3, 5
RNG = np.random.default_rng(1)
X = RNG.normal(size=(N, D))
X[20:24] = X[:4] + 0.01 * RNG.normal(size=(4, D))  # near duplicates: each stands in for another
Y = X @ RNG.normal(size=D) + RNG.normal(size=N)
X_TEST = RNG.normal(size=(M, D))
Y_TEST = X_TEST.sum(1)


def tried(effects, sign=1.0):
    """The rows of which each has the largest effect beside those before it, all of them tried."""
    gone = []
    for _ in range(K):
        others = [i for i in range(N) if i not in gone]
        masks = np.zeros((len(others), N), dtype=bool)
        masks[:, gone] = masks[np.arange(len(others)), others] = True
        gone.append(others[int(np.argmax(sign * effects(masks)))])
    return gone


@pytest.mark.parametrize("direction", ["raise", "lower"])
def test_ridge_fitted_again_after_each_choice(direction):
    model = Ridge(alpha=0.5).fit(X, Y)
    influence = ExactInfluence(model, measurement="output").fit(X, Y)
    found = greedy_removal(influence, X_TEST, Y_TEST, n_rows=K, direction=direction)
    sign = 1.0 if direction == "raise" else -1.0
    for z in range(M):

        def effects(masks, z=z):
            fitted = [clone(model).fit(X[~mask], Y[~mask]) for mask in masks]
            return np.array([one.predict(X_TEST)[z] for one in fitted]) - model.predict(X_TEST)[z]

        wanted = tried(effects, sign)
        assert found.rows[z].tolist() == wanted
        nested = np.array([np.isin(np.arange(N), wanted[: k + 1]) for k in range(K)])
        assert np.allclose(found.effects[z], effects(nested))
        scores = sign * influence.transform(X_TEST, Y_TEST)[z]
        assert found.top_rows[z].tolist() == np.argsort(-scores, kind="stable")[:K].tolist()
        assert sign * found.effects[z, -1] >= sign * found.top_effects[z, -1] - 1e-12


@pytest.mark.parametrize(("width", "n_outputs"), [(2, 1), (30, 1), (2, 3), (30, 3)])
def test_networks_without_the_mean_of_their_rows(width, n_outputs):
    """Where the others keep their weights, choices are those of exact removal, each one."""
    net = tanh_network(D, width, n_outputs)
    y = Y[:, None] if n_outputs == 1 else np.arange(N) % 3
    criterion = nn.MSELoss() if n_outputs == 1 else nn.CrossEntropyLoss()
    y_test = Y_TEST[:, None] if n_outputs == 1 else np.arange(M)
    influence = ExactInfluence(
        net, criterion=criterion, damping=0.05, measurement="output", reweight_others=False
    ).fit(X, y)
    assert (influence._dual is None) == (width == 2)
    found = greedy_removal(influence, X_TEST, y_test, n_rows=K)
    test = influence._test(X_TEST, y_test)

    for z in range(M):
        wanted = tried(lambda masks, z=z: influence._without(test[z : z + 1], masks)[0][0])
        assert found.rows[z].tolist() == wanted
    together = greedy_removal(influence, X_TEST, y_test, n_rows=K, together=True)
    assert together.rows.tolist() == [
        tried(lambda masks: influence._without(test, masks)[0].mean(0))
    ]


def test_a_mean_counts_what_leaves_it():
    net = tanh_network(D, 2, 1)
    influence = ExactInfluence(net, criterion=nn.MSELoss(), damping=1e-6, measurement="output")
    influence.fit(X, Y[:, None])
    found = greedy_removal(influence, X_TEST, Y_TEST[:, None], n_rows=3)
    test = influence._test(X_TEST, Y_TEST[:, None])
    for z in range(M):
        masks = np.eye(N, dtype=bool)
        first = influence._without(test[z : z + 1], masks)[0][0]
        assert found.rows[z, 0] == first.argmax()


def test_trees_are_refitted_after_each_choice():
    model = HistGradientBoostingRegressor(max_iter=3, max_leaf_nodes=4, min_samples_leaf=5).fit(
        X, Y
    )
    refit = LeafRefit(model).fit(X, Y)
    found = greedy_removal(refit, X_TEST[:2], Y_TEST[:2], n_rows=3, n_candidates=N)
    test = refit._test(X_TEST[:2], Y_TEST[:2])
    gone: list[int] = []
    for k in range(3):
        masks = np.zeros((N, N), dtype=bool)
        masks[:, gone] = True
        np.fill_diagonal(masks, True)
        effects = refit._without(test[:1], masks)[0][0]
        effects[gone] = -np.inf
        assert effects[found.rows[0, k]] == pytest.approx(effects.max())
        gone.append(int(found.rows[0, k]))
    assert (found.effects[:, -1] >= found.top_effects[:, -1] - 1e-12).all()


def test_a_class_is_not_taken_whole_by_the_curvature():
    model = LogisticRegression(C=1.0).fit(X, np.arange(N) % 2)
    found = greedy_removal(
        ExactInfluence(model).fit(X, np.arange(N) % 2), X_TEST, [0, 1, 0], n_rows=5
    )
    assert len(found.to_frame()) == 5 * M
    assert "greedily" in repr(found)
    assert all(len(set(rows)) == 5 for rows in found.rows)


@pytest.fixture(scope="module")
def influence():
    return ExactInfluence(Ridge(alpha=0.5).fit(X, Y)).fit(X, Y)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_rows": N}, "n_rows must be below the number of training rows"),
        ({"n_rows": 0}, "n_rows"),
        ({"direction": "up"}, "direction"),
    ],
)
def test_bad_arguments(influence, given, message):
    with pytest.raises(ValueError, match=message):
        greedy_removal(influence, X_TEST, Y_TEST, **given)


def test_sums_know_no_interaction(influence):
    scores = GradDot(influence.estimator_).fit(X, Y)
    with pytest.raises(TypeError, match="must know how rows act together, and GradDot"):
        greedy_removal(scores, X_TEST, Y_TEST)


def test_candidates_must_be_enough():
    model = HistGradientBoostingRegressor(max_iter=2, min_samples_leaf=5).fit(X, Y)
    with pytest.raises(ValueError, match="n_candidates must be at least n_rows"):
        greedy_removal(LeafRefit(model).fit(X, Y), X_TEST, Y_TEST, n_rows=5, n_candidates=3)
