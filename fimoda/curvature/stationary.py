r"""Segments of a training run in which gradients and curvature are taken to stand still.

Over the K steps of a segment with learning rate :math:`\eta`, preconditioner P and curvature H a
change of the parameters is carried on by :math:`\bar S = e^{-\eta K P H}`, and removing a row that
weighs :math:`\tilde w` in the mean changes them by :math:`\tilde w \bar R \bar g`, with

.. math:: \bar R = P^{1/2} F(M) P^{1/2}, \quad M = P^{1/2} H P^{1/2}, \quad
    F(\sigma) = \frac{1 - e^{-\eta K \sigma}}{\sigma}.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..measured import Measured
from ..model import FinalModel
from ..objective import Objective
from ..row_gradients import RowDifferentiator
from ..rows import Rows
from .operators import GaussNewton


@dataclass(frozen=True)
class Dynamics:
    r"""What the steps of a segment amount to.

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
        r"""What is left at the end of a change at the start, :math:`e^{-\eta K \sigma}`."""
        return torch.exp(-self.horizon * sigma)

    def gathered(self, sigma: Tensor) -> Tensor:
        r"""What a constant force has done, :math:`(1 - e^{-\eta K \sigma}) / \sigma`; K eta at zero."""
        x = self.horizon * sigma
        small = x.abs() < 1e-9
        return self.horizon * torch.where(
            small, 1 - x / 2, -torch.expm1(-x) / torch.where(small, 1, x)
        )


@dataclass(frozen=True)
class Segment:
    """A part of a run.

    Parameters
    ----------
    models : list of FinalModel
        Checkpoints over which gradients and curvature are averaged.
    X, y : Tensor
        Rows that the segment was trained on, and encoded targets.
    weights : Tensor of shape (n,)
        Weights of the rows in the objective.
    dynamics : Dynamics
    """

    models: list[FinalModel]
    X: Tensor
    y: Tensor
    weights: Tensor
    dynamics: Dynamics


class Stationary(ABC):
    """Walks back through segments with the gradients of measurements.

    An adjoint is whatever `start` gives; `respond` and `carry` take it at the end of a segment.
    """

    @abstractmethod
    def start(self, test: Measured) -> Any:
        """Adjoints of test rows at the end of the run."""

    @abstractmethod
    def respond(self, k: int, adjoint: Any) -> Any:
        r"""Products :math:`\bar R \lambda` with segment k."""

    @abstractmethod
    def carry(self, k: int, adjoint: Any) -> Any:
        r"""Adjoints at the start of segment k, :math:`\bar S^\top \lambda`."""

    @abstractmethod
    def products(self, k: int, response: Any) -> Tensor:
        """Inner products of responses with the mean gradients of segment k's rows, (m, n_k)."""

    @abstractmethod
    def rowwise(self, k: int, response: Any, rows: Tensor) -> Tensor:
        """The same of response j with row rows[j] of the segment alone, (m,)."""


class ExactStationary(Stationary):
    """Segments with dense curvature: the Gauss-Newton matrix, averaged over checkpoints.

    Parameters
    ----------
    final : FinalModel
        Where the measurements are taken.
    segments : sequence of Segment
    chunk_size : int, default=None
        Rows whose gradients are held at a time.
    memory_budget : int
        Bytes that a matrix and its eigenvectors may take.

    Raises
    ------
    MemoryError
        If the matrices do not fit.
    """

    def __init__(
        self,
        final: FinalModel,
        segments: Sequence[Segment],
        *,
        chunk_size: int | None,
        memory_budget: int,
    ):
        p = final.n_parameters
        needed = 8 * p * p * (len(segments) + 3)
        if needed > memory_budget:
            raise MemoryError(
                f"dense curvature of {p} parameters takes {needed / 2**20:.0f} MiB for {len(segments)} "
                f"segments, more than memory_budget={memory_budget / 2**20:.0f} MiB. Raise "
                "memory_budget, or set curvature='ekfac'."
            )
        self.final = final
        self.segments = segments
        self._differentiate = RowDifferentiator(final, segments[-1].X[:3])
        fitting = memory_budget // (4 * self._differentiate.row_bytes())
        self.chunk_size = chunk_size or int(min(max(fitting, 1), 4096))
        self._modes = [self._eigen(segment, memory_budget) for segment in segments]

    def _eigen(self, segment: Segment, budget: int) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of the preconditioned curvature."""
        total: Tensor | None = None
        for model in segment.models:
            rows = Rows(segment.X, segment.y, segment.weights)
            C = GaussNewton(Objective(model, rows, budget // 4), penalty=True).double.dense()
            total = C if total is None else total + C
        if total is None:
            raise ValueError("a segment needs a checkpoint")
        H = total / len(segment.models)
        H.diagonal().add_(segment.dynamics.coupled_decay)
        root = self._root(segment)
        values, vectors = torch.linalg.eigh(root[:, None] * H * root)
        return values + segment.dynamics.decoupled_decay, vectors

    def _root(self, segment: Segment) -> Tensor:
        P = segment.dynamics.preconditioner
        return torch.ones_like(self.final.theta).double() if P is None else P.double().sqrt()

    def start(self, test: Measured) -> Tensor:
        return self._differentiate(test).dense().double()

    def respond(self, k: int, adjoint: Tensor) -> Tensor:
        values, vectors = self._modes[k]
        root = self._root(self.segments[k])
        inside = (adjoint * root) @ vectors * self.segments[k].dynamics.gathered(values)
        return inside @ vectors.mT * root

    def carry(self, k: int, adjoint: Tensor) -> Tensor:
        values, vectors = self._modes[k]
        root = self._root(self.segments[k])
        inside = (adjoint * root) @ vectors * self.segments[k].dynamics.carried(values)
        return inside @ vectors.mT / root

    def _gradients(self, k: int, X: Tensor, y: Tensor) -> Iterator[tuple[slice, Any]]:
        """Gradients of rows at each checkpoint, a chunk at a time."""
        for model in self.segments[k].models:
            differentiate = RowDifferentiator(model, X[:3])
            yield from differentiate.chunks(Measured(Rows(X, y), model.loss), self.chunk_size)

    def products(self, k: int, response: Tensor) -> Tensor:
        segment = self.segments[k]
        W = response.to(self.final.dtype)
        found = torch.zeros(len(W), len(segment.X), dtype=torch.float64, device=W.device)
        for rows, gradients in self._gradients(k, segment.X, segment.y):
            found[:, rows] += gradients.apply(W).mT.double()
        return found / len(segment.models)

    def rowwise(self, k: int, response: Tensor, rows: Tensor) -> Tensor:
        segment = self.segments[k]
        found = torch.zeros(len(rows), dtype=torch.float64, device=response.device)
        for part, gradients in self._gradients(k, segment.X[rows], segment.y[rows]):
            found[part] += (gradients.dense().double() * response[part]).sum(1)
        return found / len(segment.models)
