"""The fast and the slow way to a derivative of a network, and the error where torch has neither.

The fast way needs forward mode or batches, of vectors or of rows. Torch has none for some layers, nor for a
forward pass that looks at numbers (``.item()``, an ``if``). That is found once and remembered of a network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_leaves

from .formulas import by_formulas
from .named_parameters import Function, Model, leaves_of, point

R = TypeVar("R")


class Refusal(TypeError):
    """Torch has no such derivative of the network."""


#: Errors that say nothing of the network.
_OTHERS = (MemoryError, TimeoutError, torch.OutOfMemoryError, Refusal)

#: The derivatives whose slow way is not one after the other.
GRADIENT, ONE_GRAPH = "gradient", "second derivatives from one graph"

#: Why a network is differentiated in the slow way, by network and derivative.
_SLOWER: dict[tuple[object, str], str] = {}

#: The code of a backward pass that is marked as differentiable once.
_MARKED = once_differentiable(lambda *_: None).__code__

#: Networks whose functions are known to have a second derivative.
_TWICE: set[object] = set()


def explanations(model: Model) -> list[str]:
    """Return a line for each derivative of the network that is taken in the slower way, with the reason."""
    if not _SLOWER:
        return []
    return [
        f"{what} are taken one after the other, since {reason}"
        for (network, what), reason in _SLOWER.items()
        if network == model.architecture and what not in (GRADIENT, ONE_GRAPH)
    ]


def taken(
    model: Model,
    what: str,
    function: Function,
    theta: Tensor | None,
    fast: Callable[[], R],
    slow: Callable[[], R],
) -> R:
    """Return the derivative by the fast way or, where that fails, by the slow one, and remember it.

    TypeError, with the module's name, if the function has a value but neither way works.
    """
    if not _SLOWER or (model.architecture, what) not in _SLOWER:
        try:
            with _same_noise(model):
                return fast()
        except _OTHERS:
            raise
        except Exception as error:  # what torch's transforms and a forward within them may raise
            reason = _reason(error)
    else:
        reason = _SLOWER[model.architecture, what]
    try:
        with _same_noise(model):
            found = slow()
    except _OTHERS:
        raise
    except Exception as error:
        with torch.no_grad():
            function(point(model, theta))  # which raises what is wrong with the call itself
        raise _refusal(what, _culprit(model, function, theta), _first_line(error)) from error
    _SLOWER[model.architecture, what] = reason
    return found


def _same_noise(model: Model) -> AbstractContextManager[Any]:
    """Return the context in which a way draws random numbers from where the others do."""
    return forked(model) if model.is_stochastic else nullcontext()


def forked(model: Model) -> AbstractContextManager[Any]:
    """Return the context that gives random numbers back, also where no layer says that it draws any."""
    device = model.theta.device
    devices = [] if device.type == "cpu" else [device]
    return torch.random.fork_rng(devices, device_type=device.type)


def _reason(error: Exception) -> str:
    """Say in a few words why torch cannot take derivatives in the fast way."""
    if "data-dependent" in str(error) or ".item()" in str(error):
        return "the network's forward pass looks at numbers (.item() or an if)"
    return f"torch cannot take them together ({_first_line(error)})"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip()


# ---- functions without second derivatives -----------------------------------------------------


def _refusal(what: str, where: str, reason: str) -> Refusal:
    return Refusal(
        f"estimator must be differentiable for this method, and torch has no {what} of {where} ({reason}). "
        "Use a method that needs gradients alone (GradDot, DataInf, TRAK, FurtherTraining), or write the "
        "forward pass in differentiable functions of torch."
    )


def check_twice(model: Model, function: Function, theta: Tensor | None = None) -> None:
    """Raise TypeError if a module of the user's own has a function that is differentiable once alone.

    Its second derivative is zero in torch's transforms, without an error.
    """
    if all(type(part).__module__.startswith("torch.nn.") for part in model.module.modules()):
        return
    if model.architecture in _TWICE:
        return
    with _same_noise(model), by_formulas(model.is_recurrent), torch.enable_grad():
        value = function(leaves_of(model, theta))
    for name in _once_differentiable(value):
        where = _culprit(model, function, theta)
        raise _refusal(
            "second derivatives",
            where,
            f"{name} is an autograd.Function marked once_differentiable",
        )
    _TWICE.add(model.architecture)


def _once_differentiable(value: Tensor) -> Iterator[str]:
    """Yield the names of functions in the graph of a value that are marked as differentiable once."""
    seen, waiting = set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        function = getattr(node, "_forward_cls", None)
        if function is not None and getattr(function.backward, "__code__", None) is _MARKED:
            yield str(function.__name__)


def _culprit(model: Model, function: Function, theta: Tensor | None) -> str:
    """Return the name of the innermost module whose outputs torch cannot differentiate twice."""
    leaves = leaves_of(model, theta)
    found: list[str] = []

    def look(module: nn.Module, _: Any, output: Any) -> None:
        tensors = [part for part in tree_leaves(output) if isinstance(part, Tensor)]
        tensors = [part for part in tensors if part.requires_grad]
        if not found and tensors and not _has_second(tensors, list(leaves.values())):
            found.append(f"{names[module]} ({type(module).__name__})")

    modules = [model.module, model.training_module]
    names = {part: name or "the network" for one in modules for name, part in one.named_modules()}
    handles = [part.register_forward_hook(look) for part in names]
    try:
        with by_formulas(model.is_recurrent), torch.enable_grad():
            function(leaves)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "the loss"


def _has_second(outputs: list[Tensor], leaves: list[Tensor]) -> bool:
    """Return whether torch differentiates outputs twice; their graph is kept."""
    value = sum((part.square().sum() for part in outputs), outputs[0].new_zeros(()))
    if any(_once_differentiable(value)):
        return False
    try:
        slopes = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
        total = sum((part.square().sum() for part in slopes), value)
        torch.autograd.grad(total, leaves, retain_graph=True, materialize_grads=True)
    except RuntimeError:
        return False
    return True
