"""When rows are pushed on the way back through a run: where it had them, or with their shares everywhere."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..derivatives import Linearization
from ..objective import Objective
from ..rows import Rows
from ..training.differentiable import StepDerivative, StepDerivatives
from ..training.noise import seeded
from ..training.recorded import Moment, RecordedRun
from .batch_hessian import BatchHessian
from .leaving_out import change, leaving_out
from .second_moments import batch_second_moment
from .statistics_hessian import StatisticsHessian

#: Squares of rows' gradients that are worked on at a time: what stays in a processor's cache.
_NUMBERS = 2**18

#: Part of the memory budget that gradients of rows may have beside the vectors on their way back.
ROWS_BUDGET = 1 / 4


class OwnOrder:
    """Pushes each row at the steps at which the run had it."""

    def __init__(self, run: RecordedRun):
        self._run = run

    def pull(self, parts: list[Tensor], moment: Moment, pulled: Tensor) -> list[Tensor]:
        """Take adjoints (k, p) back through the step after a moment, and to `pulled` for its gradient."""
        return self._run.derivative(moment).pull(parts, pulled)

    def push(self, live: Tensor, moment: Moment, changes: Tensor, pulled: Tensor) -> None:
        """Add what a step says to scores (n_horizons, m, n).

        `changes` (k, B) are those of the batch's gradient along its adjoints `pulled` (k, p) when a row is
        left out.
        """
        index, _ = self._run.batch(moment)
        live[:, :, index] += changes.unflatten(0, (len(live), -1))


@dataclass
class _Part:
    """Vectors that walk through a block together from a horizon, or from its end.

    They have the `squares` of gradients there. The moment halfway to the start of the block, after `half`
    steps of the run, stands for the others, which are not kept.
    """

    n_vectors: int
    squares: Tensor | None
    half: int
    middle: Moment


class ExpectedOrder:
    r"""Pushes every row with its share at every step: the mean over the orders in which rows may come.

    The adjoints of a block of steps are summed, and all rows are gone through once, with the parameters in
    its middle. Conditional on the run, whose own batches stay in the Hessian.

    Steps that are not linear in the batch's gradient, those with second moments, need two things more. The
    run's second moments know nothing of a row that has not come up yet, and where they are too small a step's
    derivative is too large: they are raised to what batches have on average here. And the adjoint depends on
    the gradient, by its derivative K. A batch leans to a row that it has; what taking the row out does, to
    second order in the step, is on average over batches

    .. math:: s_i \Bigl[ a^\top (\bar g - g_i) + \alpha\, (q_i - \bar q) + \frac{\bar q}{2 (B - 1)} \Bigr],
              \qquad q_i = K^\top (g_i - \bar g)^2, \qquad \alpha \approx -\frac{1}{2 B}.

    A square that is a large part of a second moment counts for more (`_convex`). Where the statistics of
    batches are trained, rows have no gradients of their own, and the second order is left out.
    """

    def __init__(self, run: RecordedRun, n_steps: int, n_vectors: int, hessian: BatchHessian):
        self._run, self._length, self._hessian = run, n_steps, hessian
        self._shares = run.rows.shares.to(run.model.theta)
        self._parts: list[_Part] = []
        # room for the sums of all vectors that will ever be on their way
        self._sum = run.last.theta.new_zeros(n_vectors, len(run.last.theta))
        self._bent: Tensor | None = None

    def pull(self, parts: list[Tensor], moment: Moment, pulled: Tensor) -> list[Tensor]:
        """Take adjoints back through the step after a moment, with second moments as in other orders.

        Where it is not linear, derivatives of the adjoints of the gradient are added to those of the block.
        """
        step = self._derivative(moment, len(pulled))
        if step.is_linear or self._run.model.statistics:
            return step.pull(parts, pulled)
        if self._bent is None:
            self._bent = pulled.new_zeros(len(self._sum), pulled.shape[1])
        return step.pull(parts, pulled, self._bent[-len(pulled) :])

    def _derivative(self, moment: Moment, n_vectors: int) -> StepDerivative | StepDerivatives:
        """Return the derivative of the step after a moment, for so many vectors."""
        fresh = n_vectors - sum(part.n_vectors for part in self._parts)
        if fresh:
            half = moment.step - (self._done(moment) + 1) // 2
            self._parts.insert(0, _Part(fresh, self._batch_squares(moment), half, moment))
        if self._run.second_moments is None or len(self._parts) == 1:
            return self._run.derivative_among(moment, self._parts[0].squares)
        steps = [self._run.derivative_among(moment, part.squares) for part in self._parts]
        return StepDerivatives(steps, [part.n_vectors for part in self._parts])

    def _done(self, moment: Moment) -> int:
        """Return how many steps of its block are done at a moment."""
        return moment.step % self._run.steps_per_epoch % self._length

    def _batch_squares(self, moment: Moment) -> Tensor | None:
        """Return the squares (p,) that gradients of batches have on average, where a step is of squares."""
        run = self._run
        if run.second_moments is None:
            return None
        n, B = len(run.rows), run.batch_size
        if run.model.statistics:  # which only whole batches have
            first = moment.step - moment.step % run.steps_per_epoch
            steps = range(first, first + run.steps_per_epoch)
            return torch.stack([run.gradient_of(step, moment).square() for step in steps]).mean(0)
        size = B * (n - 1) / (n - B) if B < n else torch.inf
        return batch_second_moment(self._at(moment), size)

    def push(self, live: Tensor, moment: Moment, changes: Tensor, pulled: Tensor) -> None:
        """Add the adjoints of a step to those of its block, and what the block says at its first step."""
        self._sum[-len(pulled) :] += pulled
        for part in self._parts:
            if moment.step == part.half:
                part.middle = moment
        if self._done(moment) == 0:
            live += self._found(len(pulled)).unflatten(0, (len(live), -1))
            self._parts = []
            self._sum.zero_()
            if self._bent is not None:
                self._bent.zero_()

    def _found(self, k: int) -> Tensor:
        """Return what the adjoints of the block say (k, n)."""
        counts = [part.n_vectors for part in self._parts]
        bends = [None] * len(counts) if self._bent is None else self._bent[-k:].split(counts)
        parts = []
        for part, along, bend in zip(self._parts, self._sum[-k:].split(counts), bends, strict=True):
            found = self._changes(part.middle, along)
            if bend is not None:
                found += self._second_order(part, bend)
            parts.append(found)
        return torch.cat(parts)

    def _second_order(self, part: _Part, along: Tensor) -> Tensor:
        """Return what steps that are not linear add (k, n), from the sum of K (k, p)."""
        run, s = self._run, self._shares
        n, B = len(run.rows), len(run.batch(part.middle)[0])
        if B == 1 or n < 3:
            return s.new_zeros(())
        at = self._at(part.middle)
        mean = at.combined(s[:, None])[0]
        most = max(1, at.memory_budget // (4 * mean.nbytes))
        parts = []
        for rows, gradients in at.row_gradients(most=most):
            dense, share = gradients.dense(), s[rows, None]
            q = along.new_zeros(len(dense), len(along))
            width = max(1, _NUMBERS // len(dense))
            for start in range(0, len(mean), width):
                some = slice(start, start + width)
                squares = (dense[:, some] - mean[some]).square_()
                if part.squares is not None:
                    squares *= _convex(share * squares / (B * part.squares[some]))
                q += squares @ along[:, some].mT
            parts.append(q)
        q = torch.cat(parts).mT
        others = (n - B) / (n * (B - 1) * (n - 2))  # of the variance of a mean of B - 1 others
        alpha = n / (2 * B * (n - 1)) * (1 - others) - (n - B) / (B * (n - 2))
        average = (q @ s)[:, None]
        own, _ = leaving_out(s)
        return ((alpha * (q - average) + average / (2 * (B - 1))) * own).double()

    def _changes(self, middle: Moment, along: Tensor) -> Tensor:
        """Return the mean changes (k, n) of a step's gradient along vectors (k, p) when a row is left out."""
        run, model = self._run, self._run.model
        if not (model.is_stochastic or model.statistics):
            return change(self._at(middle).along(along).mT.to(model.theta), self._shares)
        # with the noise and the statistics of batches: those of an epoch
        slopes = model.theta.new_empty(len(along), len(run.rows))
        of_statistics = torch.zeros_like(slopes)
        first = middle.step - middle.step % run.steps_per_epoch
        for step in range(first, first + run.steps_per_epoch):
            index, rows = run.rows_of(step)
            with seeded(model, middle.noise):
                if isinstance(self._hessian, StatisticsHessian):
                    found = self._hessian.slopes(middle.theta, rows, along)
                    slopes[:, index], of_statistics[:, index] = found
                else:
                    slopes[:, index] = _slopes(run, middle, rows, along)
        return change(slopes, self._shares) + of_statistics / run.steps_per_epoch

    def _at(self, moment: Moment) -> Objective:
        """Return the objective at a moment."""
        at = self._run.objective.at(self._run.model.at(moment.theta))
        return replace(at, memory_budget=int(ROWS_BUDGET * at.memory_budget))


def _slopes(run: RecordedRun, middle: Moment, rows: Rows, along: Tensor) -> Tensor:
    """Return the slopes (k, B) of the losses of rows along vectors (k, p), with noise as in training."""
    model = run.model

    def losses(parameters: dict[str, Tensor]) -> Tensor:
        return model.loss(model.call(parameters, rows.inputs, training=True), rows.targets)

    return Linearization(model, losses, middle.theta).push(along)


def _convex(part: Tensor) -> Tensor:
    r"""Return what taking a part :math:`\rho` out of a second moment does, by what its derivative says.

    Steps go with the root of the rest: :math:`((1 - \rho)^{-1/2} - 1) / (\rho / 2)`, at most that of nine
    tenths.
    """
    part = torch.nan_to_num(part).clamp(1e-3, 0.9)
    return ((1 - part).rsqrt() - 1) / (part / 2)
