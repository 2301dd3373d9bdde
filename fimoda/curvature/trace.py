"""Trace of the Gauss-Newton matrix, from the lengths of gradients."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..measured import Measured
from ..model import FinalModel
from ..row_gradients import RowDifferentiator
from ..rows import Rows

#: Directions in output space, of which a row's share is a mean; all of them if there are no more.
_DIRECTIONS = 16


def gauss_newton_trace(
    model: FinalModel, X: Tensor, y: Tensor, weights: Tensor, chunk_size: int
) -> float:
    r"""Trace of the Gauss-Newton matrix of the weighted mean loss, without a penalty.

    .. math:: \mathrm{tr}\, C = \sum_i \tilde w_i \sum_c \| J_i^\top W_i^{1/2} e_c \|^2,

    :math:`J_i` the Jacobian of the outputs and :math:`W_i` the second derivative of the loss in
    them. Of more than 16 outputs, 16 fixed sums with random signs stand for all.

    Parameters
    ----------
    model : FinalModel
    X, y : Tensor
        Encoded training rows and targets.
    weights : Tensor of shape (n,)
        Weights of the rows in the objective.
    chunk_size : int
        Rows whose gradients are held at a time.
    """
    share = weights.double() / weights.double().sum()
    differentiate = RowDifferentiator(model, X[:2])
    total = 0.0
    for start in range(0, len(X), chunk_size):
        rows = slice(start, start + chunk_size)
        outputs = model.outputs(X[rows])
        root = _root(model.loss.output_hessian(outputs.double(), y[rows])).to(outputs)
        for direction in _directions(outputs.shape[1]).to(outputs):
            gradients = differentiate(Measured(Rows(X[rows], root @ direction), _along))
            total += float(gradients.inner_rowwise(gradients).double() @ share[rows])
    return total


def _along(outputs: Tensor, directions: Tensor) -> Tensor:
    """The outputs of each row along its own direction."""
    return (outputs * directions).sum(1)


def _root(matrices: Tensor) -> Tensor:
    """Symmetric square roots; directions in which a loss is not convex count as flat."""
    values, vectors = torch.linalg.eigh(matrices)
    return (vectors * values.clamp_min(0).sqrt().unsqueeze(1)) @ vectors.mT


def _directions(n_outputs: int) -> Tensor:
    """Vectors c with sum of c c' the identity, if only in expectation, as rows."""
    if n_outputs <= _DIRECTIONS:
        return torch.eye(n_outputs)
    signs = np.random.RandomState(0).choice([-1.0, 1.0], (_DIRECTIONS, n_outputs))
    return torch.from_numpy(signs / _DIRECTIONS**0.5)
