"""Semivalues of all sets against loops over them."""

from __future__ import annotations

import games_by_hand
import numpy as np
import pytest
from numpy.testing import assert_allclose

from fimoda.games.exact import MOST_ROWS, all_subsets, semivalues
from fimoda.games.weights import banzhaf_probabilities, beta_probabilities

N = 6


def game(seed: int = 0):
    """Return utilities (2 ** N, 2) of all sets, and the first of them as a function."""
    utilities = np.random.default_rng(seed).normal(size=(2**N, 2))
    place = {tuple(np.flatnonzero(rows)): k for k, rows in enumerate(all_subsets(N))}
    return utilities, lambda rows: utilities[place[rows], 0]


@pytest.mark.parametrize(("alpha", "beta"), [(1, 1), (16, 1), (4, 1), (1, 4), (2.5, 0.5)])
def test_beta_shapley(alpha, beta):
    utilities, value = game()
    found = semivalues(utilities, beta_probabilities(N, alpha, beta))
    assert_allclose(found[0], games_by_hand.beta_shapley(value, N, alpha, beta), atol=1e-12)


def test_shapley_and_banzhaf():
    utilities, value = game()
    shapley = semivalues(utilities, beta_probabilities(N, 1, 1))
    assert_allclose(shapley[0], games_by_hand.shapley(value, N), atol=1e-12)
    assert_allclose(shapley.sum(1), utilities[-1] - utilities[0])
    found = semivalues(utilities, banzhaf_probabilities(N))
    assert_allclose(found[0], games_by_hand.banzhaf(value, N), atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 30, 500])
def test_probabilities_sum_to_one(n):
    for found in (
        beta_probabilities(n, 16, 1),
        beta_probabilities(n, 1, 1),
        banzhaf_probabilities(n),
    ):
        assert found.shape == (n,)
        assert_allclose(found.sum(), 1)
    assert_allclose(beta_probabilities(n, 1, 1), 1 / n)


def test_all_subsets():
    sets = all_subsets(3)
    assert len({tuple(rows) for rows in sets}) == 8
    assert not sets[0].any()
    assert sets[-1].all()
    with pytest.raises(ValueError, match=f"at most {MOST_ROWS} rows, got {MOST_ROWS + 1}"):
        all_subsets(MOST_ROWS + 1)
