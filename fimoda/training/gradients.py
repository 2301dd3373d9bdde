"""Gradient of the weighted batch loss for a stack of models."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from math import isfinite, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from ..batch_statistics import statistics_of
from ..formulas import by_formulas
from ..model import FinalModel
from ..rows import Inputs, mapped, parts
from .chains import Link, chain_backward, chain_forward, read_chain
from .images import channels_last, images_last, models_last, takes_images
from .noise import noise_state, set_noise

#: Parameters of a stack by name, each (L, *shape).
Stack = dict[str, Tensor]

#: From parameters, x (L, B, ...), y (L, B, ...) and weights (L, B) gradients as the parameters, which
#: may be written to a last argument, or be tensors of their own all the same.
StackedGradient = Callable[..., Stack]


def expanded(inputs: Inputs, n_models: int) -> Inputs:
    """Return the same inputs, or targets, for each model of a stack."""
    return mapped(lambda part: part.expand(n_models, *part.shape), inputs)


def dense(gradient: Stack, theta: Stack) -> Stack:
    """Return the gradients in the order of the parameters' numbers in memory, copied where they must be.

    ``vmap`` gives some with other strides (transposed, or expanded from one number), and torch's
    fused optimisers go through the numbers of parameter and gradient side by side as they lie.
    """
    laid = dict(gradient)
    for name, part in gradient.items():
        if part.stride() != theta[name].stride():
            laid[name] = torch.empty_like(theta[name], requires_grad=False).copy_(part)
    return laid


def stacked_gradient(
    model: FinalModel, training: bool = True, by_layers: bool = True
) -> StackedGradient:
    """Return the gradient of ``sum_b w_b loss_b + 0.5 sum(l2 theta^2)`` in each model of a stack.

    A chain of linear layers and pointwise functions is differentiated layer by layer with batched
    products; any other network, or with ``by_layers=False``, by ``vmap``. Dropout draws
    the same units for all models, from torch's global generator; none with ``training=False``.
    Statistics of batch normalisation are brought up to date in place, by the rows of positive weight.
    """
    links = read_chain(model) if by_layers else None
    of_data = _by_layers(model, links, training) if links else _by_autograd(model, training)
    if model.l2 is None:
        return of_data
    l2 = model.views(model.l2)

    def penalised(theta: Stack, x: Inputs, y: Tensor, w: Tensor, out: Stack | None = None) -> Stack:
        gradient = of_data(theta, x, y, w, out)
        into = {} if out is None else out
        return {
            name: torch.addcmul(gradient[name], l2[name], theta[name], out=into.get(name))
            for name in l2
        }

    return penalised


def _by_layers(
    model: FinalModel, links: tuple[Link, ...], training: bool = True
) -> StackedGradient:
    training = training and model.is_stochastic

    def gradient(theta: Stack, x: Inputs, y: Tensor, w: Tensor, out: Stack | None = None) -> Stack:
        (only,) = parts(x)  # a network of several inputs is no chain
        outputs, tape = chain_forward(links, theta, only.flatten(2), training)
        upstream = model.loss.gradient(outputs, y) * w.unsqueeze(-1)
        return chain_backward(links, theta, tape, upstream, out)

    return gradient


def _by_autograd(model: FinalModel, training: bool = True) -> StackedGradient:
    """Differentiate the sum of the losses of a stack, whose models have nothing in common.

    The forward pass is one of ``vmap``; the way back is autograd's own. Rows that all models see go
    through what comes before the first parameter once.
    """

    def loss(
        theta: Stack, statistics: Stack, x: Inputs, y: Tensor, weights: Tensor, complete: bool
    ) -> tuple[Tensor, Stack]:
        with statistics_of(None if complete else weights > 0) as found:
            outputs = model.call({**theta, **statistics}, x, training)
        return (weights * model.loss(outputs, y)).sum(), found

    def gradient(theta: Stack, x: Inputs, y: Tensor, w: Tensor, out: Stack | None = None) -> Stack:
        leaves = {name: theta[name].detach().requires_grad_() for name in model.shapes}
        statistics = {name: theta[name].detach() for name in model.statistics}
        complete = not statistics or bool((w > 0).all())
        same = all(part.stride(0) == 0 for part in (*parts(x), y))
        of_x = of_y = None if same else 0
        if same:
            x, y = mapped(lambda part: part[0], x), y[0]
        images = takes_images(model, x if same else x[0])
        if images:
            x, of_x = (channels_last(x), None) if same else (models_last(x), 1)
        of_stack = vmap(loss, (0, 0, of_x, of_y, 0, None), randomness="same")
        within = images_last() if images else by_formulas(model.is_recurrent)
        with torch.enable_grad(), within:
            losses, found = of_stack(leaves, statistics, x, y, w, complete)
            gradients = torch.autograd.grad(
                losses.sum(), list(leaves.values()), materialize_grads=True
            )
        for name, part in found.items():
            theta[name].copy_(part.detach())
        return dict(zip(leaves, gradients, strict=True))

    return gradient


def looped_gradient(model: FinalModel, training: bool = True) -> StackedGradient:
    """Return `stacked_gradient` by plain autograd, one model of the stack after the other.

    It is slow, and as right as torch's autograd is. Every model draws the same dropout, and finds
    the module's buffers as they were.
    """
    l2 = None if model.l2 is None else model.views(model.l2)

    def objective(theta: Stack, x: Inputs, y: Tensor, weights: Tensor) -> Tensor:
        outputs = model.call({**copied_buffers(model), **theta}, x, training)
        total = (weights * model.loss(outputs, y)).sum()
        for name, penalty in (l2 or {}).items():
            total = total + 0.5 * (penalty * theta[name].square()).sum()
        return total

    def gradient(theta: Stack, x: Inputs, y: Tensor, w: Tensor, out: Stack | None = None) -> Stack:
        start = noise_state(model)
        found = []
        for k in range(len(w)):
            set_noise(model, start)
            own = {name: theta[name][k].detach().clone().requires_grad_() for name in model.shapes}
            statistics = {name: theta[name][k] for name in model.statistics}
            with torch.enable_grad(), statistics_of(w[k] > 0) as new:
                total = objective({**own, **statistics}, x[k], y[k], w[k])
            found.append(torch.autograd.grad(total, list(own.values()), materialize_grads=True))
            for name, part in new.items():
                theta[name][k].copy_(part.detach())
        return {
            name: torch.stack(parts)
            for name, parts in zip(model.shapes, zip(*found, strict=True), strict=True)
        }

    return gradient


def copied_buffers(model: FinalModel) -> Stack:
    """Return copies of the module's buffers, for a forward pass that may write to them."""
    return {name: part.clone() for name, part in model.training_module.named_buffers()}


def differences(
    found: Stack, expected: Stack, floor: dict[str, float] | None = None
) -> dict[str, float]:
    """Return relative errors of what differs by more than rounding, and than the norms in `floor`.

    By parameter; there are none where the expected gradients, or changes, are not finite.
    """
    sizes = {name: norm(part) for name, part in expected.items()}
    total = sqrt(sum(size**2 for size in sizes.values()))
    wrong: dict[str, float] = {}
    if not isfinite(total):
        return wrong
    for name, size in sizes.items():
        error = norm(found[name] - expected[name])
        relative = sqrt(torch.finfo(expected[name].dtype).eps)
        # a gradient that is zero by its nature, as a key's bias has, is rounding of the others
        allowed = relative * (size + total / 100) + (floor or {}).get(name, 0.0)
        if not error <= allowed:
            wrong[name] = error / max(size, total / 100)
    return wrong


def norm(part: Tensor) -> float:
    """Return the Euclidean norm, computed in float64."""
    return float(part.double().norm())


_COMPILED: dict[object, StackedGradient] = {}


def _cache_settings() -> dict[str, Any]:
    """Give each model a cache of its own, one entry per shape of a batch (as far as torch can)."""
    wanted = {"isolate_recompiles": True, "recompile_limit": 64}
    known = inspect.signature(torch.compile).parameters
    return {name: value for name, value in wanted.items() if name in known}


def compiled_gradient(model: FinalModel) -> StackedGradient:
    """Return `stacked_gradient` through ``torch.compile``, once per model and process.

    Dropout draws what it draws uncompiled. Without a working compiler, or where the first gradient
    is not that of the uncompiled function, the latter takes over, with one warning.
    """
    if model.key not in _COMPILED:
        eager = stacked_gradient(model)
        options: dict[str, Any] = {"fallback_random": True}
        current = torch.compile(eager, dynamic=False, options=options, **_cache_settings())
        examined = False

        def guarded(theta: Stack, *batch: Any) -> Stack:
            nonlocal current, examined
            if current is eager:
                return eager(theta, *batch[:3])
            start = noise_state(model)
            try:
                found = current(theta, *batch[:3])
                if examined:
                    return found
                set_noise(model, start)
                expected = eager(theta, *batch[:3])
                wrong = differences(found, expected)
                if not wrong:
                    examined = True
                    return found
                reason = f"the gradient of {next(iter(wrong))!r} is another one"
            except (TimeoutError, MemoryError):
                raise
            except Exception as error:  # compilers' errors have no class in common
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                set_noise(model, start)
                expected = eager(theta, *batch[:3])
            warnings.warn(
                f"torch.compile failed; training goes on uncompiled, with the same result: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )
            current = eager
            return expected

        _COMPILED[model.key] = guarded
    return _COMPILED[model.key]
