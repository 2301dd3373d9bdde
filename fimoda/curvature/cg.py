"""Conjugate gradients for many right-hand sides at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .operators import Curvature

#: A restart from the true residual must shrink it at least by this factor, or it is the last.
_WORTHWHILE = 0.5

#: Restarts aim this much below the tolerance, so as not to end just above it again.
_BEYOND = 0.25

#: Iterations that a network takes with ``damping="auto"`` (7 to 15 on six of seven, 68 on the other).
USUAL_ITERATIONS = 15


@dataclass(frozen=True)
class CGSolution:
    """Solutions u (k, p) in float64, their relative residuals (k,), and iterations of the slowest.

    Residuals are ``|v - (C + damping) u| / |v|``, from a product with the solution itself.
    """

    u: Tensor
    residuals: Tensor
    n_iter: int


def conjugate_gradients(
    curvature: Curvature,
    V: Tensor,
    damping: float,
    tol: float,
    max_iter: int,
    preconditioner: Callable[[Tensor, float], Tensor] | None = None,
) -> CGSolution:
    r"""Solve :math:`(C + \lambda I) u = v` for every row v of V (k, p).

    Each right-hand side has its own step lengths, and takes no part in products once
    :math:`|r| \le tol |v|`. The products are taken in the model's precision over the whole training
    set; iterates and inner products are float64. The recursively updated residual drifts away
    from the true one by rounding: where a solution that looked converged is not, the iteration
    restarts from the true residual as long as that helps, within `max_iter` iterations in all.
    ``preconditioner(V, damping)`` solves roughly, by a symmetric positive definite matrix. ValueError if
    a direction without positive curvature is met.
    """

    def product(P: Tensor) -> Tensor:
        return curvature.matmat(P.to(curvature.model.dtype)).double() + damping * P

    def precondition(R: Tensor) -> Tensor:
        return R if preconditioner is None else preconditioner(R, damping)

    V = V.double()
    if not bool(torch.isfinite(V).all()):
        raise FloatingPointError(
            "the right-hand sides of conjugate gradients hold NaN or infinite values: the gradient of a "
            "measurement is not finite at the final model."
        )
    size = V.norm(dim=1)
    goal = tol * size
    u = torch.zeros_like(V)
    residual = V.clone()
    n_iter = 0
    left = residual.norm(dim=1)
    active = (left > goal).nonzero()[:, 0]
    while len(active) and n_iter < max_iter:
        aim = goal[active] * (_BEYOND if n_iter else 1)
        again = n_iter > 0
        step, n = _run(product, precondition, residual[active], aim, damping, max_iter - n_iter)
        n_iter += n
        u[active] += step
        residual[active] = V[active] - product(u[active])
        now = residual[active].norm(dim=1)
        helped = now <= _WORTHWHILE * left[active]
        if again:  # a restart may lead away; the first run is nearer in the norm of C than zero is
            worse = now > left[active]
            u[active[worse]] -= step[worse]
            now = torch.minimum(now, left[active])
        left[active] = now
        active = active[(now > goal[active]) & helped]
    return CGSolution(u, left / torch.where(size > 0, size, 1), n_iter)


def _run(
    product: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    residual: Tensor,
    goal: Tensor,
    damping: float,
    max_iter: int,
) -> tuple[Tensor, int]:
    """Return solutions by conjugate gradients from zero, and the number of iterations."""
    u = torch.zeros_like(residual)
    r, p = residual, precondition(residual)
    rz = (r * p).sum(1)
    active = torch.arange(len(r), device=r.device)
    n_iter = 0
    while len(active) and n_iter < max_iter:
        Ap = product(p)
        curved = (p * Ap).sum(1)
        if bool((curved <= 0).any()):
            rayleigh = float((curved / p.square().sum(1)).min()) - damping
            raise ValueError(
                f"the curvature is {rayleigh:.2e} in one direction, and damping={damping:g} does "
                "not make it positive. Raise damping, or use curvature='gauss-newton', which has "
                "no negative curvature."
            )
        alpha = (rz / curved)[:, None]
        u[active] += alpha * p
        r = r - alpha * Ap
        n_iter += 1
        on = r.norm(dim=1) > goal[active]
        if not bool(on.all()):
            active, r, p, rz = active[on], r[on], p[on], rz[on]
        z = precondition(r)
        before, rz = rz, (r * z).sum(1)
        p = z + (rz / before)[:, None] * p
    return u, n_iter
