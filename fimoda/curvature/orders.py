r"""When rows are pushed: in the run's own order, or on average over all orders.

Leaving row i out of its batch changes the batch's mean gradient :math:`\bar g` by
:math:`-\frac{w_i}{1 - w_i} (g_i - \bar g)`, with :math:`w` the weights of the rows in the mean (1/B). Over
random batches the mean of that change is the same with the row's share in all rows (1/n) in place of w.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..derivatives import Linearization
from ..rows import Rows
from ..training.differentiable import StepDerivative
from ..training.noise import seeded
from ..training.recorded import Moment, RecordedRun
from .second_moments import batch_second_moment


class OwnOrder:
    """Pushes each row at the steps at which the run had it."""

    def __init__(self, run: RecordedRun):
        self._run = run

    def derivative(self, moment: Moment) -> StepDerivative:
        """Return the derivative of the step after a moment."""
        return self._run.derivative(moment)

    def push(
        self, live: Tensor, moment: Moment, slopes: Tensor, pulled: Tensor, bent: Tensor | None
    ) -> None:
        """Add what a step says to scores (n_horizons, m, n).

        `slopes` (k, B) are those of its rows' losses along `pulled` (k, p), the adjoints of the gradient;
        `bent` (k, p) is the derivative of these in it, None where they do not depend on it.
        """
        index, w = self._run.batch(moment)
        live[:, :, index] += change(slopes, w).unflatten(0, (len(live), -1))

    def flush(self, live: Tensor) -> None:
        """Add what has been put off."""


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

    A square that is a large part of a second moment counts for more (`_convex`).
    """

    def __init__(self, run: RecordedRun, n_steps: int):
        self._run = run
        self._length = n_steps
        self._shares = run.rows.shares.to(run.model.theta)
        self._sum: Tensor | None = None
        self._bent: Tensor | None = None
        self._squares: Tensor | None = None
        self._moments: list[Moment] = []

    def derivative(self, moment: Moment) -> StepDerivative:
        """Return the derivative of the step after a moment, with second moments as in other orders."""
        run = self._run
        if run.second_moments is not None and self._squares is None:
            n, B = len(run.rows), run.batch_size
            at = run.objective.at(run.model.at(moment.theta))
            self._squares = batch_second_moment(at, B * (n - 1) / (n - B) if B < n else torch.inf)
        return run.derivative_among(moment, self._squares)

    def push(
        self, live: Tensor, moment: Moment, slopes: Tensor, pulled: Tensor, bent: Tensor | None
    ) -> None:
        """Add the adjoints of a step to those of its block, and what the block says at its first step."""
        self._sum = pulled.clone() if self._sum is None else self._sum + pulled
        if bent is not None:
            self._bent = bent if self._bent is None else self._bent + bent
        self._moments.append(moment)
        if moment.step % self._run.steps_per_epoch % self._length == 0:
            self.flush(live)

    def flush(self, live: Tensor) -> None:
        """Add what the block so far says to scores (n_horizons, m, n)."""
        if self._sum is None:
            return
        middle = self._moments[len(self._moments) // 2]
        found = change(self._slopes(middle, self._sum), self._shares)
        if self._bent is not None:
            found += self._second_order(middle, self._bent)
        live += found.unflatten(0, (len(live), -1))
        self._sum, self._bent, self._squares, self._moments = None, None, None, []

    def _second_order(self, middle: Moment, along: Tensor) -> Tensor:
        """Return what steps that are not linear add (k, n), from the sum of K (k, p)."""
        run, s = self._run, self._shares
        n, B = len(run.rows), len(run.batch(middle)[0])
        if B == 1 or n < 3:
            return s.new_zeros(())
        at = run.objective.at(run.model.at(middle.theta))
        mean = at.combined(s[:, None])[0]
        most = max(1, at.memory_budget // (8 * mean.nbytes))
        parts = []
        for rows, gradients in at.row_gradients(most=most):
            squares = (gradients.dense() - mean).square_()
            if self._squares is not None:
                squares *= _convex(s[rows, None] * squares / (B * self._squares))
            parts.append(squares @ along.mT)
        q = torch.cat(parts).mT
        others = (n - B) / (n * (B - 1) * (n - 2))  # of the variance of a mean of B - 1 others
        alpha = n / (2 * B * (n - 1)) * (1 - others) - (n - B) / (B * (n - 2))
        average = (q @ s)[:, None]
        own, _ = leaving_out(s)
        return ((alpha * (q - average) + average / (2 * (B - 1))) * own).double()

    def _slopes(self, middle: Moment, along: Tensor) -> Tensor:
        """Return the slopes (k, n) of the losses of all rows along vectors (k, p)."""
        run, model = self._run, self._run.model
        if not (model.is_stochastic or model.statistics):
            at = run.objective.at(model.at(middle.theta))
            return at.along(along).mT.to(model.theta)
        # with the noise and the statistics of batches: those of an epoch
        found = model.theta.new_empty(len(along), len(run.rows))
        first = middle.step - middle.step % run.steps_per_epoch
        for step in range(first, first + run.steps_per_epoch):
            index, rows = run.rows_of(step)

            def losses(parameters: dict[str, Tensor], rows: Rows = rows) -> Tensor:
                outputs = model.call(parameters, rows.inputs, training=True)
                return model.loss(outputs, rows.targets)

            with seeded(model, middle.noise):
                found[:, index] = Linearization(model, losses, middle.theta).push(along)
        return found


def _convex(part: Tensor) -> Tensor:
    r"""Return what taking a part :math:`\rho` out of a second moment does, by what its derivative says.

    Steps go with the root of the rest: :math:`((1 - \rho)^{-1/2} - 1) / (\rho / 2)`, at most that of nine
    tenths.
    """
    part = torch.nan_to_num(part).clamp(1e-3, 0.9)
    return ((1 - part).rsqrt() - 1) / (part / 2)


def change(slopes: Tensor, w: Tensor) -> Tensor:
    """Return the changes (k, n) that leaving rows out makes, from slopes (k, n) and weights (n,)."""
    own, others = leaving_out(w)
    return ((slopes @ w)[:, None] * others - slopes * own).double()


def leaving_out(w: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors of a left-out row's gradient and of the mean, by which the mean gets smaller.

    A row that is alone in its batch leaves a gradient of zero behind.
    """
    alone = w >= 1
    factor = w / torch.where(alone, 1, 1 - w)
    return factor, torch.where(alone, 0, factor)
