"""Sums over trees of what rows have, each times what its leaf has: one look-up for many trees."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from .ensemble import Floats, Leaves

#: Trees that are looked up at a time.
_TREES = 32

#: Numbers of rows that are looked up at a time.
_OF_ROWS = 2**20

#: Sums that are made at a time, so that they stay in the processor's cache.
_AT_ONCE = 2**17

_TINY = float(np.finfo(np.float64).tiny)


class LeafSums:
    r"""The sums (n, m) over trees t of :math:`a_{ti} b_{t, l_t(i)}` for leaves l of n rows.

    Numbers are multiplied in float32, in which libraries of boosting have their derivatives too: what is
    summed up is known to 1e-7 of the largest.

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
        firsts = np.cumsum([0, *map(len, of_leaves[:-1])], dtype=np.int32)
        numbers = torch.from_numpy((np.stack(leaves) + firsts[:, None]).T.copy())
        a, a_size = _scaled(np.stack(of_rows), None)
        b, b_size = _scaled(np.concatenate(of_leaves), 0)
        a = a.T.contiguous()
        step = max(1, _AT_ONCE // max(1, self._found.shape[1]))
        for start in range(0, len(numbers), step):
            part = slice(start, start + step)
            found = embedding_bag(numbers[part], b, per_sample_weights=a[part], mode="sum")
            self._found[part] += found.numpy() * (a_size * b_size)
        self._waiting.clear()


def _scaled(numbers: Floats, axis: int | None) -> tuple[torch.Tensor, Floats]:
    """Return numbers in float32 by their largest size, of all or along an axis, and that size."""
    size = np.maximum(np.maximum(numbers.max(axis), -numbers.min(axis)), _TINY)
    numbers /= size
    return torch.from_numpy(numbers.astype(np.float32)), size
