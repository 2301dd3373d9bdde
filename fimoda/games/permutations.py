"""Random orders of the rows, in groups whose means vary less than those of independent orders."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Orders in a group: an order; with its reverse; with its rotations by a quarter.
GROUP_SIZES = {"permutation": 1, "antithetic": 2, "stratified": 4}


def draw_orders(
    n: int, n_groups: int, sampling: str, random_state: np.random.RandomState
) -> NDArray[np.int64]:
    """Return orders (n_groups, G, n) of n rows, each uniformly random, the groups independent.

    In a group of "antithetic" ones a row that comes early comes late the other time; in one of
    "stratified" ones it comes once in each quarter of the places.
    """
    first = np.stack([random_state.permutation(n) for _ in range(n_groups)])
    if sampling == "antithetic":
        return np.stack([first, first[:, ::-1]], axis=1)
    shifts = np.arange(GROUP_SIZES[sampling]) * n // GROUP_SIZES[sampling]
    return np.stack([np.roll(first, shift, axis=1) for shift in shifts], axis=1)
