"""Derivatives of the rows' outputs along vectors of parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from ..derivatives import Linearization
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

    def pushed(x: Inputs) -> Tensor:
        linear = Linearization(model, lambda parameters: model.call(parameters, x), theta)
        return torch.cat([linear.push(u) for u in U.split(block)]).transpose(0, 1)

    return torch.cat([pushed(x) for x in inputs.split(chunk)])
