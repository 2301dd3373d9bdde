"""Further training with and without each row: seeds in rounds, kept in memory or on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..model import FinalModel
from .batches import FULL_DATA, LeaveOutMode
from .outcomes import Outcomes, relative_error
from .run import Run
from .store import UnitStore, one_warning
from .workers import Deadline, Result, one_thread, run_units

#: Seeds whose number is to be found are trained this many at a time.
SEED_ROUND = 5


#: Turns a stack of parameters (L, p) into what a unit keeps of it, (L, ...).
Reader = Callable[[FinalModel, Tensor], Tensor]


@dataclass(frozen=True)
class Unit:
    """One stack of one seed: the row that each of its models leaves out."""

    seed: int
    left_out: tuple[int, ...]

    @property
    def key(self) -> str:
        """Name of the unit's file."""
        rows = hashlib.sha256(repr(self.left_out).encode()).hexdigest()[:16]
        return f"seed-{self.seed}-rows-{rows}"


def leave_out_units(
    seeds: Sequence[int], leave_out: NDArray[np.int64], size: int, mode: LeaveOutMode
) -> list[Unit]:
    """Cut seeds x (full data and each left-out row) into stacks of at most `size` models."""
    rows = [int(i) for i in leave_out]
    if mode == "mask":  # the full-data model rides in the first stack
        stacks = _cut([FULL_DATA, *rows], size)
    else:
        stacks = [(FULL_DATA,), *_cut(rows, size)]
    return [Unit(seed, stack) for seed in seeds for stack in stacks]


def _cut(rows: list[int], size: int) -> list[tuple[int, ...]]:
    """Return pieces of nearly equal length."""
    return [tuple(part.tolist()) for part in np.array_split(np.array(rows), -(-len(rows) // size))]


def train_unit(
    run: Run, horizons: Sequence[int], mode: LeaveOutMode, read: Reader, unit: Unit
) -> NDArray[Any]:
    """Train one stack and return what `read` keeps of it at each horizon, (n_horizons, L, ...)."""
    kept: list[NDArray[Any]] = []
    with one_thread():
        run.train(
            run.plan(unit.seed, unit.left_out, mode),
            horizons,
            lambda _, theta: kept.append(read(run.model, theta).cpu().numpy().copy()),
        )
    return np.stack(kept)


@dataclass(frozen=True)
class FurtherRun:
    """Further training of one model without each of some rows, and with all, over seeds.

    Parameters
    ----------
    run : Run
        What is trained.
    horizons : tuple of int
        Epochs after which it is read.
    mode : {"mask", "drop"}
    leave_out : ndarray of shape (n_left_out,)
        Rows to leave out, one at a time.
    seeds : list of int
        All seeds, or the most that may be run.
    sem_tol : float or None
        Run seeds in rounds until the root mean square of the standard errors is at most this
        times that of the scores; None runs all at once.
    compile, chunk_size, checkpoint_dir, memory_budget, n_jobs, verbose : object
        As in `FurtherTraining`.
    max_seconds : float or None
        No seed but the first begins that would end later, if it took as long as the longest yet.
    """

    run: Run
    horizons: tuple[int, ...]
    mode: LeaveOutMode
    leave_out: NDArray[np.int64]
    seeds: list[int]
    sem_tol: float | None
    compile: bool | str
    chunk_size: int | None
    checkpoint_dir: str | os.PathLike[str] | None
    memory_budget: int
    n_jobs: int | None
    verbose: int
    max_seconds: float | None = None

    @one_warning()
    def train(
        self,
        read: Reader,
        bytes_per_model: int,
        scores: Callable[[dict[Unit, Result], list[int]], NDArray[np.float64]],
        identity: dict[str, Any] | None = None,
    ) -> tuple[list[int], dict[Unit, Result]]:
        """Train, and return the seeds that were run with what `read` keeps of each stack.

        `read` keeps `bytes_per_model` of each model, and `identity` tells the directory that keeps
        them what they are. `scores` turns the results of some seeds into their scores,
        (..., n_seeds); it is called for `sem_tol` only.
        """
        if self.checkpoint_dir is None:
            self._require_memory(bytes_per_model)
        size = len(self.seeds) if self.sem_tol is None else SEED_ROUND
        n_models = sum(len(unit.left_out) for unit in self._units(self.seeds[:size]))
        compiled = self.run.compiles(self.compile, n_models, self.horizons[-1])
        run = replace(self.run, compile=compiled)
        work = partial(train_unit, run, self.horizons, self.mode, read)
        store = None
        if self.checkpoint_dir is not None:
            known = {**run.identity(self.horizons, self.mode), **(identity or {})}
            store = UnitStore(self.checkpoint_dir, known, run.variant)
        seeds: list[int] = []
        results: dict[Unit, Result] = {}
        deadline, longest = Deadline(self.max_seconds), 0.0
        while len(seeds) < len(self.seeds) and (not seeds or deadline.is_within(longest)):
            begun = deadline.spent
            fresh = self.seeds[len(seeds) :][: size if self.max_seconds is None else 1]
            results.update(self._train_seeds(fresh, work, bytes_per_model, store))
            seeds += fresh
            longest = max(longest, deadline.spent - begun)
            if self.sem_tol is not None and relative_error(scores(results, seeds)) <= self.sem_tol:
                break
        # the order in which workers finish must not show
        return seeds, dict(sorted(results.items(), key=lambda item: str(item[0].key)))

    def _units(self, seeds: list[int]) -> list[Unit]:
        size = self.chunk_size or self.run.stack_size()
        return leave_out_units(seeds, self.leave_out, size, self.mode)

    def _train_seeds(
        self,
        seeds: list[int],
        work: Callable[[Unit], NDArray[Any]],
        bytes_per_model: int,
        store: UnitStore | None,
    ) -> dict[Unit, Result]:
        units = self._units(seeds)
        if store is not None:
            missing = [unit for unit in units if not store.has(unit.key)]
            store.require_space(bytes_per_model * sum(len(unit.left_out) for unit in missing))
        return dict(run_units(work, units, store=store, n_jobs=self.n_jobs, verbose=self.verbose))

    def _require_memory(self, bytes_per_model: int) -> None:
        """Raise MemoryError if what is kept of all seeds would not fit."""
        n_seeds, n_models = len(self.seeds), len(self.leave_out) + 1
        needed = bytes_per_model * n_seeds * n_models
        if needed > self.memory_budget:
            raise MemoryError(
                f"{n_seeds} seeds x {n_models} models take {needed / 2**20:.0f} MiB, more than "
                f"memory_budget={self.memory_budget / 2**20:.0f} MiB. Set checkpoint_dir to keep "
                "them on disk, leave out fewer rows, lower n_seeds (max_seeds if it is 'auto'), or "
                "raise memory_budget."
            )


def keep_parameters(model: FinalModel, theta: Tensor) -> Tensor:
    """A reader that keeps the stack itself."""
    return theta


def assemble(
    readings: Mapping[Unit, Result],
    seeds: Sequence[int],
    leave_out: Sequence[int] | NDArray[np.int64],
    final: NDArray[np.float64],
) -> Outcomes:
    """Outcomes from the measurements (n_horizons, L, n_test) of all units."""
    n_horizons, _, n_test = np.asarray(next(iter(readings.values()))).shape
    left_out = np.empty((n_horizons, n_test, len(leave_out), len(seeds)))
    full = np.empty((n_horizons, n_test, len(seeds)))
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
