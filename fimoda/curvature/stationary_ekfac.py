"""Stationary segments whose curvature is EK-FAC."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..layers import LayerDifferentiator, LayerGradients
from ..measured import Measured
from ..model import FinalModel
from ..objective import Objective
from ..rows import Rows
from ..training.products import fast_float32_products
from .ekfac import EKFAC, Block
from .stationary import Dynamics, Segment, Stationary

#: Size of the products on which the faster library is tried.
_TRIAL_ROWS, _TRIAL_VECTORS = 512, 8

#: A matrix (m, out, in) for each layer.
Matrices = list[Tensor]


class EKFACStationary(Stationary):
    r"""Segments with EK-FAC curvature: factors and eigenvalues averaged over checkpoints.

    Adjoints are matrices of each layer in the eigenbasis of the segment at hand; from segment to
    segment they turn from one basis into the other.

    A preconditioner P enters by its inverse, :math:`\tilde P = \mathrm{diag}(Q^\top P^{-1} Q)^{-1}`
    with Q the eigenbasis, so that coordinates that never had a gradient do not count.

    Parameters
    ----------
    final : FinalModel
        Where the measurements are taken.
    segments : sequence of Segment
    fisher : {"expected", "sampled"}
        As in `EKFAC`.
    scale : float or "matched"
        As in `EKFAC`.
    seed : int
        Seed of sampled targets.
    chunk_size : int, default=None
        Rows whose factors are held at a time.
    memory_budget : int
        Bytes for factors at a time.
    """

    def __init__(
        self,
        final: FinalModel,
        segments: Sequence[Segment],
        *,
        fisher: str,
        scale: float | str,
        seed: int,
        chunk_size: int | None,
        memory_budget: int,
    ):
        self.segments = segments
        self._bases: list[EKFAC] = []
        self._layers: list[list[LayerDifferentiator]] = []
        with warnings.catch_warnings():
            for segment in segments:
                rows = Rows(segment.X, segment.y, segment.weights)
                objective = Objective(segment.models[0], rows, memory_budget, chunk_size)
                others = segment.models[1:]
                ekfac = EKFAC(objective, fisher=fisher, seed=seed, others=others, scale=scale)
                self._bases.append(ekfac)
                self._layers.append([LayerDifferentiator(m, segment.X[:2]) for m in segment.models])
                warnings.filterwarnings("ignore", message="EK-FAC does not treat")  # said once
        self.skipped = self._bases[0].skipped
        self._final = LayerDifferentiator(final, segments[-1].X[:2])
        self._modes = [
            [_modes(block, segment.dynamics) for block in ekfac.blocks]
            for ekfac, segment in zip(self._bases, segments, strict=True)
        ]

    # ---- adjoints ---------------------------------------------------------------------------

    def start(self, test: Measured) -> Matrices:
        blocks, factors = self._bases[-1].blocks, self._final(test)
        return [b.rotate(f).dense() for b, f in zip(blocks, factors, strict=True)]

    def respond(self, k: int, adjoint: Matrices) -> Matrices:
        return [
            U * (P * self.segments[k].dynamics.gathered(sigma)).to(U)
            for (P, sigma), U in zip(self._modes[k], adjoint, strict=True)
        ]

    def carry(self, k: int, adjoint: Matrices) -> Matrices:
        found = []
        blocks = zip(self._bases[k].blocks, self._bases[k - 1].blocks, strict=True)
        for (b, before), (_, sigma), U in zip(blocks, self._modes[k], adjoint, strict=True):
            left = U * self.segments[k].dynamics.carried(sigma).to(U)
            turn_s = before.signal_basis.mT @ b.signal_basis
            turn_a = b.input_basis.mT @ before.input_basis
            found.append(turn_s @ left @ turn_a)
        return found

    # ---- products with gradients ------------------------------------------------------------

    def products(self, k: int, response: Matrices) -> Tensor:
        segment = self.segments[k]
        shape = (len(response[0]), len(segment.X))
        found = torch.zeros(shape, dtype=torch.float64, device=segment.X.device)
        largest = int(np.argmax([W[0].numel() for W in response]))

        def trial() -> Tensor:
            _, factors = next(self._rotated(k, torch.arange(min(_TRIAL_ROWS, len(segment.X)))))
            return factors[largest].apply(response[largest][:_TRIAL_VECTORS])

        with fast_float32_products(trial):
            for rows, factors in self._rotated(k, torch.arange(len(segment.X))):
                for W, f in zip(response, factors, strict=True):
                    found[:, rows] += f.apply(W)[:, :, 0].mT.double()
        return found / len(segment.models)

    def rowwise(self, k: int, response: Matrices, rows: Tensor) -> Tensor:
        found = torch.zeros(len(rows), dtype=torch.float64, device=response[0].device)
        for part, factors in self._rotated(k, rows):
            for W, f in zip(response, factors, strict=True):
                found[part] += (f.dense() * W[part]).double().flatten(1).sum(1)
        return found / len(self.segments[k].models)

    def _rotated(self, k: int, rows: Tensor) -> Iterator[tuple[slice, list[LayerGradients]]]:
        """Gradients of rows at each checkpoint in the eigenbases, a chunk at a time."""
        segment, ekfac = self.segments[k], self._bases[k]
        for model, differentiate in zip(segment.models, self._layers[k], strict=True):
            for start in range(0, len(rows), ekfac.chunk_size):
                part = slice(start, min(start + ekfac.chunk_size, len(rows)))
                of = rows[part].to(segment.X.device)
                factors = differentiate(Measured(Rows(segment.X[of], segment.y[of]), model.loss))
                yield (
                    part,
                    [b.rotate(f).compressed() for b, f in zip(ekfac.blocks, factors, strict=True)],
                )


def _modes(block: Block, dynamics: Dynamics) -> tuple[Tensor, Tensor]:
    """Preconditioner, and eigenvalues of the preconditioned curvature, of a layer's modes, (out, in)."""
    H = block.eigenvalues + dynamics.coupled_decay
    P = torch.ones_like(H)
    if dynamics.preconditioner is not None:
        P = 1 / block.diagonal(1 / dynamics.preconditioner.double())
    return P, P * H + dynamics.decoupled_decay
