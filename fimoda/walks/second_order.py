"""Rows that leave steps that divide by second moments, or come back otherwise, to second order."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..measured import Measured
from ..objective import Objective
from .leaving_out import leaving_out

#: Squares of rows' gradients that are worked on at a time: what stays in a processor's cache.
_NUMBERS = 2**18


def left_out_to_second_order(
    at: Objective, B: int, squares: Tensor | None, along: Tensor
) -> Tensor:
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
        for some in _coordinates(dense):
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


def relabelled_to_second_order(
    at: Objective,
    B: int,
    squares: Tensor | None,
    along: Tensor,
    known: Measured,
    changed: Measured,
) -> Tensor:
    r"""Return what it adds (k, n_rows) where rows that are `known` have other targets, as they are `changed`.

    .. math:: \frac{s_i}{B} K^\top \Bigl( \frac{n - B}{n - 1} (g_i - \bar g)\, \delta_i
              + \frac{\delta_i^2}{2} \Bigr), \qquad \delta_i = g'_i - g_i,

    for many rows half of what the square of :math:`g - \bar g` grows by. The other parameters are those of
    `left_out_to_second_order`.
    """
    n, s = len(at), known.rows.shares.to(along)
    leans = (n - B) / max(n - 1, 1)
    mean = at.combined(at.rows.shares.to(along)[:, None])[0]
    ratio = changed.share_ratio(known).to(along)
    most = max(1, at.memory_budget // (8 * mean.nbytes))
    parts = []
    pairs = zip(at.row_gradients(known, most), at.row_gradients(changed, most), strict=True)
    for (rows, before), (_, after) in pairs:
        own, share = before.dense(), s[rows, None]
        delta = ratio[rows, None] * after.dense() - own
        q = along.new_zeros(len(own), len(along))
        for some in _coordinates(own):
            u, d = own[:, some] - mean[some], delta[:, some]
            added = d * (leans * u + d / 2)
            if squares is not None:
                added *= _convex(-share * d * (2 * u + d) / (B * squares[some]))
            q += added @ along[:, some].mT
        parts.append(q)
    return (torch.cat(parts).mT * s / B).double()


def _coordinates(gradients: Tensor) -> Iterator[slice]:
    """Yield the coordinates of gradients (n, p) that are worked on together."""
    width = max(1, _NUMBERS // len(gradients))
    for start in range(0, gradients.shape[1], width):
        yield slice(start, start + width)


def _convex(part: Tensor) -> Tensor:
    r"""Return what taking a part :math:`\rho` out of a second moment does, by what its derivative says.

    Steps go with the root of the rest: :math:`((1 - \rho)^{-1/2} - 1) / (\rho / 2)`, at most that of nine
    tenths. Below zero the second moment grows.
    """
    part = torch.nan_to_num(part).clamp(max=0.9)
    part = torch.where(part.abs() < 1e-3, 1e-3, part)
    return ((1 - part).rsqrt() - 1) / (part / 2)
