"""Jacobians of the outputs as factors, kept for many products with vectors."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import torch
from torch import Tensor

from ..layers import Factors, LayerDifferentiator
from ..objective import Objective
from ..padding import uncut
from ..row_gradients import RowGradients

#: Times the inputs of a layer, above which passes through the network take less than its factors.
MOST_OUTPUTS = 8


def factored_jacobian(objective: Objective, memory_budget: int) -> RowGradients | None:
    r"""Return the derivatives :math:`\partial f_{ic}/\partial\theta` of the outputs of all rows.

    A product with a vector is one matrix product a layer, half of what forward and backward mode
    take, and no pass through the network. None if not every layer factors, it takes more bytes, or the
    outputs are far more than a layer has inputs, as of a language model at all positions.
    """
    rows, n_outputs = objective.rows, objective.n_outputs
    differentiate = LayerDifferentiator(objective.model, rows[:2].inputs)
    too_large = len(rows) * differentiate.row_bytes(n_outputs) > memory_budget
    if not differentiate.complete or too_large or n_outputs > MOST_OUTPUTS * _width(differentiate):
        return None

    def each_output(outputs: Tensor) -> list[Tensor]:
        return list(torch.eye(n_outputs).to(outputs).unsqueeze(1).expand(-1, len(outputs), -1))

    kept: list[Factors] = []
    step = max(1, len(rows) // 16)  # what it takes to find them stays small beside them
    for start in range(0, len(rows), step):
        at = slice(start, start + step)
        found = differentiate.pull_back(uncut(rows[at].inputs), each_output)
        if not kept:
            kept = [
                replace(f, inputs=_room(len(rows), f.inputs), signals=_room(len(rows), f.signals))
                for f in found
            ]
        for whole, some in zip(kept, found, strict=True):
            whole.inputs[at], whole.signals[at] = some.inputs, some.signals
    return RowGradients(kept, differentiate.places)


def _width(differentiate: LayerDifferentiator) -> float:
    """Return the mean number of a layer's inputs, by the positions and outputs that it has."""
    # lookups have ids in place of inputs
    samples = [part for part in differentiate.samples if isinstance(part, Factors)]
    parts = [part for part in samples if part.inputs.dim() == 3]
    works = [part.signals.shape[1] * part.signals.shape[-1] for part in parts]
    widths = [part.inputs.shape[2] for part in parts]
    total = sum(work * width for work, width in zip(works, widths, strict=True))
    return total / sum(works) if parts else inf


def product_bytes(jacobian: RowGradients, n_vectors: int) -> int:
    """Return the bytes that products with so many vectors take for each row."""
    shapes = [f.signals for f in jacobian.parts if isinstance(f, Factors)]
    widest = max(d.shape[1] * (d.shape[3] + d.shape[2]) for d in shapes)
    return 2 * n_vectors * widest * shapes[0].element_size()


def _room(n: int, like: Tensor) -> Tensor:
    """Return an empty tensor for n rows."""
    return like.new_empty(n, *like.shape[1:])
