"""The run on all rows, step by step, forwards and backwards, and what it shows on its way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, sqrt

import torch
from torch import Tensor

from .batches import Batch
from .differentiable import (
    Buffers,
    StepDerivative,
    check_differentiable,
    state_names,
    step_derivative,
)
from .linear_steps import rates
from .noise import noise_state, seeded
from .products import fast_float32_products
from .run import Run, check_finite
from .workers import one_thread


@dataclass(frozen=True)
class Moment:
    """A state between two steps: how many are done, the parameters (p,), what the optimiser keeps, and
    the state of the random generator that dropout draws from."""

    step: int
    theta: Tensor
    buffers: Buffers
    noise: Tensor


class RecordedRun:
    r"""Further training on all rows with one seed, which can be walked forwards and backwards.

    About :math:`2 \sqrt T` states are in memory at a time, T the number of steps; the others are
    computed again when the run is walked. `look` is called with every moment of the first time
    through, both ends included.

    Raises ValueError if the optimiser cannot be differentiated, FloatingPointError if training diverges.
    """

    def __init__(
        self, run: Run, seed: int, n_epochs: int, look: Callable[[Moment], None] | None = None
    ):
        check_differentiable(run.optimizer)
        run.optimizer.check_epochs(n_epochs)
        self._run = run
        self.model = run.model
        self.rows = run.rows
        self.optimizer = run.engine.optimizer
        self.steps_per_epoch = run.steps_per_epoch
        self.n_steps = run.n_steps(n_epochs)
        self._batches = [batch for epoch in run.plan(seed).epochs(n_epochs) for batch in epoch]
        self._stretch = ceil(sqrt(self.n_steps))
        with seeded(run.model, seed):
            last = Moment(0, run.first, {}, noise_state(run.model))
        self._kept: list[Moment] = []
        while last.step < self.n_steps:
            self._kept.append(last)
            moments = self._walk(last)
            last = moments[-1]
            check_finite(last.theta, last.step / self.steps_per_epoch, seed)
            if look is not None:
                for moment in moments[1 if moments[0].step else 0 :]:
                    look(moment)
        self.last = last

    def forwards(self) -> Iterator[Moment]:
        """Yield the moments before each step, first to last."""
        for first in self._kept:
            yield from self._walk(first)[:-1]

    def backwards(self) -> Iterator[Moment]:
        """Yield the moments before each step, last to first."""
        for first in reversed(self._kept):
            yield from reversed(self._walk(first)[:-1])

    def names(self, moment: Moment) -> list[str]:
        """Return the buffers that are part of the state, beside the parameters."""
        return state_names(moment.buffers, len(moment.theta))

    def batch(self, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return rows of the step that comes after the moment, and their weights in its mean."""
        batch = self._batches[moment.step]
        return batch.rows.to(self.model.device), batch.weights[0].to(self.model.theta)

    def derivative(self, moment: Moment) -> StepDerivative:
        """Return the derivative of the step that comes after the moment."""
        gradient = self._gradient(moment.theta, self._batches[moment.step], moment.noise)
        epoch = moment.step // self.steps_per_epoch
        return step_derivative(self.optimizer, epoch, moment.theta, moment.buffers, gradient)

    def _gradient(self, theta: Tensor, batch: Batch, noise: Tensor) -> Tensor:
        """Return the gradient of the batch's objective (p,), with this state of the random generator."""
        model = self.model
        with seeded(model, noise):
            found = self._run.gradient(model.views(theta.unsqueeze(0)), batch)
        return model.flatten(found)[0]

    def _walk(self, first: Moment) -> list[Moment]:
        """Return the moments of a stretch, both ends included."""
        spec, model = self.optimizer, self.model
        theta = first.theta.clone().requires_grad_()
        optimizer = spec.build([theta])
        if first.buffers:
            optimizer.state[theta] = _copied(first.buffers)
        moments = [first]
        stop = min(first.step + self._stretch, self.n_steps)

        def trial() -> Tensor:
            return self._gradient(first.theta, self._batches[first.step], first.noise)

        with fast_float32_products(trial), seeded(model, first.noise):
            for step in range(first.step, stop):
                optimizer.param_groups[0]["lr"] = spec.lr_at(step // self.steps_per_epoch)
                gradient = self._run.gradient(
                    model.views(moments[-1].theta.unsqueeze(0)), self._batches[step]
                )
                theta.grad = model.flatten(gradient)[0]
                optimizer.step()
                buffers = _copied(optimizer.state[theta])
                moments.append(
                    Moment(step + 1, theta.detach().clone(), buffers, noise_state(model))
                )
        return moments


@dataclass(frozen=True)
class ObservedRun:
    """Further training on all rows with one seed, seen at some of its steps.

    `moments` are before and after the steps asked for, by the number of steps done. There are the
    `outputs` (n_epochs + 1, n, C) of the rows at the start of each epoch and at the end, the
    `residuals`, gradients of the losses in them, and the `rates` (n_steps, 2) of the steps, with Adam's
    correction of the first ones and without.
    """

    moments: dict[int, Moment]
    outputs: Tensor
    residuals: Tensor
    rates: Tensor
    steps_per_epoch: int

    def theta(self, epoch: int) -> Tensor:
        """Return the parameters after an epoch that was asked for."""
        return self.moments[epoch * self.steps_per_epoch].theta

    def marks(self, horizons: Sequence[int]) -> list[int]:
        """Return the numbers of steps after which these epochs end."""
        return [epoch * self.steps_per_epoch for epoch in horizons]

    def buffers_of(self, step: int) -> Buffers:
        """Return the optimiser's buffers as it takes a step that was asked for."""
        return self.moments[step + 1].buffers


def observe_run(run: Run, seed: int, n_epochs: int, steps: Collection[int]) -> ObservedRun:
    """Train with a seed on one thread, and keep what happens at these steps."""
    per_epoch = run.steps_per_epoch
    moments: dict[int, Moment] = {}
    outputs: list[Tensor] = []

    def look(moment: Moment) -> None:
        if moment.step in steps or moment.step - 1 in steps:
            moments[moment.step] = moment
        if moment.step % per_epoch == 0:
            outputs.append(run.model.outputs(run.rows.inputs, moment.theta))

    with one_thread():
        RecordedRun(run, seed, n_epochs, look)
    rate = rates(run.optimizer, run.n_steps(n_epochs), per_epoch)
    residuals = torch.stack([run.model.loss.gradient(f, run.rows.targets) for f in outputs])
    return ObservedRun(moments, torch.stack(outputs), residuals, rate, per_epoch)


def _copied(buffers: Buffers) -> Buffers:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in buffers.items()}
