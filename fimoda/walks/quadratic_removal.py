"""Every row's own run in the linearised network, for a quadratic loss."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..training.linear_steps import LinearSteps
from ..training.recorded import ObservedRun
from .leaving_out import leaving_out

#: From this step on, blocks of steps with a force that is linear in time grow with time.
_EXACT_STEPS = 64


class QuadraticRemoval:
    r"""The deviation of every left-out row's own run from that on all rows, for a quadratic loss.

    In the eigenvectors of :math:`M = \sum_j s_j w J_j^\top J_j` (modes), row i's deviation
    :math:`x_i` from the run on all rows obeys the optimiser's recursion with the gradient

    .. math:: \kappa_i M x_i + f_i (\bar g - J_i^\top u_i), \qquad f_i = \frac{s_i}{1 - s_i}

    where :math:`s_i` is the row's share of the mean. To first order :math:`\kappa_i = 1`, and
    :math:`u_i` is the row's residual in the run on all rows; in the exact removal
    :math:`\kappa_i = 1/(1 - s_i)`, and :math:`u_i = r_i + w J_i x_i` that in its own run. The
    first steps are taken one by one; later the residuals are linear in time over blocks that grow
    with time.

    Made of the kernel (n, C, n, C) of the outputs of the training rows in float64, their shares (n,),
    and w, the second derivative `bend` of each row's loss in each output.
    """

    def __init__(self, kernel: Tensor, share: Tensor, bend: float, steps: LinearSteps, exact: bool):
        n, c = kernel.shape[:2]
        self.steps = steps
        self.exact = exact
        self.bend = bend
        self.share = share
        self.own, self.others = leaving_out(share)
        growth = 1 + self.others
        #: By which the curvature grows without a row, (n,), or (1,) if it is the same for all.
        self.growth = growth[:1] if bool((growth == growth[0]).all()) else growth
        root = (share * bend).sqrt().repeat_interleave(c)
        gram = kernel.reshape(n * c, n * c) * root[:, None] * root
        values, vectors = torch.linalg.eigh((gram + gram.mT) / 2)
        kept = values > 1e-13 * values[-1]
        self.values = values[kept]
        #: From inner products with the rows' Jacobians (m, nC) to modes (m, k).
        self.to_modes = vectors[:, kept] * root[:, None] / self.values.sqrt()
        #: Rows in modes, (n, C, k): their inner products are the kernel.
        self.rows = (kernel.reshape(n * c, n * c) @ self.to_modes).unflatten(0, (n, c))

    def deviations(
        self, observed: ObservedRun, horizons: Sequence[int], own_residuals: Tensor | None = None
    ) -> Tensor:
        """Return each row's deviation (n_horizons, n, k) in modes, from what the run on all rows was.

        `own_residuals` are those of each row when it is the one left out, if they are others
        (relabelled rows); its removal is to first order then.
        """
        residuals = observed.residuals.double()
        others = residuals if own_residuals is None else own_residuals.double()
        exact = self.exact and own_residuals is None
        x = torch.zeros(self.rows.shape[0], self.rows.shape[2]).to(self.rows)
        v = torch.zeros_like(x)
        reached: list[Tensor] = []
        mean, u = self._mean(residuals[0]), others[0]
        for t0, t1 in itertools.pairwise(_grid(horizons)):
            block = _Block(self, observed.rates[t0:t1], exact)
            x, v = block.drift(x, v)
            block.push(x, v, 0, u, mean)
            mean = self._mean(observed.between(residuals, t1))
            r = u = observed.between(others, t1)
            if exact:
                known = block.with_mean(x, mean)
                u = block.solve_own(self.rows, r + self.bend * self._outputs(known))
            block.push(x, v, 1, u, mean)
            if exact:
                u = r + self.bend * self._outputs(x)
            if t1 in horizons:
                reached.append(x.clone())
        return torch.stack(reached)

    def reweighted(self, observed: ObservedRun, horizon: int, factors: Tensor) -> Tensor:
        """Return the deviation (k,) in modes of the run in which the rows' weights are multiplied.

        Exact in the linearised network, step by step; a factor (n,) of zero removes a row.
        """
        total = (factors * self.share).sum()
        change = factors * self.share / total - self.share
        touched = (factors != 1).nonzero()[:, 0]
        rows = self.rows[touched].flatten(0, 1)
        bent = (factors[touched] - 1) * self.share[touched] * self.bend / total
        bent = bent.repeat_interleave(self.rows.shape[1])
        curved = self.values / total + self.steps.coupled_decay
        residuals = observed.residuals.double()
        forces = torch.stack(
            [torch.einsum("nck,nc->k", self.rows, change[:, None] * r) for r in residuals]
        )
        x, v = torch.zeros_like(forces[0]), torch.zeros_like(forces[0])
        for step, rate in enumerate(observed.rates[:horizon].tolist()):
            force = observed.between(forces, step) + rows.mT @ (bent * (rows @ x))
            x, v = self.steps.push(rate, x, v, curved * x + force)
        return x

    def outputs_of_full_run(
        self, observed: ObservedRun, decay: Tensor, horizons: Sequence[int]
    ) -> Tensor:
        """Return the change (n_horizons, n, C) of the rows' outputs in the linearised run on all rows.

        `decay` (n, C) is what weight decay adds to the first gradient, times the rows' Jacobians.
        """
        force = (
            self._mean(observed.residuals[0].double()) + decay.double().flatten() @ self.to_modes
        )
        x, v = torch.zeros_like(force), torch.zeros_like(force)
        reached = []
        for step, rate in enumerate(observed.rates.tolist(), start=1):
            slope = (self.values + self.steps.coupled_decay) * x + force
            x, v = self.steps.push(rate, x, v, slope)
            if step in horizons:
                reached.append(self.rows @ x)
        return torch.stack(reached)

    def _outputs(self, x: Tensor) -> Tensor:
        """Return the change (n, C) of each row's own outputs in its own run."""
        return torch.einsum("nck,nk->nc", self.rows, x)

    def _mean(self, r: Tensor) -> Tensor:
        """Return the mean gradient (k,) in modes."""
        return torch.einsum("nck,nc->k", self.rows, r * self.share[:, None])


class _Block:
    """Some steps in a row, by what they do to deviations and to forces linear in time."""

    def __init__(self, removal: QuadraticRemoval, rates: Tensor, exact: bool):
        self.removal = removal
        steps, b = removal.steps, len(rates)
        kappa = removal.growth if exact else torch.ones_like(removal.growth[:1])
        curved = kappa[:, None] * removal.values + steps.coupled_decay
        # what becomes of a unit of x, of v, of a force that fades over the block, of one that grows
        x, v = curved.new_zeros(2, 4, *curved.shape)
        x[0], v[1] = 1, 1
        for j, rate in enumerate(rates.tolist()):
            g = curved * x
            g[2] += 1 - j / b
            g[3] += j / b
            x, v = steps.push(rate, x, v, g)
        self.x, self.v = x, v

    def drift(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return what becomes of deviation and velocity without a force."""
        if not self.removal.steps.of_velocity:
            return x * self.x[0], v
        return x * self.x[0] + v * self.x[1], x * self.v[0] + v * self.v[1]

    def push(self, x: Tensor, v: Tensor, end: int, u: Tensor, mean: Tensor) -> None:
        """Add what the force of residuals u at one end of the block does."""
        removal = self.removal
        force = removal.others[:, None] * mean
        force -= torch.einsum("nck,nc->nk", removal.rows, removal.own[:, None] * u)
        x.addcmul_(force, self.x[2 + end].expand_as(force))
        if removal.steps.of_velocity:
            v.addcmul_(force, self.v[2 + end].expand_as(force))

    def with_mean(self, x: Tensor, mean: Tensor) -> Tensor:
        """Return x with what the mean gradient at the end of the block adds to it."""
        return x + self.removal.others[:, None] * (mean * self.x[3])

    def solve_own(self, rows: Tensor, known: Tensor) -> Tensor:
        """Return own residuals (n, C) at the end of the block, on which the force itself depends."""
        removal = self.removal
        hat = torch.einsum("nck,ndk->ncd", rows * self.x[3][:, None], rows)
        hat = hat * (removal.bend * removal.own)[:, None, None]
        eye = torch.eye(hat.shape[1]).to(hat)
        return torch.linalg.solve(eye + hat, known.unsqueeze(2)).squeeze(2)


def _grid(marks: Sequence[int]) -> list[int]:
    """Return steps at which forces are evaluated: all at first, then further and further apart."""
    times = [0]
    for mark in marks:
        while times[-1] < mark:
            times.append(min(mark, times[-1] + max(1, times[-1] // _EXACT_STEPS)))
    return times
