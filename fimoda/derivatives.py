"""First derivatives of a network in its named parameters: nothing else knows the ways to take them.

Functions take the named parameters of a model; vectors of parameters, flat, go in and come out. In the flat
vector itself nothing is differentiated: that would make a vector of its length for each parameter.

Forward mode and batches of vectors or rows are the fast way. Where torch has none for a network, reverse mode
takes over, one vector or row after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property

import torch
from torch import Tensor
from torch.func import grad, jacrev, jvp, vmap

from .fallbacks import GRADIENT, check_twice, taken
from .formulas import by_formulas
from .named_parameters import Function, Model, Named, apart, leaves_of, point, vectors
from .padding import by_length
from .rows import Inputs, mapped

#: Names of derivatives, as explanations and errors have them.
_ROWS = "gradients of rows"
_ALONG = "derivatives along vectors"
_BACK = "sums of gradients"

#: Rows that are differentiated together along vectors, and numbers in one activation of a block of vectors.
_TOGETHER, _NUMBERS = 1024, 2**22


def gradient(model: Model, function: Function, theta: Tensor | None = None) -> Tensor:
    """Return the gradient (p,) of a number, at the final model unless parameters (p,) are given."""

    def fused() -> Tensor:
        leaves = leaves_of(model, theta)
        with _with_gradient(model):
            value = function(leaves)
        return _gradient(model, value, leaves)

    def formula() -> Tensor:
        with by_formulas(model.is_recurrent):
            return fused()

    return taken(model, GRADIENT, function, theta, fused, formula)


def row_gradients(
    model: Model,
    values: Callable[[Named, Inputs, Tensor], Tensor],
    x: Inputs,
    y: Tensor,
    theta: Tensor | None = None,
) -> Tensor:
    """Return the gradients (n, p) of rows' values, a function of parameters, inputs and targets.

    At the final model unless parameters (p,) are given.
    """
    groups = by_length(x)
    return groups.joined(
        [_row_gradients(model, values, part, y[rows], theta) for rows, part in groups.parts]
    )


def _row_gradients(
    model: Model,
    values: Callable[[Named, Inputs, Tensor], Tensor],
    x: Inputs,
    y: Tensor,
    theta: Tensor | None,
) -> Tensor:
    def one(parameters: Named, x: Inputs, y: Tensor) -> Tensor:
        return values(parameters, _alone(x), y.unsqueeze(0)).squeeze(0)

    def batched() -> Tensor:
        with by_formulas(model.is_recurrent):
            return vectors(model, vmap(grad(one), (None, 0, 0))(point(model, theta), x, y))

    def looped() -> Tensor:
        leaves = leaves_of(model, theta)
        found = model.theta.new_empty(len(y), len(model.theta if theta is None else theta))
        for k, target in enumerate(y):
            with _with_gradient(model):
                value = one(leaves, x[k], target)
            for part, own in zip(
                _slopes(value, leaves), model.views(found[k]).values(), strict=True
            ):
                own.copy_(part)
        return found

    return taken(model, _ROWS, lambda p: values(p, x, y), theta, batched, looped)


def row_jacobians(model: Model, x: Inputs) -> Tensor:
    """Return the derivatives (n, C, p) of the rows' outputs."""
    groups = by_length(x)
    return groups.joined([_row_jacobians(model, part) for _, part in groups.parts])


def _row_jacobians(model: Model, x: Inputs) -> Tensor:
    def one(parameters: Named, x: Inputs) -> Tensor:
        return model.call(parameters, _alone(x))[0]

    def batched() -> Tensor:
        with by_formulas(model.is_recurrent):
            return vectors(model, vmap(jacrev(one), (None, 0))(point(model), x))

    def looped() -> Tensor:
        leaves = leaves_of(model)
        found = []
        for k in range(len(x)):
            with _with_gradient(model):
                outputs = one(leaves, x[k])
            found.append(torch.stack([_gradient(model, f, leaves, keep=True) for f in outputs]))
        return torch.stack(found)

    return taken(model, _ROWS, lambda p: model.call(p, x), None, batched, looped)


class Linearization:
    r"""The outputs of a function, of any shape, and products with their derivative J.

    At the final model unless parameters (p,) are given.
    """

    def __init__(self, model: Model, function: Function, theta: Tensor | None = None):
        self._model, self._function, self._theta = model, function, theta

    @cached_property
    def _leaves(self) -> Named:
        return leaves_of(self._model, self._theta)

    @cached_property
    def _value(self) -> Tensor:
        """The outputs with their graph."""
        with by_formulas(self._model.is_recurrent), torch.enable_grad():
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
        return taken(self._model, what, self._function, self._theta, *ways)

    def _push_batch(self, V: Tensor) -> Tensor:
        """Return the products by forward mode, all at once."""
        at = apart(self._model, self._theta)
        with by_formulas(self._model.is_recurrent):
            return vmap(lambda v: jvp(self._function, (at,), (self._model.views(v),))[1])(V)

    def _push_each(self, V: Tensor) -> Tensor:
        """Return the products by reverse mode of ``u -> J' u``, which is linear in u."""
        check_twice(self._model, self._function, self._theta)
        u = torch.zeros_like(self._value, requires_grad=True)
        pulled = torch.autograd.grad(
            self._value, list(self._leaves.values()), u, create_graph=True, materialize_grads=True
        )
        return torch.stack(
            [slopes_along(pulled, list(self._model.views(v).values()), [u])[0] for v in V]
        )


def push_outputs(model: Model, inputs: Inputs, theta: Tensor, U: Tensor) -> Tensor:
    """Return the derivatives (n, k, C) of the rows' outputs along vectors (k, p)."""
    width = max([shape[0] for shape in model.shapes.values() if shape], default=1)
    chunk = min(_TOGETHER, len(inputs))
    block = max(1, _NUMBERS // (chunk * width))

    def pushed(x: Inputs) -> Tensor:
        linear = Linearization(model, lambda named: model.call(named, x, grouped=True), theta)
        return torch.cat([linear.push(u) for u in U.split(block)]).transpose(0, 1)

    return torch.cat([pushed(x) for x in inputs.split(chunk)])


# ---- within a graph -------------------------------------------------------------------------


@contextmanager
def _with_gradient(model: Model) -> Iterator[None]:
    """Keep the graph of first derivatives, by fused kernels where these have any.

    Recurrent ones have some in training mode alone, but for those of the CPU.
    """
    fused = model.theta.device.type == "cpu" or not model.is_recurrent
    with torch.enable_grad(), nullcontext() if fused else by_formulas():
        yield


def _alone(x: Inputs) -> Inputs:
    """Return the inputs of one row as those of a batch."""
    return mapped(lambda part: part.unsqueeze(0), x)


def _slopes(
    value: Tensor,
    leaves: Named,
    cotangents: Tensor | None = None,
    keep: bool = False,
    batched: bool = False,
) -> list[Tensor]:
    """Return the gradients in the leaves, or (k, ...) of a batch of cotangents; `keep` keeps the graph."""
    found: Sequence[Tensor | None] = [None] * len(leaves)
    if value.requires_grad:
        found = torch.autograd.grad(
            value,
            list(leaves.values()),
            cotangents,
            retain_graph=keep,
            allow_unused=True,
            is_grads_batched=batched,
        )
    k = (len(cotangents),) if batched and cotangents is not None else ()
    pairs = zip(leaves.values(), found, strict=True)
    return [p.new_zeros(*k, *p.shape) if part is None else part for p, part in pairs]


def _gradient(
    model: Model, value: Tensor, leaves: Named, cotangents: Tensor | None = None, **how: bool
) -> Tensor:
    """Return the gradient (p,), or (k, p) of a batch of cotangents."""
    slopes = _slopes(value, leaves, cotangents, **how)
    return vectors(model, dict(zip(leaves, slopes, strict=True)))


def slopes_along(
    slopes: Sequence[Tensor], v: Sequence[Tensor | None], of: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return the derivatives of ``slopes @ v`` in some tensors; the graph is kept."""
    pairs = [(s, t) for s, t in zip(slopes, v, strict=True) if s.requires_grad and t is not None]
    if not pairs:
        return tuple(torch.zeros_like(part) for part in of)
    values, directions = zip(*pairs, strict=True)
    return torch.autograd.grad(values, of, directions, retain_graph=True, materialize_grads=True)
