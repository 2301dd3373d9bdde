"""Trace of the Gauss-Newton matrix, from the lengths of gradients."""

from __future__ import annotations

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
    model, total = objective.model, 0.0
    for rows in objective.rows.split(objective.chunk()):
        outputs = model.outputs(rows.inputs)
        directions = _directions(outputs.shape[1]).to(outputs.device).double()
        roots = model.loss.root(outputs.double(), rows.targets, directions).to(outputs)
        for root in roots.unbind(1):
            along = Measured(Rows(rows.inputs, root), lambda f, to: (f * to).sum(1))
            gradients = objective.differentiate(along)
            total += float(gradients.inner_rowwise(gradients).double() @ rows.shares)
    return total


def _directions(n_outputs: int) -> Tensor:
    """Return vectors c as rows, with sum of c c' the identity, if only in expectation."""
    if n_outputs <= _DIRECTIONS:
        return torch.eye(n_outputs)
    signs = np.random.RandomState(0).choice([-1.0, 1.0], (_DIRECTIONS, n_outputs))
    return torch.from_numpy(signs / _DIRECTIONS**0.5)
