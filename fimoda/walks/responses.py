"""Responses of adjoints to the steps of a segment, mode by mode of its curvature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..training.linear_steps import LinearSteps


@dataclass(frozen=True)
class Responses:
    """The effect of one unit of adjoint at the end of a segment on its way back, mode by mode.

    The first axis has the unit in the parameters, and in the velocity; the last the modes. X and V
    (2, k) are the adjoints at the start of the segment; ``first`` and ``second`` (n_knots - 1, 2, k) are
    sums over the steps between two knots of the gradient's adjoint, weighted by one minus the part of them
    that has passed, and by that part.
    """

    X: Tensor
    V: Tensor
    first: Tensor
    second: Tensor

    @property
    def total(self) -> Tensor:
        """Return what a constant gradient adds to the parameters at the end, (k,)."""
        return (self.first + self.second).sum(0)[0]

    def to_modes(self, along: Tensor) -> Tensor:
        """Return the load (2, n, k) of rows on the first k modes, in float64.

        From their residuals' products with the outputs' derivatives along the modes, (n, k, n_knots).
        """
        R, modes = along.to(self.first), slice(along.shape[1])
        return torch.einsum("nke,esk->snk", R[..., :-1], self.first[..., modes]) + torch.einsum(
            "nke,esk->snk", R[..., 1:], self.second[..., modes]
        )

    def to_residuals(self, residuals: Tensor) -> Tensor:
        """Return the load (2, n, C) on the last mode, from residuals (n_knots, n, C)."""
        R = residuals.to(self.first)
        return torch.einsum("enc,es->snc", R[:-1], self.first[..., -1]) + torch.einsum(
            "enc,es->snc", R[1:], self.second[..., -1]
        )


def responses(steps: LinearSteps, curved: Tensor, rates: Tensor, knots: Sequence[int]) -> Responses:
    """Walk back through the steps with these learning rates, for modes of these eigenvalues.

    `knots` are numbers of steps of the run, the first where the segment starts.
    """
    unit = torch.ones_like(curved)
    X = torch.stack([unit, 0 * unit])
    V = torch.stack([0 * unit, unit])
    first = curved.new_zeros(len(knots) - 1, 2, len(curved))
    second = torch.zeros_like(first)
    for k in range(len(knots) - 2, -1, -1):
        start, stop = knots[k : k + 2]
        for step in range(stop - 1, start - 1, -1):
            X, V, G = steps.pull(rates[step - knots[0]].tolist(), X, V, curved)
            passed = (step - start) / (stop - start)
            first[k] += (1 - passed) * G
            second[k] += passed * G
    return Responses(X, V, first, second)
