"""Named parameters of a model, in which derivatives are taken, and the vectors that these make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from .rows import Inputs

#: Parameters by name.
Named = dict[str, Tensor]

#: A function of a model's named parameters.
Function = Callable[[Named], Tensor]


class Model(Protocol):
    """The part of `FinalModel` that is needed to differentiate it."""

    @property
    def module(self) -> nn.Module: ...
    @property
    def theta(self) -> Tensor: ...
    @property
    def shapes(self) -> dict[str, torch.Size]: ...
    @property
    def training_module(self) -> nn.Module: ...
    @property
    def architecture(self) -> object: ...
    @property
    def is_stochastic(self) -> bool: ...
    @property
    def is_recurrent(self) -> bool: ...
    def views(self, theta: Tensor) -> Named: ...
    def flatten(self, parameters: Named) -> Tensor: ...
    def call(self, parameters: Named, x: Inputs, *, grouped: bool = False) -> Tensor: ...


def point(model: Model, theta: Tensor | None = None) -> Named:
    """Return the named parameters as views of the vector, by default that of the final model."""
    return model.views(model.theta if theta is None else theta)


def leaves_of(model: Model, theta: Tensor | None = None) -> Named:
    """Return the named parameters as leaves of a graph, each by itself."""
    return {k: part.detach().requires_grad_() for k, part in point(model, theta).items()}


def apart(model: Model, theta: Tensor | None) -> Named:
    """Return the named parameters as tensors of their own, for forward mode.

    Torch carries the tangent of a part of a vector to the whole one: p numbers for each parameter.
    """
    return {name: part.clone() for name, part in point(model, theta).items()}


def vectors(model: Model, named: Named) -> Tensor:
    """Return vectors (..., p) of named parameters, sparse ones filled up."""
    return model.flatten({k: v.to_dense() if v.is_sparse else v for k, v in named.items()})
