"""Inner products of the outputs' Jacobians, without forming them where layers factor."""

from __future__ import annotations

import torch
from torch import Tensor

from ..measured import Measured
from ..measurements import Output
from ..model import DEFAULT_BUDGET, FinalModel
from ..row_gradients import RowDifferentiator, RowGradients
from ..rows import Rows


class OutputKernel:
    r"""The kernel :math:`K_{(i,c),(j,d)} = J_{ic} P J_{jd}^\top` of outputs of rows, in float64.

    Parameters
    ----------
    model : FinalModel
    X : Tensor of shape (n, ...)
        Rows on one side, kept.
    memory_budget : int, default=512 MiB
        Bytes for Jacobians or their factors at a time.
    preconditioner : Tensor of shape (p,), default=None
        P; the identity by default.
    """

    def __init__(
        self,
        model: FinalModel,
        X: Tensor,
        memory_budget: int = DEFAULT_BUDGET,
        preconditioner: Tensor | None = None,
    ):
        self.model = model
        self.X = X
        self._root = None if preconditioner is None else preconditioner.to(model.theta).sqrt()
        self.n_outputs = model.outputs(X[:1]).shape[1]
        self._differentiate = RowDifferentiator(model, X[:2])
        row_bytes = self._differentiate.row_bytes()
        if preconditioner is not None:
            row_bytes += 2 * model.n_parameters * model.theta.element_size()
        rows = memory_budget // (2 * self.n_outputs * row_bytes)
        self._chunk = int(min(max(rows, 1), 4096))

    def _jacobian(self, X: Tensor) -> list[RowGradients]:
        """Gradients of each output, for a chunk of rows."""
        nothing = torch.zeros(len(X), device=X.device)
        return [
            self._preconditioned(self._differentiate(Measured(Rows(X, nothing), Output(c))))
            for c in range(self.n_outputs)
        ]

    def _preconditioned(self, gradients: RowGradients) -> RowGradients:
        return gradients if self._root is None else RowGradients.of(gradients.dense() * self._root)

    def inner(self, gradients: RowGradients) -> Tensor:
        """Inner products of gradients (of any model of this architecture) with the kept rows.

        Parameters
        ----------
        gradients : RowGradients
            Of m rows, dense if there is a preconditioner or the model has none that factor.

        Returns
        -------
        Tensor of shape (m, n, C)
        """
        left = self._preconditioned(gradients)
        parts = [
            torch.stack([left.inner(rows) for rows in self._jacobian(x)], dim=2)
            for x in self.X.split(self._chunk)
        ]
        return torch.cat(parts, dim=1)

    def __call__(self, X: Tensor | None = None) -> Tensor:
        """Kernel between the rows X (all kept rows by default) and the kept rows, (n, C, n, C)."""
        left = self.X if X is None else X
        shape = (len(left), self.n_outputs, len(self.X), self.n_outputs)
        kernel = torch.empty(shape, dtype=torch.float64, device=left.device)
        for a in range(0, len(left), self._chunk):
            first = self._jacobian(left[a : a + self._chunk])
            for b in range(0, len(self.X), self._chunk):
                second = self._jacobian(self.X[b : b + self._chunk])
                for c, g in enumerate(first):
                    for d, h in enumerate(second):
                        kernel[a : a + self._chunk, c, b : b + self._chunk, d] = g.inner(h)
        return kernel
