"""The base of the distances between two samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Samples = NDArray[np.float64]


class Distance(ABC):
    """Base of the distances; `signed` says whether one can be negative."""

    signed: ClassVar[bool] = False
    minimum: ClassVar[int] = 1

    def __call__(self, left_out: ArrayLike, full: ArrayLike) -> NDArray[np.float64]:
        """Return an array of the other axes, from samples (n_left_out, ...) and (n_full, ...)."""
        samples = []
        for name, given in (("left_out", left_out), ("full", full)):
            sample = np.asarray(given, dtype=float)
            if sample.ndim == 0 or len(sample) < self.minimum:
                found = sample.shape[0] if sample.ndim else 0
                raise ValueError(
                    f"{name} must have at least {self.minimum} samples for {self}, got {found}. "
                    "Use more seeds or models."
                )
            if not np.isfinite(sample).all():
                raise ValueError(f"{name} has samples that are NaN or infinite.")
            samples.append(sample)
        return self._between(*samples)

    @abstractmethod
    def _between(self, left_out: Samples, full: Samples) -> NDArray[np.float64]:
        """Hook: the distance."""


class Difference(Distance):
    """Base of the differences of one number of each sample."""

    signed: ClassVar[bool] = True

    def _between(self, left_out: Samples, full: Samples) -> NDArray[np.float64]:
        return self._of(left_out) - self._of(full)

    @abstractmethod
    def _of(self, samples: Samples) -> NDArray[np.float64]:
        """Hook: return the number of each sample."""
