r"""Derivatives through a run of further training, backwards and forwards.

Leaving row i out of its batch changes the batch's mean gradient :math:`\bar g` by
:math:`-\frac{w_i}{1 - w_i} (g_i - \bar g)`, with :math:`w` the weights of the rows in the mean (1/B).
Both directions carry that change through every later step, the optimiser's buffers included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..derivatives import Linearization
from ..layers.by_autograd import gradients_by_autograd
from ..measured import Measured
from ..model import FinalModel
from ..rows import Rows
from ..training.noise import seeded
from ..training.products import fast_float32_products
from ..training.recorded import Moment, RecordedRun
from ..training.run import Run
from ..training.workers import one_thread
from .batch_hessian import BatchHessian, batch_hessian
from .orders import ExpectedOrder, OwnOrder, leaving_out


@dataclass(frozen=True)
class Unrolled:
    """Derivatives at several horizons, in steps, with the parameters (n_horizons, p) of the run there.

    `growth` is the largest factor by which a vector has grown on its way, looked at once an epoch:
    backwards those of the test rows, forwards a step along the first gradient.
    """

    values: Tensor  # scores (n_horizons, m, n) or tangents (n_horizons, L, p)
    thetas: Tensor
    growth: float

    def scores(self, model: FinalModel, places: Sequence[int], test: Measured) -> Unrolled:
        """Return scores (n_places, m, L) of test rows from tangents, at some of the horizons."""
        found = []
        for place in places:
            gradients = gradients_by_autograd(model.at(self.thetas[place]), test)
            found.append((gradients @ self.values[place].mT).double())
        return Unrolled(torch.stack(found), self.thetas[places], self.growth)

    @classmethod
    def joined(cls, parts: Sequence[Unrolled], columns: Tensor) -> Unrolled:
        """Return some columns of the scores of all test rows, from those of blocks of them."""
        values = torch.cat([one.values for one in parts], 1)[:, :, columns]
        return cls(values, parts[0].thetas, max(one.growth for one in parts))


def walk_back(
    run: Run,
    seed: int,
    horizons: Sequence[int],
    test: Measured,
    kinks: float | None,
    n_blocks: int | None = None,
) -> Unrolled:
    """Return the scores (n_horizons, m, n) of all training rows for test rows, by one worker.

    The curvature of kinks has the sharpness `kinks`, or is left out. Rows are pushed in the expected order,
    by so many blocks an epoch, or in the run's own.
    """
    with _ready(run, seed, horizons[-1], kinks) as (recorded, hessian):
        order = None
        if n_blocks is not None:
            order = ExpectedOrder(recorded, ceil(run.steps_per_epoch / n_blocks))
        return adjoint_scores(recorded, hessian, test, horizons, order)


def walk_forward(
    run: Run, seed: int, horizons: Sequence[int], left_out: Sequence[int], kinks: float | None
) -> Unrolled:
    """Return the tangents (n_horizons, L, p) of left-out rows, by one worker."""
    with _ready(run, seed, horizons[-1], kinks) as (recorded, hessian):
        return forward_tangents(recorded, hessian, left_out, horizons)


def check_run(run: Run, seed: int, n_steps: int) -> None:
    """Run once, for what it raises."""
    with one_thread():
        RecordedRun(run, seed, n_steps)


@contextmanager
def _ready(
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


def adjoint_scores(
    run: RecordedRun,
    hessian: BatchHessian,
    test: Measured,
    horizons: Sequence[int],
    order: OwnOrder | ExpectedOrder | None = None,
) -> Unrolled:
    """Return the scores (n_horizons, m, n) of all training rows, by one walk back for all horizons."""
    model, order = run.model, order or OwnOrder(run)
    first = gradients_by_autograd(model.at(run.last.theta), test)
    m, n = len(first), len(run.rows)
    scores = torch.zeros(len(horizons), m, n, dtype=torch.float64, device=first.device)
    parts = [first, *(torch.zeros_like(first) for _ in run.names(run.last))]
    size = first.norm(dim=1)
    growth = 0.0
    thetas = [run.last.theta]
    for moment in run.backwards():
        live = scores[len(horizons) - len(parts[0]) // m :]
        _, batch, _ = _batch(run, moment)
        step = order.derivative(moment)
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
            order.flush(live)
            # later horizons were there before: this one goes first
            fresh = gradients_by_autograd(model.at(moment.theta), test)
            parts = [
                torch.cat([fresh if part is parts[0] else torch.zeros_like(fresh), part])
                for part in parts
            ]
            size = torch.cat([fresh.norm(dim=1), size])
            thetas.append(moment.theta)
    return Unrolled(scores, torch.stack(thetas[::-1]), growth)


def forward_tangents(
    run: RecordedRun, hessian: BatchHessian, left_out: Sequence[int], horizons: Sequence[int]
) -> Unrolled:
    """Return tangents (n_horizons, L, p), the changes when rows are left out, by one walk forwards."""
    model = run.model
    place = torch.full((len(run.rows),), -1, device=model.device)
    place[torch.as_tensor(np.asarray(left_out), device=model.device)] = torch.arange(
        len(left_out), device=model.device
    )
    # the last tangent is that of a small change at the start, whose growth is looked at
    parts = [model.theta.new_zeros(len(left_out) + 1, model.n_parameters)]
    reached: list[Tensor] = []
    growth = 0.0
    thetas: list[Tensor] = []
    for moment in run.forwards():
        if moment.step in horizons:
            reached.append(parts[0][:-1].clone())
            thetas.append(moment.theta)
        index, batch, w = _batch(run, moment)
        if moment.step == 0:
            parts[0][-1:] = F.normalize(_combined_gradients(run, moment, batch, w[None]))
        with seeded(model, moment.noise):
            pushed, _ = hessian(moment.theta, batch, parts[0])
        if model.l2 is not None:
            pushed += parts[0] * model.l2
        mine = (place[index] >= 0).nonzero()[:, 0]
        if len(mine):
            own, others = leaving_out(w)
            basis = torch.zeros(len(mine), len(index)).to(w)
            basis[torch.arange(len(mine)), mine] = -own[mine]
            basis += others[mine, None] * w
            pushed[place[index[mine]]] += _combined_gradients(run, moment, batch, basis)
        parts = run.derivative(moment).push(parts, pushed)
        if (moment.step + 1) % run.steps_per_epoch == 0 or moment.step + 1 == run.n_steps:
            growth = max(growth, float(parts[0][-1].norm()))
    return Unrolled(
        torch.stack([*reached, parts[0][:-1]]), torch.stack([*thetas, run.last.theta]), growth
    )


def _batch(run: RecordedRun, moment: Moment) -> tuple[Tensor, Rows, Tensor]:
    """Return the rows of the step after a moment, as indices and with their weights in its mean."""
    index, w = run.batch(moment)
    inputs, targets = run.rows.inputs[index], run.rows.targets[index]
    return index, Rows(inputs, targets, w, total=w.new_ones(())), w


def _combined_gradients(run: RecordedRun, moment: Moment, batch: Rows, basis: Tensor) -> Tensor:
    """Return combinations (k, p) of the rows' gradients with coefficients (k, B)."""
    model = run.model

    def losses(parameters: dict[str, Tensor]) -> Tensor:
        return model.loss(model.call(parameters, batch.inputs, training=True), batch.targets)

    with seeded(model, moment.noise):
        return Linearization(model, losses, moment.theta).pull(basis)


def _growth(vectors: Tensor, size: Tensor) -> float:
    """Return the largest factor by which vectors are larger than they were."""
    ratio = vectors.norm(dim=1) / torch.where(size > 0, size, torch.inf)
    return float(ratio.max()) if len(ratio) else 0.0
