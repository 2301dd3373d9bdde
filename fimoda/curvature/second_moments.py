"""Second moments of batch gradients, where an optimiser's own were not recorded."""

from __future__ import annotations

import torch
from torch import Tensor

from ..objective import Objective


def batch_second_moment(
    objective: Objective, batch_size: float, chunk_size: int | None = None
) -> Tensor:
    r"""Return the expected square of each coordinate of a batch's mean gradient, (p,).

    .. math:: E[\bar g_B^2] = \bar g^2 + \frac{1}{B} \bigl( \overline{g^2} - \bar g^2 \bigr)

    for B rows drawn independently, from gradients of `chunk_size` rows at a time. B different rows of n
    are as :math:`B (n - 1) / (n - B)` of these.
    """
    theta = objective.model.theta
    share = objective.rows.shares.to(theta)
    mean, square = torch.zeros_like(theta), torch.zeros_like(theta)
    for rows, gradients in objective.row_gradients(most=chunk_size):
        mean += gradients.combine(share[rows, None])[0]
        square += gradients.second_moment(share[rows])
    return mean**2 + (square - mean**2).clamp_min(0) / batch_size
