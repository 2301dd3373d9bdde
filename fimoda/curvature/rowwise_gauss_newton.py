"""Products with the Gauss-Newton matrix by gradients of rows, each found once for all vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers import WRITTEN, LayerDifferentiator
from ..objective import MOST_ROWS, Objective
from ..padding import chunks, order_by_length
from ..row_gradients import RowGradients
from ..rows import Rows


@dataclass(frozen=True, eq=False)
class RowwiseGaussNewton:
    r"""Products :math:`\sum_i s_i \sum_c g_{ic} g_{ic}^\top v` with many vectors v.

    :math:`g_{ic}` is the gradient of the outputs of row i along a vector of `curvature_cotangents` of the
    loss. The gradients of a chunk of rows are computed by layer, and multiplied with all vectors; forward
    mode would go through the network once a vector.
    """

    objective: Objective
    differentiate: LayerDifferentiator
    n_cotangents: int

    @classmethod
    def of(cls, objective: Objective) -> RowwiseGaussNewton | None:
        """Return the products, or None if a layer has no factors, or the loss no vectors by a formula."""
        model, few = objective.model, objective.rows[:2]
        vectors = model.loss.curvature_cotangents(model.outputs(few.inputs), few.targets)
        if vectors is None:
            return None
        differentiate = LayerDifferentiator(model, few.inputs)
        return cls(objective, differentiate, len(vectors)) if differentiate.complete else None

    def takes_less(self, n_vectors: int) -> bool:
        """Return whether products with so many vectors take less than passes of forward mode.

        These take eight times a pass through the network, measured on encoders and convolutions.
        """
        C, forward, entries = self.n_cotangents, 0, 0
        for part in self.differentiate.samples:
            forward += part.signals.shape[1] * part.matrix_numbers
            entries += part.matrix_numbers
        by_rows = (1 + 3 * C) * forward + C * (2 * n_vectors + 2 * WRITTEN) * entries
        return by_rows < 8 * n_vectors * forward

    def matmat(self, V: Tensor) -> Tensor:
        """Return the products of the rows of V (k, p), as rows."""
        product, rows = torch.zeros_like(V), self.objective.rows
        order = order_by_length(rows.inputs)
        if order is not None:
            rows = rows[order]
        shares = rows.shares.to(V)
        own = 4 * self.differentiate.row_bytes(self.n_cotangents)
        whole = max(1, self.objective.memory_budget // 2 // own)
        for at in chunks(rows.inputs, whole, self.objective.chunk_size or MOST_ROWS):
            self._add(product, V, rows[at], shares[at, None, None])
        return product

    def _add(self, product: Tensor, V: Tensor, rows: Rows, shares: Tensor) -> None:
        """Add what comes from some rows to the products."""
        loss, places = self.objective.model.loss, self.differentiate.places

        def cotangents(outputs: Tensor) -> list[Tensor]:
            return loss.curvature_cotangents(outputs, rows.targets) or []

        found = self.differentiate.pull_back(rows.inputs, cotangents)
        for c in range(self.n_cotangents):
            parts = [part.of(c) for part in found]
            coefficients = RowGradients(parts, places).push(V) * shares
            for part, place in zip(parts, places, strict=True):
                place.add(product, part.combine(coefficients))
