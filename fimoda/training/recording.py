"""Training on all rows through the stack engine, recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..trajectory import Trajectory
from .batches import FULL_DATA, LeaveOutPlan
from .differentiable import Buffers, state_names
from .recorded import Moment, RecordedRun
from .runner import one_thread
from .stack import StackTrainer

#: What to keep: a number of checkpoints, their steps, or all of them.
Checkpoints = int | Sequence[int] | str


def planned_steps(checkpoints: Checkpoints, n_steps: int) -> set[int]:
    """Steps of a run of `n_steps` after which it is kept; the last is always among them.

    Raises
    ------
    ValueError
        If `checkpoints` is neither a positive number, nor a list of steps, nor "all".
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


@dataclass(frozen=True)
class RecordedTraining:
    """How to train, and what to keep of it.

    Parameters
    ----------
    trainer : StackTrainer
        Model, training rows and optimiser.
    row_weights : Tensor of shape (n,)
        Weights of the rows in the training objective.
    batch_size : int
    n_epochs : int
    checkpoints : int, sequence of int or "all"
    directory : path or None
        Where checkpoints are kept, in a directory for each seed.
    """

    trainer: StackTrainer
    row_weights: Tensor
    batch_size: int
    n_epochs: int
    checkpoints: Checkpoints
    directory: Path | None = None

    def record(
        self, seed: int, start: Tensor, before: Trajectory | None = None
    ) -> tuple[Tensor, Trajectory]:
        """Train with a seed from the parameters `start` (p,); a stage that comes after `before`."""
        folder = None if self.directory is None else self.directory / f"seed-{seed}"
        if before is None:
            spec = self.trainer.optimizer
            run = Trajectory(spec.name, spec.params, folder)
        else:
            run = before.extended(folder)
        run.begin_stage(n_rows=len(self.row_weights))
        shuffle = self.trainer.model.recipe.shuffle
        plan = LeaveOutPlan(seed, (FULL_DATA,), self.row_weights, self.batch_size, shuffle=shuffle)
        batches = [batch.rows for epoch in plan.epochs(self.n_epochs) for batch in epoch]
        kept = planned_steps(self.checkpoints, len(batches))
        per_epoch = len(batches) // self.n_epochs
        model, optimizer = self.trainer.model, self.trainer.optimizer

        def look(moment: Moment) -> None:
            if moment.step:
                done = moment.step - 1
                run.add_step(optimizer.lr_at(done // per_epoch), batches[done].numpy())
            if moment.step in kept and (moment.step or before is None):
                run.add_state(model.views(moment.theta), self._named(moment.buffers))

        with one_thread():
            last = RecordedRun(
                self.trainer,
                seed,
                self.row_weights,
                self.batch_size,
                self.n_epochs,
                start,
                look,
                shuffle,
            ).last
        if self.directory is not None:
            run.save()
        return last.theta, run

    def _named(self, buffers: Buffers) -> dict[str, Buffers]:
        """Buffers of all parameters together, as those of each."""
        model = self.trainer.model
        vectors = {k: model.views(buffers[k]) for k in state_names(buffers, model.n_parameters)}
        numbers = {k: v for k, v in buffers.items() if k not in vectors}
        return {
            name: {**numbers, **{k: views[name].clone() for k, views in vectors.items()}}
            for name in model.shapes
        }
