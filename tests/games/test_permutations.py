"""Random orders, and what rows add along them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fimoda.games.exact import all_subsets, semivalues
from fimoda.games.marginals import by_row, marginals
from fimoda.games.permutations import GROUP_SIZES, draw_orders
from fimoda.games.weights import beta_probabilities


@pytest.mark.parametrize("sampling", GROUP_SIZES)
def test_orders_are_permutations(sampling):
    orders = draw_orders(9, 5, sampling, np.random.RandomState(0))
    assert orders.shape == (5, GROUP_SIZES[sampling], 9)
    assert_array_equal(np.sort(orders, axis=2), np.broadcast_to(np.arange(9), orders.shape))


def test_a_group_balances_the_places():
    reverse = draw_orders(7, 3, "antithetic", np.random.RandomState(0))
    assert_array_equal(reverse[:, 0], reverse[:, 1, ::-1])
    places = np.argsort(draw_orders(8, 3, "stratified", np.random.RandomState(0)), axis=2)
    assert_array_equal(
        np.sort(places // 2, axis=1), np.arange(4)[:, None].repeat(8, 1)[None].repeat(3, 0)
    )


class Game:
    """Random utilities of all sets of six rows, which counts how many it is asked for."""

    n = 6

    def __init__(self) -> None:
        self.utilities = np.random.default_rng(1).normal(size=(2**self.n, 2))
        self.asked = 0

    def __call__(self, sets):
        self.asked += len(sets)
        return self.utilities[sets @ (1 << np.arange(self.n))]


@pytest.mark.parametrize("sampling", GROUP_SIZES)
def test_mean_over_orders_is_the_shapley_value(sampling):
    game = Game()
    orders = draw_orders(game.n, 3000, sampling, np.random.RandomState(0))
    flat = orders.reshape(-1, game.n)
    samples = by_row(marginals(game, flat), flat)
    samples = samples.reshape(*orders.shape[:2], *samples.shape[1:]).mean(1)
    exact = semivalues(game(all_subsets(game.n)), beta_probabilities(game.n, 1, 1))
    z = (samples.mean(0) - exact) / (samples.std(0) / np.sqrt(len(samples)))
    assert np.abs(z).max() < 4
    assert_allclose(samples.sum(2), np.tile(game.utilities[-1] - game.utilities[0], (3000, 1)))


def test_marginals_by_loop():
    game = Game()
    orders = draw_orders(game.n, 4, "permutation", np.random.RandomState(0))[:, 0]
    found = by_row(marginals(game, orders), orders)
    for order, own in zip(orders, found, strict=True):
        inside = np.zeros((1, game.n), dtype=bool)
        for row in order:
            before = game(inside)[0]
            inside[0, row] = True
            assert_allclose(own[:, row], game(inside)[0] - before)


@pytest.mark.parametrize("truncation", [0.3, 1.0])
def test_truncation_by_loop(truncation):
    game = Game()
    orders = draw_orders(game.n, 40, "permutation", np.random.RandomState(0))[:, 0]
    found = marginals(game, orders, truncation)
    asked, mean = game.asked, game.utilities.mean(1)
    near = truncation * abs(mean[-1] - mean[0])
    cut = 0
    for order, own in zip(orders, found, strict=True):
        inside, before, over = np.zeros((1, game.n), dtype=bool), game.utilities[0], False
        for place, row in enumerate(order):
            inside[0, row] = True
            now = before if over else game(inside)[0]
            assert_allclose(own[place], now - before)
            before = now
            over = over or abs(now.mean() - mean[-1]) <= near
        cut += over
    assert cut
    assert asked < 40 * (game.n - 1)
