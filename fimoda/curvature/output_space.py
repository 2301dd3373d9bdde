r"""Further training linearised once, in the space of the training rows' outputs.

The rows' Jacobians J stand still where the run on all rows begins; the residuals, and the
measurements at the end, are those of the run itself. Everything is inner products: of the kernel
:math:`K = J P J^\top` (P the optimiser's preconditioner), and of the measurements' gradients
with J. Any loss is walked backwards from the test rows, step by step (`adjoint_in_outputs`). A
quadratic one has a constant curvature in the outputs, so that the eigenvectors of K separate: see
`QuadraticRemoval`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..training.linear_steps import LinearSteps
from .unrolled import leaving_out

_POWER_ITERATIONS = 30


def adjoint_in_outputs(
    kernel: Tensor,
    share: Tensor,
    curvature: Callable[[int], Tensor],
    residuals: Tensor,
    steps: LinearSteps,
    rates: Tensor,
    per_epoch: int,
    inner: Sequence[Tensor],
    horizons: Sequence[int],
    own_residuals: Tensor | None = None,
) -> Tensor:
    """Scores (n_horizons, m, n) to first order, by one walk back for all horizons.

    Parameters
    ----------
    kernel : Tensor of shape (n, C, n, C)
        Of the outputs of the training rows.
    share : Tensor of shape (n,)
        Each row's share of the objective.
    curvature : callable
        Second derivative of each row's loss in its outputs (n, C, C), after an epoch.
    residuals : Tensor of shape (n_epochs + 1, n, C)
        First derivative.
    steps : LinearSteps
    rates : Tensor of shape (n_steps, 2)
    per_epoch : int
    inner : sequence of Tensor of shape (m, n, C)
        For each horizon, inner products of the measurements' gradients with the (preconditioned)
        Jacobians of the rows.
    horizons : sequence of int
        Increasing numbers of epochs.
    own_residuals : Tensor of shape (n_epochs + 1, n, C), default=None
        Residuals of each row when it is the one left out, if they are others.
    """
    others = residuals if own_residuals is None else own_residuals
    n, c = kernel.shape[:2]
    K = kernel.reshape(n * c, n * c)
    m = len(inner[0])
    ends = {h * per_epoch: L.to(K) for h, L in zip(horizons, inner, strict=True)}
    L = V = K.new_zeros(0, n, c)
    share = share.to(K)
    of_own, of_mean = leaving_out(share)
    own, mean = L.new_zeros(0, n), L.new_zeros(0)
    later = sooner = curvature(horizons[-1])
    for step in range(horizons[-1] * per_epoch - 1, -1, -1):
        if step + 1 in ends:
            L, V = torch.cat([ends[step + 1], L]), torch.cat([torch.zeros_like(ends[step + 1]), V])
            own = torch.cat([own.new_zeros(m, n), own])
            mean = torch.cat([mean.new_zeros(m), mean])
        epoch, passed = step // per_epoch, (step % per_epoch) / per_epoch
        if (step + 1) % per_epoch == 0:
            later, sooner = sooner, curvature(epoch)
        W = torch.lerp(sooner, later, passed).to(K)
        r, u = (between_epochs(values, step / per_epoch).to(K) for values in (residuals, others))
        L, V, G = steps.pull(rates[step].tolist(), L, V, K.new_full((), steps.coupled_decay))
        own += torch.einsum("znc,nc->zn", G, u)
        mean += torch.einsum("znc,nc->z", G, r * share[:, None])
        bent = torch.einsum("znc,ncd->znd", G, W * share[:, None, None])
        L = L + (bent.flatten(1) @ K).unflatten(1, (n, c))
    return (mean[:, None] * of_mean - own * of_own).unflatten(0, (-1, m))


def outputs_of_full_run(
    kernel: Tensor,
    share: Tensor,
    residual: Callable[[Tensor], Tensor],
    outputs: Tensor,
    decay: Tensor,
    steps: LinearSteps,
    rates: Tensor,
    marks: Sequence[int],
) -> Tensor:
    """Change of the rows' outputs in the linearised run on all rows, (n_marks, n, C).

    Parameters
    ----------
    kernel : Tensor of shape (n, C, n, C)
    share : Tensor of shape (n,)
        Each row's share of the objective.
    residual : callable
        Gradient of each row's loss in its outputs (n, C).
    outputs : Tensor of shape (n, C)
        Where the run begins.
    decay : Tensor of shape (n, C)
        What the weight decay adds to the first gradient, times the rows' Jacobians.
    steps : LinearSteps
    rates : Tensor of shape (n_steps, 2)
    marks : sequence of int
        Numbers of steps.
    """
    K = kernel.flatten(0, 1).flatten(1)
    x, v = torch.zeros_like(outputs), torch.zeros_like(outputs)
    reached = []
    for step, rate in enumerate(rates.tolist()):
        force = (residual(outputs + x) * share[:, None]).flatten()
        slope = (K @ force).view_as(x) + decay + steps.coupled_decay * x
        x, v = steps.push(rate, x, v, slope)
        if step + 1 in marks:
            reached.append(x)
    return torch.stack(reached)


def largest_curvature(kernel: Tensor, share: Tensor, curvature: Tensor) -> float:
    """Largest eigenvalue of the mean of the rows' curvatures, by power iteration.

    Parameters
    ----------
    kernel : Tensor of shape (n, C, n, C)
    share : Tensor of shape (n,)
    curvature : Tensor of shape (n, C, C)
        Second derivative of each row's loss in its outputs.
    """
    K = kernel.flatten(0, 1).flatten(1)
    W = curvature.to(K) * share[:, None, None]
    u = K.diagonal().view(curvature.shape[:2]).clone()
    largest = 0.0
    for _ in range(_POWER_ITERATIONS):
        u = u / u.norm().clamp_min(1e-300)
        u = (K @ torch.einsum("ncd,nd->nc", W, u).flatten()).view_as(u)
        largest = float(u.norm())
    return largest


def between_epochs(values: Tensor, epoch: float) -> Tensor:
    """Values (n_epochs + 1, ...) between epochs, linearly."""
    before = min(int(epoch), len(values) - 2)
    return torch.lerp(values[before], values[before + 1], epoch - before)
