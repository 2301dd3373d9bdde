"""Linear layers on vectors, or on sequences of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .calls import OuterProducts, Taken


def _product(input: Tensor, other: Tensor) -> Taken | None:
    return Taken(input, other.mT) if other.dim() == 2 else None


class Linear(OuterProducts):
    """``F.linear``, ``torch.addmm`` and matrix products; a position is a place of the sequence."""

    functions = {
        F.linear: Taken,
        torch.addmm: lambda input, mat1, mat2: Taken(mat1, mat2.mT, input),
        torch.matmul: _product,
        Tensor.matmul: _product,
    }

    def inputs(self, taken: Taken) -> Tensor:
        return taken.input.flatten(0, -2).unsqueeze(1)

    def signals(self, taken: Taken, slope: Tensor) -> Tensor:
        return slope.flatten(0, -2).unsqueeze(1)
