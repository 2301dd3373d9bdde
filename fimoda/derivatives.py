"""Derivatives of a network in its named parameters: nothing else knows the ways to take them.

Functions take the named parameters of a model; vectors of parameters, flat, go in and come out. In the flat
vector itself nothing is differentiated: that would make a vector of its length for each parameter.

Forward mode and batches of vectors or rows are tried first. Where torch has none for a network, or its
forward pass looks at numbers (``.item()``, an ``if``), reverse mode takes over, one vector or row after the
other; that is remembered of the network.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.func import grad, jacrev, jvp, vmap

from .formulas import by_formulas
from .rows import Inputs, mapped

#: Parameters by name.
Named = dict[str, Tensor]

#: A function of a model's named parameters.
Function = Callable[[Named], Tensor]

R = TypeVar("R")


class Model(Protocol):
    """The part of `FinalModel` that is needed to differentiate it."""

    @property
    def module(self) -> nn.Module: ...
    @property
    def theta(self) -> Tensor: ...
    @property
    def training_module(self) -> nn.Module: ...
    @property
    def architecture(self) -> object: ...
    @property
    def is_stochastic(self) -> bool: ...
    def views(self, theta: Tensor) -> Named: ...
    def flatten(self, parameters: Named) -> Tensor: ...
    def call(self, parameters: Named, x: Inputs) -> Tensor: ...


#: Why a network is differentiated in the slower way, by network and derivative.
_SLOWER: dict[tuple[object, str], str] = {}

#: Names of derivatives, as explanations have them.
_ROWS = "gradients of rows"
_ALONG = "derivatives along vectors"
_BACK = "sums of gradients"
_SECOND = "second derivatives along vectors"


# ---- first derivatives ----------------------------------------------------------------------


def gradient(model: Model, function: Function, theta: Tensor | None = None) -> Tensor:
    """Return the gradient (p,) of a number, at the final model unless parameters (p,) are given."""

    def formula() -> Tensor:
        with by_formulas():
            return plain()

    def plain() -> Tensor:
        leaves = _leaves(model, theta)
        with torch.enable_grad():
            value = function(leaves)
        return _gradient(model, value, leaves)

    # fused kernels are fast, and some have a gradient in training mode alone
    return _taken(model, "gradients", function, theta, plain, formula)


def row_gradients(
    model: Model, values: Callable[[Named, Inputs, Tensor], Tensor], x: Inputs, y: Tensor
) -> Tensor:
    """Return the gradients (n, p) of rows' values, a function of parameters, inputs and targets."""

    def one(parameters: Named, x: Inputs, y: Tensor) -> Tensor:
        return values(parameters, _alone(x), y.unsqueeze(0)).squeeze(0)

    def batched() -> Tensor:
        with by_formulas():
            return _vectors(model, vmap(grad(one), (None, 0, 0))(_point(model), x, y))

    def looped() -> Tensor:
        leaves = _leaves(model)
        found = model.theta.new_empty(len(y), len(model.theta))
        for k, target in enumerate(y):
            with torch.enable_grad():
                value = one(leaves, x[k], target)
            found[k] = _gradient(model, value, leaves)
        return found

    return _taken(model, _ROWS, lambda p: values(p, x, y), None, batched, looped)


def row_jacobians(model: Model, x: Inputs) -> Tensor:
    """Return the derivatives (n, C, p) of the rows' outputs."""

    def one(parameters: Named, x: Inputs) -> Tensor:
        return model.call(parameters, _alone(x))[0]

    def batched() -> Tensor:
        with by_formulas():
            return _vectors(model, vmap(jacrev(one), (None, 0))(_point(model), x))

    def looped() -> Tensor:
        leaves = _leaves(model)
        found = []
        for k in range(len(x)):
            with torch.enable_grad():
                outputs = one(leaves, x[k])
            found.append(torch.stack([_gradient(model, f, leaves, keep=True) for f in outputs]))
        return torch.stack(found)

    return _taken(model, _ROWS, lambda p: model.call(p, x), None, batched, looped)


class Linearization:
    r"""The outputs of a function, of any shape, and products with their derivative J.

    At the final model unless parameters (p,) are given.
    """

    def __init__(self, model: Model, function: Function, theta: Tensor | None = None):
        self._model, self._function, self._theta = model, function, theta

    @cached_property
    def _leaves(self) -> Named:
        return _leaves(self._model, self._theta)

    @cached_property
    def _value(self) -> Tensor:
        """The outputs with their graph."""
        with by_formulas(), torch.enable_grad():
            return self._function(self._leaves)

    @property
    def outputs(self) -> Tensor:
        """The values of the function at the parameters."""
        return self._value.detach()

    def push(self, V: Tensor) -> Tensor:
        """Return the products (k, ...) of J with vectors V (k, p)."""
        return self._taken(_ALONG, lambda: self._push_batch(V), lambda: self._push_each(V))

    def pull(self, U: Tensor) -> Tensor:
        """Return the products (k, p) of J transposed with numbers U (k, ...) for the outputs."""
        return self._taken(
            _BACK,
            lambda: _gradient(self._model, self._value, self._leaves, U, keep=True, batched=True),
            lambda: torch.stack(
                [_gradient(self._model, self._value, self._leaves, u, keep=True) for u in U]
            ),
        )

    def _taken(self, what: str, *ways: Callable[[], Tensor]) -> Tensor:
        return _taken(self._model, what, self._function, self._theta, *ways)

    def _push_batch(self, V: Tensor) -> Tensor:
        """Return the products by forward mode, all at once."""
        point = _point(self._model, self._theta)
        with by_formulas():
            return vmap(lambda v: jvp(self._function, (point,), (self._model.views(v),))[1])(V)

    def _push_each(self, V: Tensor) -> Tensor:
        """Return the products by reverse mode of ``u -> J' u``, which is linear in u."""
        u = torch.zeros_like(self._value, requires_grad=True)
        pulled = torch.autograd.grad(
            self._value, list(self._leaves.values()), u, create_graph=True, materialize_grads=True
        )
        return torch.stack([_along(pulled, self._model.views(v), [u])[0] for v in V])


# ---- second derivatives ---------------------------------------------------------------------


def hessian_products(
    model: Model, losses: Function, weights: Tensor, V: Tensor, theta: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return second derivatives (k, p) of ``weights @ losses``, and slopes (k, B) of losses, along V.

    Losses (B,) are a function of the parameters, V are vectors (k, p). At the final model unless
    parameters (p,) are given.
    """

    def batched() -> tuple[Tensor, Tensor]:
        def objective(parameters: Named) -> tuple[Tensor, Tensor]:
            found = losses(parameters)
            return (weights * found).sum(), found

        def along(v: Tensor) -> tuple[Named, Tensor]:
            return jvp(grad(objective, has_aux=True), (point,), (model.views(v),))[1]

        point = _point(model, theta)
        with by_formulas():
            products, slopes = vmap(along, randomness="same")(V)
        return _vectors(model, products), slopes

    def looped() -> tuple[Tensor, Tensor]:
        # in the weights, the gradient's derivative along v is the slopes along v
        leaves, w = _leaves(model, theta), weights.detach().clone().requires_grad_()
        with by_formulas(), torch.enable_grad():
            value = (w * losses(leaves)).sum()
            slopes = torch.autograd.grad(
                value, list(leaves.values()), create_graph=True, materialize_grads=True
            )
        found = [_along(slopes, model.views(v), [*leaves.values(), w]) for v in V]
        products = [_vectors(model, dict(zip(leaves, one, strict=False))) for one in found]
        return torch.stack(products), torch.stack([one[-1] for one in found])

    return _taken(model, _SECOND, losses, theta, batched, looped)


# ---- parameters and vectors -----------------------------------------------------------------


def _point(model: Model, theta: Tensor | None = None) -> Named:
    """Return the named parameters as views of the vector."""
    return model.views(model.theta if theta is None else theta)


def _leaves(model: Model, theta: Tensor | None = None) -> Named:
    """Return the named parameters as leaves of a graph, each by itself."""
    return {k: part.detach().requires_grad_() for k, part in _point(model, theta).items()}


def _vectors(model: Model, named: Named) -> Tensor:
    """Return vectors (..., p) of named parameters, sparse ones filled up."""
    return model.flatten({k: v.to_dense() if v.is_sparse else v for k, v in named.items()})


def _alone(x: Inputs) -> Inputs:
    """Return the inputs of one row as those of a batch."""
    return mapped(lambda part: part.unsqueeze(0), x)


def _gradient(
    model: Model,
    value: Tensor,
    leaves: Named,
    cotangents: Tensor | None = None,
    keep: bool = False,
    batched: bool = False,
) -> Tensor:
    """Return the gradient (p,), or (k, p) of a batch of cotangents; `keep` keeps the graph."""
    k = (len(cotangents),) if batched and cotangents is not None else ()
    if not value.requires_grad:  # of no parameter
        return model.theta.new_zeros(*k, len(model.theta))
    found = torch.autograd.grad(
        value,
        list(leaves.values()),
        cotangents,
        retain_graph=keep,
        allow_unused=True,
        is_grads_batched=batched,
    )
    pairs = zip(leaves.items(), found, strict=True)
    named = {n: p.new_zeros(*k, *p.shape) if g is None else g for (n, p), g in pairs}
    return _vectors(model, named)


def _along(slopes: tuple[Tensor, ...], v: Named, of: list[Tensor]) -> tuple[Tensor, ...]:
    """Return the derivatives of ``slopes @ v`` in some tensors; the graph is kept."""
    pairs = [(s, t) for s, t in zip(slopes, v.values(), strict=True) if s.requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(part) for part in of)
    values, directions = zip(*pairs, strict=True)
    return torch.autograd.grad(values, of, directions, retain_graph=True, materialize_grads=True)


# ---- ways -----------------------------------------------------------------------------------


def explanations(model: Model) -> list[str]:
    """Return a line for each derivative of the network that is taken in the slower way, with the reason."""
    if not _SLOWER:
        return []
    return [
        f"{what} are taken one after the other, since {reason}"
        for (network, what), reason in _SLOWER.items()
        if network == model.architecture
    ]


def _taken(
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
        except (MemoryError, TimeoutError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # what torch's transforms and a forward within them may raise
            reason = _reason(error)
    else:
        reason = _SLOWER[model.architecture, what]
    try:
        with _same_noise(model):
            found = slow()
    except (MemoryError, TimeoutError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        point = _point(model, theta)
        with torch.no_grad():
            function(point)  # which raises what is wrong with the call itself
        raise TypeError(
            f"estimator must be differentiable for this method, and torch has no {what} of "
            f"{_culprit(model, function, theta)} ({_first_line(error)}). Use a method that needs gradients "
            "alone (GradDot, DataInf, TRAK, FurtherTraining), or write the forward pass in differentiable "
            "functions of torch."
        ) from error
    _SLOWER[model.architecture, what] = reason
    return found


def _same_noise(model: Model) -> AbstractContextManager[Any]:
    """Return the context in which a way draws random numbers from where the others do."""
    if not model.is_stochastic:
        return nullcontext()
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


def _culprit(model: Model, function: Function, theta: Tensor | None) -> str:
    """Return the name of the innermost module whose outputs torch cannot differentiate twice."""
    leaves = _leaves(model, theta)
    found: list[str] = []

    def look(module: nn.Module, _: Any, output: Any) -> None:
        tensors = [part for part in torch.utils._pytree.tree_leaves(output) if _differs(part)]
        if not found and tensors and not _twice(tensors, list(leaves.values())):
            found.append(f"{names[module]} ({type(module).__name__})")

    modules = [model.module, model.training_module]
    names = {part: name or "the network" for one in modules for name, part in one.named_modules()}
    handles = [part.register_forward_hook(look) for part in names]
    try:
        with by_formulas(), torch.enable_grad():
            function(leaves)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "its loss"


def _differs(part: Any) -> bool:
    return isinstance(part, Tensor) and part.requires_grad


def _twice(outputs: list[Tensor], leaves: list[Tensor]) -> bool:
    """Return whether torch differentiates outputs twice."""
    value = sum((part.square().sum() for part in outputs), outputs[0].new_zeros(()))
    try:
        slopes = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
        total = sum((part.square().sum() for part in slopes), value)
        torch.autograd.grad(total, leaves, materialize_grads=True)
    except RuntimeError:
        return False
    return True
