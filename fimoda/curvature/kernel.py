"""Inner products of the outputs' Jacobians, without forming them where layers factor."""

from __future__ import annotations

import torch
from torch import Tensor

from ..measurements import Output
from ..model import DEFAULT_BUDGET, FinalModel
from ..row_gradients import RowDifferentiator, RowGradients


class OutputKernel:
    r"""The kernel :math:`K_{(i,c),(j,d)} = J_{ic} J_{jd}^\top` of outputs of rows, in float64.

    Parameters
    ----------
    model : FinalModel
    X : Tensor of shape (n, ...)
        Rows on one side, kept.
    memory_budget : int, default=512 MiB
        Bytes for Jacobians or their factors at a time.
    """

    def __init__(self, model: FinalModel, X: Tensor, memory_budget: int = DEFAULT_BUDGET):
        self.model = model
        self.X = X
        self.n_outputs = model.outputs(X[:1]).shape[1]
        self._differentiate = RowDifferentiator(model, X[:2])
        rows = memory_budget // (2 * self.n_outputs * self._differentiate.row_bytes())
        self._chunk = int(min(max(rows, 1), 4096))

    def _jacobian(self, X: Tensor) -> list[RowGradients]:
        """Gradients of each output, for a chunk of rows."""
        nothing = X.new_zeros(len(X))
        return [self._differentiate(X, nothing, Output(c)) for c in range(self.n_outputs)]

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
