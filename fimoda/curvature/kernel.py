"""Inner products of the outputs' Jacobians, without forming them where layers factor."""

from __future__ import annotations

import torch
from torch import Tensor

from ..measured import Measured
from ..measurements import Output
from ..objective import MOST_ROWS, Objective
from ..row_gradients import RowGradients
from ..rows import Rows


class OutputKernel:
    r"""The kernel :math:`K_{(i,c),(j,d)} = J_{ic} P J_{jd}^\top` of outputs of rows, in float64.

    The objective's rows are those on one side; its memory budget is for Jacobians or their factors at
    a time. The preconditioner P is a vector (p,); None is the identity.
    """

    def __init__(self, objective: Objective, preconditioner: Tensor | None = None):
        model = objective.model
        self.objective = objective
        self._root = None if preconditioner is None else preconditioner.to(model.theta).sqrt()
        row_bytes = objective.differentiate.row_bytes()
        if preconditioner is not None:
            row_bytes += 2 * model.n_parameters * model.theta.element_size()
        fitting = objective.memory_budget // (2 * objective.n_outputs * row_bytes)
        self._chunk = int(min(max(fitting, 1), MOST_ROWS))

    def _jacobian(self, rows: Rows) -> list[RowGradients]:
        """Return the gradients of each output, for a chunk of rows."""
        measured = [Measured(rows, Output(c)) for c in range(self.objective.n_outputs)]
        return [self._preconditioned(self.objective.differentiate(one)) for one in measured]

    def _preconditioned(self, gradients: RowGradients) -> RowGradients:
        return gradients if self._root is None else RowGradients.of(gradients.dense() * self._root)

    def inner(self, gradients: RowGradients) -> Tensor:
        """Return inner products (m, n, C) of gradients, of any model of this network, with the rows."""
        left = self._preconditioned(gradients)
        parts = [
            torch.stack([left.inner(right) for right in self._jacobian(rows)], dim=2)
            for rows in self.objective.rows.split(self._chunk)
        ]
        return torch.cat(parts, dim=1)

    def __call__(self, others: Rows | None = None) -> Tensor:
        """Return the kernel (m, C, n, C) between other rows, or the rows themselves, and the rows."""
        rows, C = self.objective.rows, self.objective.n_outputs
        others = rows if others is None else others
        kernel = torch.empty(len(others), C, len(rows), C, dtype=torch.float64, device=rows.device)
        for a in range(0, len(others), self._chunk):
            first = self._jacobian(others[a : a + self._chunk])
            for b in range(0, len(rows), self._chunk):
                second = self._jacobian(rows[b : b + self._chunk])
                for c, g in enumerate(first):
                    for d, h in enumerate(second):
                        kernel[a : a + self._chunk, c, b : b + self._chunk, d] = g.inner(h)
        return kernel
