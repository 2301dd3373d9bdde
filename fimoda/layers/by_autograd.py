"""Gradients of rows in all parameters at once, of any network."""

from __future__ import annotations

from torch import Tensor

from ..derivatives import row_gradients
from ..measured import Measured
from ..model import FinalModel
from ..rows import Inputs


def gradients_by_autograd(model: FinalModel, measured: Measured) -> Tensor:
    """Return the gradient of each row's measurement in the parameters, (n, p)."""

    def values(parameters: dict[str, Tensor], x: Inputs, y: Tensor) -> Tensor:
        return measured.measure(model.call(parameters, x), y)

    return row_gradients(model, values, measured.inputs, measured.targets)
