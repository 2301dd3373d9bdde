"""Differences of one number of each sample: a mean, a spread, a quantile, a probability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .base import Difference, Samples


@dataclass(frozen=True)
class Mean(Difference):
    """Difference of the means, in the unit of the measurement."""

    def _of(self, samples: Samples) -> NDArray[np.float64]:
        return samples.mean(0)


@dataclass(frozen=True)
class Variance(Difference):
    """Difference of the (unbiased) variances, in the squared unit of the measurement."""

    minimum: ClassVar[int] = 2

    def _of(self, samples: Samples) -> NDArray[np.float64]:
        return samples.var(0, ddof=1)


@dataclass(frozen=True)
class StandardDeviation(Difference):
    """Difference of the standard deviations, in the unit of the measurement."""

    minimum: ClassVar[int] = 2

    def _of(self, samples: Samples) -> NDArray[np.float64]:
        return samples.std(0, ddof=1)


@dataclass(frozen=True)
class Quantile(Difference):
    """Difference of a quantile, in the unit of the measurement.

    Parameters
    ----------
    q : float
        Between 0 and 1. At least ``1 / min(q, 1 - q)`` samples are needed: with fewer the quantile
        lies beyond the outermost sample.

    Examples
    --------
    >>> from fimoda.distances import Quantile
    >>> float(Quantile(0.5)([1.0, 5.0, 9.0], [0.0, 2.0]))
    4.0
    """

    q: float

    def __post_init__(self) -> None:
        if not 0 < self.q < 1:
            raise ValueError(f"q must lie between 0 and 1, got {self.q}.")

    def _between(self, left_out: Samples, full: Samples) -> NDArray[np.float64]:
        needed = int(np.ceil(1 / min(self.q, 1 - self.q) - 1e-9))
        if min(len(left_out), len(full)) < needed:
            raise ValueError(
                f"{self} needs at least {needed} samples, got {len(left_out)} and {len(full)}. Use "
                "more seeds or models, or a quantile nearer to the median."
            )
        return super()._between(left_out, full)

    def _of(self, samples: Samples) -> NDArray[np.float64]:
        return np.quantile(samples, self.q, axis=0)


@dataclass(frozen=True)
class TailProbability(Difference):
    """Difference of the share of samples above a threshold.

    Parameters
    ----------
    threshold : float
        In the unit of the measurement.

    Examples
    --------
    >>> from fimoda.distances import TailProbability
    >>> float(TailProbability(0.5)([1.0, 1.0], [1.0, 0.0]))
    0.5
    """

    threshold: float

    def _of(self, samples: Samples) -> NDArray[np.float64]:
        return (samples > self.threshold).mean(0)
