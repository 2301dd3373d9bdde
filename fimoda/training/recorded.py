"""The run on all rows, step by step, forwards and backwards, and what it shows on its way."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, sqrt

import numpy as np
import torch
from torch import Tensor

from ..rows import Rows
from .batches import Batch
from .differentiable import Buffers, StepDerivative, check_differentiable, state_names
from .groups import Groups
from .linear_steps import rates
from .noise import noise_state, seeded
from .products import fast_float32_products
from .run import Run, check_finite
from .second_moments import SecondMoments
from .workers import one_thread


@dataclass(frozen=True)
class Moment:
    """A state between two steps: how many are done, the parameters (p,), what the optimiser keeps, and
    the state of the random generator that dropout draws from, or its seed.

    Statistics of batches, where they are trained, follow the parameters.
    """

    step: int
    theta: Tensor
    buffers: Buffers
    noise: int | Tensor


class RecordedRun:
    r"""Some steps of further training on all rows with one seed, walked forwards and backwards.

    About :math:`2 \sqrt T` states are in memory at a time, T the number of steps; the others are
    computed again when the run is walked. `look` is called with every moment of the first time
    through, both ends included.

    Raises ValueError if the optimiser cannot be differentiated, FloatingPointError if training diverges.
    """

    def __init__(
        self, run: Run, seed: int, n_steps: int, look: Callable[[Moment], None] | None = None
    ):
        check_differentiable(run.optimizer)
        run.optimizer.check_epochs(ceil(n_steps / run.steps_per_epoch))
        self._run, self._seed = run, seed
        self.objective = run.objective
        self.model = run.model
        self.rows = run.rows
        self.optimizer = run.engine.optimizer
        self.second_moments = SecondMoments.of(self.optimizer)
        self._groups = Groups(self.optimizer, run.model)
        self.steps_per_epoch = run.steps_per_epoch
        self.batch_size = min(run.batch_size, len(run.rows))
        self.n_steps = n_steps
        whole_epochs = ceil(n_steps / run.steps_per_epoch) * run.steps_per_epoch
        self._batches = list(run.plan(seed).batches(whole_epochs))
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
        return state_names(moment.buffers, self.model.n_parameters)

    def batch(self, moment: Moment) -> tuple[Tensor, Tensor]:
        """Return rows of the step that comes after the moment, and their weights in its mean."""
        batch = self._batches[moment.step]
        return batch.rows.to(self.model.device), batch.weights[0].to(self.model.theta)

    def rows_in(self, moment: Moment) -> tuple[Tensor, Rows]:
        """Return rows of the step that comes after the moment: as indices, and with their weights."""
        return self.rows_of(moment.step)

    def rows_of(self, step: int) -> tuple[Tensor, Rows]:
        """Return the same of a step, of the whole last epoch too."""
        return self._rows_of(self._batches[step])

    def _rows_of(self, batch: Batch) -> tuple[Tensor, Rows]:
        index, w = batch.rows.to(self.model.device), batch.weights[0].to(self.model.theta)
        inputs, targets = self.rows.inputs[index], self.rows.targets[index]
        return index, Rows(inputs, targets, w, total=w.new_ones(()))

    def draws(
        self, moment: Moment, n: int
    ) -> Iterator[tuple[Moment, Iterator[tuple[Tensor, Rows]]]]:
        """Yield n epochs of batches as chance may give them, each with the moment and noise of its own.

        The first is the epoch that the moment is in, also behind the end of the run.
        """
        first, length = moment.step - moment.step % self.steps_per_epoch, self.steps_per_epoch
        yield moment, map(self.rows_of, range(first, first + length))
        chance = np.random.SeedSequence((self._seed, moment.step))
        for seed in map(int, chance.generate_state(n - 1)):
            batches = self._run.plan(seed).batches(length)
            yield replace(moment, noise=seed), map(self._rows_of, batches)

    def derivative(self, moment: Moment) -> StepDerivative:
        """Return the derivative of the step that comes after the moment."""
        return self._derivative(moment, None, second=False)

    def derivative_among(self, moment: Moment, squares: Tensor | None) -> StepDerivative:
        """Return the first and second derivative of the step, among steps with other batches.

        The second moments of the optimiser are at least what gradients with `squares` (p,) would make them.
        """
        return self._derivative(moment, squares, second=True)

    def _derivative(self, moment: Moment, squares: Tensor | None, second: bool) -> StepDerivative:
        gradient = self._gradient(moment.theta, self._batches[moment.step], moment.noise)
        epoch, buffers, of_clipping, kept = (
            moment.step // self.steps_per_epoch,
            moment.buffers,
            None,
            1.0,
        )
        if self.optimizer.clipping:
            whole = gradient.clone()
            of_clipping = self.optimizer.clipping.derivative(whole)
            self.optimizer.clipping.clip([gradient[None]])
            kept = float(gradient.norm() / whole.norm().clamp_min(1e-30))
        if squares is not None and self.second_moments is not None:
            given = self.optimizer, buffers, gradient, squares * kept**2, moment.step
            buffers = self.second_moments.raised(*given)
        theta = moment.theta[: len(gradient)]
        taken = self._groups.derivative(epoch, theta, buffers, gradient, second)
        bends = [None if bend is None else bend * kept**2 for bend in taken.bends]
        return replace(taken, clipping=of_clipping, bends=bends)

    def gradient_of(self, step: int, moment: Moment) -> Tensor:
        """Return the gradient (p,) of the batch of a step at a moment, also of the whole last epoch."""
        return self._gradient(moment.theta, self._batches[step], moment.noise)

    def _gradient(self, theta: Tensor, batch: Batch, noise: int | Tensor) -> Tensor:
        """Return the gradient of the batch's objective (p,), with this state of the random generator."""
        with seeded(self.model, noise):
            return self._differentiated(theta.clone(), batch)

    def _differentiated(self, state: Tensor, batch: Batch) -> Tensor:
        """Return the gradient (p,); statistics in `state` (p + b,) are brought up to date."""
        found = self._run.gradient(self.model.views(state.unsqueeze(0)), batch)
        return self.model.flatten({name: found[name] for name in self.model.shapes})[0]

    def _walk(self, first: Moment) -> list[Moment]:
        """Return the moments of a stretch, both ends included."""
        spec, model, groups = self.optimizer, self.model, self._groups
        p = model.n_parameters
        parts = [part.clone().requires_grad_() for part in groups.cut(first.theta[:p])]
        optimizer = groups.build([[part] for part in parts])
        if first.buffers:
            for part, buffers in zip(parts, groups.cut_buffers(first.buffers), strict=True):
                optimizer.state[part] = _copied(buffers)
        moments = [first]
        stop = min(first.step + self._stretch, self.n_steps)

        def trial() -> Tensor:
            return self._gradient(first.theta, self._batches[first.step], first.noise)

        with fast_float32_products(trial), seeded(model, first.noise):
            for step in range(first.step, stop):
                groups.set_rates(optimizer, step // self.steps_per_epoch)
                state = moments[-1].theta.clone()
                gradient = self._differentiated(state, self._batches[step])
                if spec.clipping:
                    spec.clipping.clip([gradient[None]])
                for part, own in zip(parts, groups.cut(gradient), strict=True):
                    part.grad = own
                optimizer.step()
                state[:p] = groups.join([part.detach() for part in parts])
                buffers = _copied(groups.join_buffers([optimizer.state[part] for part in parts]))
                moments.append(Moment(step + 1, state, buffers, noise_state(model)))
        return moments


def check_run(run: Run, seed: int, n_steps: int) -> None:
    """Run once, for what it raises."""
    with one_thread():
        RecordedRun(run, seed, n_steps)


@dataclass(frozen=True)
class ObservedRun:
    """Further training on all rows with one seed, seen at some of its steps.

    `moments` are before and after the steps asked for, by the number of steps done. After the steps
    `knots`, the first 0 and the last the end, there are the `outputs` (n_knots, n, C) of the rows, and
    the `residuals`, gradients of the losses in them. `rates` (n_steps, 2) are those of the steps, with
    Adam's correction of the first ones and without.
    """

    moments: dict[int, Moment]
    knots: list[int]
    outputs: Tensor
    residuals: Tensor
    rates: Tensor

    def theta(self, step: int) -> Tensor:
        """Return the parameters after a step that was asked for."""
        return self.moments[step].theta

    def knot(self, step: int) -> int:
        """Return the number of the knot at a step."""
        return self.knots.index(step)

    def outputs_after(self, steps: Sequence[int]) -> Tensor:
        """Return the outputs (k, n, C) of the rows after some steps, which are knots."""
        return self.outputs[[self.knot(step) for step in steps]]

    def between(self, values: Tensor, step: int) -> Tensor:
        """Return values (n_knots, ...) after a step, linear between knots."""
        before = min(bisect_right(self.knots, step), len(self.knots) - 1) - 1
        first, last = self.knots[before : before + 2]
        # both divided: the same bits in epochs, where the first is a whole number of them
        passed = step / (last - first) - first / (last - first)
        return torch.lerp(values[before], values[before + 1], passed)

    def buffers_of(self, step: int) -> Buffers:
        """Return the optimiser's buffers as it takes a step that was asked for."""
        return self.moments[step + 1].buffers


def observe_run(
    run: Run, seed: int, ends: Collection[int], steps: Collection[int] = ()
) -> ObservedRun:
    """Train with a seed on one thread to the last of `ends`, and keep what happens there and at `steps`.

    Knots are the ends and the ends of epochs.
    """
    last = max(ends)
    wanted = {0, *ends, *steps}
    knots = sorted({0, *ends, *range(0, last, run.steps_per_epoch)})
    moments: dict[int, Moment] = {}
    outputs: list[Tensor] = []

    def look(moment: Moment) -> None:
        if moment.step in wanted or moment.step - 1 in wanted:
            moments[moment.step] = moment
        if moment.step in knots:
            outputs.append(run.model.outputs(run.rows.inputs, moment.theta))

    with one_thread():
        RecordedRun(run, seed, last, look)
    rate = rates(run.optimizer, last, run.steps_per_epoch)
    residuals = torch.stack([run.model.loss.gradient(f, run.rows.targets) for f in outputs])
    return ObservedRun(moments, knots, torch.stack(outputs), residuals, rate)


def _copied(buffers: Buffers) -> Buffers:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in buffers.items()}
