"""Training anew on subsets of the rows: how long, in which order, and where results are kept."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._identity import identity_of
from .._validation import check_subsets
from ..measured import Measured
from .refits import Refits
from .run import Way
from .store import UnitStore, one_warning
from .subset_outcomes import SubsetOutcomes, assemble_subsets, mean_and_error
from .subsets import StackedRetraining, SubsetUnit
from .workers import Result, run_units

#: Trainings that fail alike, before any has succeeded, after which no more are tried.
_ALIKE = 16


@dataclass(frozen=True, eq=False)
class Retraining:
    """Retraining of a model on subsets of its rows, with some seeds.

    `way` trains units of subsets and measures what it has trained; the other fields are parameters
    of `LeaveOneOut`.
    """

    way: StackedRetraining | Refits
    seeds: list[int]
    n_outputs: int
    compile: bool | str
    engine: Way
    checkpoint_dir: str | os.PathLike[str] | None
    memory_budget: int
    max_seconds: float | None
    n_jobs: int | None
    verbose: int

    @property
    def keeps_models(self) -> bool:
        """True if models outlive their training: fitted estimators are pickles, never on disk."""
        return self.way.may_be_stored or self.checkpoint_dir is None

    @one_warning()
    def train(
        self,
        subsets: NDArray[Any],
        measured: Measured | None = None,
        order: NDArray[np.int64] | None = None,
        n_needed: int = 0,
    ) -> dict[SubsetUnit, Result]:
        """Train on all subsets (M, n); keep the models or, of measured rows, the readings alone.

        With `max_seconds` the subsets are taken in an order, of which the first `n_needed` are
        trained on with the first seed whatever the time. Where nothing is random, what is trained with the
        first seed stands for all.
        """
        seeds = self.seeds
        if len(seeds) > 1 and not self.way.is_random:
            seeds = seeds[:1]
        size = self.way.bytes_per_model if measured is None else 8 * len(measured)
        store = None
        if self.checkpoint_dir is None:
            self._require_memory(size, len(subsets), len(seeds))
        else:
            store = UnitStore(self.checkpoint_dir, self.way.identity())
        asked = self.compile, self.engine, len(subsets) * len(seeds)
        way = self.way.decided(*asked, None if store is None else store.agreed)
        units = way.units(subsets, seeds)
        if store is not None:
            store = store.of_variant(way.variant)
            if measured is not None:  # one directory holds what is measured on any test rows
                kept = identity_of(measured.identity(self.n_outputs))
                units = [replace(unit, measured=kept[:16]) for unit in units]
            store.require_space(size * sum(u.n_models for u in units if not store.has(u.key)))
        work = way.train if measured is None else partial(_train_and_measure, way, measured)
        n_required = 0
        if self.max_seconds is not None:
            rank = np.arange(len(subsets)) if order is None else np.argsort(order)
            units, n_required = self._in_order(units, rank, n_needed)
        found: dict[SubsetUnit, Result] = {}
        reasons: list[str] = []
        for unit, reading in run_units(
            work,
            units,
            store=store,
            n_jobs=self.n_jobs,
            verbose=self.verbose,
            description="retraining",
            max_seconds=self.max_seconds,
            n_required=n_required,
        ):
            found[unit] = reading
            if all(reasons):  # none has succeeded yet
                result = np.asarray(reading)
                reasons += way.reasons(result) if measured is None else map(str, result["reason"])
                _require_some(reasons, len(subsets) * len(seeds))
        # the order of workers must not show
        ordered = {unit: found[unit] for unit in units if unit in found}
        others = [seed for seed in self.seeds if seed not in seeds]
        return ordered | {replace(u, seed=s): kept for s in others for u, kept in ordered.items()}

    def differences(
        self, subsets: NDArray[np.bool_], measured: Measured
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return how measurements differ from those of the first subset, and standard errors over seeds.

        Both are (n_test, M - 1), NaN where every training failed.
        """
        readings = replace(self, max_seconds=None).train(subsets, measured)
        outcomes = assemble_subsets(subsets, self.seeds, readings)
        outcomes.require_some()
        change, errors = mean_and_error(outcomes.measured[1:] - outcomes.measured[:1])
        return change.T, errors.T

    def measure(
        self, models: Mapping[SubsetUnit, Result], measured: Measured
    ) -> dict[SubsetUnit, Result]:
        """Return the readings of models that `train` has kept."""
        readings: dict[int, Result] = {}
        for kept in models.values():
            if id(kept) not in readings:  # that of the first seed may stand for all
                readings[id(kept)] = self.way.measure(np.asarray(kept), measured)
        return {unit: readings[id(kept)] for unit, kept in models.items()}

    def _in_order(
        self, units: list[SubsetUnit], rank: NDArray[np.int64], n_needed: int
    ) -> tuple[list[SubsetUnit], int]:
        """Return the units as they are to be trained, and how many of them whatever the time."""
        place = {seed: k for k, seed in enumerate(self.seeds)}
        first = [(place[unit.seed], int(rank[unit.members].min())) for unit in units]
        sequence = sorted(range(len(units)), key=first.__getitem__)
        return [units[k] for k in sequence], sum(f[0] == 0 and f[1] < n_needed for f in first)

    def _require_memory(self, bytes_per_model: int, n_subsets: int, n_seeds: int) -> None:
        """Raise MemoryError if what is kept of all models would not fit."""
        needed = bytes_per_model * n_subsets * n_seeds
        if needed > self.memory_budget:
            raise MemoryError(
                f"{n_subsets} subsets x {n_seeds} seeds take {needed / 2**20:.0f} MiB, more "
                f"than memory_budget={self.memory_budget / 2**20:.0f} MiB. Set checkpoint_dir to keep "
                "them on disk, train on fewer subsets or seeds, or raise memory_budget."
            )


def _require_some(reasons: list[str], n_trainings: int) -> None:
    """Raise FloatingPointError if many trainings, and all that there are, failed for the same reason."""
    if len(reasons) >= _ALIKE and reasons[0] and len(set(reasons)) == 1:
        raise FloatingPointError(
            f"{reasons[0]}: the first {len(reasons)} of {n_trainings} trainings failed for this reason, and "
            "the others were not tried."
        )


def _train_and_measure(
    way: StackedRetraining | Refits, measured: Measured, unit: SubsetUnit
) -> NDArray[Any]:
    return way.measure(way.train(unit), measured)


@dataclass(frozen=True)
class Timing:
    """Seconds of one training and of measuring its model, the cores kept busy, the bytes kept."""

    training: float
    cores: float
    measuring: float
    n_bytes: int


@dataclass(frozen=True, eq=False)
class SubsetTrainer:
    """Trains a model from scratch on subsets of its rows and measures test rows, call by call."""

    retraining: Retraining
    measured: Measured
    n_rows: int

    def __call__(self, subsets: Any) -> SubsetOutcomes:
        """Return what the test rows measure after training on each subset with each seed."""
        mask = check_subsets(subsets, self.n_rows)
        readings = self.retraining.train(mask, self.measured)
        return assemble_subsets(mask, self.retraining.seeds, readings)

    def timed(self) -> Timing:
        """Train once on all rows, and return how long that took.

        Raises
        ------
        ValueError
            If the model cannot be trained on all rows.
        """
        way = self.retraining.way
        everything = np.ones((1, self.n_rows), dtype=bool)
        unit = way.units(everything, self.retraining.seeds[:1])[0]
        begin, busy = time.perf_counter(), time.process_time()
        kept = np.asarray(way.train(unit))
        training, used = time.perf_counter() - begin, time.process_time() - busy
        reading = way.measure(kept, self.measured)
        measuring = time.perf_counter() - begin - training
        if reading["reason"][0]:
            raise ValueError(
                f"estimator has no scores, trained again on all rows: {reading['reason'][0]}"
            )
        return Timing(training, used / training, measuring, kept.nbytes)
