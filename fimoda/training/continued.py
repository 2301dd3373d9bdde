"""Further training of estimators that go on by themselves: with and without each row, seed by seed."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .._identity import identity_of
from .._validation import is_integer, warn_of_seeds
from ..adapters import (
    Continuing,
    OwnRows,
    RefittableModel,
    how_to_continue,
    last_step,
    refit_outputs,
)
from ..measured import Measured
from ..measurements import values
from ..rows import RawRows
from .batches import FULL_DATA, LeaveOutMode
from .choice import Agreed
from .further import FurtherRuns, Trained, Unit, assemble, drawn_runs, probes
from .outcomes import Outcomes
from .refits import FIT_ERRORS, UNIT_SIZE, pickled, settings_given
from .store import one_warning
from .workers import Result, one_thread, one_thread_in_libraries

#: Parameters that say how steps of an optimiser are taken.
OF_STEPS = ("optimizer", "lr", "batch_size", "optimizer_params", "criterion")

#: Returns what is kept of models, each of them at some horizons.
Keeping = Callable[[Iterable[list[Any]]], NDArray[Any]]


@dataclass(frozen=True, eq=False)
class ContinuedRun:
    """A way for a fitted estimator to go on with its training rows, whose outputs are those of `model`.

    It stands where a `Run` of a network does; its steps are rounds of boosting, or epochs.
    """

    variant: ClassVar[str] = ""
    way: ClassVar[str] = "own"
    steps_per_epoch: ClassVar[int] = 1

    continuing: Continuing
    model: RefittableModel
    given: OwnRows
    mode: LeaveOutMode

    @cached_property
    def must_stay(self) -> NDArray[np.bool_]:
        """Mask of the rows that are left out by weight zero, whatever the mode."""
        return self.continuing.must_stay(self.given)

    @cached_property
    def masks(self) -> bool:
        """True if rows keep their place with weight zero: by default where a seed draws rows."""
        return self.mode == "mask" and self.continuing.draws_rows()

    @cached_property
    def rows(self) -> OwnRows:
        """The training rows; their weights are written out if one of them may be zero in another run."""
        return self.given.weighted() if self.masks or self.must_stay.any() else self.given

    @cached_property
    def is_random(self) -> bool:
        """True if seeds make a difference."""
        return self.continuing.is_random(len(self.given))

    def n_epochs(self, n_steps: int) -> int:
        """Return the epochs of so many steps, which are the same here."""
        return n_steps

    def stack_size(self) -> int:
        """Return how many models are trained in a unit of work."""
        return UNIT_SIZE

    def identity(self, horizons: Sequence[int], mode: LeaveOutMode = "mask") -> dict[str, Any]:
        """Return what the run is, for the directory that keeps what comes of it."""
        model = self.continuing.model
        return {
            "estimator": f"{type(model).__name__} {identity_of(self.continuing.known_by())}",
            "X": identity_of(self.given.X.values),
            "y": identity_of(self.given.y),
            "sample_weight": identity_of(self.given.weights),
            "epochs": list(horizons),
            "leave_out_mode": mode,
        }

    def after(self, row: int, seed: int, horizons: Sequence[int]) -> list[Any]:
        """Return the estimators at each horizon, trained without a row (`FULL_DATA`: with all)."""
        if row == FULL_DATA:
            return self.continuing.after(self.rows, None, False, seed, horizons)
        stays = self.masks or bool(self.must_stay[row])
        try:
            return self.continuing.after(self.rows, row, stays, seed, horizons)
        except FIT_ERRORS as error:
            raise ValueError(
                f"estimator {type(self.continuing.model).__name__} cannot go on without row {row} "
                f"({error}). Name other rows by leave_out."
            ) from error

    def measure(self, models: Iterable[list[Any]], test: Measured) -> NDArray[np.float64]:
        """Return the measurements (n_horizons, L, n_test) of models at some horizons each."""
        measured = [[self._of_one(one, test) for one in at_horizons] for at_horizons in models]
        return np.array(measured).swapaxes(0, 1)

    def _of_one(self, estimator: Any, test: Measured) -> NDArray[np.float64]:
        outputs = refit_outputs(self.model, estimator, test.inputs, self.given.y)
        return values(test.measure, outputs, test.targets).cpu().numpy()


@dataclass(frozen=True)
class ContinuedRuns(FurtherRuns):
    """Runs of an estimator that goes on by itself; without draws all seeds are one run."""

    run: ContinuedRun  # type: ignore[assignment]

    #: What is measured, in the names of files: one directory holds the measurements of any test rows.
    kept: str = ""

    def units(self, seeds: Sequence[int]) -> list[Unit]:
        some = [seed for seed in seeds if self.run.is_random or seed == self.seeds[0]]
        return [replace(unit, measured=self.kept) for unit in super().units(some)]

    def decided(self, agreed: Agreed | None = None) -> ContinuedRun:  # type: ignore[override]
        return self.run

    def warn_of_divergence(self) -> None:
        return None

    def work(self, read: Keeping) -> Callable[[Unit], NDArray[Any]]:
        return partial(continue_unit, self.run, self.horizons, read)

    def trained(self, own: Measured) -> ContinuedModels:
        """Train, and keep pickles of the models.

        With a directory, which holds measurements only, nothing is trained yet but to find the seeds, if
        their number depends on scores or on the time.
        """
        if self.checkpoint_dir is None:
            size, probe = len(pickled(self.run.continuing.model)), probes(own)

            def measure(stacks: Mapping[Unit, Result], seeds: Sequence[int]) -> Outcomes:
                return ContinuedModels(self, seeds, stacks).outcomes(probe)

            _, seeds, stacks = self.train(_pickles, size, measure)
            return ContinuedModels(self, seeds, stacks)
        cut = self.sem_tol is not None or self.max_seconds is not None
        seeds = self.measured(probes(own))[1] if cut else self.seeds
        return ContinuedModels(self, seeds, {})

    def measured(self, test: Measured) -> tuple[FurtherRuns, list[int], Outcomes]:
        model = self.run.model
        outputs = model.outputs(test.inputs)
        final = values(test.measure, outputs, test.targets).cpu().numpy()
        measure = partial(self.assembled, final=final)
        stored = self.checkpoint_dir is not None
        kept = identity_of(test.identity(outputs.shape[1]))[:16] if stored else ""
        read, size = partial(self.run.measure, test=test), 8 * len(self.horizons) * len(test)
        _, seeds, readings = replace(self, kept=kept).train(read, size, measure)
        return self, seeds, measure(readings, seeds)

    def assembled(
        self, readings: Mapping[Unit, Result], seeds: Sequence[int], final: NDArray[np.float64]
    ) -> Outcomes:
        """Return outcomes from the measurements of all units, the same for all seeds if nothing is drawn."""
        if self.run.is_random:
            return assemble(readings, seeds, self.leave_out, final)
        one = assemble(readings, seeds[:1], self.leave_out, final)
        left_out, full = (np.repeat(part, len(seeds), -1) for part in (one.left_out, one.full))
        return Outcomes(left_out, full, final)


@dataclass(frozen=True)
class ContinuedModels(Trained):
    """Models of the runs of an estimator, as pickles by unit; without any they are trained to be measured."""

    runs: ContinuedRuns

    @one_warning()
    def outcomes(self, test: Measured) -> Outcomes:
        run = self.runs.run
        if not self.stacks:
            runs = replace(self.runs, seeds=list(self.seeds), sem_tol=None, max_seconds=None)
            return runs.measured(test)[2]
        with one_thread(), one_thread_in_libraries():
            readings = {
                unit: run.measure(pickle.loads(np.asarray(kept).tobytes()), test)
                for unit, kept in self.stacks.items()
            }
        final = values(test.measure, run.model.outputs(test.inputs), test.targets).cpu().numpy()
        return self.runs.assembled(readings, self.seeds, final)

    def own_scores(self, own: Measured, correction: str | None) -> NDArray[np.float64]:
        rows = self.runs.leave_out
        scores = self.outcomes(own[rows]).scores(correction)[0].mean(-1)
        return np.diagonal(scores).copy()


def continue_unit(
    run: ContinuedRun, horizons: Sequence[int], keep: Keeping, unit: Unit
) -> NDArray[Any]:
    """Train the models of a unit one after the other, and return what is kept of them."""
    with one_thread(), one_thread_in_libraries():
        return keep(run.after(row, unit.seed, horizons) for row in unit.left_out)


def _pickles(models: Iterable[list[Any]]) -> NDArray[np.uint8]:
    return np.frombuffer(pickled(list(models)), np.uint8)


def continued_runs(
    run: ContinuedRun,
    epochs: Sequence[float],
    name: str,
    *,
    n_seeds: Any,
    leave_out: Any,
    sem_tol: float,
    max_seeds: int,
    random_state: Any,
    **settings: Any,
) -> ContinuedRuns:
    """Return the runs that parameters of `FurtherTraining` ask for; those of networks are left alone.

    Errors call the horizons by `name`.
    """
    if not all(is_integer(n) for n in epochs):
        raise ValueError(
            f"{name} must be whole numbers of {run.continuing.unit} for "
            f"{type(run.continuing.model).__name__}, got {list(epochs)}."
        )
    drawn = drawn_runs(len(run.given), n_seeds, leave_out, sem_tol, max_seeds, random_state)
    warn_of_seeds(settings["checkpoint_dir"], (n_seeds, leave_out), random_state)
    known = {key: value for key, value in settings.items() if key not in OF_STEPS}
    known.pop("batch_statistics", None)
    if not run.is_random:
        known["max_seconds"] = None  # further seeds take no time
    return ContinuedRuns(run, list(map(int, epochs)), *drawn, **known)


def continued_run(
    method: Any, X: RawRows, y: NDArray[Any], sample_weight: NDArray[np.float64] | None
) -> ContinuedRun:
    """Return how the last step of a method's estimator goes on with its rows, checked for it."""
    continuing = how_to_continue(last_step(method.estimator_))
    refuse_steps(method, continuing)
    rows = OwnRows(X, y, sample_weight)
    continuing.check_rows(rows)
    return ContinuedRun(continuing, method.model_, rows, method.leave_out_mode)


def refuse_steps(method: Any, continuing: Continuing) -> None:
    """Raise ValueError if a parameter is given that an estimator which goes on by itself does not see."""
    model = type(continuing.model).__name__
    given = settings_given(method, OF_STEPS)
    if method.batch_statistics != "update":
        given.append("batch_statistics")
    if given:
        raise ValueError(
            f"{', '.join(given)} must be left alone for {model}, which goes on by {continuing.unit} and "
            "not by steps of an optimiser. Set it up as an estimator instead."
        )
    if method.leave_out_mode == "expected":
        raise ValueError(
            f"leave_out_mode='expected' is for networks, whose batches have means; {model} goes on by "
            f"{continuing.unit}. Use 'mask' or 'drop'."
        )
