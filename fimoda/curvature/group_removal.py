r"""The removal of groups of rows together, in the quadratic model of the objective.

Without the rows U the others count :math:`1 + \rho_U` times as much (see `Removal`; 1 in a sum of
losses, :math:`1 / (1 - \pi_U)` in a mean, :math:`\pi_U` the share of the group). The gradient is then
:math:`-f_U` at the final model, and the curvature :math:`H - E_U`, with

.. math:: f_U = (1 + \rho_U) \sum_{i \in U} s_i g_i - \rho_U \bar g, \qquad
          E_U = (1 + \rho_U) \sum_{i \in U} s_i C_i - \rho_U \sum_i s_i C_i.

The change of the parameters is :math:`(H - E_U)^{-1} f_U`: with one term of its series
:math:`H^{-1} f_U + H^{-1} E_U H^{-1} f_U + ...` it is the sum over rows, with two it has the interaction
of each row with each other one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..derivatives import push_outputs
from ..measured import Measured
from ..measurements import values
from ..model import FinalModel
from ..objective import Objective
from .operators import Curvature
from .removal import Removal


@dataclass(frozen=True, eq=False)
class Coordinates(ABC):
    r"""Coordinates (k,) of parameters in which the curvature is diagonal, loss and the rest apart.

    Parameters
    ----------
    loss : Tensor of shape (k,)
        Curvature of the mean loss.
    rest : Tensor of shape (k,)
        That of the penalty and of the damping.
    reach : Tensor of shape (n, C)
        The gradients of rows: :math:`s_i g_i = B_i^\top reach_i`, with :math:`B_i` their `factors`.
    pull : Tensor of shape (k,) or None
        Gradient of a penalty that grows as the rows do.
    """

    loss: Tensor
    rest: Tensor
    reach: Tensor
    pull: Tensor | None

    @abstractmethod
    def factors(self, rows: NDArray[np.int64]) -> Tensor:
        r"""Return the factors :math:`B_i` (b, C, k) of rows, with :math:`s_i C_i = B_i^\top B_i`."""

    @abstractmethod
    def push(self, test: Measured, steps: Tensor) -> Tensor:
        """Return the derivatives (m, C, v) of the outputs of test rows along steps (k, v)."""

    def combined(self, coefficients: Tensor) -> Tensor:
        """Return sums (k, v) of the rows' shares of the gradient with coefficients (n, v)."""
        total = self.loss.new_zeros(len(self.loss), coefficients.shape[1])
        rows = np.arange(len(self.reach))
        size = max(1, _NUMBERS // (self.reach.shape[1] * len(self.loss)))
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            weighted = self.reach[some, :, None] * coefficients[some, None]
            total += torch.einsum("nck,ncv->kv", self.factors(some), weighted)
        return total

    def gradients(self, model: FinalModel, test: Measured) -> Tensor:
        """Return the gradients (m, k) of measurements."""
        slopes = test.double.slopes(model.outputs(test.inputs).double())
        size = max(1, _NUMBERS // (slopes.numel() or 1))
        eye = torch.eye(len(self.loss)).to(self.loss)
        parts = [
            torch.einsum("mc,mcv->mv", slopes, self.push(test, some)) for some in eye.split(size, 1)
        ]
        return torch.cat(parts, dim=1)

    def steps(self, removal: Removal, groups: NDArray[np.bool_], exact: bool) -> Tensor:
        """Return the changes (k, n_groups) of the parameters, exact or with two terms of the series."""
        growth = torch.from_numpy(removal.growth).to(self.loss)  # (n_groups, K)
        member = torch.from_numpy(removal.members()).to(self.loss)
        whole = growth @ member.mean(0)
        grown = growth @ member.mT  # (n_groups, n)
        inside = torch.from_numpy(groups).to(self.loss)
        forces = self.combined((inside * (1 + grown) - grown).mT)
        if self.pull is not None:
            forces -= self.pull[:, None] * growth[:, 0]
        found, touched = torch.empty_like(forces), np.flatnonzero(groups.any(0))
        few = len(touched) * self.reach.shape[1] * len(self.loss) <= _NUMBERS
        held = self.factors(touched) if few else None
        for j, (rows, rho) in enumerate(zip(groups, whole.tolist(), strict=True)):
            own = self.factors(np.flatnonzero(rows)) if held is None else held[rows[touched]]
            B = own.flatten(0, 1) * (1 + rho) ** 0.5
            step = self._newton if exact else self._second_order
            found[:, j] = step(B, rho, forces[:, j], j)
        return found

    def _newton(self, B: Tensor, rho: float, force: Tensor, number: int) -> Tensor:
        """Return the step with the curvature that is left, by the smaller of two systems."""
        curved = (1 + rho) * self.loss + self.rest
        if len(B) < len(curved):  # Woodbury
            scaled = B / curved
            left = torch.eye(len(B)).to(B) - scaled @ B.mT
            inner = _solved(left, B @ (force / curved), number)
            return force / curved + inner @ scaled
        return _solved(torch.diag(curved) - B.mT @ B, force, number)

    def _second_order(self, B: Tensor, rho: float, force: Tensor, number: int) -> Tensor:
        """Return the step with the first term of what the group's curvature adds."""
        curved = self.loss + self.rest
        first = force / curved
        return first + (B.mT @ (B @ first) - rho * self.loss * first) / curved


#: Numbers of factors that are held at a time.
_NUMBERS = 2**25


def _solved(left: Tensor, right: Tensor, number: int) -> Tensor:
    """Return the solution of a positive definite system; ValueError if it is not."""
    root, failed = torch.linalg.cholesky_ex(left)
    if int(failed) or float(root.diagonal().min()) < 1e-6:
        raise ValueError(
            f"groups must leave a curvature that can be solved: without group {number} it is singular. "
            "Raise damping, make the group smaller, or take method='second-order'."
        )
    return torch.cholesky_solve(right[:, None], root)[:, 0]


def second_order_steps(
    objective: Objective,
    removal: Removal,
    groups: NDArray[np.bool_],
    solve: Callable[[Tensor], Tensor],
    curvature: Callable[[Objective], Curvature],
) -> Tensor:
    """Return changes (n_groups, p) of the parameters with two terms of the series, for any solver.

    `solve` gives solutions for vectors (k, p), `curvature` the curvature of the loss on an objective.
    """
    shares = objective.rows.shares.cpu().numpy()
    members = removal.members()
    grown = removal.growth @ members.T
    coefficients = (groups * (1 + grown) - grown) * shares
    forces = objective.combined(torch.from_numpy(coefficients.T.copy()))
    if removal.pull is not None:
        forces -= torch.from_numpy(removal.growth[:, :1]).to(forces) * removal.pull.to(forces)
    first = solve(forces).to(forces)
    whole = removal.growth @ members.mean(0)
    pushed = torch.zeros_like(first)
    if whole.any():
        pushed -= torch.from_numpy(whole)[:, None].to(first) * curvature(objective).matmat(first)
    for j, rows in enumerate(groups):
        own = objective.of_rows(objective.rows[np.flatnonzero(rows)])
        pushed[j] += (1 + whole[j]) * curvature(own).matmat(first[j : j + 1])[0]
    return first + solve(pushed).to(first)


def measured_change(model: FinalModel, test: Measured, pushed: Tensor) -> NDArray[np.float64]:
    """Return how measurements (m, v) change if the outputs do by `pushed` (m, C, v)."""
    outputs = model.outputs(test.inputs).double()
    m, C, v = pushed.shape
    moved = (outputs[..., None] + pushed).mT.reshape(m * v, C)
    targets = test.targets.repeat_interleave(v, dim=0)
    after = values(test.measure, moved, targets).reshape(m, v)
    before = values(test.measure, outputs, test.targets)
    return (after - before[:, None]).cpu().numpy()


def outputs_along(model: FinalModel, test: Measured, vectors: Tensor) -> Tensor:
    """Return the derivatives (m, C, v) of the outputs of test rows along vectors (v, p), in float64."""
    found = push_outputs(model, test.inputs, model.theta, vectors.to(model.theta))
    return found.double().transpose(1, 2)
