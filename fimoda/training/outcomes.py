"""Measurements of trained stacks, put together by left-out row and seed, and corrected."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Outcomes:
    """Measurements after further training.

    Parameters
    ----------
    left_out : ndarray of shape (..., n_test, n_left_out, n_seeds)
        Without each row.
    full : ndarray of shape (..., n_test, n_seeds)
        With all rows.
    final : ndarray of shape (n_test,)
        Of the final model, before further training.
    """

    left_out: NDArray[np.float64]
    full: NDArray[np.float64]
    final: NDArray[np.float64]

    def scores(self, correction: str | None) -> NDArray[np.float64]:
        """Return the scores of each seed, of the shape of `left_out`."""
        if correction == "full":
            return self.left_out - self.full[..., None, :]
        if correction == "mean":  # the run on all rows cancels
            return self.left_out - self.left_out.mean(-2, keepdims=True)
        return self.left_out - self.final[:, None, None]


def standard_error(per_seed: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard error of the mean over the last axis; NaN for a single seed."""
    n = per_seed.shape[-1]
    if n < 2:
        return np.full(per_seed.shape[:-1], np.nan)
    return per_seed.std(-1, ddof=1) / np.sqrt(n)


def relative_error(per_seed: NDArray[np.float64]) -> float:
    """Return the root mean square of the standard errors over that of the scores."""
    size = np.sqrt(np.mean(per_seed.mean(-1) ** 2))
    error = np.sqrt(np.mean(standard_error(per_seed) ** 2))
    return float(error / size) if size > 0 else 0.0
