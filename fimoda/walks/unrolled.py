r"""Derivatives through a run of further training, backwards from test rows.

A row that is left out, or gets another target, changes mean gradients. That is carried through every later
step, the optimiser's buffers included: in the run's own order of rows, or on average over all orders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil

import torch
from joblib import delayed
from torch import Tensor

from ..curvature.second_moments import batch_second_moment
from ..layers.by_autograd import StateGradients
from ..measured import Measured
from ..objective import Objective
from ..rows import Rows
from ..training.differentiable import StepDerivative, StepDerivatives
from ..training.noise import seeded
from ..training.products import fast_float32_products
from ..training.recorded import Moment, RecordedRun
from ..training.run import Run
from ..training.workers import Workers, one_thread
from .adjoints import Adjoints
from .batch_hessian import BatchHessian, batch_hessian
from .components import Components, OfCombinations, Starts
from .ends import Ends
from .row_changes import RowChange
from .run_derivatives import Unrolled
from .statistics_hessian import StatisticsHessian

#: Part of the memory budget that gradients of rows may have beside the vectors on their way back.
ROWS_BUDGET = 1 / 4


@dataclass(frozen=True)
class WalkBack:
    """Walks back through a run of further training, to what changes of rows do at `horizons`, in steps.

    The curvature of kinks has the sharpness `kinks`, or is left out. Rows are pushed in the expected order,
    by `n_blocks` blocks an epoch, with the curvature of `n_batches` and, where chance has a part in them,
    gradients of `n_draws`, or in the run's own. Over an epoch vectors grow by the factor `max_growth` at
    most.
    """

    run: Run
    horizons: Sequence[int]
    change: RowChange
    kinks: float | None
    n_blocks: int | None = None
    n_batches: int = 1
    n_draws: int = 1
    max_growth: float | None = None

    def __call__(self, seed: int, starts: Starts, ends: Ends) -> Unrolled:
        """Return the scores (n_horizons, m, n_columns) of a seed for m vectors, by one worker."""
        run, horizons = self.run, self.horizons
        with ready(run, seed, horizons[-1], self.kinks) as given:
            if self.n_blocks is None:
                order: OwnOrder | ExpectedOrder = OwnOrder(*given, self.change)
            else:
                length, k = ceil(run.steps_per_epoch / self.n_blocks), len(horizons) * len(starts)
                order = ExpectedOrder(*given, self.change, length, k, self.n_batches, self.n_draws)
            return adjoint_scores(*given, starts, ends, horizons, order, self.max_growth)


def walks_back(
    walk: WalkBack,
    seeds: Sequence[int],
    ends: Sequence[Ends],
    test: Measured,
    together: int,
    n_test_components: float | None,
    workers: Workers,
) -> tuple[list[Unrolled], float]:
    """Return the scores of each seed, and what combinations of test rows leave out of them.

    Walks start from so many test rows `together`, or from as many of their combinations (`Components`), as
    they are measured at the `ends` of each seed.
    """
    components = None
    if n_test_components is not None:
        components = Components.leading(walk.run.objective, test, n_test_components, together)
    starts: Sequence[Starts] = [StateGradients(rows) for rows in test.split(together)]
    if components is not None:
        starts = OfCombinations(test, components.weights, together).split(together)
    pairs = zip(seeds, ends, strict=True)
    jobs = [delayed(walk)(seed, one, own) for seed, own in pairs for one in starts]
    walks = workers.do(workers.shown(jobs))
    k = len(starts)
    found = [Unrolled.joined(walks[at : at + k]) for at in range(0, len(walks), k)]
    if components is None:
        return found, 0.0
    error = components.error(torch.stack([one.values[-1] for one in found]).mean(0))
    return [replace(one, values=components.of_all(one.values)) for one in found], error


@contextmanager
def ready(
    run: Run, seed: int, n_steps: int, kinks: float | None
) -> Iterator[tuple[RecordedRun, BatchHessian]]:
    """Give the recorded run and the Hessian, on one thread and with the faster products."""
    with one_thread():
        recorded = RecordedRun(run, seed, n_steps)
        found = StatisticsHessian if run.model.statistics else batch_hessian
        hessian = found(run.model, kinks)
        few = run.rows[: run.batch_size]
        batch = Rows(few.inputs, few.targets)
        vectors = run.model.state.expand(2, -1).contiguous()

        def products() -> Tensor:
            total = torch.zeros_like(vectors)
            with seeded(run.model, seed):
                hessian.without_rows(vectors[0], batch, vectors, total)
            return total

        with fast_float32_products(products):
            yield recorded, hessian


class OwnOrder:
    """Pushes each row at the steps at which the run had it."""

    def __init__(self, run: RecordedRun, hessian: BatchHessian, change: RowChange):
        self._run, self._hessian, self.change = run, hessian, change

    def rows(self, moment: Moment) -> Rows:
        """Return the rows with whose curvature the step after a moment is taken back."""
        return self._run.rows_in(moment)[1]

    def pull(self, parts: list[Tensor], moment: Moment, pulled: Tensor) -> list[Tensor]:
        """Take adjoints (k, p) back through the step after a moment, and to `pulled` for its gradient."""
        return self._run.derivative(moment).pull(parts, pulled)

    def push(self, live: Tensor, moment: Moment, left_out: Tensor, pulled: Tensor) -> None:
        """Add what a step says to scores (n_horizons, m, n_columns).

        `left_out` (k, B) are the changes of the batch's gradient along its adjoints `pulled` (k, p) when a
        row is left out.
        """
        known = self._run, moment, self._hessian
        columns, changes = self.change.of_batch(*known, left_out, pulled)
        live[:, :, columns] += changes.unflatten(0, (len(live), -1))


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
    its middle. Conditional on the run; the Hessian of a step is that of its batch and of the next ones of the
    epoch, `n_batches` in all, as batches of other orders would have them. Gradients of rows that depend on
    chance, by dropout or the statistics of their batch, are means over `n_draws` of it.

    Steps that are not linear in the batch's gradient, those with second moments, need two things more. The
    run's second moments know nothing of a row that has not come up yet, and where they are too small a step's
    derivative is too large: they are raised to what batches have on average here. And the adjoint depends on
    the gradient: a batch leans to a row that it has, so that rows are changed to second order
    (`second_order`), but where the statistics of batches are trained and rows have no gradients of their own.
    """

    def __init__(
        self,
        run: RecordedRun,
        hessian: BatchHessian,
        change: RowChange,
        n_steps: int,
        n_vectors: int,
        n_batches: int = 1,
        n_draws: int = 1,
    ):
        self._run, self._hessian, self.change = run, hessian, change
        self._length = n_steps
        # statistics are those of a whole batch
        self._n_batches = 1 if run.model.statistics else min(n_batches, run.steps_per_epoch)
        self._n_draws = n_draws
        self._parts: list[_Part] = []
        # room for the sums of all vectors that will ever be on their way
        self._sum = run.last.theta.new_zeros(n_vectors, len(run.last.theta))
        self._bent: Tensor | None = None

    def rows(self, moment: Moment) -> Rows:
        """Return the rows with whose curvature the step after a moment is taken back."""
        run, k = self._run, self._n_batches
        if k == 1:
            return run.rows_in(moment)[1]
        first = moment.step - moment.step % run.steps_per_epoch
        steps = [first + (moment.step + j) % run.steps_per_epoch for j in range(k)]
        found = run.rows[torch.cat([run.rows_of(step)[0] for step in steps])]
        shares = found.shares
        total = shares.sum().clamp_min(torch.finfo(shares.dtype).tiny)  # zero where no row counts
        return Rows(found.inputs, found.targets, shares, total)

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
            total = torch.zeros_like(run.model.theta)
            for step in range(first, first + run.steps_per_epoch):
                total += run.gradient_of(step, moment).square()
            return total / run.steps_per_epoch
        size = B * (n - 1) / (n - B) if B < n else torch.inf
        return batch_second_moment(self._at(moment), size)

    def push(self, live: Tensor, moment: Moment, left_out: Tensor, pulled: Tensor) -> None:
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
        """Return what the adjoints of the block say (k, n_columns)."""
        counts = [part.n_vectors for part in self._parts]
        bends = [None] * len(counts) if self._bent is None else self._bent[-k:].split(counts)
        parts = []
        for part, along, bend in zip(self._parts, self._sum[-k:].split(counts), bends, strict=True):
            found = self._changes(part.middle, along)
            if bend is not None:
                B = len(self._run.batch(part.middle)[0])
                at = self._at(part.middle)
                found += self.change.to_second_order(at, B, part.squares, bend)
            parts.append(found)
        return torch.cat(parts)

    def _changes(self, middle: Moment, along: Tensor) -> Tensor:
        """Return the mean changes (k, n_columns) of a step's gradient along vectors (k, p)."""
        model, at = self._run.model, self._at(middle)
        if model.is_stochastic or model.statistics:
            draws = self._run.draws(middle, self._n_draws)
            found = (self.change.of_epoch(self._run, one, self._hessian, along) for one in draws)
            return torch.stack(list(found)).mean(0)
        slopes = [at.along(along, one).mT for one in self.change.measured]
        return self.change.of_slopes(slopes, at)

    def _at(self, moment: Moment) -> Objective:
        """Return the objective at a moment."""
        at = self._run.objective.at(self._run.model.at(moment.theta))
        return replace(at, memory_budget=int(ROWS_BUDGET * at.memory_budget))


def adjoint_scores(
    run: RecordedRun,
    hessian: BatchHessian,
    starts: Starts,
    ends: Ends,
    horizons: Sequence[int],
    order: OwnOrder | ExpectedOrder,
    max_growth: float | None = None,
) -> Unrolled:
    """Return the scores (n_horizons, m, n_columns) of changed rows, by one walk back for all horizons.

    For the m vectors that `starts` gives at each of these and at the `ends` of other runs, which grow by
    `max_growth` an epoch at most.
    """
    adjoints = Adjoints(run, len(starts), len(horizons))
    shape = len(horizons), len(starts), order.change.n_columns
    scores = torch.zeros(shape, dtype=torch.float64, device=run.model.device)
    growth, thetas = 0.0, [run.last.theta]
    adjoints.begin(_mean_start(starts, run, ends.beside(run.last.step, run.last.theta)))
    for moment in run.backwards():
        left_out, pulled = adjoints.step(hessian, order.pull, moment, order.rows(moment))
        order.push(scores[-adjoints.n_horizons :], moment, left_out, pulled)
        if moment.step % run.steps_per_epoch == 0:
            growth = max(growth, adjoints.grown(max_growth))
        if moment.step in horizons:
            adjoints.begin(_mean_start(starts, run, ends.beside(moment.step, moment.theta)))
            thetas.append(moment.theta)
    return Unrolled(scores, torch.stack(thetas[::-1]), growth)


def _mean_start(starts: Starts, run: RecordedRun, thetas: Sequence[Tensor]) -> Tensor:
    """Return the mean of the vectors (m, p) that begin at several parameters."""
    total = starts(run.model.at(thetas[0]))
    for theta in thetas[1:]:
        total += starts(run.model.at(theta))
    return total.div_(len(thetas))
