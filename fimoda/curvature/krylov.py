"""One Krylov space for many dampings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .operators import Curvature


def shifted_solutions(
    curvature: Curvature, V: Tensor, dampings: Sequence[float], tol: float, max_iter: int
) -> Tensor:
    r"""Solve :math:`(C + \lambda_j I) u = v` for every row v of V (k, p) and every damping at once.

    The Lanczos vectors of v do not depend on the damping. In their basis the matrix is
    tridiagonal, with :math:`\alpha_k + \lambda_j` on its diagonal and :math:`\beta_k` beside it,
    and eliminating it gives the iterates of conjugate gradients,

    .. math:: \delta_k = \alpha_k + \lambda_j - \beta_k^2 / \delta_{k-1}, \qquad
              y_k = -\frac{\beta_k}{\delta_{k-1}} y_{k-1}, \qquad
              w_k = q_k - \frac{\beta_k}{\delta_{k-1}} w_{k-1}, \qquad
              u \leftarrow u + \frac{y_k}{\delta_k} w_k,

    from a single product an iteration, as many as the least damping takes to the relative residual
    `tol`. Pivots :math:`\delta_k` are positive exactly where the matrix is positive definite on the
    space. Solutions (n_dampings, k, p) are float64; NaN where a pivot is not positive.
    """
    V = V.double()
    shifts = V.new_tensor(list(dampings))[:, None]
    size = V.norm(dim=1)
    active = (size != 0).nonzero()[:, 0]  # what is not a number stays one
    u = torch.zeros(len(shifts), *V.shape, dtype=V.dtype, device=V.device)
    q = V[active] / size[active, None]
    before, beta = torch.zeros_like(q), torch.zeros_like(size[active])
    y = size[active].expand(len(shifts), -1)
    pivot, w = torch.ones_like(y), torch.zeros_like(u[:, active])
    for _ in range(max_iter):
        if not len(active):
            break
        image = curvature.matmat(q.to(curvature.model.dtype)).double() - beta[:, None] * before
        alpha = (q * image).sum(1)
        factor = beta / pivot  # zero in the first iteration
        y = torch.where(beta > 0, -factor * y, y)
        pivot = alpha + shifts - factor * beta
        pivot = torch.where(pivot > 0, pivot, torch.nan)
        w = q - factor[..., None] * w
        u[:, active] += (y / pivot)[..., None] * w
        image = image - alpha[:, None] * q
        beta = image.norm(dim=1)
        # a damping that is not positive definite (NaN) has nothing left to do
        on = (beta * (y / pivot).abs() > tol * size[active]).any(0)
        before, q = q, image / torch.where(beta > 0, beta, 1)[:, None]
        if not bool(on.all()):
            active, q, before, beta = active[on], q[on], before[on], beta[on]
            y, pivot, w = y[:, on], pivot[:, on], w[:, on]
    return u
