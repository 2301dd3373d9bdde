"""Second moments of batch gradients, where an optimiser's own were not recorded."""

from __future__ import annotations

import torch
from torch import Tensor

from ..measured import Measured
from ..model import FinalModel
from ..row_gradients import DenseGradients, FactoredGradients, RowDifferentiator, RowGradients
from ..rows import Rows


def batch_second_moment(
    model: FinalModel, X: Tensor, y: Tensor, weights: Tensor, batch_size: int, chunk_size: int
) -> Tensor:
    r"""Expected square of each coordinate of a batch's mean gradient, (p,).

    .. math:: E[\bar g_B^2] = \bar g^2 + \frac{1}{B} \bigl( \overline{g^2} - \bar g^2 \bigr)

    for B rows drawn independently.

    Parameters
    ----------
    model : FinalModel
    X, y : Tensor
        Encoded training rows and targets.
    weights : Tensor of shape (n,)
        Weights of the rows in the objective.
    batch_size : int
    chunk_size : int
        Rows whose gradients are held at a time.
    """
    share = (weights / weights.sum()).to(model.theta)[:, None]
    mean, square = torch.zeros_like(model.theta), torch.zeros_like(model.theta)
    for rows, gradients in RowDifferentiator(model, X[:3]).chunks(
        Measured(Rows(X, y), model.loss), chunk_size
    ):
        mean += gradients.combine(share[rows])[0]
        square += _squared(gradients).combine(share[rows])[0]
    return mean**2 + (square - mean**2).clamp_min(0) / batch_size


def _squared(gradients: RowGradients) -> RowGradients:
    """The squares of all entries."""
    if isinstance(gradients, FactoredGradients):
        inputs, signals = [a**2 for a in gradients.inputs], [d**2 for d in gradients.signals]
        return FactoredGradients(inputs, signals, gradients.places)
    return DenseGradients(gradients.dense() ** 2)
