r"""Derivatives through a run of further training, backwards and forwards.

Leaving row i out of its batch changes the batch's mean gradient :math:`\bar g` by
:math:`-\frac{w_i}{1 - w_i} (g_i - \bar g)`, with :math:`w` the weights of the rows in the mean (1/B).
Both directions carry that change through every later step, the optimiser's buffers included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vjp, vmap

from ..training.noise import seeded
from ..training.recorded import Moment, RecordedRun
from .batch_hessian import BatchHessian

#: Wraps the steps of a walk, to show progress.
Watch = Callable[[Iterable[Moment]], Iterable[Moment]]


@dataclass(frozen=True)
class Unrolled:
    """Derivatives at several horizons.

    Parameters
    ----------
    values : Tensor of shape (n_horizons, k, ...)
        Scores (n_horizons, m, n) or tangents (n_horizons, L, p).
    thetas : Tensor of shape (n_horizons, p)
        Parameters of the run at the horizons.
    growth : float
        Largest factor by which a vector has grown on its way, looked at once an epoch: backwards
        those of the test rows, forwards a step along the first gradient.
    """

    values: Tensor
    thetas: Tensor
    growth: float


def adjoint_scores(
    run: RecordedRun,
    hessian: BatchHessian,
    gradients: Callable[[Tensor], Tensor],
    horizons: Sequence[int],
    watch: Watch = iter,
) -> Unrolled:
    """Scores of all training rows, by one walk backwards for all horizons.

    Parameters
    ----------
    run : RecordedRun
        As long as the last horizon.
    hessian : BatchHessian
    gradients : callable
        Gradients of the measurements (m, p) at parameters (p,).
    horizons : sequence of int
        Increasing numbers of epochs.
    watch : callable, default=iter
        Wraps the steps, to show progress.

    Returns
    -------
    Unrolled
        With scores of shape (n_horizons, m, n).
    """
    model = run.model
    at_step = {h * run.steps_per_epoch for h in horizons}
    first = gradients(run.last.theta)
    m, n = len(first), len(run.rows)
    scores = torch.zeros(len(horizons), m, n, dtype=torch.float64, device=first.device)
    parts = [first, *(torch.zeros_like(first) for _ in run.names(run.last))]
    size = first.norm(dim=1)
    growth = 0.0
    thetas = [run.last.theta]
    for moment in watch(run.backwards()):
        live = scores[len(horizons) - len(parts[0]) // m :]
        rows, w = run.batch(moment)
        parts, pulled = run.derivative(moment).pull(parts)
        with seeded(model, moment.noise):
            x, y = run.rows.inputs[rows], run.rows.targets[rows]
            products, slopes = hessian(moment.theta, x, y, w, pulled)
        own, others = leaving_out(w)
        change = (slopes @ w)[:, None] * others - slopes * own
        live[:, :, rows] += change.double().unflatten(0, (-1, m))
        parts[0] = parts[0] + products
        if model.l2 is not None:
            parts[0] += pulled * model.l2
        if moment.step % run.steps_per_epoch == 0:
            growth = max(growth, _growth(parts[0], size))
        if moment.step in at_step:
            # later horizons were there before: this one goes first
            fresh = gradients(moment.theta)
            parts = [
                torch.cat([fresh if part is parts[0] else torch.zeros_like(fresh), part])
                for part in parts
            ]
            size = torch.cat([fresh.norm(dim=1), size])
            thetas.append(moment.theta)
    return Unrolled(scores, torch.stack(thetas[::-1]), growth)


def forward_tangents(
    run: RecordedRun,
    hessian: BatchHessian,
    left_out: Sequence[int],
    horizons: Sequence[int],
    watch: Watch = iter,
) -> Unrolled:
    """Changes of the parameters when rows are left out, by one walk forwards.

    Parameters
    ----------
    run : RecordedRun
        As long as the last horizon.
    hessian : BatchHessian
    left_out : sequence of int
        L rows, each left out alone.
    horizons : sequence of int
        Increasing numbers of epochs.
    watch : callable, default=iter
        Wraps the steps, to show progress.

    Returns
    -------
    Unrolled
        With tangents of shape (n_horizons, L, p).
    """
    model = run.model
    place = torch.full((len(run.rows),), -1, device=model.device)
    place[torch.as_tensor(np.asarray(left_out), device=model.device)] = torch.arange(
        len(left_out), device=model.device
    )
    # the last tangent is that of a small change at the start, whose growth is looked at
    parts = [model.theta.new_zeros(len(left_out) + 1, model.n_parameters)]
    reached: list[Tensor] = []
    at_step = {h * run.steps_per_epoch for h in horizons}
    growth = 0.0
    thetas: list[Tensor] = []
    for moment in watch(run.forwards()):
        if moment.step in at_step:
            reached.append(parts[0][:-1].clone())
            thetas.append(moment.theta)
        rows, w = run.batch(moment)
        x, y = run.rows.inputs[rows], run.rows.targets[rows]
        if moment.step == 0:
            parts[0][-1:] = F.normalize(_combined_gradients(run, moment, x, y, w[None]))
        with seeded(model, moment.noise):
            pushed, _ = hessian(moment.theta, x, y, w, parts[0])
        if model.l2 is not None:
            pushed += parts[0] * model.l2
        mine = (place[rows] >= 0).nonzero()[:, 0]
        if len(mine):
            own, others = leaving_out(w)
            basis = torch.zeros(len(mine), len(rows)).to(w)
            basis[torch.arange(len(mine)), mine] = -own[mine]
            basis += others[mine, None] * w
            pushed[place[rows[mine]]] += _combined_gradients(run, moment, x, y, basis)
        parts = run.derivative(moment).push(parts, pushed)
        if (moment.step + 1) % run.steps_per_epoch == 0:
            growth = max(growth, float(parts[0][-1].norm()))
    return Unrolled(
        torch.stack([*reached, parts[0][:-1]]), torch.stack([*thetas, run.last.theta]), growth
    )


def leaving_out(w: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of a left-out row's gradient and of the mean, by which the mean gets smaller.

    A row that is alone in its batch leaves a gradient of zero behind.
    """
    alone = w >= 1
    factor = w / torch.where(alone, 1, 1 - w)
    return factor, torch.where(alone, 0, factor)


def _combined_gradients(
    run: RecordedRun, moment: Moment, x: Tensor, y: Tensor, basis: Tensor
) -> Tensor:
    """Combinations of the rows' gradients with coefficients (k, B), as (k, p)."""
    model = run.model
    with seeded(model, moment.noise):
        _, pull, *_ = vjp(
            lambda theta: model.loss(model.forward(theta, x, training=True), y),
            moment.theta,
        )
        return vmap(pull)(basis)[0]


def _growth(vectors: Tensor, size: Tensor) -> float:
    ratio = vectors.norm(dim=1) / torch.where(size > 0, size, torch.inf)
    return float(ratio.max()) if len(ratio) else 0.0
