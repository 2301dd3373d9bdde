r"""Derivatives of a step that normalises by the statistics of its batch, and keeps running ones.

The rows of a batch act on each other through its mean and variance. With :math:`q_b` the presence of row b in
these (1 if it is there), a step has the gradient :math:`G(\theta, q)` and new running statistics
:math:`R(\theta, r, q)`. Carried back from a later moment come adjoints a of the gradient and l of the
statistics: the step gives them the derivatives of :math:`a^\top G + l^\top R` in :math:`\theta` and the old
statistics r. A row that is left out changes :math:`a^\top G + l^\top R` by its weight in the mean loss and,
through the statistics, by :math:`-\frac{m}{m - 1} \partial_{q_b}` with m rows present.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..batch_statistics import statistics_of
from ..hessians import mixed_products
from ..named_parameters import Named
from ..rows import Rows
from .batch_hessian import BatchHessian
from .leaving_out import change


class StatisticsHessian(BatchHessian):
    """Second derivatives of batches with trained statistics; vectors are of p + b numbers, as states are."""

    def __call__(
        self, theta: Tensor, batch: Rows, V: Tensor, total: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        total = torch.zeros_like(V) if total is None else total
        slopes, _ = self._products(theta, batch, V, total)
        return total, slopes

    def without_rows(self, theta: Tensor, batch: Rows, V: Tensor, total: Tensor) -> Tensor:
        """Add what V (k, p + b) are before the step to `total`; return what leaving out rows does (k, B)."""
        slopes, of_statistics = self._products(theta, batch, V, total)
        return change(slopes, batch.shares.to(theta)) + of_statistics

    def slopes(self, theta: Tensor, batch: Rows, V: Tensor) -> Tensor:
        return self.slopes_and_statistics(theta, batch, V)[0]

    def slopes_and_statistics(self, state: Tensor, batch: Rows, V: Tensor) -> tuple[Tensor, Tensor]:
        """Return slopes (k, B) of the rows' losses along V, and what rows do by the statistics (k, B)."""
        return self._products(state, batch, V, None)

    def _products(
        self, state: Tensor, batch: Rows, V: Tensor, total: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        model, p = self.model, self.model.n_parameters
        w = batch.shares.to(state)
        present = (w > 0).to(state)

        def value(named: Named, w: Tensor, present: Tensor, multipliers: Tensor) -> Tensor:
            with statistics_of(present) as new:
                outputs = model.call(named, batch.inputs, training=True)
            statistics = [new.get(k, named[k]).reshape(-1) for k in model.statistics]
            return (w * model.loss(outputs, batch.targets)).sum() + multipliers @ torch.cat(
                statistics
            )

        def directions(v: Tensor) -> tuple[Named, list[Tensor | None]]:
            of_parameters = torch.cat([v[:p], torch.zeros_like(v[p:])])
            return model.views(of_parameters), [None, None, v[p:]]

        others = w, present, torch.zeros_like(state[p:])
        with self._smoothed():
            slopes, of_presence = mixed_products(
                model, value, others, directions, 2, V, total, state
            )
        m = present.sum()
        if m > 1:
            return slopes, -of_presence * present * m / (m - 1)
        return slopes, self._of_the_only_row(state, batch, present, V)

    def _of_the_only_row(self, state: Tensor, batch: Rows, present: Tensor, V: Tensor) -> Tensor:
        """Return what happens to the statistics without the only row that is present: nothing (k, B)."""
        model, p = self.model, self.model.n_parameters
        named = model.views(state)
        with torch.no_grad(), statistics_of(present) as new:
            model.call(named, batch.inputs, training=True)
        moved = [(named[k] - new.get(k, named[k])).reshape(-1) for k in model.statistics]
        return (V[:, p:] @ torch.cat(moved))[:, None] * present
