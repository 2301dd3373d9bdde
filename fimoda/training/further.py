"""Further training with and without each row: seeds in rounds, kept in memory or on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._validation import (
    check_leave_out,
    check_random_state,
    check_seeds,
    in_steps,
    warn_of_seeds,
)
from ..batch_statistics import BatchStatistics
from ..measured import Measured
from ..model import FinalModel
from ..objective import Objective
from .batches import FULL_DATA, LeaveOutMode
from .choice import Agreed, decided
from .divergence import warn_of_divergence
from .optimizers import LearningRate
from .outcomes import Outcomes, relative_error
from .run import Run, Way, resolve_run
from .store import UnitStore, one_warning
from .workers import Deadline, Result, one_thread, run_units

#: Seeds whose number is to be found are trained this many at a time.
SEED_ROUND = 5

#: Training rows whose scores say whether there are seeds enough.
N_PROBES = 200

#: Turns a stack of parameters (L, p) into what a unit keeps of it, (L, ...).
Reader = Callable[[FinalModel, Tensor], Tensor]

#: Turns the results of some seeds into what test rows measure.
Measuring = Callable[[Mapping["Unit", Result], Sequence[int]], Outcomes]


@dataclass(frozen=True)
class Unit:
    """One stack of one seed: the row that each of its models leaves out.

    `measured` says what is kept of it, where one directory holds the measurements of several test sets.
    """

    seed: int
    left_out: tuple[int, ...]
    measured: str = ""

    @property
    def key(self) -> str:
        """Name of the unit's file."""
        rows = hashlib.sha256(repr(self.left_out).encode()).hexdigest()[:16]
        return f"seed-{self.seed}-rows-{rows}" + f"-{self.measured}" * bool(self.measured)


@dataclass(frozen=True)
class FurtherRuns:
    """A run without each of some rows, and with all, over seeds; read after some `horizons` in steps.

    `seeds` are all, or the most that may be run: with `sem_tol` they are run in rounds until the root
    mean square of the standard errors is at most this times that of the scores; with `max_seconds` no
    seed but the first begins that would end later, if it took as long as the longest yet. The other
    fields are parameters of `FurtherTraining`.
    """

    run: Run
    horizons: Sequence[int]
    leave_out: NDArray[np.int64]
    seeds: list[int]
    sem_tol: float | None
    correction: str | None
    leave_out_mode: LeaveOutMode
    compile: bool | str
    chunk_size: int | None
    checkpoint_dir: str | os.PathLike[str] | None
    memory_budget: int
    n_jobs: int | None
    verbose: int
    max_seconds: float | None = None
    engine: Way = "auto"

    def units(self, seeds: Sequence[int]) -> list[Unit]:
        """Return seeds x (full data and each left-out row) in stacks of nearly equal size."""
        size = self.chunk_size or self.run.stack_size()
        rows, stacks = self.leave_out, [(FULL_DATA,)]
        if self.leave_out_mode != "drop":  # the full-data model rides in the first stack
            rows, stacks = np.append(FULL_DATA, rows), []
        stacks += [tuple(part.tolist()) for part in np.array_split(rows, -(-len(rows) // size))]
        return [Unit(seed, stack) for seed in seeds for stack in stacks]

    def decided(self, agreed: Agreed | None = None) -> Run:
        """Return the run with its way of computing, for the models of all seeds or of the first round."""
        n_models = len(self.seeds[: self._round]) * (len(self.leave_out) + 1)
        return decided(self.run, self.compile, self.engine, n_models, self.horizons[-1], agreed)

    def warn_of_divergence(self) -> None:
        """Warn if the first epoch raises the training loss because batch normalisation stands still in it."""
        warn_of_divergence(self.run, self.seeds[0])

    def work(self, read: Any) -> Callable[[Unit], NDArray[Any]]:
        """Return the function that trains a unit, and returns what `read` keeps of it at each horizon."""
        return partial(train_unit, self.run, self.horizons, self.leave_out_mode, read)

    def trained(self, own: Measured) -> Trained:
        """Train, and keep the models at the last horizon; `own` are the training rows, measured."""
        probe = probes(own)

        def measure(stacks: Mapping[Unit, Result], seeds: Sequence[int]) -> Outcomes:
            return Trained(self, seeds, stacks).outcomes(probe)

        return Trained(*self.train(_whole, self.run.first.nbytes, measure))

    def measured(self, test: Measured) -> tuple[FurtherRuns, list[int], Outcomes]:
        """Train, and measure test rows at each horizon without keeping the models.

        Returns the runs, the seeds that were run and the measurements (n_horizons, n_test, ...).
        """
        final = test.of_model(self.run.objective.model)
        measure = partial(assemble, leave_out=self.leave_out, final=final)
        n_outputs = self.run.objective.n_outputs
        identity = None if self.checkpoint_dir is None else test.identity(n_outputs)
        size = 8 * len(self.horizons) * len(test)
        runs, seeds, readings = self.train(test.of_stack, size, measure, identity)
        return runs, seeds, measure(readings, seeds)

    @property
    def _round(self) -> int:
        """Number of seeds after which `sem_tol` is looked at."""
        return len(self.seeds) if self.sem_tol is None else SEED_ROUND

    @one_warning()
    def train(
        self,
        read: Any,
        bytes_per_model: int,
        measure: Measuring,
        identity: dict[str, Any] | None = None,
    ) -> tuple[FurtherRuns, list[int], dict[Unit, Result]]:
        """Train, and return the runs as they were taken, their seeds and what `read` keeps of each unit.

        `read` keeps `bytes_per_model` of each model, and `identity` tells the directory that keeps
        them what they are. `measure` is called for `sem_tol` only.
        """
        if self.checkpoint_dir is None:
            self._require_memory(bytes_per_model)
        store = None
        if self.checkpoint_dir is not None:
            known = {**self.run.identity(self.horizons, self.leave_out_mode), **(identity or {})}
            store = UnitStore(self.checkpoint_dir, known)
        run = self.decided(None if store is None else store.agreed)
        store = None if store is None else store.of_variant(run.variant)
        runs = replace(self, run=run)
        runs.warn_of_divergence()
        work = runs.work(read)
        seeds: list[int] = []
        results: dict[Unit, Result] = {}
        deadline, longest = Deadline(self.max_seconds), 0.0
        while len(seeds) < len(self.seeds) and (not seeds or deadline.is_within(longest)):
            begun = deadline.spent
            fresh = self.seeds[len(seeds) :][: self._round if self.max_seconds is None else 1]
            units = runs.units(fresh)
            if store is not None:
                missing = [unit for unit in units if not store.has(unit.key)]
                store.require_space(bytes_per_model * sum(len(unit.left_out) for unit in missing))
            results.update(
                run_units(work, units, store=store, n_jobs=self.n_jobs, verbose=self.verbose)
            )
            seeds += fresh
            longest = max(longest, deadline.spent - begun)
            if self.sem_tol is not None:
                scores = measure(results, seeds).scores(self.correction)[-1]
                if relative_error(scores) <= self.sem_tol:
                    break
        # the order in which workers finish must not show
        return runs, seeds, dict(sorted(results.items(), key=lambda item: str(item[0].key)))

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


def further_runs(
    objective: Objective,
    epochs: Sequence[float],
    name: str,
    *,
    n_seeds: Any,
    leave_out: Any,
    optimizer: Any,
    lr: LearningRate | None,
    batch_size: int | None,
    optimizer_params: dict[str, Any] | None,
    batch_statistics: BatchStatistics,
    sem_tol: float,
    max_seeds: int,
    random_state: Any,
    **settings: Any,
) -> FurtherRuns:
    """Return the runs that parameters of `FurtherTraining` ask for, read after so many epochs.

    Errors call these by `name`.
    """
    drawn = drawn_runs(len(objective), n_seeds, leave_out, sem_tol, max_seeds, random_state)
    warn_of_seeds(settings["checkpoint_dir"], (n_seeds, leave_out), random_state)
    recipe = objective.model.recipe.continued
    chosen = optimizer, lr, optimizer_params, batch_size, batch_statistics
    run = resolve_run(objective, recipe, *chosen)
    if settings["leave_out_mode"] == "expected" and run.model.statistics:
        raise ValueError(
            "leave_out_mode='expected' leaves the row in the statistics of batch normalisation, which are "
            "updated here. Use 'mask', or batch_statistics='frozen'."
        )
    horizons = in_steps(epochs, run.steps_per_epoch, name)
    return FurtherRuns(run, horizons, *drawn, **settings)


def drawn_runs(
    n_rows: int, n_seeds: Any, leave_out: Any, sem_tol: float, max_seeds: int, random_state: Any
) -> tuple[NDArray[np.int64], list[int], float | None]:
    """Return the rows to leave out, the seeds (all, or the most), and the target of "auto"."""
    rng = check_random_state(random_state)
    rows = check_leave_out(leave_out, n_rows, rng)
    if n_rows < 2:
        raise ValueError("X must have at least 2 rows to leave one out, got n_samples = 1.")
    auto = isinstance(n_seeds, str)
    return rows, check_seeds(max_seeds if auto else n_seeds, rng), sem_tol if auto else None


@dataclass(frozen=True)
class Trained:
    """Models of the runs that were asked for, of the seeds that were run: states (1, L, p + b) by unit."""

    runs: FurtherRuns
    seeds: Sequence[int]
    stacks: Mapping[Unit, Result]

    @property
    def n_planned(self) -> int:
        """Number of seeds that would have been run if there had been time."""
        return len(self.seeds if self.runs.sem_tol is not None else self.runs.seeds)

    @one_warning()
    def outcomes(self, test: Measured) -> Outcomes:
        """Measure test rows by all models, (1, n_test, n_left_out, n_seeds)."""
        model = self.runs.run.model
        readings = {
            unit: test.of_stack(model, self._tensor(stack))[None].cpu().numpy()
            for unit, stack in self.stacks.items()
        }
        return assemble(readings, self.seeds, self.runs.leave_out, test.of_model(model))

    @one_warning()
    def own_scores(self, own: Measured, correction: str | None) -> NDArray[np.float64]:
        """Return the score of each left-out row on itself, of all training rows measured."""
        model, rows = self.runs.run.model, self.runs.leave_out
        own, column = own[rows], {int(row): k for k, row in enumerate(rows)}
        scores = -own.of_model(model) if correction is None else np.zeros(len(rows))
        for unit, stack in self.stacks.items():
            for row, theta in zip(unit.left_out, self._tensor(stack), strict=True):
                full = row == FULL_DATA
                if not full:
                    k = column[row]
                    scores[k] += own[k : k + 1].of_model(model, theta)[0] / len(self.seeds)
                if correction == ("full" if full else "mean"):
                    n_models = len(self.seeds) * (1 if full else len(rows))
                    scores -= own.of_model(model, theta) / n_models
        return scores

    def _tensor(self, stack: Result) -> Tensor:
        """Return the parameters (L, p) of a stack."""
        return torch.from_numpy(np.array(stack)[0]).to(self.runs.run.model.device)


def _whole(model: FinalModel, theta: Tensor) -> Tensor:
    return theta


def probes(own: Measured) -> Measured:
    """Return the training rows whose scores say whether there are seeds enough."""
    return own[np.unique(np.linspace(0, len(own) - 1, N_PROBES).astype(int))]


def assemble(
    readings: Mapping[Unit, Result],
    seeds: Sequence[int],
    leave_out: NDArray[np.int64],
    final: NDArray[np.float64],
) -> Outcomes:
    """Return outcomes from the measurements (n_horizons, L, n_test) of all units."""
    n_horizons, _, n_test = np.asarray(next(iter(readings.values()))).shape
    left_out = np.empty((n_horizons, n_test, len(leave_out), len(seeds)))
    full = np.empty((n_horizons, n_test, len(seeds)))
    column = {int(row): k for k, row in enumerate(leave_out)}
    for unit, reading in readings.items():
        s = seeds.index(unit.seed)
        for row, measured in zip(unit.left_out, np.asarray(reading).swapaxes(0, 1), strict=True):
            if row == FULL_DATA:
                full[:, :, s] = measured
            else:
                left_out[:, :, column[row], s] = measured
    return Outcomes(left_out, full, final)
