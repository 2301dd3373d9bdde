"""Correlations along the last axis; 0 where a side is constant. Leading axes are broadcast."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata


def centred(a: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values less their mean; exactly zero where all are equal."""
    a = a - a[..., :1]
    return a - a.mean(-1, keepdims=True)


def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosine; 0 where a side is zero."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.divide((a * b).sum(-1), lengths, out=np.zeros(lengths.shape), where=lengths > 0)


def pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ordinary correlation."""
    return cosine(centred(a), centred(b))


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rank correlation."""
    return pearson(rankdata(a, axis=-1), rankdata(b, axis=-1))


class Ranks:
    """Ranks of values (..., n) whose columns count several times or not at all.

    The values are sorted once, for bootstraps that draw columns again and again. With column j
    counted w_j times, the midrank of a value is half the sum of the counts of the smaller values and
    of those not larger, plus one half.
    """

    def __init__(self, values: NDArray[np.float64]):
        self._order = values.argsort(-1)
        self._first = rankdata(values, "min", axis=-1).astype(np.int64) - 1
        self._last = rankdata(values, "max", axis=-1).astype(np.int64)

    def centred(self, weights: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return twice the midranks less their mean: whole numbers, so zero for equal values."""
        counts = np.zeros((*self._order.shape[:-1], self._order.shape[-1] + 1))
        np.cumsum(weights[self._order], axis=-1, out=counts[..., 1:])
        below = np.take_along_axis(counts, self._first, -1)
        return below + np.take_along_axis(counts, self._last, -1) - weights.sum()


def weighted_spearman(a: Ranks, b: Ranks, weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the rank correlation of the columns drawn `weights` times."""
    x, y = a.centred(weights), b.centred(weights)
    lengths = np.sqrt((x**2 @ weights) * (y**2 @ weights))
    products = (x * y) @ weights
    return np.divide(products, lengths, out=np.zeros(products.shape), where=lengths > 0)
