"""Training on all rows, recorded as a trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..model import FinalModel
from ..trajectory import Trajectory
from .differentiable import Buffers, state_names
from .groups import Groups
from .recorded import Moment, RecordedRun
from .run import Run
from .workers import one_thread

#: What to keep: a number of checkpoints, their steps, or all of them.
Checkpoints = int | Sequence[int] | str


def planned_steps(checkpoints: Checkpoints, n_steps: int) -> set[int]:
    """Return the steps of a run of `n_steps` after which it is kept; the last is always among them.

    Raises ValueError if `checkpoints` is neither a positive number, nor a list of steps, nor "all".
    """
    if isinstance(checkpoints, str | bool):
        if checkpoints != "all":
            raise ValueError(
                f"checkpoints must be a number, a list of steps or 'all', got {checkpoints!r}."
            )
        return set(range(n_steps + 1))
    if not isinstance(checkpoints, int):
        steps = {int(step) for step in checkpoints}
        if steps and not 0 <= min(steps) <= max(steps) <= n_steps:
            raise ValueError(
                f"checkpoints must be steps between 0 and {n_steps}, got {sorted(steps)}."
            )
        return steps | {n_steps}
    if checkpoints < 1:
        raise ValueError(f"checkpoints must be at least 1, got {checkpoints}.")
    number = min(checkpoints, n_steps)
    return {round(n_steps * (k + 1) / number) for k in range(number)}


def record(
    run: Run,
    seed: int,
    n_epochs: int,
    checkpoints: Checkpoints,
    directory: Path | None = None,
    before: Trajectory | None = None,
) -> tuple[Tensor, Trajectory]:
    """Train with a seed, and return the last parameters (p,) and the recorded run.

    It is kept in a directory of its own, if one is given; with a run `before` it is a stage that
    comes after.
    """
    spec = run.optimizer
    folder = None if directory is None else directory / f"seed-{seed}"
    if before is None:
        recorded = Trajectory(spec.name, {**spec.params, **spec.beside}, folder)
    else:
        recorded = before.extended(folder)
    recorded.begin_stage(n_rows=len(run.rows))
    batches = [batch.rows for batch in run.plan(seed).batches(run.n_steps(n_epochs))]
    kept, groups = planned_steps(checkpoints, len(batches)), Groups(run.optimizer, run.model)

    def look(moment: Moment) -> None:
        if moment.step:
            done = moment.step - 1
            recorded.add_step(groups.rates(done // run.steps_per_epoch), batches[done].numpy())
        if moment.step in kept and (moment.step or before is None):
            buffers = _named(run.model, moment.buffers)
            recorded.add_state(run.model.views(moment.theta), buffers)

    with one_thread():
        last = RecordedRun(run, seed, len(batches), look).last
    if directory is not None:
        recorded.save()
    return last.theta, recorded


def _named(model: FinalModel, buffers: Buffers) -> dict[str, Buffers]:
    """Return buffers of all parameters together as those of each."""
    vectors = {k: model.views(buffers[k]) for k in state_names(buffers, model.n_parameters)}
    numbers = {k: v for k, v in buffers.items() if k not in vectors}
    return {
        name: {**numbers, **{k: views[name].clone() for k, views in vectors.items()}}
        for name in model.shapes
    }
