"""Gradient of the weighted batch loss for a stack of models."""

from __future__ import annotations

import inspect
import warnings
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import grad, vmap

from ..model import FinalModel
from .chains import Link, chain_backward, chain_forward, read_chain

#: Stacked parameters by name, each (L, *shape).
Parameters = dict[str, Tensor]


class StackedGradient(Protocol):
    """From parameters, x (L, B, ...), y (L, B, ...) and weights (L, B) gradients as the parameters.

    They may be written to `out`, or be tensors of their own all the same.
    """

    def __call__(
        self,
        theta: Parameters,
        x: Tensor,
        y: Tensor,
        weights: Tensor,
        out: Parameters | None = None,
    ) -> Parameters: ...


def stacked_gradient(model: FinalModel) -> StackedGradient:
    """Gradient of ``sum_b w_b loss_b + 0.5 sum(l2 theta^2)`` in each model of a stack.

    A chain of linear layers and pointwise functions is differentiated layer by layer with batched
    products; any other network by ``vmap`` of ``grad``. Dropout draws the same units for all
    models, from torch's global generator.
    """
    links = read_chain(model)
    of_data = _by_autograd(model) if links is None else _by_layers(model, links)
    if model.l2 is None:
        return of_data
    l2 = model.views(model.l2)

    def penalised(
        theta: Parameters, x: Tensor, y: Tensor, weights: Tensor, out: Parameters | None = None
    ) -> Parameters:
        gradient = of_data(theta, x, y, weights, out)
        into = {} if out is None else out
        return {
            name: torch.addcmul(gradient[name], l2[name], theta[name], out=into.get(name))
            for name in theta
        }

    return penalised


def _by_layers(model: FinalModel, links: tuple[Link, ...]) -> StackedGradient:
    training = model.is_stochastic

    def gradient(
        theta: Parameters, x: Tensor, y: Tensor, weights: Tensor, out: Parameters | None = None
    ) -> Parameters:
        outputs, tape = chain_forward(links, theta, x.flatten(2), training)
        upstream = model.loss.gradient(outputs, y) * weights.unsqueeze(-1)
        return chain_backward(links, theta, tape, upstream, out)

    return gradient


def _by_autograd(model: FinalModel) -> StackedGradient:
    def loss(theta: Parameters, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        return (weights * model.loss(model.call(theta, x, training=True), y)).sum()

    of_stack = vmap(grad(loss), randomness="same")

    def gradient(
        theta: Parameters, x: Tensor, y: Tensor, weights: Tensor, out: Parameters | None = None
    ) -> Parameters:
        return of_stack(theta, x, y, weights)

    return gradient


_COMPILED: dict[str, StackedGradient] = {}


def _cache_settings() -> dict[str, Any]:
    """A cache of its own for each model, one entry per shape of a batch (as far as torch can)."""
    wanted = {"isolate_recompiles": True, "recompile_limit": 64}
    known = inspect.signature(torch.compile).parameters
    return {name: value for name, value in wanted.items() if name in known}


def compiled_gradient(model: FinalModel) -> StackedGradient:
    """`stacked_gradient` through ``torch.compile``, once per model and process.

    Dropout draws what it draws uncompiled. Without a working compiler the uncompiled function
    takes over, with one warning.
    """
    if model.fingerprint not in _COMPILED:
        eager = stacked_gradient(model)
        options: dict[str, Any] = {"fallback_random": True}
        current = torch.compile(eager, dynamic=False, options=options, **_cache_settings())

        def guarded(
            theta: Parameters, x: Tensor, y: Tensor, weights: Tensor, out: Parameters | None = None
        ) -> Parameters:
            nonlocal current
            try:
                return current(theta, x, y, weights)
            except (TimeoutError, MemoryError):
                raise
            except Exception as error:  # compilers' errors have no class in common
                if current is eager:
                    raise
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                warnings.warn(
                    f"torch.compile failed; training goes on uncompiled, with the same result: {reason}",
                    RuntimeWarning,
                    stacklevel=2,
                )
                current = eager
                return eager(theta, x, y, weights)

        _COMPILED[model.fingerprint] = guarded
    return _COMPILED[model.fingerprint]
