"""Values of rows with their standard errors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .._validation import ConvergenceWarning

Floats = NDArray[np.float64]

#: Part of the variance between rows from which on values have settled: two repetitions correlate by it.
RELIABLE = 0.95


@dataclass(frozen=True)
class Estimate:
    """Values (T, n) of n rows in T games, and those of the mean game (n,), with standard errors.

    The errors are zero where all sets are known, and NaN where errors are not known.
    """

    mean: Floats
    sem: Floats
    total: Floats
    total_sem: Floats
    n_samples: int

    @classmethod
    def of(cls, values: Floats, errors: Floats, n_samples: int) -> Estimate:
        """Return values and errors (T + 1, n), of which the last are those of the mean game."""
        return cls(values[:-1], errors[:-1], values[-1], errors[-1], n_samples)

    @property
    def reliability(self) -> float:
        """Part of the variance between the rows of the mean game that is not error, at most 1.

        It is what the values of two independent repetitions are expected to correlate by.
        """
        spread = float(self.total.var(ddof=1)) if self.total.size > 1 else 0.0
        error = float((self.total_sem**2).mean())
        return 1 - error / spread if spread > 0 else -np.inf


def with_mean(utilities: Floats) -> Floats:
    """Return utilities (M, T + 1) with those of the mean game behind."""
    return np.concatenate([utilities, utilities.mean(1, keepdims=True)], axis=1)


def settled(
    n_samples: int | str, first: int, most: int, take: Callable[[int], Estimate]
) -> Estimate:
    """Return the estimate from so many samples, of which `take` draws more and gives that of all.

    With "auto" there are twice as many as before until the values are reliable, a ConvergenceWarning
    if they are not with the most.
    """
    if n_samples != "auto":
        return take(int(n_samples))
    found, drawn = take(first), first
    while found.reliability < RELIABLE and drawn < most:
        found, drawn = take(drawn), 2 * drawn
    if found.reliability < RELIABLE:
        warnings.warn(
            f"values have not settled after {drawn} samples: errors are {1 - found.reliability:.0%} of the "
            "variance between rows. Look at values_sem_, or set n_samples to a larger number.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return found


class RunningMean:
    """The mean of independent samples of values, and its standard error, sample by sample."""

    def __init__(self) -> None:
        self._n = 0
        self._sums: Floats = np.zeros(())
        self._squares: Floats = np.zeros(())

    def add(self, samples: Floats) -> None:
        """Take further samples (G, T + 1, n), of T games and the mean one."""
        if not self._n:
            self._centre = samples.mean(0)  # so that no small variance is lost
            self._sums, self._squares = np.zeros((2, *self._centre.shape))
        centred = samples - self._centre
        self._n += len(samples)
        self._sums += centred.sum(0)
        self._squares += (centred**2).sum(0)

    def estimate(self, per_sample: int = 1) -> Estimate:
        """Return the mean and its error, of samples that are made of so many orders or sets each."""
        n = self._n
        mean = self._sums / n
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = np.maximum(self._squares / n - mean**2, 0) * n / (n - 1)
            sem = np.sqrt(variance / n) if n > 1 else np.full_like(mean, np.nan)
        return Estimate.of(mean + self._centre, sem, n * per_sample)
