"""Measurements of trained stacks, put together by left-out row and seed, and corrected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..model import FinalModel
from .batches import FULL_DATA
from .runner import Result, Unit


def keep_parameters(model: FinalModel, theta: Tensor) -> Tensor:
    """A reader that keeps the stack itself."""
    return theta


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
        """Scores of each seed, of the shape of `left_out`."""
        if correction == "full":
            return self.left_out - self.full[..., None, :]
        if correction == "mean":  # the run on all rows cancels
            return self.left_out - self.left_out.mean(-2, keepdims=True)
        return self.left_out - self.final[:, None, None]


def assemble(
    readings: Mapping[Unit, Result],
    seeds: Sequence[int],
    leave_out: Sequence[int] | NDArray[np.int64],
    final: NDArray[np.float64],
) -> Outcomes:
    """Outcomes from the measurements (n_marks, L, n_test) of all units."""
    n_marks, _, n_test = np.asarray(next(iter(readings.values()))).shape
    left_out = np.empty((n_marks, n_test, len(leave_out), len(seeds)))
    full = np.empty((n_marks, n_test, len(seeds)))
    column = {int(row): k for k, row in enumerate(leave_out)}
    place = {seed: s for s, seed in enumerate(seeds)}
    for unit, reading in readings.items():
        s = place[unit.seed]
        values = np.asarray(reading)
        for model, row in enumerate(unit.left_out):
            if row == FULL_DATA:
                full[:, :, s] = values[:, model]
            else:
                left_out[:, :, column[row], s] = values[:, model]
    return Outcomes(left_out, full, final)


def standard_error(per_seed: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard error of the mean over the last axis; NaN for a single seed."""
    n = per_seed.shape[-1]
    if n < 2:
        return np.full(per_seed.shape[:-1], np.nan)
    return per_seed.std(-1, ddof=1) / np.sqrt(n)


def relative_error(per_seed: NDArray[np.float64]) -> float:
    """Root mean square of the standard errors over that of the scores."""
    size = np.sqrt(np.mean(per_seed.mean(-1) ** 2))
    error = np.sqrt(np.mean(standard_error(per_seed) ** 2))
    return float(error / size) if size > 0 else 0.0
