"""Parameter groups: parameters with a learning rate or a weight decay of their own, by their names."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..model import FinalModel
from .clipping import Clipping
from .differentiable import Buffers, StepDerivative, state_names, step_derivative
from .optimizers import LearningRate, OptimizerSpec


class Groups:
    """The parameters of a network in groups, each with its optimiser; those of no pattern come last.

    Vectors (p,) of all parameters are cut into those of the groups, and joined again.
    """

    def __init__(self, spec: OptimizerSpec, model: FinalModel):
        self._spec, self._size = spec, model.n_parameters
        members = _members(spec, model.shapes)
        self.specs = [_of_group(spec, settings) for settings, _ in members]
        self._names = [names for _, names in members]
        self._places: list[Any] = [slice(None)]
        if len(members) > 1:
            places = model.views(torch.arange(self._size, device=model.device))
            self._places = [torch.cat([places[k].flatten() for k in own]) for own in self._names]

    # ---- the optimiser ----------------------------------------------------------------------

    def build(self, parts: Sequence[Iterable[Tensor]]) -> torch.optim.Optimizer:
        """Return the optimiser of the tensors of each group."""
        if not self._spec.groups:
            return self._spec.build(*parts)
        own = [{k: spec.params[k] for k in _DECAY if k in spec.params} for spec in self.specs]
        given = zip(parts, self.specs, own, strict=True)
        return self._spec.build(
            {"params": list(part), "lr": spec.lr_at(0), **decay} for part, spec, decay in given
        )

    def of_stack(self, parameters: Mapping[str, Tensor]) -> torch.optim.Optimizer:
        """Return the optimiser of named parameters."""
        return self.build([[parameters[name] for name in own] for own in self._names])

    def set_rates(self, optimizer: torch.optim.Optimizer, epoch: int) -> None:
        """Set the learning rates to those of an epoch."""
        for group, spec in zip(optimizer.param_groups, self.specs, strict=True):
            group["lr"] = spec.lr_at(epoch)

    def rates(self, epoch: int) -> dict[str, float]:
        """Return the learning rate of each parameter in an epoch."""
        pairs = zip(self.specs, self._names, strict=True)
        return {name: spec.lr_at(epoch) for spec, names in pairs for name in names}

    # ---- vectors ----------------------------------------------------------------------------

    def cut(self, vector: Tensor) -> list[Tensor]:
        """Return the parts of a vector (p,) that belong to each group."""
        return [vector[place] for place in self._places]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the vector (p,) of these parts."""
        if len(parts) == 1:
            return parts[0]
        joined = parts[0].new_empty(self._size)
        for part, place in zip(parts, self._places, strict=True):
            joined[place] = part
        return joined

    def cut_buffers(self, buffers: Buffers) -> list[Buffers]:
        """Return what the optimiser keeps for the parameters of each group."""
        vectors = state_names(buffers, self._size)
        return [
            {k: v[place] if k in vectors else v for k, v in buffers.items()}
            for place in self._places
        ]

    def join_buffers(self, parts: Sequence[Buffers]) -> Buffers:
        """Return what it keeps for all parameters together; numbers are the same in all groups."""
        names = state_names(parts[0], len(self._places[0]) if len(parts) > 1 else self._size)
        joined = {name: self.join([part[name] for part in parts]) for name in names}
        return {name: joined.get(name, value) for name, value in parts[0].items()}

    def derivative(
        self, epoch: int, theta: Tensor, buffers: Buffers, gradient: Tensor, second: bool = False
    ) -> StepDerivative:
        """Return the derivative of the step that the optimiser takes from here, and `second` ones."""
        vectors = zip(self.cut(theta), self.cut_buffers(buffers), self.cut(gradient), strict=True)
        parts = [
            step_derivative(spec, epoch, own_theta, own_buffers, own_gradient, second)
            for spec, (own_theta, own_buffers, own_gradient) in zip(
                self.specs, vectors, strict=True
            )
        ]
        if len(parts) == 1:
            return parts[0]
        rows = zip(*(part.slopes for part in parts), strict=True)
        bends = zip(*(part.bends for part in parts), strict=True)
        return StepDerivative(
            [[self._slope(own) for own in zip(*row, strict=True)] for row in rows],
            bends=[self._slope(own) for own in bends],
        )

    def _slope(self, parts: Sequence[Tensor | None]) -> Tensor | None:
        """Return a slope of all coordinates, which is zero where a group has none."""
        if all(part is None for part in parts):
            return None
        sizes = [len(place) for place in self._places]
        known = next(part for part in parts if part is not None)
        return self.join(
            [
                known.new_zeros(size) if part is None else part
                for part, size in zip(parts, sizes, strict=True)
            ]
        )


#: What a group may have of its own, beside a learning rate.
_DECAY = ("weight_decay",)


def _members(spec: OptimizerSpec, names: Iterable[str]) -> list[tuple[dict[str, float], list[str]]]:
    """Return settings and parameters of each group: a parameter is in the first whose pattern it fits."""
    left, found = list(names), []
    for pattern, settings in spec.groups:
        own = [name for name in left if fnmatch.fnmatch(name, pattern)]
        left = [name for name in left if name not in own]
        if own:
            found.append((settings, own))
    return [*found, ({}, left)] if left else found


def _of_group(spec: OptimizerSpec, settings: dict[str, float]) -> OptimizerSpec:
    """Return the optimiser of a group, whose learning rate follows the schedule of the others."""
    if not spec.groups:
        return spec
    lr: LearningRate = spec.lr
    if "lr" in settings:
        lr = partial(_scaled, spec, settings["lr"]) if callable(lr) else settings["lr"]
    decay = {name: value for name, value in settings.items() if name in _DECAY}
    return replace(spec, lr=lr, params={**spec.params, **decay}, groups=(), clipping=Clipping())


def _scaled(spec: OptimizerSpec, lr: float, epoch: int) -> float:
    return lr * (spec.lr_at(epoch) / spec.lr_at(0))


def check_groups(spec: OptimizerSpec, names: Iterable[str]) -> None:
    """Raise ValueError if a pattern fits none of the parameters."""
    known = list(names)
    for pattern, _ in spec.groups:
        if not fnmatch.filter(known, pattern):
            raise ValueError(
                f"optimizer_params: param_groups has the pattern {pattern!r}, which fits none of the "
                f"parameters: {', '.join(known[:6])}{', ...' if len(known) > 6 else ''}."
            )
