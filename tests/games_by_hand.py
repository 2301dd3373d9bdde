"""Games by their definitions: loops over all sets, one row at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from math import comb, gamma

import numpy as np
from numpy.typing import NDArray

Value = Callable[[tuple[int, ...]], float]


def semivalue(value: Value, n: int, weight: Callable[[int], float]) -> NDArray[np.float64]:
    """Return the sums over the sets S without a row of ``weight(|S|) (value(S + i) - value(S))``."""
    found = np.zeros(n)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        for size in range(n):
            for rows in itertools.combinations(others, size):
                found[i] += weight(size) * (value(tuple(sorted((*rows, i)))) - value(rows))
    return found


def shapley(value: Value, n: int) -> NDArray[np.float64]:
    return semivalue(value, n, lambda s: 1 / (n * comb(n - 1, s)))


def banzhaf(value: Value, n: int) -> NDArray[np.float64]:
    return semivalue(value, n, lambda s: 0.5 ** (n - 1))


def beta_shapley(value: Value, n: int, alpha: float, beta: float) -> NDArray[np.float64]:
    def function(a: float, b: float) -> float:
        return gamma(a) * gamma(b) / gamma(a + b)

    def weight(size: int) -> float:
        return function(size + beta, n - 1 - size + alpha) / function(alpha, beta)

    return semivalue(value, n, weight)


def all_sets(n: int) -> list[tuple[int, ...]]:
    return [rows for size in range(n + 1) for rows in itertools.combinations(range(n), size)]
