"""The derivative of one step of an optimiser that updates every coordinate on its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .optimizers import OptimizerSpec

#: What an optimiser keeps for its only parameter, by its own names.
Buffers = dict[str, Any]

#: Coordinates that are differentiated together: meanwhile there are some thirty numbers for each, in float64.
_TOGETHER = 2**20


@dataclass(frozen=True)
class StepDerivative:
    r"""Derivative of the state after a step in the state before it and in the gradient.

    The state is the parameters and the optimiser's buffers of their shape (momentum, Adam's
    moments). Every coordinate has its own small matrix, so a derivative is a vector (p,), or None
    where there is none: ``slopes[a]`` are those of part a of the new state by the parts of the old one
    and, last, by the gradient. Where that has been clipped, `clipping` is the product of vectors (k, p)
    with the (symmetric) derivative of what is left of it. ``bends[a]`` is the second derivative of part a
    of the new state in the gradient, where it has been asked for.
    """

    slopes: list[list[Tensor | None]]
    clipping: Callable[[Tensor], Tensor] | None = None
    bends: Sequence[Tensor | None] = ()

    def pull(
        self, adjoint: list[Tensor], pulled: Tensor, bent: Tensor | None = None
    ) -> list[Tensor]:
        """Turn adjoints (k, p) of the new state's parts into those of the old one, in place.

        Those of the gradient are written to `pulled` (k, p), and their derivative in it is added to `bent`
        (k, p) if that is given.
        """
        columns = list(zip(*self.slopes, strict=True))
        size = max(1, _TOGETHER // pulled.shape[1])
        for start in range(0, len(pulled), size):
            some = slice(start, start + size)
            new = [part[some] for part in adjoint]
            if bent is not None:
                bent[some] += _weighted(self.bends, new)
            *old, gradient = [_weighted(column, new) for column in columns]
            pulled[some] = gradient if self.clipping is None else self.clipping(gradient)
            for part, found in zip(new, old, strict=False):
                part.copy_(found)
        return adjoint[: len(columns) - 1]

    @property
    def is_linear(self) -> bool:
        """Return whether the step is linear in the gradient, as far as second derivatives were asked for."""
        return all(bend is None for bend in self.bends)

    def push(self, tangent: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
        """Return tangents (k, p) of the new state's parts from those of the old, and of the gradient."""
        given = gradient if self.clipping is None else self.clipping(gradient)
        return [_weighted(row, [*tangent, given]) for row in self.slopes]


@dataclass(frozen=True)
class StepDerivatives:
    """The derivative of a step that parts of the vectors take differently."""

    steps: Sequence[StepDerivative]
    counts: list[int]

    def pull(
        self, adjoint: list[Tensor], pulled: Tensor, bent: Tensor | None = None
    ) -> list[Tensor]:
        """Turn adjoints into those before the step, in place, as each part of the vectors takes it."""
        end = 0
        for step, count in zip(self.steps, self.counts, strict=True):
            own = slice(end, end := end + count)
            parts, further = [part[own] for part in adjoint], None if bent is None else bent[own]
            kept = step.pull(parts, pulled[own], further)
        return adjoint[: len(kept)]

    @property
    def is_linear(self) -> bool:
        """Return whether the step is linear in the gradient."""
        return all(step.is_linear for step in self.steps)


def _weighted(weights: Sequence[Tensor | None], vectors: Sequence[Tensor]) -> Tensor:
    total: Tensor | None = None
    for weight, vector in zip(weights, vectors, strict=True):
        if weight is not None:
            weight = weight.to(vector)
            total = vector * weight if total is None else total.addcmul_(vector, weight)
    return torch.zeros_like(vectors[0]) if total is None else total


def check_differentiable(spec: OptimizerSpec) -> None:
    """Raise ValueError if a step of the optimiser cannot be differentiated."""
    if "differentiable" not in inspect.signature(spec.cls).parameters:
        raise ValueError(
            f"optimizer {spec.name} cannot be differentiated: it has "
            "no `differentiable` option. Use one of torch.optim that has: SGD, Adam, AdamW, "
            "RMSprop, Adagrad, ..."
        )
    if issubclass(spec.cls, torch.optim.Rprop):
        raise ValueError(
            "optimizer Rprop cannot be differentiated: it looks at the signs of gradients only, so "
            "the derivative is zero. Use SGD, Adam, AdamW, RMSprop, Adagrad, ..."
        )


def state_names(buffers: Buffers, n_parameters: int) -> list[str]:
    """Return the buffers that are part of the state: floating point, one number per parameter."""
    tensors = {name: value for name, value in buffers.items() if isinstance(value, Tensor)}
    own = (n_parameters,)
    return [name for name, t in tensors.items() if t.is_floating_point() and t.shape == own]


def n_parts(spec: OptimizerSpec) -> int:
    """Return how many vectors a state is: the parameters, and what the optimiser keeps of their shape."""
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = spec.build([parameter])
    parameter.grad = torch.zeros(1)
    optimizer.step()
    return 1 + len(state_names(optimizer.state[parameter], 1))


def step_derivative(
    spec: OptimizerSpec,
    epoch: int,
    theta: Tensor,
    buffers: Buffers,
    gradient: Tensor,
    second: bool = False,
) -> StepDerivative:
    """Differentiate the step that the optimiser takes from here, in float64; with `second`, twice.

    Where the derivative does not exist (the square root of a second moment of zero) it is taken
    as zero: such a parameter has never had a gradient.
    """
    names = state_names(buffers, len(theta))
    parts = []
    for start in range(0, len(theta), _TOGETHER):
        some = slice(start, start + _TOGETHER)
        own = {name: value[some] if name in names else value for name, value in buffers.items()}
        parts.append(_derivative(spec, epoch, theta[some], own, gradient[some], second))
    rows = zip(*(part.slopes for part in parts), strict=True)
    bends = zip(*(part.bends for part in parts), strict=True)
    return StepDerivative(
        [[_joined(own) for own in zip(*row, strict=True)] for row in rows],
        bends=[_joined(own) for own in bends],
    )


def _derivative(
    spec: OptimizerSpec,
    epoch: int,
    theta: Tensor,
    buffers: Buffers,
    gradient: Tensor,
    second: bool,
) -> StepDerivative:
    """Differentiate the step in some of its coordinates."""
    names = state_names(buffers, len(theta))
    old = [t.detach().double().requires_grad_() for t in (theta, *(buffers[k] for k in names))]
    g = gradient.detach().double().requires_grad_()
    moved = old[0].clone()
    plain = {name: None for name in ("foreach", "fused") if name in spec.params}
    optimizer = spec.build([moved], differentiable=True, **plain)
    # the number of steps too: torch keeps it in float32, and takes powers of it
    kept = {k: v.clone().double() if isinstance(v, Tensor) else v for k, v in buffers.items()}
    kept.update({name: leaf.clone() for name, leaf in zip(names, old[1:], strict=True)})
    group = optimizer.param_groups[0]
    group["lr"] = spec.lr_at(epoch)
    if not kept and group.get("momentum") and "dampening" in group:
        # SGD starts its buffer with a copy of the gradient cut from the graph; this one is the same
        kept = {"momentum_buffer": torch.zeros_like(old[0])}
        group["dampening"] = 0
    if kept:
        optimizer.state[moved] = kept
    moved.grad = g.clone()
    optimizer.step()
    after = optimizer.state[moved]
    new = [moved, *(after[k] for k in state_names(after, len(theta)))]
    slopes = [_slopes(part, [*old, g], second) for part in new]
    bends = [None if of is None else _slopes(of, [g])[0] for *_, of in slopes] if second else []
    finite = partial(_finite, dtype=theta.dtype)
    rows = [list(map(finite, row)) for row in slopes]
    return StepDerivative(rows, bends=list(map(finite, bends)))


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Return the slopes of all coordinates; either all parts have them or none has."""
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known else None


def _slopes(part: Tensor, leaves: list[Tensor], again: bool = False) -> Sequence[Tensor | None]:
    """Return the derivative of each number of `part` in the same number of each leaf.

    It can be differentiated `again`.
    """
    if not part.requires_grad:
        return [None] * len(leaves)
    found: Sequence[Tensor | None] = torch.autograd.grad(
        part.sum(), leaves, allow_unused=True, retain_graph=True, create_graph=again
    )
    return found


def _finite(slope: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if slope is None:
        return None
    return torch.nan_to_num(slope.detach(), nan=0.0, posinf=0.0, neginf=0.0).to(dtype)
