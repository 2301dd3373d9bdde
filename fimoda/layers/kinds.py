"""The kinds of layers whose gradients have factors."""

from __future__ import annotations

from torch import nn

from .base import Kind
from .convolution import Convolutions
from .linear import LinearLayers

#: A new kind is added here.
KINDS: list[Kind] = [LinearLayers(), Convolutions()]


def kind_of(layer: nn.Module) -> Kind | None:
    """Return the kind of a layer; None if it has no factors."""
    return next((k for k in KINDS if isinstance(layer, k.module) and k.treats(layer)), None)
