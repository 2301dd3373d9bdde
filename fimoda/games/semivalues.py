"""Semivalues of rows, sampled by what rows add to those before them along random orders."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .estimates import Estimate, RunningMean
from .marginals import by_row, marginals
from .permutations import GROUP_SIZES, draw_orders
from .utility import Utility

#: Returns the estimate of what draws samples and estimates from all, of so many at first and at most.
Settled = Callable[[int, int, Callable[[int], Estimate]], Estimate]

#: Orders of the first round of n_samples="auto", and most of them in all.
FIRST, MOST = 32, 4096


def sampled_semivalues(
    utility: Utility,
    probabilities: NDArray[np.float64],
    sampling: str,
    truncation: float,
    memory_budget: int,
    random_state: np.random.RandomState,
    settled: Settled,
) -> Estimate:
    """Return the semivalues of a game, whose sizes of sets have probabilities (n,), from some orders.

    `settled` says how many: see the function of this name.
    """
    n, size = utility.n_rows, GROUP_SIZES[sampling]
    importance = n * probabilities
    bytes_of_group = size * n * (n + 40 * len(utility.measured))
    at_once = int(max(1, memory_budget // bytes_of_group))
    mean = RunningMean()

    def take(n_orders: int) -> Estimate:
        n_groups = -(-n_orders // size)
        for start in range(0, n_groups, at_once):
            orders = draw_orders(n, min(at_once, n_groups - start), sampling, random_state)
            flat = orders.reshape(-1, n)
            added = marginals(utility, flat, truncation) * importance[:, None]
            samples = by_row(added, flat)
            groups = samples.reshape(*orders.shape[:2], *samples.shape[1:])
            mean.add(np.concatenate([groups, groups.mean(2, keepdims=True)], 2).mean(1))
        return mean.estimate(size)

    return settled(FIRST, MOST, take)
