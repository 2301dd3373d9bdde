"""Losses whose leaves are made otherwise: by gradients alone, or by a matrix over outputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..losses import RowLoss
from .losses import BoostingLoss, Floats, Softmax


@dataclass(frozen=True)
class FirstOrder(BoostingLoss):
    """A loss whose leaves are means of gradients: h is 1, whatever its second derivative.

    Parameters
    ----------
    loss : BoostingLoss
    """

    loss: BoostingLoss

    @property
    def row_loss(self) -> RowLoss:
        return self.loss.row_loss

    def encoded(self, targets: NDArray[np.generic], n_outputs: int) -> Floats:
        return self.loss.encoded(targets, n_outputs)

    def derivatives(self, outputs: Floats, targets: Floats) -> tuple[Floats, Floats]:
        return self.loss.derivatives(outputs, targets)[0], np.broadcast_to(1.0, outputs.shape)

    def pull(self, outputs: Floats, targets: Floats, values: Floats, vectors: Floats) -> Floats:
        return self.loss.pull(outputs, targets, np.zeros_like(values), vectors)

    def link(self, means: Floats) -> Floats:
        return self.loss.link(means)

    def link_slopes(self, means: Floats, changes: Floats) -> Floats:
        return self.loss.link_slopes(means, changes)


@dataclass(frozen=True)
class CoupledSoftmax(Softmax):
    """The log-loss of several classes with the whole matrix of its second derivatives in the scores."""

    is_coupled = True

    def derivatives(self, outputs: Floats, targets: Floats) -> tuple[Floats, Floats]:
        g, _ = super().derivatives(outputs, targets)
        p, each = g + targets, np.arange(len(g))
        h = -p[:, None] * p
        h[each, each] += p
        return g, h

    def pull(self, outputs: Floats, targets: Floats, values: Floats, vectors: Floats) -> Floats:
        p = super().derivatives(outputs, targets)[0] + targets
        bent = values - (p * values).sum(0)
        q = p[..., None] * vectors
        scaled = (1 + bent)[..., None] * q
        return scaled - p[..., None] * scaled.sum(0) - (p * bent)[..., None] * q.sum(0)
