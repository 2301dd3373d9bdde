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
from ..training.noise import seeded
from ..training.recorded import Moment, RecordedRun


class OwnOrder:
    """Pushes each row at the steps at which the run had it."""

    def __init__(self, run: RecordedRun):
        self._run = run

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
    """Pushes every row with its share at every step: the mean over the orders in which rows may come.

    The adjoints of a block of steps are summed, and all rows are gone through once, with the parameters in
    its middle. Conditional on the run, whose own batches stay in the Hessian.

    A step that is not linear in the batch's gradient (second moments) has an adjoint that depends on it, by
    its derivative K. Batches of B rows with row i among them then say more by
    :math:`\frac{n - B}{B (n - 2)} (\bar q - q_i)` with :math:`q_i = K^\top (g_i - \bar g)^2`: their
    gradient leans to that row, and leaving it out leaves more noise.
    """

    def __init__(self, run: RecordedRun, n_steps: int):
        self._run = run
        self._length = n_steps
        self._shares = run.rows.shares.to(run.model.theta)
        self._sum: Tensor | None = None
        self._bent: Tensor | None = None
        self._moments: list[Moment] = []

    def push(
        self, live: Tensor, moment: Moment, slopes: Tensor, pulled: Tensor, bent: Tensor | None
    ) -> None:
        """Add the adjoints of a step to those of its block, and what the block says at its first step."""
        self._sum = pulled.clone() if self._sum is None else self._sum + pulled
        if bent is not None:
            n, B = len(self._run.rows), slopes.shape[1]
            more = bent * ((n / B - 1) / max(n - 2, 1))
            self._bent = more if self._bent is None else self._bent + more
        self._moments.append(moment)
        if moment.step % self._run.steps_per_epoch % self._length == 0:
            self.flush(live)

    def flush(self, live: Tensor) -> None:
        """Add what the block so far says to scores (n_horizons, m, n)."""
        if self._sum is None:
            return
        middle = self._moments[len(self._moments) // 2]
        slopes = self._slopes(middle, self._sum)
        if self._bent is not None:
            slopes = slopes + self._squares(middle, self._bent)
        found = change(slopes, self._shares)
        live += found.unflatten(0, (len(live), -1))
        self._sum, self._bent, self._moments = None, None, []

    def _squares(self, middle: Moment, along: Tensor) -> Tensor:
        """Return products (k, n) of vectors (k, p) with squares of the rows' gradients, less their mean."""
        at = self._run.objective.at(self._run.model.at(middle.theta))
        mean = at.combined(self._shares[:, None])[0]
        most = max(1, at.memory_budget // (4 * mean.nbytes))
        squares = (
            (gradients.dense() - mean).square_() for _, gradients in at.row_gradients(most=most)
        )
        return torch.cat([own @ along.mT for own in squares]).mT

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
