"""Nearest neighbours in many subsets of the rows at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from ..measured import Measured
from .closed_fits import NUMBERS, ClosedFits, Floats


@dataclass(frozen=True)
class NeighboursFits(ClosedFits):
    """Fits of k nearest neighbours to many subsets: the rows are sorted by distance once.

    `train` keeps the subsets as they are; those of fewer than k rows have no fit.
    """

    n_neighbors: int = 5

    _reason = "its rows are fewer than n_neighbors"

    def _fits(self, masks: NDArray[np.bool_]) -> Floats:
        kept = masks.astype(float)
        kept[masks.sum(1) < self.n_neighbors] = np.nan
        return kept

    def _outputs(self, kept: NDArray[np.float64], measurer: Measured) -> Floats:
        n, k = len(self.X), self.n_neighbors
        classes = self.model.classes
        values = np.asarray(self.y)
        values = values if classes is None else np.searchsorted(classes, values)
        values = np.eye(len(classes))[values] if classes is not None else values.astype(float)
        values = values.reshape(n, -1)
        everything = clone(self.estimator).fit(self.X.values, self.y)
        nearest = everything.kneighbors(measurer.inputs.values, n, return_distance=False)
        found = np.empty((len(kept), len(nearest), values.shape[1]))
        inside = kept.astype(bool)
        at_once = max(1, NUMBERS // (len(kept) * n))
        for start in range(0, len(nearest), at_once):
            order = nearest[start : start + at_once]
            own = inside[:, order]  # (L, z, n), nearest first
            own &= np.cumsum(own, axis=2, dtype=np.int32) <= k
            found[:, start : start + at_once] = np.einsum(
                "lzn,znc->lzc", own.astype(float), values[order], optimize=True
            )
        return found / k
