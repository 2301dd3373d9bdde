"""The least core against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import minimize

from fimoda.games.exact import all_subsets
from fimoda.games.least_core import least_core


def excess(sets, utilities, values):
    """Return what sets achieve alone more than their rows are given."""
    gains = utilities - utilities[0]
    some = (sets.sum(1) > 0) & (sets.sum(1) < sets.shape[1])
    return gains[some] - sets[some] @ values


def test_three_rows_by_hand():
    """Two of three rows achieve what all do: each gets a third, and a pair misses a third."""
    sets = all_subsets(3)
    values, subsidy = least_core(sets, (sets.sum(1) >= 2).astype(float))
    assert_allclose(values, 1 / 3, atol=1e-8)
    assert_allclose(subsidy, 1 / 3, atol=1e-8)


def test_additive_game():
    weights = np.array([3.0, -1.0, 0.5, 2.0])
    sets = all_subsets(4)
    values, subsidy = least_core(sets, 10 + sets @ weights)
    assert_allclose(values, weights, atol=1e-8)
    assert_allclose(subsidy, 0, atol=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_eight_rows_against_a_general_solver(seed):
    rng = np.random.default_rng(seed)
    sets = all_subsets(8)
    utilities = np.sqrt(sets @ rng.uniform(size=8)) + 0.1 * rng.normal(size=256)
    values, subsidy = least_core(sets, utilities)
    assert_allclose(values.sum(), utilities[-1] - utilities[0], atol=1e-10)
    assert_allclose(excess(sets, utilities, values).max(), subsidy, atol=1e-8)
    # the smallest e: by bisection of what a general solver finds feasible, from the dual bound
    gains = (utilities - utilities[0])[1:-1]
    inside = sets[1:-1].astype(float)

    def norm(x):
        return (x**2).sum()

    constraints = [
        {
            "type": "eq",
            "fun": lambda x: x.sum() - utilities[-1] + utilities[0],
            "jac": lambda x: np.ones(8),
        },
        {
            "type": "ineq",
            "fun": lambda x: inside @ x - gains + subsidy + 1e-7,
            "jac": lambda x: inside,
        },
    ]
    other = minimize(norm, values + 0.01 * rng.normal(size=8), jac=lambda x: 2 * x, constraints=constraints,
                     method="SLSQP", options={"ftol": 1e-14, "maxiter": 500})  # fmt: skip
    assert norm(values) <= norm(other.x) + 1e-5
    smaller = minimize(
        lambda x: x[-1],
        np.append(values, subsidy + 1),
        jac=lambda x: np.append(np.zeros(8), 1.0),
        constraints=[
            {"type": "eq", "fun": lambda x: x[:8].sum() - utilities[-1] + utilities[0]},
            {"type": "ineq", "fun": lambda x: inside @ x[:8] + x[8] - gains},
        ],
        method="SLSQP",
    )
    assert_allclose(smaller.fun, subsidy, atol=1e-8)


def test_scale_and_two_rows():
    sets = all_subsets(2)
    values, subsidy = least_core(sets, 1e-6 * np.array([0.0, 1.0, 3.0, 5.0]))
    assert_allclose(values.sum(), 5e-6)
    assert_allclose(subsidy, -0.5e-6, atol=1e-14)  # each gets half of what is left over
    assert_allclose(values, [1.5e-6, 3.5e-6], atol=1e-13)
