"""The splits of trees, and the leaves that rows fall into: all rows at once, a bit for each leaf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .ensemble import Floats, Leaves

Integers = NDArray[np.int64]
Bits = NDArray[np.uint8]

#: Bits that are worked on at a time, one for each row and leaf: blocks of rows stay in the processor's cache.
_BITS = 2**25

#: Rows up to which a library finds leaves faster.
_FEW = 500


@dataclass(frozen=True, eq=False)
class Splits:
    """The splits of all trees, one after another: a row goes to the left where x is at most the threshold.

    A side is the number of the next split, or ``~(t * largest + leaf)`` for a leaf of tree t, where
    `largest` is the largest number of leaves of a tree.

    Parameters
    ----------
    roots : ndarray of shape (n_trees,)
        The first split of each tree; -1 where it has but one leaf.
    features, thresholds : ndarray of shape (n_splits,)
    missing_left : ndarray of shape (n_splits,)
        Whether NaN goes to the left.
    left, right : ndarray of shape (n_splits,)
        Where rows go to.
    largest : int
        At most 256.
    n_features : int
    """

    roots: Integers
    features: Integers
    thresholds: Floats
    missing_left: NDArray[np.bool_]
    left: Integers
    right: Integers
    largest: int
    n_features: int

    #: Number of leaves up to which going through all splits is faster than walking from the root to a leaf.
    LARGEST: ClassVar[int] = 64

    def suits(self, X: Any) -> bool:
        """Return whether rows are an array of numbers, and so many that this is faster than one by one."""
        known = type(X) is np.ndarray and X.dtype in (np.float32, np.float64)
        return known and X.ndim == 2 and len(X) >= _FEW and X.shape[1] == self.n_features

    def leaves(self, X: Floats) -> Leaves:
        """Return the leaves (n, n_trees) of rows (n, n_features)."""
        step = max(64, _BITS // (len(self.roots) * self.largest))
        found = np.empty((len(self.roots), len(X)), dtype=np.int32)
        for start in range(0, len(X), step):
            part = slice(start, start + step)
            self._number(self._reached(X[part]), found[:, part])
        return found.T

    def _lefts(self, X: Floats) -> Bits:
        """Return which rows go to the left, (n_splits, n / 8)."""
        found = np.empty((len(self.features), -(-len(X) // 8)), dtype=np.uint8)
        order = np.argsort(self.features, kind="stable")
        names, counts = np.unique(self.features, return_counts=True)
        for name, end, count in zip(names, np.cumsum(counts), counts, strict=True):
            splits = order[end - count : end]
            x = np.ascontiguousarray(X[:, name])
            thresholds, which = np.unique(self.thresholds[splits], return_inverse=True)
            lefts = np.packbits(x <= thresholds[:, None], axis=1)[which]
            missing = np.isnan(x)
            if missing.any():
                lefts[self.missing_left[splits]] |= np.packbits(missing)
            found[splits] = lefts
        return found

    def _reached(self, X: Floats) -> Bits:
        """Return which rows fall into each leaf, (n_trees, largest, n / 8)."""
        lefts = self._lefts(X)
        found = np.zeros((len(self.roots) * self.largest, lefts.shape[1]), dtype=np.uint8)
        splits = self.roots[self.roots >= 0]
        rows = np.full((len(splits), lefts.shape[1]), 255, dtype=np.uint8)
        while len(splits):
            to_left = rows & lefts[splits]
            rows = np.concatenate([to_left, rows ^ to_left])
            sides = np.concatenate([self.left[splits], self.right[splits]])
            ends = sides < 0
            found[~sides[ends]] = rows[ends]
            splits, rows = sides[~ends], rows[~ends]
        return found.reshape(len(self.roots), self.largest, -1)

    def _number(self, reached: Bits, found: Leaves) -> None:
        """Write the number of the leaf of each row, put together from its binary digits."""
        numbers, n = np.arange(self.largest), found.shape[1]
        total = np.zeros(found.shape, dtype=np.uint8)
        for digit in range((self.largest - 1).bit_length()):
            having = reached[:, (numbers >> digit) % 2 == 1]
            ones = np.unpackbits(np.bitwise_or.reduce(having, axis=1), axis=1, count=n)
            ones <<= digit
            total |= ones
        found[:] = total
