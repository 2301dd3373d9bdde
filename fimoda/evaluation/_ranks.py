"""Rank correlation with whole-number weights, for bootstraps that draw columns again and again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata


class Ranks:
    """Ranks along the last axis of values whose columns count several times or not at all.

    The values are sorted once. With column j counted w_j times, the midrank of a value is half the
    sum of the counts of the smaller values and of those not larger, plus one half.

    Parameters
    ----------
    values : ndarray of shape (..., n)
    """

    def __init__(self, values: NDArray[np.float64]):
        self._order = values.argsort(-1)
        self._first = rankdata(values, "min", axis=-1).astype(np.int64) - 1
        self._last = rankdata(values, "max", axis=-1).astype(np.int64)

    def centred(self, weights: NDArray[np.int64]) -> NDArray[np.float64]:
        """Twice the midranks less their weighted mean: whole numbers, so zero for equal values."""
        counts = np.zeros((*self._order.shape[:-1], self._order.shape[-1] + 1))
        np.cumsum(weights[self._order], axis=-1, out=counts[..., 1:])
        below = np.take_along_axis(counts, self._first, -1)
        return below + np.take_along_axis(counts, self._last, -1) - weights.sum()


def weighted_spearman(a: Ranks, b: Ranks, weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """Spearman correlation of the columns drawn `weights` times; 0 where a side is constant.

    The leading axes of `a` and `b` are broadcast.
    """
    x, y = a.centred(weights), b.centred(weights)
    lengths = np.sqrt((x**2 @ weights) * (y**2 @ weights))
    products = (x * y) @ weights
    return np.divide(products, lengths, out=np.zeros(products.shape), where=lengths > 0)


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spearman correlation along the last axis; 0 where a side is constant."""
    return weighted_spearman(Ranks(a), Ranks(b), np.ones(a.shape[-1], dtype=np.int64))
