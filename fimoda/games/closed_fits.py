"""Fits of an estimator to many subsets of the rows at once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..measured import Measured
from ..measurements import stacked_values
from ..training.refits import Refits
from ..training.subset_outcomes import as_reading
from ..training.subsets import SubsetUnit, cut_units
from ..training.workers import one_thread, one_thread_in_libraries

Floats = NDArray[np.float64]

#: Subsets in a unit of work, and numbers that a temporary of it may have.
UNIT, NUMBERS = 256, 2**23


@dataclass(frozen=True)
class ClosedFits(Refits):
    """Retraining of an estimator whose fits have a form for many subsets at once.

    `train` keeps numbers of each fit, NaN where there is none; `_outputs` are those of the estimator.
    """

    is_random = False

    #: Why a subset has no fit.
    _reason = "its rows have not every class"

    def identity(self) -> dict[str, Any]:
        """Return what the run is, for the directory that keeps it."""
        return {**super().identity(), "solver": type(self).__name__}

    def units(self, subsets: NDArray[np.bool_], seeds: Sequence[int]) -> list[SubsetUnit]:
        """Cut seeds x subsets into units of work."""
        return cut_units(subsets, seeds, np.zeros(len(subsets)), self.chunk_size or UNIT)

    def train(self, unit: SubsetUnit) -> NDArray[Any]:
        """Return the numbers of the fits."""
        with one_thread(), one_thread_in_libraries():
            return self._fits(unit.masks)

    def measure(self, kept: NDArray[Any], measurer: Measured) -> NDArray[Any]:
        """Return the measurements, or the reason of the failure, of each fit that `train` kept."""
        known = np.isfinite(kept.reshape(len(kept), -1)).all(1)
        measured = np.full((len(kept), len(measurer)), np.nan)
        with one_thread(), one_thread_in_libraries():
            if known.any():
                outputs = torch.from_numpy(self._outputs(kept[known], measurer))
                found = stacked_values(measurer.measure, outputs, measurer.targets)
                measured[known] = found.numpy()
        return as_reading(measured, ["" if ok else self._reason for ok in known])

    def _weighted(self, masks: NDArray[np.bool_]) -> Floats:
        """Return the weights (L, n) of the rows of each subset."""
        weights = 1.0 if self.sample_weight is None else self.sample_weight
        return np.asarray(masks * weights, dtype=np.float64)

    @abstractmethod
    def _fits(self, masks: NDArray[np.bool_]) -> NDArray[Any]:
        """Hook of `train`: numbers (L, ...) of the fits to the rows of masks (L, n)."""

    @abstractmethod
    def _outputs(self, kept: NDArray[Any], measurer: Measured) -> Floats:
        """Hook of `measure`: outputs (L, n_test, C)."""


class LinearFits(ClosedFits):
    """Those of a linear model: `train` keeps coefficients (L, C, p + 1), the intercept last."""

    def _outputs(self, kept: NDArray[Any], measurer: Measured) -> Floats:
        return np.einsum("zp,lcp->lzc", with_ones(measurer.inputs.values), kept, optimize=True)


def with_ones(X: NDArray[Any]) -> Floats:
    """Return rows (n, p + 1) with a last feature of ones."""
    return np.column_stack([np.asarray(X, dtype=np.float64), np.ones(len(X))])
