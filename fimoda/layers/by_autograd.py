"""Gradients of rows of any network, by autograd: in all parameters, or in some of them."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..batch_statistics import with_trained_statistics
from ..derivatives import row_gradients
from ..measured import Measured
from ..model import FinalModel
from ..rows import Inputs


def gradients_by_autograd(model: FinalModel, measured: Measured) -> Tensor:
    """Return the gradient of each row's measurement in the parameters, (n, p)."""

    def values(parameters: dict[str, Tensor], x: Inputs, y: Tensor) -> Tensor:
        return measured.measure(model.call(parameters, x), y)

    return row_gradients(model, values, measured.inputs, measured.targets)


@dataclass(frozen=True)
class StateGradients:
    """The same in the parameters and in the statistics that training changes, (n, p + b), of any model."""

    measured: Measured

    def __len__(self) -> int:
        return len(self.measured)

    def __call__(self, model: FinalModel) -> Tensor:
        if not model.statistics:
            return gradients_by_autograd(model, self.measured)
        evaluated = replace(model, module=with_trained_statistics(copy.deepcopy(model.module)))
        measured = self.measured

        def values(state: dict[str, Tensor], x: Inputs, y: Tensor) -> Tensor:
            return measured.measure(evaluated.call(state, x), y)

        return row_gradients(model, values, measured.inputs, measured.targets, model.state)


def pulled_back(
    model: FinalModel, names: Collection[str], inputs: Inputs, vectors: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Return the gradients (n, C, k) of rows' ``outputs @ v`` in some named parameters, for C vectors v."""
    if not names:
        return {}
    # the same parameters, of which only these are not constants
    kept = {
        id(value): nn.Parameter(value.detach(), requires_grad=name in names)
        for name, value in model.module.named_parameters()
    }
    some = replace(model, module=copy.deepcopy(model.module, kept))

    def values(parameters: dict[str, Tensor], x: Inputs, v: Tensor) -> Tensor:
        return (some.call(parameters, x) * v).flatten(1).sum(1)

    found = torch.stack([row_gradients(some, values, inputs, v) for v in vectors], dim=1)
    return {name: found[:, :, place] for name, place in some.slices.items()}
