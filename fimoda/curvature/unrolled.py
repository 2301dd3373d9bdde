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

from ..layers.by_autograd import StateGradients
from ..measured import Measured
from ..rows import Rows
from ..training.noise import seeded
from ..training.products import fast_float32_products
from ..training.recorded import Moment, RecordedRun
from ..training.run import Run
from ..training.workers import Workers, one_thread
from .batch_hessian import BatchHessian, batch_hessian
from .components import Components, OfCombinations, Starts
from .orders import ExpectedOrder, OwnOrder
from .row_changes import RowChange
from .run_derivatives import Unrolled
from .statistics_hessian import StatisticsHessian


@dataclass(frozen=True)
class WalkBack:
    """Walks back through a run of further training, to what changes of rows do at `horizons`, in steps.

    The curvature of kinks has the sharpness `kinks`, or is left out. Rows are pushed in the expected order,
    by `n_blocks` blocks an epoch, or in the run's own.
    """

    run: Run
    horizons: Sequence[int]
    change: RowChange
    kinks: float | None
    n_blocks: int | None = None

    def __call__(self, seed: int, starts: Starts) -> Unrolled:
        """Return the scores (n_horizons, m, n_columns) of a seed for m vectors, by one worker."""
        run, horizons = self.run, self.horizons
        with ready(run, seed, horizons[-1], self.kinks) as given:
            if self.n_blocks is None:
                order: OwnOrder | ExpectedOrder = OwnOrder(*given, self.change)
            else:
                length = ceil(run.steps_per_epoch / self.n_blocks)
                order = ExpectedOrder(*given, self.change, length, len(horizons) * len(starts))
            return adjoint_scores(*given, starts, horizons, order)


def walks_back(
    walk: WalkBack,
    seeds: Sequence[int],
    test: Measured,
    together: int,
    n_test_components: float | None,
    workers: Workers,
) -> tuple[list[Unrolled], float]:
    """Return the scores of each seed, and what combinations of test rows leave out of them.

    Walks start from so many test rows `together`, or from as many of their combinations (`Components`).
    """
    components = None
    if n_test_components is not None:
        components = Components.leading(walk.run.objective, test, n_test_components, together)
    starts: Sequence[Starts] = [StateGradients(rows) for rows in test.split(together)]
    if components is not None:
        starts = OfCombinations(test, components.weights, together).split(together)
    jobs = [delayed(walk)(seed, one) for seed in seeds for one in starts]
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


class Adjoints:
    """Vectors on their way back from test rows, those of later horizons last.

    There is room for all horizons from the beginning. A vector is of the parameters with the statistics that
    training changes, and of what the optimiser keeps.
    """

    def __init__(self, run: RecordedRun, starts: Starts, n_horizons: int):
        self._model, self._starts = run.model, starts
        theta, p, most = run.last.theta, run.model.n_parameters, n_horizons * len(starts)
        widths = [len(theta), *[p] * len(run.names(run.last))]
        self._parts = [theta.new_zeros(most, width) for width in widths]
        self._pulled = theta.new_empty(most, len(theta))
        self._size = theta.new_zeros(most)
        self._live = 0

    def begin(self, theta: Tensor) -> None:
        """Begin the way of one more horizon, with parameters (p,)."""
        first = self._starts(self._model.at(theta))
        self._live += len(first)
        own = slice(len(self._size) - self._live, len(self._size) - self._live + len(first))
        self._parts[0][own] = first
        self._size[own] = first.norm(dim=1)

    def step(
        self,
        hessian: BatchHessian,
        order: OwnOrder | ExpectedOrder,
        moment: Moment,
        batch: Rows,
        scores: Tensor,
    ) -> None:
        """Take them back through the step after a moment, and add what it says to scores."""
        model, p = self._model, self._model.n_parameters
        state, *kept = (part[-self._live :] for part in self._parts)
        pulled, statistics = self._pulled[-self._live :], state[:, p:]
        kept = order.pull([state[:, :p], *kept], moment, pulled[:, :p])
        pulled[:, p:] = statistics
        statistics.zero_()
        with seeded(model, moment.noise):
            left_out = hessian.without_rows(moment.theta, batch, pulled, state)
        if model.l2 is not None:
            state[:, :p].addcmul_(pulled[:, :p], model.l2)
        order.push(scores[-(self._live // len(self._starts)) :], moment, left_out, pulled)
        self._parts = self._parts[: len(kept)]

    def growth(self) -> float:
        """Return the largest factor by which a vector is larger than it was."""
        size = self._size[-self._live :]
        ratio = self._parts[0][-self._live :].norm(dim=1) / torch.where(size > 0, size, torch.inf)
        return float(ratio.max()) if len(ratio) else 0.0


def adjoint_scores(
    run: RecordedRun,
    hessian: BatchHessian,
    starts: Starts,
    horizons: Sequence[int],
    order: OwnOrder | ExpectedOrder,
) -> Unrolled:
    """Return the scores (n_horizons, m, n_columns) of changed rows, by one walk back for all horizons.

    For the m vectors that `starts` gives at each of these.
    """
    adjoints = Adjoints(run, starts, len(horizons))
    shape = len(horizons), len(starts), order.change.n_columns
    scores = torch.zeros(shape, dtype=torch.float64, device=run.model.device)
    growth, thetas = 0.0, [run.last.theta]
    adjoints.begin(run.last.theta)
    for moment in run.backwards():
        _, batch = run.rows_in(moment)
        adjoints.step(hessian, order, moment, batch, scores)
        if moment.step % run.steps_per_epoch == 0:
            growth = max(growth, adjoints.growth())
        if moment.step in horizons:
            adjoints.begin(moment.theta)
            thetas.append(moment.theta)
    return Unrolled(scores, torch.stack(thetas[::-1]), growth)
