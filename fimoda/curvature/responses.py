"""Responses of adjoints to the steps of a segment, mode by mode of its curvature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..training.linear_steps import LinearSteps


@dataclass(frozen=True)
class Responses:
    """The effect of one unit of adjoint at the end of a segment on its way back, mode by mode.

    The first axis has the unit in the parameters, and in the velocity; the last the modes. X and V
    (2, k) are the adjoints at the start of the segment; ``first`` and ``second`` (n_epochs, 2, k) are sums
    over each epoch's steps of the gradient's adjoint, weighted by one minus the part of the epoch that has
    passed, and by that part.
    """

    X: Tensor
    V: Tensor
    first: Tensor
    second: Tensor

    @property
    def total(self) -> Tensor:
        """Return what a constant gradient adds to the parameters at the end, (k,)."""
        return (self.first + self.second).sum(0)[0]

    def to_residuals(self, residuals: Tensor) -> Tensor:
        """Return weights of each row's Jacobian, (2, n, C, k), from residuals (n_epochs + 1, n, C)."""
        R = residuals.to(self.first)
        return torch.einsum("enc,esk->snck", R[:-1], self.first) + torch.einsum(
            "enc,esk->snck", R[1:], self.second
        )


def responses(steps: LinearSteps, curved: Tensor, rates: Tensor, per_epoch: int) -> Responses:
    """Walk back through the steps with these learning rates, for modes of these eigenvalues."""
    unit = torch.ones_like(curved)
    X = torch.stack([unit, 0 * unit])
    V = torch.stack([0 * unit, unit])
    n_epochs = len(rates) // per_epoch
    first = curved.new_zeros(n_epochs, 2, len(curved))
    second = torch.zeros_like(first)
    for step in range(len(rates) - 1, -1, -1):
        X, V, G = steps.pull(rates[step].tolist(), X, V, curved)
        passed = (step % per_epoch) / per_epoch
        first[step // per_epoch] += (1 - passed) * G
        second[step // per_epoch] += passed * G
    return Responses(X, V, first, second)
