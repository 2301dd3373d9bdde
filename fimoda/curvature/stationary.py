r"""Segments of a training run in which gradients and curvature are taken to stand still.

Over the K steps of a segment with learning rate :math:`\eta`, preconditioner P and curvature H a
change of the parameters is carried on by :math:`\bar S = e^{-\eta K P H}`, and removing a row of
share s changes them by :math:`s \bar R \bar g`, with

.. math:: \bar R = P^{1/2} F(M) P^{1/2}, \quad M = P^{1/2} H P^{1/2}, \quad
    F(\sigma) = \frac{1 - e^{-\eta K \sigma}}{\sigma}.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from ..measured import Measured
from ..objective import Objective
from ..row_gradients import RowGradients
from ..rows import Rows
from .operators import GaussNewton

#: Some rows of a segment: all, or those with these indices.
Some = slice | Tensor

ALL = slice(None)


@dataclass(frozen=True)
class Dynamics:
    r"""The steps of a segment, taken together.

    Parameters
    ----------
    horizon : float
        :math:`\eta K`: the sum of the learning rates, times what momentum makes of a gradient.
    coupled_decay : float
        Weight decay that is added to the gradient, and so to the curvature.
    decoupled_decay : float
        Weight decay beside the gradient, which is not preconditioned.
    preconditioner : Tensor of shape (p,) or None
        Diagonal of P; None is the identity.
    """

    horizon: float
    coupled_decay: float = 0.0
    decoupled_decay: float = 0.0
    preconditioner: Tensor | None = None

    def carried(self, sigma: Tensor) -> Tensor:
        r"""Return what is left at the end of a change at the start, :math:`e^{-\eta K \sigma}`."""
        return torch.exp(-self.horizon * sigma)

    def gathered(self, sigma: Tensor) -> Tensor:
        r"""Return what a constant force has done, :math:`F(\sigma)`; :math:`\eta K` at zero."""
        x = self.horizon * sigma
        small = x.abs() < 1e-9
        return self.horizon * torch.where(
            small, 1 - x / 2, -torch.expm1(-x) / torch.where(small, 1, x)
        )


@dataclass(frozen=True, eq=False)
class Segment:
    """A part of a run: its steps, and the objective at the checkpoints that it is averaged over."""

    objectives: list[Objective]
    dynamics: Dynamics

    def __len__(self) -> int:
        return len(self.objectives[0])


class Stationary(ABC):
    """Walks back through the segments of a run with the gradients of measurements at its end.

    An adjoint is whatever `start` gives; `respond` and `carry` take it at the end of a segment. The
    chunk size and the memory budget are those of the objective of the final model.
    """

    def __init__(self, final: Objective, segments: Sequence[Segment]):
        self.final = final
        self.segments: Sequence[Segment] = segments

    def back(self, test: Measured) -> Iterator[tuple[int, Any]]:
        """Yield the segments, the last first, with the adjoints of test rows at their ends."""
        adjoint = self.start(test)
        for k in reversed(range(len(self.segments))):
            yield k, adjoint
            if k:
                adjoint = self.carry(k, adjoint)

    def with_rows(self, rows: Rows) -> Self:
        """Return the same walk with other rows in all segments, for products with their gradients."""
        found = copy.copy(self)
        found.segments = [
            replace(segment, objectives=[one.of_rows(rows) for one in segment.objectives])
            for segment in self.segments
        ]
        return found

    @abstractmethod
    def start(self, test: Measured) -> Any:
        """Return the adjoints of test rows at the end of the run."""

    @abstractmethod
    def respond(self, k: int, adjoint: Any) -> Any:
        r"""Return the products :math:`\bar R \lambda` with segment k."""

    @abstractmethod
    def carry(self, k: int, adjoint: Any) -> Any:
        r"""Return the adjoints at the start of segment k, :math:`\bar S^\top \lambda`."""

    @abstractmethod
    def products(self, k: int, response: Any) -> Tensor:
        """Return the inner products (m, n_k) of responses with the rows' mean gradients in segment k."""

    @abstractmethod
    def rowwise(self, k: int, response: Any, rows: Tensor) -> Tensor:
        """Return those (m,) of response j with row rows[j] of the segment alone."""


class ExactStationary(Stationary):
    """Segments with dense curvature: the Gauss-Newton matrix, averaged over checkpoints.

    MemoryError if the matrices do not fit the memory budget.
    """

    def __init__(self, final: Objective, segments: Sequence[Segment]):
        super().__init__(final, segments)
        p, budget = final.model.n_parameters, final.memory_budget
        needed = 8 * p * p * (len(segments) + 3)
        if needed > budget:
            raise MemoryError(
                f"dense curvature of {p} parameters takes {needed / 2**20:.0f} MiB for {len(segments)} "
                f"segments, more than memory_budget={budget / 2**20:.0f} MiB. Raise "
                "memory_budget, or set curvature='ekfac'."
            )
        self._modes = [self._eigen(k) for k in range(len(segments))]

    def _eigen(self, k: int) -> tuple[Tensor, Tensor]:
        """Return eigenvalues and eigenvectors of the preconditioned curvature of segment k."""
        dynamics, root = self.segments[k].dynamics, self._root(k)
        H = torch.zeros(len(root), len(root)).to(root)
        for objective in self.segments[k].objectives:
            objective = replace(objective, memory_budget=objective.memory_budget // 4)
            H += GaussNewton(objective, penalty=True).double.dense()
        H /= len(self.segments[k].objectives)
        H.diagonal().add_(dynamics.coupled_decay)
        values, vectors = torch.linalg.eigh(root[:, None] * H * root)
        return values + dynamics.decoupled_decay, vectors

    def _root(self, k: int) -> Tensor:
        P = self.segments[k].dynamics.preconditioner
        return torch.ones_like(self.final.model.theta).double() if P is None else P.double().sqrt()

    def start(self, test: Measured) -> Tensor:
        return self.final.differentiate(test).dense().double()

    def respond(self, k: int, adjoint: Tensor) -> Tensor:
        values, vectors = self._modes[k]
        inside = (adjoint * self._root(k)) @ vectors * self.segments[k].dynamics.gathered(values)
        return inside @ vectors.mT * self._root(k)

    def carry(self, k: int, adjoint: Tensor) -> Tensor:
        values, vectors = self._modes[k]
        inside = (adjoint * self._root(k)) @ vectors * self.segments[k].dynamics.carried(values)
        return inside @ vectors.mT / self._root(k)

    def _gradients(self, k: int, rows: Some = ALL) -> Iterator[tuple[slice, RowGradients]]:
        """Yield the gradients of rows at each checkpoint, a chunk at a time."""
        for objective in self.segments[k].objectives:
            yield from objective.row_gradients(objective.losses[rows], objective.chunk(0.25))

    def products(self, k: int, response: Tensor) -> Tensor:
        segment, W = self.segments[k], response.to(self.final.model.dtype)
        found = response.new_zeros(len(response), len(segment))
        for at, gradients in self._gradients(k):
            found[:, at] += gradients.apply(W).mT.double()
        return found / len(segment.objectives)

    def rowwise(self, k: int, response: Tensor, rows: Tensor) -> Tensor:
        found = response.new_zeros(len(rows))
        for at, gradients in self._gradients(k, rows):
            found[at] += (gradients.dense().double() * response[at]).sum(1)
        return found / len(self.segments[k].objectives)
