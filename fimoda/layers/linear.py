"""Linear layers on vectors, or on sequences of them."""

from __future__ import annotations

from torch import Tensor, nn

from .base import Kind


class LinearLayers(Kind):
    """``nn.Linear``: a position is a place of the sequence."""

    module = nn.Linear

    def inputs(self, layer: nn.Linear, seen: Tensor, n: int) -> Tensor:
        return seen.reshape(n, -1, seen.shape[-1])

    def signals(self, layer: nn.Linear, slopes: Tensor, n: int) -> Tensor:
        return slopes.reshape(n, -1, slopes.shape[-1])
