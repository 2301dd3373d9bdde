"""Marginal utilities: of each row beside the rows before it, along orders of the rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Utilities (M, T) of sets (M, n) of rows.
Utilities = Callable[[NDArray[np.bool_]], Floats]

#: Parts in which an order is gone through, if it may end early.
_STAGES = 10


def marginals(utility: Utilities, orders: NDArray[np.int64], truncation: float = 0.0) -> Floats:
    """Return what each row adds (P, n, T), by its place in each of the orders (P, n).

    With `truncation` an order ends where the mean utility of its first rows is as near to that of all
    rows, in parts of what all rows add to none; the rows behind add nothing.
    """
    n_orders, n = orders.shape
    places = np.argsort(orders, axis=1)
    ends = utility(np.array([[False] * n, [True] * n]))
    path = np.repeat(ends[:1, None], n + 1, axis=1).repeat(n_orders, axis=0)
    path[:, n] = ends[1]
    near = truncation * abs(float(ends[1].mean() - ends[0].mean()))
    alive = np.arange(n_orders)
    for sizes in np.array_split(np.arange(1, n), _STAGES if truncation else 1):
        if not len(alive) or not len(sizes):
            break
        inside = places[alive, None] < sizes[:, None]
        path[alive[:, None], sizes] = utility(inside.reshape(-1, n)).reshape(*inside.shape[:2], -1)
        if truncation:
            gap = np.abs(path[alive[:, None], sizes].mean(2) - ends[1].mean())
            over = (gap <= near).any(1)
            for order, size in zip(alive[over], sizes[(gap <= near).argmax(1)[over]], strict=True):
                path[order, size + 1 :] = path[order, size]
            alive = alive[~over]
    return np.diff(path, axis=1)


def by_row(added: Floats, orders: NDArray[np.int64]) -> Floats:
    """Return what is known by the place in each order (P, n, T) by the row, (P, T, n)."""
    places = np.argsort(orders, axis=1)
    return np.take_along_axis(added, places[:, :, None], axis=1).swapaxes(1, 2)
