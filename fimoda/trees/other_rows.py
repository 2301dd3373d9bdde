"""Rows that runs of boosting have otherwise than the training had them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .ensemble import Floats


@dataclass(frozen=True, eq=False)
class OtherRows:
    """The other rows of `n_runs` runs, each by its number and that of the run.

    Parameters
    ----------
    n_runs : int
    rows, runs : ndarray of shape (e,)
    targets : ndarray of shape (C, e) or None
        The rows' targets there; None where the rows are left out.
    factors : ndarray of shape (e,)
        Of their weights: 0 where they are left out.
    start_factors : ndarray of shape (e,)
        Of their weights in the score before the first tree.
    """

    n_runs: int
    rows: NDArray[np.int64]
    runs: NDArray[np.int64]
    targets: Floats | None
    factors: Floats
    start_factors: Floats

    @classmethod
    def removed(cls, removed: NDArray[np.bool_]) -> OtherRows:
        """Return runs without the rows of each column (n, k)."""
        rows, runs = np.nonzero(removed)
        none = np.zeros(len(rows))
        return cls(removed.shape[1], rows, runs, None, none, none)

    def means(self, targets: Floats, weights: Floats) -> Floats:
        """Return the weighted means (C, n_runs) of targets (C, n), with the other rows in their runs."""
        own = weights[self.rows]
        left = own * self.start_factors
        wanted = targets[:, self.rows] if self.targets is None else self.targets
        moved = [
            np.bincount(self.runs, left * after - own * before, self.n_runs)
            for after, before in zip(wanted, targets[:, self.rows], strict=True)
        ]
        total = (targets * weights).sum(1, keepdims=True) + np.stack(moved)
        return total / (weights.sum() + np.bincount(self.runs, left - own, self.n_runs))
