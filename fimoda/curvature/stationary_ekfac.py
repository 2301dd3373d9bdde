"""Stationary segments whose curvature is EK-FAC."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..layers import LayerDifferentiator, LayerGradients
from ..measured import Measured
from ..objective import Objective
from ..training.products import fast_float32_products
from .ekfac import EKFAC, Block
from .stationary import ALL, Dynamics, Segment, Some, Stationary

#: Size of the products on which the faster library is tried.
_TRIAL_ROWS, _TRIAL_VECTORS = 512, 8

#: A matrix (m, out, in) for each layer.
Matrices = list[Tensor]


class EKFACStationary(Stationary):
    r"""Segments with EK-FAC curvature: factors and eigenvalues averaged over checkpoints.

    Adjoints are matrices of each layer in the eigenbasis of the segment at hand; from segment to
    segment they turn from one basis into the other. A preconditioner P enters by its inverse,
    :math:`\tilde P = \mathrm{diag}(Q^\top P^{-1} Q)^{-1}` with Q the eigenbasis, so that coordinates
    that never had a gradient do not count. `fisher`, `scale` and `seed` are those of `EKFAC`.
    """

    def __init__(
        self,
        final: Objective,
        segments: Sequence[Segment],
        *,
        fisher: str,
        scale: float | str,
        seed: int,
    ):
        super().__init__(final, segments)
        self._bases: list[EKFAC] = []
        for segment in segments:
            first, *others = segment.objectives
            first = replace(first, memory_budget=first.memory_budget // 4)
            models = [other.model for other in others]
            self._bases.append(EKFAC(first, fisher=fisher, seed=seed, others=models, scale=scale))
        self._final = LayerDifferentiator(final.model, final.rows[:2].inputs)
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
            found.append(b.carried(left, before))
        return found

    # ---- products with gradients ------------------------------------------------------------

    def products(self, k: int, response: Matrices) -> Tensor:
        n = len(self.segments[k])
        found = response[0].new_zeros(len(response[0]), n, dtype=torch.float64)
        largest = int(np.argmax([W[0].numel() for W in response]))

        def trial() -> Tensor:
            _, factors = next(self._rotated(k, slice(_TRIAL_ROWS)))
            return factors[largest].apply(response[largest][:_TRIAL_VECTORS])

        with fast_float32_products(trial):
            for at, factors in self._rotated(k):
                for W, f in zip(response, factors, strict=True):
                    found[:, at] += f.apply(W)[:, :, 0].mT.double()
        return found / len(self.segments[k].objectives)

    def rowwise(self, k: int, response: Matrices, rows: Tensor) -> Tensor:
        found = response[0].new_zeros(len(rows), dtype=torch.float64)
        for at, factors in self._rotated(k, rows):
            for W, f in zip(response, factors, strict=True):
                found[at] += (f.dense() * W[at]).double().flatten(1).sum(1)
        return found / len(self.segments[k].objectives)

    def _rotated(self, k: int, rows: Some = ALL) -> Iterator[tuple[slice, list[LayerGradients]]]:
        """Yield gradients of rows at each checkpoint in the eigenbases, a chunk at a time."""
        ekfac = self._bases[k]
        size = ekfac.chunk_size
        at_checkpoints = zip(self.segments[k].objectives, ekfac.parts, strict=True)
        for objective, (differentiate, _) in at_checkpoints:
            losses = objective.losses[rows]
            for start in range(0, len(losses), size):
                at = slice(start, min(start + size, len(losses)))
                factors = differentiate(losses[at])
                blocks = zip(ekfac.blocks, factors, strict=True)
                yield at, [b.rotate(f).compressed() for b, f in blocks]


def _modes(block: Block, dynamics: Dynamics) -> tuple[Tensor, Tensor]:
    """Return preconditioner and eigenvalues (out, in) of a layer's modes."""
    H = block.eigenvalues + dynamics.coupled_decay
    P = torch.ones_like(H)
    if dynamics.preconditioner is not None:
        P = 1 / block.diagonal(1 / dynamics.preconditioner.double())
    return P, P * H + dynamics.decoupled_decay
