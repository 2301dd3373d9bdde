"""Neumann series (LiSSA) for many right-hand sides at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .operators import Curvature

#: A residual that grows by this factor will not come back.
_DIVERGED = 1e3


@dataclass(frozen=True)
class LissaSolution:
    """Solutions u (k, p) in float64, whether all are known to be within the tolerance, and terms taken."""

    u: Tensor
    converged: bool
    n_iter: int


def full_series(
    curvature: Curvature,
    V: Tensor,
    damping: float,
    scale: float,
    depth: int,
    tol: float,
    lowest: float,
) -> LissaSolution:
    r"""Solve :math:`(C + \lambda I) u = v` for every row v of V (k, p) by the series over all rows.

    .. math:: x \leftarrow v + (I - (C + \lambda)/s)\, x, \qquad u = x / s

    In the eigenbasis every component has the relative error :math:`(1 - (\sigma + \lambda)/s)^t`.
    The increment is the residual r of u, and with :math:`\mu` the `lowest` eigenvalue of
    :math:`C + \lambda`, :math:`|r| / \mu` bounds the error of u: a right-hand side is done when
    that is below ``tol * |u|`` (when :math:`|r|` is below ``tol * |v|`` if :math:`\mu = 0`).
    FloatingPointError if the series diverges.
    """
    V = V.double()
    x = V.clone()
    size = V.norm(dim=1)
    active = (size > 0).nonzero()[:, 0]
    n_iter = 0
    while len(active) and n_iter < depth:
        xs = x[active]
        product = curvature.matmat(xs.to(curvature.model.dtype)).double() + damping * xs
        residual = V[active] - product / scale
        x[active] = xs + residual
        n_iter += 1
        left = residual.norm(dim=1)
        _check_bounded(left, size[active], damping, scale)
        goal = tol * (xs.norm(dim=1) * lowest / scale if lowest > 0 else size[active])
        active = active[left > goal]
    return LissaSolution(x / scale, not len(active), n_iter)


def batch_series(
    curvature: Curvature,
    V: Tensor,
    damping: float,
    scale: float,
    depth: int,
    batch_size: int,
    seed: int,
) -> LissaSolution:
    """Solve by the series with the curvature of a random batch in each term.

    Batches go through the rows in a new random order each time; the answer is the mean of the last
    half of the iterates, which takes most of the noise away. Every right-hand side sees the same
    batches. FloatingPointError if the series diverges.
    """
    V = V.double()
    x, total = V.clone(), torch.zeros_like(V)
    size, n = V.norm(dim=1), len(curvature)
    rng = np.random.default_rng(seed)
    order = np.empty(0, dtype=np.int64)
    n_averaged = 0
    for t in range(depth):
        if len(order) < batch_size:  # what is left of a pass is too little for a batch
            order = rng.permutation(n)
        rows, order = order[:batch_size], order[batch_size:]
        part = curvature.restricted(rows)
        product = part.matmat(x.to(curvature.model.dtype)).double() + damping * x
        residual = V - product / scale
        x = x + residual
        _check_bounded(residual.norm(dim=1), size, damping, scale, n / batch_size)
        if 2 * t >= depth - 1:
            total += x
            n_averaged += 1
    return LissaSolution(total / (n_averaged * scale), True, depth)


def automatic_scale(
    lowest: float, largest: float, damping: float, n_rows: int, batch_size: int | None
) -> float:
    r"""Return the scale s with the fewest terms that is sure to converge.

    Over all rows, half the sum of the extreme damped eigenvalues, where the contraction
    :math:`\max |1 - (\sigma + \lambda)/s|` is least.

    With batches of b rows, :math:`\mathrm{E}\,A_B^2 \preceq s A` for :math:`A_B = C_B + \lambda` makes
    :math:`\mathrm{E}(I - A_B/s)^2 \preceq I - A/s`, a contraction in mean square. The mean of
    :math:`C_B^2` is :math:`C^2` plus a variance of at most :math:`R C (n - b)/((n - 1) b)`, where
    :math:`R = \max_i |C_i| \le n |C|` for positive semi-definite parts; so
    :math:`s = |C| (1 + n (n - b)/((n - 1) b)) + 2 \lambda` is enough.
    """
    top = 1.05 * largest  # the eigenvalue is known to one per cent
    if batch_size is None:
        return max((top + lowest) / 2 + damping, 1e-300)
    margin = 1 + n_rows * (n_rows - batch_size) / ((n_rows - 1) * batch_size)
    return top * margin + 2 * damping


def _check_bounded(
    left: Tensor, size: Tensor, damping: float, scale: float, noise: float = 1.0
) -> None:
    """Raise FloatingPointError if a residual has grown out of bounds (or is not a number)."""
    if not bool((left <= _DIVERGED * noise * size).all()):
        raise FloatingPointError(
            f"the Neumann series diverges with scale={scale:.3g} and damping={damping:.3g}. Use "
            "scale='auto' or a larger scale; with curvature='hessian', raise damping above the "
            "most negative eigenvalue or use curvature='gauss-newton'."
        )
