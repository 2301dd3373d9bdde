"""Subsets of the training rows, and what models trained on them measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._validation import check_count, check_random_state
from .workers import Result


def random_subsets(
    n: int, n_subsets: int, ratio: float = 0.5, random_state: Any = None
) -> NDArray[np.bool_]:
    """Random subsets of ``round(ratio * n)`` rows each.

    Parameters
    ----------
    n : int
        Number of rows.
    n_subsets : int
        Number of subsets.
    ratio : float, default=0.5
        Part of the rows that is in a subset.
    random_state : int, RandomState or None, default=None
        Draws them. The first k of m subsets are the k that would have been drawn alone.

    Returns
    -------
    subsets : ndarray of bool of shape (n_subsets, n)
        True where the row is in the subset.

    Raises
    ------
    ValueError
        If a subset would have no rows, or all.

    Examples
    --------
    >>> from fimoda import random_subsets
    >>> random_subsets(10, 3, 0.3, random_state=0).sum(1)
    array([3, 3, 3])
    """
    size = round(ratio * n)
    if not 0 < size < n:
        raise ValueError(
            f"ratio must leave some of the {n} rows in a subset and some out, got {ratio}, which is "
            f"{size} rows."
        )
    check_count(n_subsets, "n_subsets")
    rng = check_random_state(random_state)
    subsets = np.zeros((n_subsets, n), dtype=bool)
    for subset in subsets:
        subset[rng.permutation(n)[:size]] = True
    return subsets


def covering_subsets(
    n: int, ratio: float, random_state: np.random.RandomState
) -> NDArray[np.bool_]:
    """Return as few subsets as can be with every row in some and out of others.

    They are windows of one random order of the rows, moved on until they have covered all; two
    halves for an even number of rows and a ratio of one half.

    Parameters
    ----------
    n : int
        Number of rows.
    ratio : float
        Part of the rows that is in a subset.
    random_state : RandomState
        Draws the order.

    Returns
    -------
    subsets : ndarray of bool of shape (n_subsets, n)
    """
    size = round(ratio * n)
    step = min(size, n - size)
    starts = np.arange(-(-n // step)) * step
    subsets = np.zeros((len(starts), n), dtype=bool)
    windows = (starts[:, None] + np.arange(size)) % n
    np.put_along_axis(subsets, random_state.permutation(n)[windows], True, axis=1)
    return subsets


@dataclass(frozen=True)
class SubsetOutcomes:
    """Measurements of models trained from scratch on subsets of the training rows.

    Parameters
    ----------
    subsets : ndarray of bool of shape (M, n_train)
        True where a row is in a subset.
    seeds : list of int
        Seeds of initial parameters and batch order, the same for all subsets.
    measured : ndarray of shape (M, n_test, R)
        Measurement of each test row in the unit of the measurement, by subset and seed; NaN where
        training failed.
    failed : list of tuple
        Number of the subset, seed and reason of each training that failed.
    """

    subsets: NDArray[np.bool_]
    seeds: list[int]
    measured: NDArray[np.float64]
    failed: list[tuple[int, int, str]]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean over the seeds that did not fail, (M, n_test); NaN where all did."""
        return mean_and_error(self.measured)[0]

    @property
    def n_trained(self) -> int:
        """Number of trainings, failed ones among them."""
        return len(self.subsets) * len(self.seeds)

    def require_some(self) -> None:
        """Raise FloatingPointError, with the reason, if all trainings failed."""
        if len(self.failed) == self.n_trained:
            reasons = list(dict.fromkeys(reason for *_, reason in self.failed))
            others = f" (and {len(reasons) - 1} other reasons)" if len(reasons) > 1 else ""
            raise FloatingPointError(
                f"{reasons[0]}{others}: all {self.n_trained} trainings failed."
            )


def mean_and_error(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean over the last axis and its standard error, NaNs ignored."""
    number = np.isfinite(values).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(values, -1) / number
        squares = np.nansum((values - mean[..., None]) ** 2, -1) / (number - 1)
        return mean, np.sqrt(np.where(number > 1, squares / number, np.nan))


def as_reading(measured: NDArray[np.float64], reasons: Sequence[str]) -> NDArray[Any]:
    """Records of measurements (L, n_test), and why there are none (empty where there are)."""
    n_models, n_test = measured.shape
    dtype = np.dtype([("measured", np.float64, (n_test,)), ("reason", "U200")])
    reading = np.zeros(n_models, dtype)
    finite: NDArray[np.bool_] = np.all(np.isfinite(measured), axis=1)
    reading["measured"] = np.where(finite[:, None], measured, np.nan)
    reading["reason"] = [
        reason or ("" if ok else "the measurement of a test row is NaN or infinite")
        for reason, ok in zip(reasons, finite, strict=True)
    ]
    return reading


def assemble_subsets(
    subsets: NDArray[np.bool_], seeds: list[int], readings: Mapping[Any, Result]
) -> SubsetOutcomes:
    """Outcomes from the readings of all units (`SubsetUnit`)."""
    n_test = np.asarray(next(iter(readings.values())))["measured"].shape[1]
    measured = np.full((len(subsets), n_test, len(seeds)), np.nan)
    failed = []
    for unit, stored in readings.items():
        reading = np.asarray(stored)
        measured[unit.members, :, seeds.index(unit.seed)] = reading["measured"]
        failed += [
            (int(member), unit.seed, str(reason))
            for member, reason in zip(unit.members, reading["reason"], strict=True)
            if reason
        ]
    return SubsetOutcomes(subsets, seeds, measured, sorted(failed))
