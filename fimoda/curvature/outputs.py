"""Derivatives of the rows' outputs along vectors of parameters."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import jvp, vmap

from ..model import FinalModel
from ..rows import Inputs

#: Rows that are differentiated together.
_ROWS = 1024

#: Numbers in one activation of all vectors of a block.
_NUMBERS = 2**22


def push_outputs(model: FinalModel, inputs: Inputs, theta: Tensor, U: Tensor) -> Tensor:
    """Return the derivatives (n, k, C) of the rows' outputs along vectors (k, p)."""
    width = max([shape[0] for shape in model.shapes.values() if shape], default=1)
    chunk = min(_ROWS, len(inputs))
    block = max(1, _NUMBERS // (chunk * width))

    def along(x: Inputs, u: Tensor) -> Tensor:
        return jvp(lambda theta: model.forward(theta, x), (theta,), (u,))[1]

    return torch.cat(
        [
            torch.cat([vmap(along, (None, 0))(x, u) for u in U.split(block)]).transpose(0, 1)
            for x in inputs.split(chunk)
        ]
    )
