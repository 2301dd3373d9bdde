"""Second derivatives of a network in its named parameters, along blocks of vectors that fit the memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from .derivatives import slopes_along
from .fallbacks import ONE_GRAPH, check_twice, forked, taken
from .formulas import by_formulas
from .named_parameters import Function, Model, Named, apart, leaves_of, vectors

#: Name of these derivatives, as explanations and errors have it.
_SECOND = "second derivatives along vectors"

#: Bytes that activations of a block of vectors may take, as a forward pass keeps them: on a CPU, where few
#: are as fast, and on an accelerator. Second derivatives take up to five times as much. Where fewer than
#: so many vectors have room, they go one after the other through one graph, which has less to keep.
_ACTIVATIONS, _ACTIVATIONS_OF_ACCELERATOR, _FEW = 2**29, 2**32, 4


def hessian_products(
    model: Model,
    losses: Function,
    weights: Tensor,
    V: Tensor,
    theta: Tensor | None = None,
    total: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return second derivatives (k, p) of ``weights @ losses``, and slopes (k, B) of losses, along V.

    Losses (B,) are a function of the parameters, V are vectors (k, p). At the final model unless
    parameters (p,) are given. Second derivatives are added to `total` (k, p) if that is given.
    """
    total = torch.zeros_like(V) if total is None else total

    def value(parameters: Named, weights: Tensor) -> Tensor:
        return (weights * losses(parameters)).sum()

    def directions(v: Tensor) -> tuple[Named, list[Tensor | None]]:
        return model.views(v), [None]

    # in the weights, the gradient's derivative along v is the slopes along v
    (slopes,) = mixed_products(model, value, (weights,), directions, 1, V, total, theta)
    return total, slopes


def mixed_products(
    model: Model,
    value: Callable[..., Tensor],
    others: Sequence[Tensor],
    directions: Callable[[Tensor], tuple[Named, list[Tensor | None]]],
    n_wanted: int,
    V: Tensor,
    total: Tensor | None,
    theta: Tensor | None = None,
) -> list[Tensor]:
    """Add the derivatives along V of the gradient of a number in the parameters to `total` (k, p), if given.

    The number is a function of named parameters and of `others`. A vector (p,) has `directions` of these and
    of each of the others, None where it stays. Returns the same derivatives (k, ...) of the gradient in the
    first `n_wanted` of the others.
    """
    others, n_own = [part.detach() for part in others], int(total is not None)

    def function(parameters: Named) -> Tensor:
        return value(parameters, *others)

    def batched() -> list[Tensor]:
        at, found = apart(model, theta), []
        gradient = grad(value, argnums=tuple(range(1 - n_own, n_wanted + 1)))

        def along(v: Tensor) -> tuple[Any, ...]:
            named, rest = directions(v)
            moved = [
                torch.zeros_like(a) if b is None else b for a, b in zip(others, rest, strict=True)
            ]
            return jvp(gradient, (at, *others), (named, *moved))[1]

        for start in range(0, len(V), max(1, room)):
            some = slice(start, start + max(1, room))
            with forked(model), by_formulas(model.is_recurrent):
                parts = vmap(along, randomness="same")(V[some])
            if total is not None:
                total[some] += vectors(model, parts[0])
            found.append(parts[n_own:])
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    def looped() -> list[Tensor]:
        leaves, own = leaves_of(model, theta), [part.clone().requires_grad_() for part in others]
        with forked(model), by_formulas(model.is_recurrent), torch.enable_grad():
            inputs = [*leaves.values(), *own]
            slopes = torch.autograd.grad(
                value(leaves, *own), inputs, create_graph=True, materialize_grads=True
            )
        found = [V.new_empty(len(V), *part.shape) for part in others[:n_wanted]]
        for k, v in enumerate(V):
            named, rest = directions(v)
            of = inputs[(1 - n_own) * len(leaves) : len(leaves) + n_wanted]
            parts = slopes_along(slopes, [*named.values(), *rest], of)
            if total is not None:
                for part, into in zip(parts, model.views(total[k]).values(), strict=False):
                    into += part.to_dense() if part.is_sparse else part
            for part, of_part in zip(parts[len(parts) - n_wanted :], found, strict=True):
                of_part[k] = part
        return found

    check_twice(model, function, theta)
    room = 1 if len(V) == 1 else _room(model) // _bytes_of_vector(model, function, theta)
    if len(V) > 1 and room < _FEW:
        return taken(model, ONE_GRAPH, function, theta, looped, batched)
    return taken(model, _SECOND, function, theta, batched, looped)


def _room(model: Model) -> int:
    """Return the bytes of activations up to which vectors go through a batch together."""
    return _ACTIVATIONS if model.theta.device.type == "cpu" else _ACTIVATIONS_OF_ACCELERATOR


def _bytes_of_vector(model: Model, function: Function, theta: Tensor | None) -> int:
    """Return the bytes that a forward pass keeps for its derivative, and those of a vector in and out."""
    kept = [4 * model.theta.nbytes]

    def pack(part: Tensor) -> None:
        kept.append(part.nbytes)  # the part itself would hold its graph, and that the part

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing)
    with forked(model), by_formulas(model.is_recurrent), torch.enable_grad(), hooks:
        function(leaves_of(model, theta))
    return sum(kept)
