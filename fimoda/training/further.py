"""Further training with and without each row: seeds in rounds, kept in memory or on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .outcomes import relative_error
from .runner import (
    Deadline,
    Reader,
    Result,
    Training,
    Unit,
    decide_compile,
    leave_out_units,
    run_units,
    train_unit,
)
from .store import UnitStore, one_warning

#: Seeds whose number is to be found are trained this many at a time.
SEED_ROUND = 5


@dataclass(frozen=True)
class FurtherRun:
    """Further training of one model without each of some rows, and with all, over seeds.

    Parameters
    ----------
    training : Training
        What is trained.
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

    training: Training
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
        compiled = decide_compile(self.training, self._units(self.seeds[:size]), self.compile)
        training = replace(self.training, compile=compiled)
        work = partial(train_unit, training, read)
        store = None
        if self.checkpoint_dir is not None:
            known = {**training.identity(), **(identity or {})}
            store = UnitStore(self.checkpoint_dir, known, training.variant)
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
        return leave_out_units(self.training, seeds, self.leave_out, self.chunk_size)

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
