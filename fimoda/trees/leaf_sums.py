"""Sums over trees of what rows have, each times what its leaf has: one sparse product for many trees."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from .ensemble import Floats, Leaves

#: Trees that are multiplied at a time.
_TREES = 32

#: Numbers of rows that are multiplied at a time.
_OF_ROWS = 2**20


class LeafSums:
    r"""The sums (n, m) over trees t of :math:`a_{ti} b_{t, l_t(i)}` for leaves l of n rows.

    Parameters
    ----------
    n : int
    m : int
    """

    def __init__(self, n: int, m: int):
        self._found = np.zeros((n, m))
        self._waiting: list[tuple[Leaves, Floats, Floats]] = []

    def add(self, leaf: Leaves, of_rows: Floats, of_leaves: Floats) -> None:
        """Add a tree: the leaf of each row, a (n,) and b (n_leaves, m)."""
        self._waiting.append((leaf, of_rows, of_leaves))
        n_trees = len(self._waiting)
        if n_trees == _TREES or n_trees * len(leaf) > _OF_ROWS:
            self._multiply()

    def total(self) -> Floats:
        """Return the sums (n, m)."""
        if self._waiting:
            self._multiply()
        return self._found

    def _multiply(self) -> None:
        leaves, of_rows, of_leaves = zip(*self._waiting, strict=True)
        ends = np.cumsum([0, *map(len, of_leaves)], dtype=np.int32)
        columns = np.stack(leaves) + ends[:-1, None]
        n_trees, n = columns.shape
        starts = np.arange(0, n * n_trees + 1, n_trees, dtype=np.int32)
        entries = np.stack(of_rows).T.ravel(), columns.T.ravel(), starts
        self._found += csr_array(entries, shape=(n, int(ends[-1]))) @ np.concatenate(of_leaves)
        self._waiting.clear()
