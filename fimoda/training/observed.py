"""What a run on all rows shows on its way: states at some steps, residuals at every epoch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from .differentiable import Buffers
from .linear_steps import rates
from .recorded import Moment, RecordedRun
from .run import Run


@dataclass(frozen=True)
class ObservedRun:
    r"""Further training on all rows with one seed, seen at some of its steps.

    Parameters
    ----------
    moments : dict of int to Moment
        States before and after the steps asked for, by the number of steps done.
    outputs : Tensor of shape (n_epochs + 1, n, C)
        Outputs of the training rows at the start of each epoch and at the end.
    residuals : Tensor of shape (n_epochs + 1, n, C)
        Gradient of each row's loss in them.
    rates : Tensor of shape (n_steps, 2)
        Learning rates of each step, with Adam's correction of the first ones and without.
    steps_per_epoch : int
    """

    moments: dict[int, Moment]
    outputs: Tensor
    residuals: Tensor
    rates: Tensor
    steps_per_epoch: int

    def theta(self, epoch: int) -> Tensor:
        """Return the parameters after an epoch that was asked for."""
        return self.moments[epoch * self.steps_per_epoch].theta

    def buffers_of(self, step: int) -> Buffers:
        """Return the optimiser's buffers as it takes a step that was asked for."""
        return self.moments[step + 1].buffers


def observe(run: Run, seed: int, n_epochs: int, steps: Collection[int]) -> ObservedRun:
    """Train with a seed, and keep what happens at these steps."""
    per_epoch = run.steps_per_epoch
    moments: dict[int, Moment] = {}
    outputs: list[Tensor] = []

    def look(moment: Moment) -> None:
        if moment.step in steps or moment.step - 1 in steps:
            moments[moment.step] = moment
        if moment.step % per_epoch == 0:
            outputs.append(run.model.outputs(run.rows.inputs, moment.theta))

    RecordedRun(run, seed, n_epochs, look)
    rate = rates(run.optimizer, run.n_steps(n_epochs), per_epoch)
    residuals = torch.stack([run.model.loss.gradient(f, run.rows.targets) for f in outputs])
    return ObservedRun(moments, torch.stack(outputs), residuals, rate, per_epoch)
