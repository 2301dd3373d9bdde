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

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from ..training.linear_steps import LinearSteps
from ..training.recorded import ObservedRun
from .leaving_out import leaving_out

#: Outputs of all rows up to which eigenvalues are computed densely.
_DENSE = 200


def adjoint_in_outputs(
    kernel: Tensor,
    share: Tensor,
    curvature: Callable[[int], Tensor],
    observed: ObservedRun,
    steps: LinearSteps,
    inner: Sequence[Tensor],
    horizons: Sequence[int],
    own_residuals: Tensor | None = None,
) -> Tensor:
    """Return scores (n_horizons, m, n) to first order, by one walk back for all horizons.

    From the kernel (n, C, n, C) of the training rows and their shares (n,); from `curvature`, the
    second derivative (n, C, C) of each row's loss in its outputs at a knot; and for each horizon (a step)
    from inner products (m, n, C) of the measurements' gradients with the (preconditioned) Jacobians of
    the rows. `own_residuals` are those of each row when it is the one left out, if they are others.
    """
    residuals, rates, knots = observed.residuals, observed.rates, observed.knots
    others = residuals if own_residuals is None else own_residuals
    n, c = kernel.shape[:2]
    K = kernel.reshape(n * c, n * c)
    m = len(inner[0])
    share = share.to(K)
    of_own, of_mean = leaving_out(share)
    # the test rows come last, so that no product copies its factors
    ends = {h: L.to(K).permute(1, 2, 0) for h, L in zip(horizons, inner, strict=True)}
    L = V = K.new_zeros(n, c, 0)
    own, mean = K.new_zeros(n, 0), K.new_zeros(0)
    last = observed.knot(horizons[-1])
    sooner = curvature(last)
    for knot in range(last - 1, -1, -1):
        start, stop = knots[knot : knot + 2]
        if stop in ends:
            L = torch.cat([ends[stop], L], dim=-1)
            V = torch.cat([V.new_zeros(n, c, m), V], dim=-1)
            own = torch.cat([own.new_zeros(n, m), own], dim=-1)
            mean = torch.cat([mean.new_zeros(m), mean])
        later, sooner = sooner, curvature(knot)
        # residuals are linear in time: the sums with the weights of both ends suffice
        to_sooner, to_later = torch.zeros_like(L), torch.zeros_like(L)
        for step in range(stop - 1, start - 1, -1):
            passed = (step - start) / (stop - start)
            rate = rates[step].tolist()
            L, V, G = steps.pull(rate, L, V, K.new_full((), steps.coupled_decay))
            to_sooner.add_(G, alpha=1 - passed)
            to_later.add_(G, alpha=passed)
            W = torch.lerp(sooner, later, passed).to(K) * share[:, None, None]
            bent = torch.einsum("ncd,ncz->ndz", W, G).flatten(0, 1)
            L.add_((bent.mT @ K).mT.view_as(L))  # faster than K @ bent
        for gradients, end in ((to_sooner, knot), (to_later, knot + 1)):
            own += torch.einsum("ncz,nc->nz", gradients, others[end].to(K))
            mean += torch.einsum("ncz,nc->z", gradients, residuals[end].to(K) * share[:, None])
    return (mean[:, None] * of_mean - own.mT * of_own).unflatten(0, (-1, m))


def outputs_of_full_run(
    kernel: Tensor,
    share: Tensor,
    residual: Callable[[Tensor], Tensor],
    observed: ObservedRun,
    decay: Tensor,
    steps: LinearSteps,
    horizons: Sequence[int],
) -> Tensor:
    """Return the change (n_horizons, n, C) of the rows' outputs in the linearised run on all rows.

    `residual` gives the gradient of each row's loss in its outputs (n, C); `decay` (n, C) is what
    weight decay adds to the first gradient, times the rows' Jacobians.
    """
    outputs = observed.outputs[0].double()
    K = kernel.flatten(0, 1).flatten(1)
    x, v = torch.zeros_like(outputs), torch.zeros_like(outputs)
    reached = []
    for step, rate in enumerate(observed.rates.tolist(), start=1):
        force = (residual(outputs + x) * share[:, None]).flatten()
        slope = (K @ force).view_as(x) + decay + steps.coupled_decay * x
        x, v = steps.push(rate, x, v, slope)
        if step in horizons:
            reached.append(x)
    return torch.stack(reached)


def largest_curvature(kernel: Tensor, share: Tensor, curvature: Tensor) -> float:
    """Return the largest eigenvalue of the mean of the rows' curvatures, never below zero.

    Negative curvatures (n, C, C) of a row's loss in its outputs count as zero.
    """
    values, vectors = torch.linalg.eigh(curvature.to(kernel) * share.to(kernel)[:, None, None])
    roots = vectors * values.clamp_min(0).sqrt()[:, None]
    C, n = kernel.shape[1], kernel.shape[0] * kernel.shape[1]
    if n <= _DENSE:
        bent = torch.einsum("nci,ncmd,mdj->nimj", roots, kernel, roots)
        return float(torch.linalg.eigvalsh(bent.reshape(n, n))[-1].clamp_min(0))
    K = kernel.reshape(n, n)

    def product(u: NDArray[np.float64]) -> NDArray[np.float64]:
        modes = torch.from_numpy(u.reshape(-1, C)).to(K)
        outputs = torch.einsum("nci,ni->nc", roots, modes)
        pulled = (K @ outputs.flatten()).view_as(outputs)
        return torch.einsum("nci,nc->ni", roots, pulled).flatten().double().cpu().numpy()

    start = np.random.default_rng(0).standard_normal(n)
    if not product(start).any():  # which ARPACK does not take
        return 0.0
    operator = LinearOperator((n, n), matvec=product, dtype=np.float64)
    found = eigsh(operator, k=1, which="LA", v0=start, tol=1e-6, return_eigenvectors=False)
    return max(float(found[0]), 0.0)
