"""The kinds of layers whose gradients are known, by the functions of torch that they call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .calls import Kind, Taken
from .convolution import Convolutions
from .elementwise import Elementwise
from .embedding import Embeddings
from .linear import Linear
from .normalization import Normalizations
from .transposed_convolution import TransposedConvolutions

#: A new kind is added here.
KINDS: list[Kind] = [
    Linear(),
    Convolutions(),
    TransposedConvolutions(),
    Embeddings(),
    Normalizations(),
    Elementwise(),
]

#: The kind of layer that calls a function of torch, and what reads its arguments.
FUNCTIONS: dict[Callable[..., Any], tuple[Kind, Callable[..., Taken | None]]] = {
    function: (kind, taken) for kind in KINDS for function, taken in kind.functions.items()
}
