"""Exact solutions with the Gauss-Newton matrix or any other, by one eigendecomposition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..derivatives import row_jacobians
from ..measured import Measured
from ..objective import Objective
from .group_removal import Coordinates, outputs_along
from .kernel import OutputKernel
from .operators import Curvature
from .removal import Removal

#: Least eigenvalue, in parts of the largest, of a scaled curvature that needs no damping.
_DEFINITE = 1e-10


class PrimalSolver:
    r"""Solutions :math:`(C + \lambda I)^{-1} v` from the eigenvectors of C (p, p).

    One decomposition, in float64, serves every right-hand side and every damping. Without damping
    the parameters are first scaled to a curvature of one, :math:`C = D^{1/2} C' D^{1/2}`, so that
    columns of very different sizes do not drown each other. MemoryError if the matrix and its
    eigenvectors take more than the objective's memory budget.
    """

    def __init__(self, curvature: Curvature):
        memory_budget = curvature.objective.memory_budget
        p = curvature.shape[0]
        if 3 * 8 * p * p > memory_budget:
            raise MemoryError(
                f"a dense curvature matrix of {p} parameters takes {3 * 8 * p * p / 2**20:.0f} MiB "
                f"with its eigenvectors, more than memory_budget={memory_budget / 2**20:.0f} MiB. "
                "Raise memory_budget, or use CGInfluence, ArnoldiInfluence or EKFACInfluence."
            )
        self._matrix = curvature.double.dense()
        self.eigenvalues, self.eigenvectors = torch.linalg.eigh(self._matrix)

    @cached_property
    def _scale(self) -> Tensor:
        sizes = self._matrix.diagonal()
        return torch.where(sizes > 0, sizes, 1).rsqrt()

    @cached_property
    def _scaled(self) -> Any:
        """Eigenvalues and eigenvectors of the scaled curvature: half the time, and often not needed."""
        return torch.linalg.eigh(self._scale[:, None] * self._matrix * self._scale)

    @property
    def is_definite(self) -> bool:
        """Return whether it can be solved without damping, and hardly depends on rounding."""
        values = self._scaled.eigenvalues
        return bool(values.min() > _DEFINITE * values.max())

    def check(self, damping: float) -> None:
        """Raise ValueError unless the damped curvature is positive definite."""
        values = self.eigenvalues if damping else self._scaled.eigenvalues
        check_definite(values + damping, values, damping)

    def solve(self, V: Tensor, damping: float) -> Tensor:
        """Return the solutions for the rows of V (k, p), as rows, in float64."""
        roots = self._roots(damping)
        return V.double() @ roots @ roots.mT

    def half(self, V: Tensor, damping: float) -> Tensor:
        """Return vectors whose inner products are those of V with the solutions for V, in float64."""
        return V.double() @ self._roots(damping)

    def _roots(self, damping: float) -> Tensor:
        """Return columns (p, p) whose outer products sum to the inverse."""
        self.check(damping)
        if damping:
            return self.eigenvectors / (self.eigenvalues + damping).sqrt()
        values, vectors = self._scaled
        return self._scale[:, None] * vectors / values.sqrt()


class DualGaussNewton:
    r"""Influence with the Gauss-Newton matrix, in the space of the training rows' outputs.

    With :math:`B = \tilde W^{1/2} J` (nC, p), :math:`\tilde W` the loss' second derivatives in
    the outputs times each row's share of the mean, :math:`C = B^\top B` and

    .. math:: (C + \lambda)^{-1} B^\top = B^\top (B B^\top + \lambda)^{-1},

    so that everything is inner products of Jacobians. One eigendecomposition of
    :math:`B B^\top` (nC, nC), in float64, serves every test row and every damping. ValueError if the
    loss is not convex in the outputs, or a row's gradient is not in the range of its second derivative
    (then no matrix :math:`B^\top` reaches it).
    """

    @staticmethod
    def is_smaller(objective: Objective) -> bool:
        """Return whether there is no more output than parameters, and the penalty acts as damping does."""
        penalty = objective.model.penalty
        even = penalty is None or bool((penalty == penalty[0]).all() and penalty[0] > 0)
        return even and len(objective) * objective.n_outputs <= objective.model.n_parameters

    def __init__(self, objective: Objective):
        n_outputs, budget = len(objective) * objective.n_outputs, objective.memory_budget
        if 4 * 8 * n_outputs**2 > budget:
            raise MemoryError(
                f"the kernel of {n_outputs} outputs takes {4 * 8 * n_outputs**2 / 2**20:.0f} MiB "
                f"with its eigenvectors, more than memory_budget={budget / 2**20:.0f} "
                "MiB. Raise memory_budget, or use CGInfluence or EKFACInfluence."
            )
        objective = objective.double
        self.model = objective.model
        self.kernel = OutputKernel(replace(objective, memory_budget=objective.memory_budget // 8))
        self.root, self.reach = row_factors(objective)
        n, c = self.reach.shape
        gram = self.kernel()
        gram = torch.einsum("nca,ncmd,mdb->namb", self.root, gram, self.root).reshape(n * c, n * c)
        self.eigenvalues, self.eigenvectors = torch.linalg.eigh((gram + gram.mT) / 2)

    def coordinates(self, damping: float) -> Coordinates:
        """Return the modes as coordinates of parameters, those without curvature left out."""
        penalty = self.model.penalty
        damping += 0.0 if penalty is None else float(penalty[0])
        kept = self.eigenvalues > 1e-13 * self.eigenvalues[-1]
        loss = self.eigenvalues[kept]
        rest = torch.full_like(loss, damping)
        return _Modes(loss, rest, self.reach, None, self, self.eigenvectors[:, kept])

    def scores(self, test: Measured, damping: float, removal: Removal | None = None) -> Tensor:
        """Return products (m, n) of the test rows with each training row's share of the gradient.

        With `removal` they are scores of a Newton step of the objective without each row.
        """
        modes, curved, damping = self._modes(test, damping)
        if removal is not None:
            return modes @ self._newton_steps(removal, curved, damping).mT
        return (self._solved(modes, curved + damping) * self.reach).sum(2)

    def products(
        self, test: Measured, damping: float, rows: NDArray[np.int64], reach: Tensor
    ) -> Tensor:
        """Return products (m, b) of the test rows with gradients of some rows that have another `reach`."""
        modes, curved, damping = self._modes(test, damping)
        return (self._solved(modes, curved + damping)[:, rows] * reach).sum(2)

    def _modes(self, test: Measured, damping: float) -> tuple[Tensor, Tensor, float]:
        """Return test rows in the modes (m, nC), the curvature of these, and damping with penalty."""
        rows = test.double.rows
        slope = test.slopes(self.model.outputs(rows.inputs))  # (m, C)
        pushed = torch.einsum("mc,mcnd,nda->mna", slope, self.kernel(rows), self.root)
        curved = self.eigenvalues.clamp_min(0)
        penalty = self.model.penalty
        damping += 0.0 if penalty is None else float(penalty[0])
        check_definite(curved + damping, self.eigenvalues, damping)
        return pushed.flatten(1) @ self.eigenvectors, curved, damping

    def _solved(self, modes: Tensor, curved: Tensor) -> Tensor:
        """Return solutions (m, n, C) for test rows in the modes, as coefficients of the rows' factors."""
        return (modes / curved @ self.eigenvectors.mT).unflatten(1, self.reach.shape)

    def _newton_steps(self, removal: Removal, curved: Tensor, damping: float) -> Tensor:
        """Return the steps without each row (n, nC), as coefficients of the modes."""
        own, growth, whole = on_device(removal, self.reach)
        rows = self.eigenvectors.unflatten(0, self.reach.shape)  # (n, C, nC)
        forces = torch.einsum("nak,na->nk", rows, self.reach)
        sums = torch.from_numpy(removal.members()).to(forces).mT @ forces
        forces = own[:, None] * forces - growth @ sums
        taken = 1 / (whole[:, None] * curved + damping)  # (n, nC)
        steps = forces * taken
        seen = torch.einsum("nak,nk->na", rows, curved * steps)
        hat = torch.einsum("nak,nk,nbk->nab", rows, own[:, None] * curved * taken, rows)
        back = own[:, None] * without_own_curvature(hat, seen)
        return steps + torch.einsum("nak,na->nk", rows, back) * taken


class NewtonSteps:
    r"""Scores by a Newton step of the objective without each row, from a dense decomposition.

    .. math:: [a_i (C - s_i C_i) + P + \lambda]^{-1} (a_i s_i g_i - \rho_i \bar g), \quad a_i = 1 + \rho_i,

    C the curvature of the loss, P that of the penalty, and :math:`\rho` of `Removal` (zero for a sum
    of losses). Where class weights change, C takes the mean of their factors. The solver is that of the
    Gauss-Newton matrix with the penalty.
    """

    def __init__(self, solver: PrimalSolver, objective: Objective, removal: Removal):
        self.solver = solver
        self.objective = objective.double
        self.root, self.reach = row_factors(self.objective)
        self.removal = removal

    def coordinates(self, damping: float) -> Coordinates:
        """Return coordinates in which the damped curvature is the identity, and the loss' part diagonal."""
        basis, loss = self._basis(damping, apart=True)
        pull = self.removal.pull
        pulled = None if pull is None else basis.mT @ pull.double()
        return _Parameters(loss, 1 - loss, self.reach, pulled, self, basis)

    def scores(self, gradients: Tensor, damping: float) -> Tensor:
        """Return scores (m, n) of all training rows for measurements with gradients (m, p)."""
        own, growth, whole = on_device(self.removal, self.reach)
        basis, of_loss = self._basis(damping, self.removal.changes_others)
        fixed = gradients.new_zeros(growth.shape[1], basis.shape[1], dtype=torch.float64)
        if self.removal.changes_others:
            member = torch.from_numpy(self.removal.members()).to(own)
            for rows, B in self._factors():
                fixed += torch.einsum("nk,nap,na->kp", member[rows], B, self.reach[rows])
            if self.removal.pull is not None:
                fixed[0] += self.removal.pull
        fixed = fixed @ basis
        tested = gradients.double() @ basis
        parts = []
        for rows, B in self._factors():
            inside = B @ basis  # (b, C, p)
            taken = 1 / (1 + (whole[rows, None] - 1) * of_loss)  # (b, p)
            forces = own[rows, None] * torch.einsum("nap,na->np", inside, self.reach[rows])
            steps = (forces - growth[rows] @ fixed) * taken
            seen = torch.einsum("nap,np->na", inside, steps)
            hat = torch.einsum("nap,np,nbp->nab", inside, own[rows, None] * taken, inside)
            back = own[rows, None] * without_own_curvature(hat, seen)
            steps += torch.einsum("nap,na->np", inside, back) * taken
            parts.append(tested @ steps.mT)
        return torch.cat(parts, dim=1)

    def _basis(self, damping: float, apart: bool) -> tuple[Tensor, Tensor]:
        """Return columns (p, p) that make the damped curvature the identity, `apart` the loss' diagonal."""
        eigenvalues, penalty = self.solver.eigenvalues, self.objective.model.penalty
        basis = self.solver.half(torch.eye(len(eigenvalues)).to(eigenvalues), damping)
        if not apart:
            return basis, torch.zeros_like(eigenvalues)
        rest = torch.full_like(eigenvalues, damping)
        if penalty is not None:
            rest += penalty
        values, vectors = torch.linalg.eigh(basis.mT @ (rest[:, None] * basis))
        return basis @ vectors, 1 - values

    def _factors(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield factors (b, C, p) of the rows in the curvature, a chunk at a time."""
        start, budget = 0, self.objective.memory_budget // 4
        for jacobian in self.objective.model.jacobian_chunks(self.objective.rows.inputs, budget):
            rows = slice(start, start + len(jacobian))
            yield rows, torch.einsum("nca,ncp->nap", self.root[rows], jacobian)
            start = rows.stop


@dataclass(frozen=True, eq=False)
class _Modes(Coordinates):
    """The modes (nC, k) of the Gauss-Newton matrix in the space of outputs."""

    solver: DualGaussNewton
    modes: Tensor

    def factors(self, rows: NDArray[np.int64]) -> Tensor:
        return self.modes.unflatten(0, self.reach.shape)[rows] * self.loss.sqrt()

    def push(self, test: Measured, steps: Tensor) -> Tensor:
        of_rows = (self.modes @ (steps / self.loss.sqrt()[:, None])).unflatten(0, self.reach.shape)
        weighted = torch.einsum("nda,nav->ndv", self.solver.root, of_rows)
        return torch.einsum("mcnd,ndv->mcv", self.solver.kernel(test.double.rows), weighted)


@dataclass(frozen=True, eq=False)
class _Parameters(Coordinates):
    """All parameters, in a basis (p, p)."""

    solver: NewtonSteps
    basis: Tensor

    def factors(self, rows: NDArray[np.int64]) -> Tensor:
        objective = self.solver.objective
        jacobian = row_jacobians(objective.model, objective.rows.inputs[rows])
        return torch.einsum("nca,ncp->nap", self.solver.root[rows], jacobian) @ self.basis

    def push(self, test: Measured, steps: Tensor) -> Tensor:
        return outputs_along(self.solver.objective.model, test.double, (self.basis @ steps).mT)


def on_device(removal: Removal, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return factors of the rows' own weights (n,), growth (n, K), and factors of all rows' mean (n,)."""
    mass = torch.from_numpy(removal.members()).to(like).mean(0)
    growth = torch.from_numpy(removal.growth).to(like)
    return torch.from_numpy(removal.own).to(like), growth, 1 + growth @ mass


def row_factors(objective: Objective, targets: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""Return factors of each row's share in the Gauss-Newton matrix and in the gradient.

    The gradient may be that with other `targets`. With ``root`` (n, C, C) and :math:`B_i = root_i^\top
    J_i` the matrix is :math:`\sum_i B_i^\top B_i`, and with ``reach`` (n, C) the gradient of row i times
    its share is :math:`B_i^\top reach_i`.
    """
    model, y = objective.model, objective.rows.targets
    outputs, share = objective.outputs, objective.rows.shares[:, None]
    values, vectors = torch.linalg.eigh(model.loss.output_hessian(outputs, y))
    largest = values.abs().amax(1, keepdim=True)
    if bool((values < -1e-10 * largest).any()):
        raise ValueError("the loss is not convex in the outputs: use curvature='hessian'.")
    inside = values > 1e-12 * largest
    scale = torch.where(inside, values.clamp_min(0), 0).sqrt()
    inverse = torch.where(inside, 1 / scale.clamp_min(1e-300), 0)
    residual = torch.einsum(
        "nca,nc->na", vectors, model.loss.gradient(outputs, y if targets is None else targets)
    )
    if bool(((residual.abs() > 1e-6 * residual.norm(dim=1, keepdim=True)) & ~inside).any()):
        raise ValueError(
            "the gradient of a row's loss in its outputs is outside the range of its second "
            "derivative (a loss with flat pieces): use curvature='empirical-fisher'."
        )
    # B = root' J: (n, C, C) maps outputs to scaled eigen-directions of each row's W
    root = torch.einsum("nca,na->nca", vectors, scale) * share[:, :, None].sqrt()
    reach = inverse * residual * share.sqrt()  # row i's share of g_i = B_i' reach_i
    return root, reach


def without_own_curvature(hat: Tensor, reach: Tensor) -> Tensor:
    r"""Multiply each row's `reach` (n, C) by :math:`(I - S_i)^{-1}`, S its hat matrix (n, C, C).

    Woodbury: :math:`(C - B_i^\top B_i + \lambda)^{-1} B_i^\top = (C + \lambda)^{-1} B_i^\top
    (I - S_i)^{-1}`. For one output this divides by one minus the leverage.
    """
    eye = torch.eye(hat.shape[1], dtype=hat.dtype, device=hat.device)
    leverage = torch.linalg.eigvalsh((hat + hat.mT) / 2).amax(1)
    if float(leverage.max()) > 1 - 1e-9:
        row = int(leverage.argmax())
        raise ValueError(
            f"training row {row} has leverage one: without it the curvature is singular. Raise "
            "damping, or set newton_step=False."
        )
    return torch.linalg.solve(eye - hat, reach.unsqueeze(2)).squeeze(2)


def check_definite(shifted: Tensor, eigenvalues: Tensor, damping: float) -> None:
    """Raise ValueError unless the damped eigenvalues are positive."""
    scale = float(eigenvalues.abs().max())
    if float(shifted.min()) <= 1e-13 * scale:
        lowest = float(eigenvalues.min())
        what = (
            "singular"
            if lowest > -1e-10 * scale
            else f"indefinite (lowest eigenvalue {lowest:.2e})"
        )
        raise ValueError(
            f"the curvature is {what}, and damping={damping:g} does not make it positive definite. "
            f"Raise damping above {max(-lowest, 1e-8 * scale):.1e}."
        )
