"""What training on a subset changed: the mean, or any distance between two samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..distances import resolve_distance


class MeasuredEffect:
    """What training on a subset changed, from the trainings that succeeded."""

    def __init__(self, distance: Any, reference: ArrayLike | None, n_test: int):
        if (distance is None) != (reference is None):
            raise ValueError(
                "distance and reference must be given together: the distance is to measurements after "
                "training on all rows, for example train_on_subsets(..., [range(n)], ...).measured[0]."
            )
        self.distance = None if distance is None else resolve_distance(distance)
        self.reference = np.asarray([] if reference is None else reference, dtype=float)
        if distance is not None and (
            self.reference.ndim != 2 or len(self.reference) != n_test or not self.reference.size
        ):
            raise ValueError(
                f"reference must have shape ({n_test}, n_reference), a sample for each test row, got "
                f"{self.reference.shape}."
            )

    def __call__(
        self, measured: NDArray[np.float64], succeeded: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Effects (n_subsets, n_test) of measurements (n_subsets, n_test, n_seeds)."""
        if self.distance is None:
            return np.mean(measured, 2, where=succeeded[:, None])
        kept = [row[np.isfinite(row)] for row in self.reference]
        return np.array(
            [
                [self.distance(sample, row) for sample, row in zip(one[:, ok], kept, strict=True)]
                for one, ok in zip(measured, succeeded, strict=True)
            ]
        )
