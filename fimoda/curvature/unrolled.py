r"""Derivatives through a run of further training, backwards from test rows.

The change of the mean gradient that leaving a row out makes is carried through every later step, the
optimiser's buffers included: in the run's own order of rows, or on average over all orders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil

import torch
from joblib import delayed
from torch import Tensor

from ..derivatives import Linearization
from ..measured import Measured
from ..rows import Rows
from ..training.differentiable import StepDerivative, StepDerivatives
from ..training.noise import seeded
from ..training.products import fast_float32_products
from ..training.recorded import Moment, RecordedRun
from ..training.run import Run
from ..training.workers import Workers, one_thread
from .batch_hessian import BatchHessian, batch_hessian
from .components import Components, OfCombinations, Starts, of_rows
from .leaving_out import change, leaving_out
from .run_derivatives import Unrolled
from .second_moments import batch_second_moment

#: Squares of rows' gradients that are worked on at a time: what stays in a processor's cache.
_NUMBERS = 2**18


def walks_back(
    run: Run,
    seeds: Sequence[int],
    horizons: Sequence[int],
    test: Measured,
    together: int,
    kinks: float | None,
    n_blocks: int | None,
    n_test_components: float | None,
    workers: Workers,
) -> tuple[list[Unrolled], float]:
    """Return the scores of each seed, and what combinations of test rows leave out of them.

    Walks start from so many test rows `together`, or from as many of their combinations (`Components`). The
    other parameters are those of `walk_back`.
    """
    components = None
    if n_test_components is not None:
        components = Components.leading(run.objective, test, n_test_components, together)
    starts: Sequence[Starts] = [of_rows(rows) for rows in test.split(together)]
    if components is not None:
        starts = OfCombinations(test, components.weights, together).split(together)
    jobs = [
        delayed(walk_back)(run, seed, horizons, one, kinks, n_blocks)
        for seed in seeds
        for one in starts
    ]
    walks = workers.do(workers.shown(jobs))
    k = len(starts)
    found = [Unrolled.joined(walks[at : at + k]) for at in range(0, len(walks), k)]
    if components is None:
        return found, 0.0
    error = components.error(torch.stack([one.values[-1] for one in found]).mean(0))
    return [replace(one, values=components.of_all(one.values)) for one in found], error


def walk_back(
    run: Run,
    seed: int,
    horizons: Sequence[int],
    starts: Starts,
    kinks: float | None,
    n_blocks: int | None = None,
) -> Unrolled:
    """Return the scores (n_horizons, m, n) of all training rows for m vectors, by one worker.

    The curvature of kinks has the sharpness `kinks`, or is left out. Rows are pushed in the expected order,
    by so many blocks an epoch, or in the run's own.
    """
    with ready(run, seed, horizons[-1], kinks) as (recorded, hessian):
        order = None
        if n_blocks is not None:
            order = ExpectedOrder(recorded, ceil(run.steps_per_epoch / n_blocks))
        return adjoint_scores(recorded, hessian, starts, horizons, order)


@contextmanager
def ready(
    run: Run, seed: int, n_steps: int, kinks: float | None
) -> Iterator[tuple[RecordedRun, BatchHessian]]:
    """Give the recorded run and the Hessian, on one thread and with the faster products."""
    with one_thread():
        recorded = RecordedRun(run, seed, n_steps)
        hessian = batch_hessian(run.model, kinks)
        few = run.rows[: run.batch_size]
        batch = Rows(few.inputs, few.targets)
        vectors = run.model.theta.expand(2, -1).contiguous()

        def products() -> Tensor:
            with seeded(run.model, seed):
                return hessian(vectors[0], batch, vectors)[0]

        with fast_float32_products(products):
            yield recorded, hessian


class OwnOrder:
    """Pushes each row at the steps at which the run had it."""

    def __init__(self, run: RecordedRun):
        self._run = run

    def derivative(self, moment: Moment, n_vectors: int) -> StepDerivative:
        """Return the derivative of the step after a moment, for so many vectors."""
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

    A square that is a large part of a second moment counts for more (`_convex`).
    """

    def __init__(self, run: RecordedRun, n_steps: int):
        self._run = run
        self._length = n_steps
        self._shares = run.rows.shares.to(run.model.theta)
        self._forget()

    def _forget(self) -> None:
        """Begin a block."""
        self._parts: list[_Part] = []
        self._sum: Tensor | None = None
        self._bent: Tensor | None = None

    def derivative(self, moment: Moment, n_vectors: int) -> StepDerivative | StepDerivatives:
        """Return the derivative of the step after a moment, with second moments as in other orders."""
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
        at = run.objective.at(run.model.at(moment.theta))
        return batch_second_moment(at, B * (n - 1) / (n - B) if B < n else torch.inf)

    def push(
        self, live: Tensor, moment: Moment, slopes: Tensor, pulled: Tensor, bent: Tensor | None
    ) -> None:
        """Add the adjoints of a step to those of its block, and what the block says at its first step."""
        self._sum = _added(self._sum, pulled)
        if bent is not None:
            self._bent = _added(self._bent, bent)
        for part in self._parts:
            if moment.step == part.half:
                part.middle = moment
        if self._done(moment) == 0:
            live += self._found(self._sum).unflatten(0, (len(live), -1))
            self._forget()

    def _found(self, total: Tensor) -> Tensor:
        """Return what the adjoints of the block say (k, n)."""
        counts = [part.n_vectors for part in self._parts]
        bends = [None] * len(counts) if self._bent is None else self._bent.split(counts)
        parts = []
        for part, along, bend in zip(self._parts, total.split(counts), bends, strict=True):
            found = change(self._slopes(part.middle, along), self._shares)
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
        at = run.objective.at(run.model.at(part.middle.theta))
        mean = at.combined(s[:, None])[0]
        most = max(1, at.memory_budget // (8 * mean.nbytes))
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


def _added(total: Tensor | None, vectors: Tensor) -> Tensor:
    """Return vectors (k, p) plus a total of the last ones of them."""
    if total is None:
        return vectors.clone()
    fresh = len(vectors) - len(total)
    if not fresh:
        return total.add_(vectors)
    return torch.cat([vectors[:fresh], vectors[fresh:] + total])


def _convex(part: Tensor) -> Tensor:
    r"""Return what taking a part :math:`\rho` out of a second moment does, by what its derivative says.

    Steps go with the root of the rest: :math:`((1 - \rho)^{-1/2} - 1) / (\rho / 2)`, at most that of nine
    tenths.
    """
    part = torch.nan_to_num(part).clamp(1e-3, 0.9)
    return ((1 - part).rsqrt() - 1) / (part / 2)


def adjoint_scores(
    run: RecordedRun,
    hessian: BatchHessian,
    starts: Starts,
    horizons: Sequence[int],
    order: OwnOrder | ExpectedOrder | None = None,
) -> Unrolled:
    """Return the scores (n_horizons, m, n) of all training rows, by one walk back for all horizons.

    For the m vectors that `starts` gives at each of these.
    """
    model, order = run.model, order or OwnOrder(run)
    first = starts(model.at(run.last.theta))
    m, n = len(first), len(run.rows)
    scores = torch.zeros(len(horizons), m, n, dtype=torch.float64, device=first.device)
    parts = [first, *(torch.zeros_like(first) for _ in run.names(run.last))]
    size = first.norm(dim=1)
    growth = 0.0
    thetas = [run.last.theta]
    for moment in run.backwards():
        live = scores[len(horizons) - len(parts[0]) // m :]
        _, batch = run.rows_in(moment)
        step = order.derivative(moment, len(parts[0]))
        bent = step.bend(parts)
        parts, pulled = step.pull(parts)
        with seeded(model, moment.noise):
            products, slopes = hessian(moment.theta, batch, pulled)
        order.push(live, moment, slopes, pulled, bent)
        parts[0] = parts[0] + products
        if model.l2 is not None:
            parts[0] += pulled * model.l2
        if moment.step % run.steps_per_epoch == 0:
            growth = max(growth, _growth(parts[0], size))
        if moment.step in horizons:
            # later horizons were there before: this one goes first
            fresh = starts(model.at(moment.theta))
            parts = [
                torch.cat([fresh if part is parts[0] else torch.zeros_like(fresh), part])
                for part in parts
            ]
            size = torch.cat([fresh.norm(dim=1), size])
            thetas.append(moment.theta)
    return Unrolled(scores, torch.stack(thetas[::-1]), growth)


def _growth(vectors: Tensor, size: Tensor) -> float:
    """Return the largest factor by which vectors are larger than they were."""
    ratio = vectors.norm(dim=1) / torch.where(size > 0, size, torch.inf)
    return float(ratio.max()) if len(ratio) else 0.0
