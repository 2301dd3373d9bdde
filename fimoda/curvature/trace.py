"""Trace of the Gauss-Newton matrix, from the lengths of gradients."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from ..measured import Measured
from ..objective import Objective
from ..rows import Rows

#: Directions in output space, of which a row's share is a mean; all of them if there are no more.
_DIRECTIONS = 16


def gauss_newton_trace(objective: Objective) -> float:
    r"""Return the trace of the Gauss-Newton matrix of the mean loss, without a penalty.

    .. math:: \mathrm{tr}\, C = \sum_i s_i \sum_c \| J_i^\top W_i^{1/2} e_c \|^2,

    :math:`J_i` the Jacobian of the outputs and :math:`W_i` the second derivative of the loss in
    them. Of more than 16 outputs, 16 fixed sums with random signs stand for all.
    """
    rows, shares = objective.rows, objective.rows.shares.cpu()
    total = 0.0
    for root in _roots(objective):
        along = Measured(Rows(rows.inputs, root), lambda outputs, to: (outputs * to).sum(1))
        lengths = objective.mapped(lambda gradients: gradients.inner_rowwise(gradients), along)
        total += float(lengths.double().cpu() @ shares)
    return total


def _roots(objective: Objective) -> Iterable[Tensor]:
    """Return vectors (n, C) whose outer products sum to each row's second derivative in the outputs."""
    loss, outputs, targets = objective.model.loss, objective.outputs, objective.rows.targets
    if outputs.shape[1] <= _DIRECTIONS:
        found = loss.curvature_cotangents(outputs, targets)
        if found is not None:
            return found
    directions = _directions(outputs.shape[1]).to(outputs.device).double()
    return (
        torch.cat(
            [
                loss.root(some.double(), to, one[None])[:, 0].to(outputs)
                for some, to in zip(
                    outputs.split(objective.fitting), targets.split(objective.fitting), strict=True
                )
            ]
        )
        for one in directions
    )


def _directions(n_outputs: int) -> Tensor:
    """Return vectors c as rows, with sum of c c' the identity, if only in expectation."""
    if n_outputs <= _DIRECTIONS:
        return torch.eye(n_outputs)
    signs = np.random.RandomState(0).choice([-1.0, 1.0], (_DIRECTIONS, n_outputs))
    return torch.from_numpy(signs / _DIRECTIONS**0.5)
