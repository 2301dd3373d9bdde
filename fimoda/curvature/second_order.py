"""Rows that are taken out of steps that divide by second moments, to second order."""

from __future__ import annotations

import torch
from torch import Tensor

from ..objective import Objective
from .leaving_out import leaving_out

#: Squares of rows' gradients that are worked on at a time: what stays in a processor's cache.
_NUMBERS = 2**18


def second_order(at: Objective, B: int, squares: Tensor | None, along: Tensor) -> Tensor:
    r"""Return what it adds to scores (k, n), from sums of the derivatives K (k, p) of a block's adjoints.

    .. math:: s_i \Bigl[ \alpha\, (q_i - \bar q) + \frac{\bar q}{2 (B - 1)} \Bigr],
              \qquad q_i = K^\top (g_i - \bar g)^2, \qquad \alpha \approx -\frac{1}{2 B},

    with batches of B rows. Gradients of batches have the mean `squares` (p,), None where that is not known.
    """
    n, s = len(at), at.rows.shares.to(along)
    if B == 1 or n < 3:
        return s.new_zeros(())
    mean = at.combined(s[:, None])[0]
    most = max(1, at.memory_budget // (4 * mean.nbytes))
    parts = []
    for rows, gradients in at.row_gradients(most=most):
        dense, share = gradients.dense(), s[rows, None]
        q = along.new_zeros(len(dense), len(along))
        width = max(1, _NUMBERS // len(dense))
        for start in range(0, len(mean), width):
            some = slice(start, start + width)
            own = (dense[:, some] - mean[some]).square_()
            if squares is not None:
                own *= _convex(share * own / (B * squares[some]))
            q += own @ along[:, some].mT
        parts.append(q)
    q = torch.cat(parts).mT
    others = (n - B) / (n * (B - 1) * (n - 2))  # of the variance of a mean of B - 1 others
    alpha = n / (2 * B * (n - 1)) * (1 - others) - (n - B) / (B * (n - 2))
    average = (q @ s)[:, None]
    factor, _ = leaving_out(s)
    return ((alpha * (q - average) + average / (2 * (B - 1))) * factor).double()


def _convex(part: Tensor) -> Tensor:
    r"""Return what taking a part :math:`\rho` out of a second moment does, by what its derivative says.

    Steps go with the root of the rest: :math:`((1 - \rho)^{-1/2} - 1) / (\rho / 2)`, at most that of nine
    tenths.
    """
    part = torch.nan_to_num(part).clamp(1e-3, 0.9)
    return ((1 - part).rsqrt() - 1) / (part / 2)
