"""Derivatives through a run of further training, forwards from rows that are left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..derivatives import Linearization
from ..rows import Rows
from ..training.noise import seeded
from ..training.recorded import Moment, RecordedRun
from ..training.run import Run
from .batch_hessian import BatchHessian
from .leaving_out import leaving_out
from .run_derivatives import Unrolled
from .unrolled import ready


def walk_forward(
    run: Run, seed: int, horizons: Sequence[int], left_out: Sequence[int], kinks: float | None
) -> Unrolled:
    """Return the tangents (n_horizons, L, p) of left-out rows, by one worker."""
    with ready(run, seed, horizons[-1], kinks) as (recorded, hessian):
        return forward_tangents(recorded, hessian, left_out, horizons)


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
        index, batch = run.rows_in(moment)
        w = batch.shares.to(run.model.theta)
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


def _combined_gradients(run: RecordedRun, moment: Moment, batch: Rows, basis: Tensor) -> Tensor:
    """Return combinations (k, p) of the rows' gradients with coefficients (k, B)."""
    model = run.model

    def losses(parameters: dict[str, Tensor]) -> Tensor:
        return model.loss(model.call(parameters, batch.inputs, training=True), batch.targets)

    with seeded(model, moment.noise):
        return Linearization(model, losses, moment.theta).pull(basis)
