"""Values of rows with their standard errors."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from .._validation import ConvergenceWarning
from ..training.workers import Deadline

Floats = NDArray[np.float64]

#: Part of the variance between rows from which on values have settled: two repetitions correlate by it.
RELIABLE = 0.95

#: Seconds that samples may be thought to take without a word.
PATIENCE = 60.0


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

    def n_needed(self, drawn: int, most: int) -> int:
        """Return how many samples are thought to be needed, by doubling those drawn, of `most` at most.

        The variance of errors falls with their number, and the rest of that between rows stays.
        """
        known = self.reliability
        times = (1 / known - 1) / (1 / RELIABLE - 1) if known > 0 else np.inf
        doublings = np.ceil(np.log2(min(max(times, 1.0), most / drawn)))
        return int(drawn * 2**doublings)


def with_mean(utilities: Floats) -> Floats:
    """Return utilities (M, T + 1) with those of the mean game behind."""
    return np.concatenate([utilities, utilities.mean(1, keepdims=True)], axis=1)


def settled(
    n_samples: int | str,
    first: int,
    most: int,
    take: Callable[[int], Estimate],
    *,
    max_seconds: float | None = None,
    verbose: int = 0,
    patience: float = PATIENCE,
) -> Estimate:
    """Return the estimate from so many samples, of which `take` draws more and gives that of all.

    With "auto" there are twice as many as before until the values are reliable, a ConvergenceWarning
    if they are not with the most, or with those that should end in `max_seconds`. After each round
    `verbose` tells how long it will take; otherwise a warning does, once, if that is more than `patience`.
    """
    if n_samples != "auto":
        return take(int(n_samples))
    time = Deadline(max_seconds)
    found, drawn = take(first), first
    told = verbose > 0 or max_seconds is not None
    while found.reliability < RELIABLE and drawn < most:
        if not time.is_within(time.spent):  # what the next round takes
            break
        needed = found.n_needed(drawn, most)
        seconds = time.spent * (needed / drawn - 1)
        words = (
            f"{drawn} samples took {time.spent:.0f} s, and errors are {_error(found)}. About {needed} "
            f"samples are thought to be needed, in {seconds:.0f} s more"
        )
        if verbose:
            tqdm.write(f"{words}.", file=sys.stderr)
        if not told and seconds > patience:
            told = True
            warnings.warn(
                f"n_samples='auto': {words}. Set verbose=1 to watch, max_seconds to end it, a checkpoint_dir "
                "to go on after an end, or n_samples to a number.",
                UserWarning,
                stacklevel=2,
            )
        found, drawn = take(drawn), 2 * drawn
    if found.reliability < RELIABLE:
        over = "" if drawn >= most else f", when max_seconds={max_seconds} were as good as over"
        warnings.warn(
            f"values have not settled after {drawn} samples{over}: errors are {_error(found)}. Look at "
            "values_sem_, or set n_samples to a larger number.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return found


def _error(found: Estimate) -> str:
    """Return the part of the variance that is error, in words."""
    part = 1 - found.reliability
    return f"{part:.0%} of the variance between rows" if part < 1 else "all that tells rows apart"


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
