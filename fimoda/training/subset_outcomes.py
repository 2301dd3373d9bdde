"""Measurements of models that were trained on subsets of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .workers import Result


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
    """Return the mean over the last axis and its standard error, NaNs ignored."""
    number = np.isfinite(values).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(values, -1) / number
        squares = np.nansum((values - mean[..., None]) ** 2, -1) / (number - 1)
        return mean, np.sqrt(np.where(number > 1, squares / number, np.nan))


def means_of_groups(
    measured: NDArray[np.float64], members: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return means (n_test, n) over the subsets of each group (M, n), and their errors, NaNs ignored."""
    finite = np.isfinite(measured)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = np.nansum(measured, axis=1, keepdims=True) / finite.sum(1, keepdims=True)
        centred = np.where(finite, measured - centre, 0.0)
        number = finite.astype(float) @ members
        mean = centred @ members / number
        squares = np.maximum(centred**2 @ members - number * mean**2, 0) / (number - 1)
        return mean + centre, np.sqrt(np.where(number > 1, squares / number, np.nan))


def as_reading(measured: NDArray[np.float64], reasons: Sequence[str]) -> NDArray[Any]:
    """Return records of measurements (L, n_test), and why there are none (empty where there are)."""
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
    subsets: NDArray[Any], seeds: list[int], readings: Mapping[Any, Result]
) -> SubsetOutcomes:
    """Return the outcomes from the readings of all units (`SubsetUnit`)."""
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
