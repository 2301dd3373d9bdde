"""The engine against plain autograd and a plain optimiser, before a network is trained by it.

The engine differentiates many models at once and asks torch for fused optimisers. Both are held against
the slow way on a few rows; where one of them is not the same, the slow way takes its place.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..batch_statistics import statistics_of
from ..model import FinalModel
from ..objective import Objective
from ..rows import Inputs, Rows, mapped
from .gradients import (
    Stack,
    StackedGradient,
    copied_buffers,
    dense,
    differences,
    expanded,
    looped_gradient,
    norm,
    stacked_gradient,
)
from .noise import seeded
from .optimizers import OptimizerSpec

#: Rows in each of the two steps of an examination.
ROWS = 4


@dataclass(frozen=True)
class Verdict:
    """The findings on a stack: whether its gradient is that of its models, its optimiser the plain one.

    `same_draws` says whether dropout is that of its models, too, and not drawn in another order.
    """

    stacked: bool
    as_built: bool
    same_draws: bool = True


_VERDICTS: dict[object, Verdict] = {}


def examine(objective: Objective, spec: OptimizerSpec, way: str = "auto") -> Verdict:
    """Compare two steps of one model, taken in a way, with plain autograd and the plain optimiser.

    A network is examined once per process and optimiser; what differs is told by one
    RuntimeWarning. Nobody's random generator moves. A few of the objective's rows are used, each with
    the target of another, so that their losses have a gradient also where the model fits them.
    """
    model = objective.model
    if way == "loop":  # is that slow way, with parameters that torch's optimiser knows
        return Verdict(stacked=False, as_built=True)
    key = (model.key, spec.cls, repr(sorted(spec.params.items())), way == "vmap")
    if key not in _VERDICTS:
        with seeded(model, 0):
            _VERDICTS[key] = _examined(model, objective.rows, spec, way != "vmap")
    return _VERDICTS[key]


@dataclass(frozen=True)
class _Step:
    """A stack of two models before a step, the second of which is looked at."""

    model: FinalModel
    theta: Stack
    x: Inputs
    y: Tensor
    weights: Tensor

    def gradients(self, way: StackedGradient) -> Stack:
        """Return the gradients of both models."""
        theta = {name: part.clone() for name, part in self.theta.items()}
        with seeded(self.model, 0), torch.no_grad():
            return way(theta, self.x, self.y, self.weights)

    def alone(self, way: StackedGradient, seed: int = 0) -> Stack:
        """Return the gradient of the second model by itself."""
        theta = {name: part[1:].clone() for name, part in self.theta.items()}
        x = self.x[1:]
        with seeded(self.model, seed), torch.no_grad():
            return _member(way(theta, x, self.y[1:], self.weights[1:]), 0)

    def is_random(self, way: StackedGradient) -> bool:
        """Return whether its gradient depends on random numbers."""
        one, other = (self.alone(way, seed) for seed in (0, 1))
        return any(not torch.equal(one[name], other[name]) for name in one)

    def floor(self) -> dict[str, float]:
        """Return the size of errors by the rounding of outputs, where gradients nearly cancel."""
        own = _member(self.theta, 1)
        theta = {name: own[name].clone().requires_grad_() for name in self.model.shapes}
        named = {**copied_buffers(self.model), **own, **theta}
        with torch.enable_grad(), seeded(self.model, 0), statistics_of(None):
            outputs = self.model.call(named, self.x[1], training=True)
            sizes = (1 + outputs.detach().abs()) * self.weights[1].unsqueeze(-1)
            total = (sizes * outputs).sum()
            reach = torch.autograd.grad(total, list(theta.values()), materialize_grads=True)
        eps = torch.finfo(self.model.dtype).eps
        return {name: 100 * eps * norm(part) for name, part in zip(theta, reach, strict=True)}


def _member(stack: Stack, k: int) -> Stack:
    return {name: part[k] for name, part in stack.items()}


def _steps(model: FinalModel, rows: Rows) -> Iterator[_Step]:
    """Yield two steps on rows from all over the training set: the same for all models, and of each."""
    n = len(rows)
    some = torch.linspace(0, n - 1, min(2 * ROWS, 2 * n), device=rows.device).long()
    theta = torch.stack([1.01 * model.state, model.state])
    stack = {name: view.contiguous() for name, view in model.views(theta).items()}
    together, apart = some[0::2], some[1::2]
    for own in (together, apart):
        weights = torch.ones(2, len(own), dtype=model.dtype, device=model.device)
        weights[0, 1:] *= 0.5
        weights /= weights.sum(1, keepdim=True)
        x, y = rows.inputs[own], rows.targets[own].roll(1, 0)
        x, y = expanded(x, 2), expanded(y, 2)
        if own is apart:
            x, y = mapped(torch.clone, x), y.clone()
        yield _Step(model, stack, x, y, weights)


def _examined(model: FinalModel, rows: Rows, spec: OptimizerSpec, by_layers: bool) -> Verdict:
    steps = list(_steps(model, rows))
    loop = looped_gradient(model)
    plain = [step.alone(loop) for step in steps]
    same_draws = True
    try:
        engine = stacked_gradient(model, by_layers=by_layers)
        found = [step.gradients(engine) for step in steps]
        fault, same_draws = _gradient_fault(model, steps, found, plain)
    except (TimeoutError, MemoryError):
        raise
    except Exception as error:  # what vmap and a forward that knows no vmap may raise
        reason = (str(error).splitlines() or ["vmap failed"])[0]
        fault = f"torch cannot differentiate a stack of models of this network ({reason})"
    stacked = not fault
    if fault:
        found = [step.gradients(loop) for step in steps]
        fault += "; its models are differentiated one after the other, which is slower"
    step_fault = _optimizer_fault(spec, steps[0].theta, found)
    if fault or step_fault:
        told = ". ".join(part for part in (fault, step_fault) if part)
        warnings.warn(f"Before training, {told}.", RuntimeWarning, stacklevel=6)
    return Verdict(stacked, not step_fault, same_draws)


def _gradient_fault(
    model: FinalModel, steps: list[_Step], found: list[Stack], plain: list[Stack]
) -> tuple[str, bool]:
    """Say which parameter's gradient differs from plain autograd's at both steps, if one does.

    And whether the random numbers are the same.
    """
    wrong = _wrong_gradients(steps, found, plain)
    same_draws = not wrong
    if wrong and steps[0].is_random(looped_gradient(model)):
        # a network may draw the same numbers in another order; without any it must be the same
        engine = stacked_gradient(model, training=False)
        loop = looped_gradient(model, training=False)
        found, plain = [s.gradients(engine) for s in steps], [s.alone(loop) for s in steps]
        wrong = _wrong_gradients(steps, found, plain)
    if not wrong:
        return "", same_draws
    name = max(wrong, key=lambda one: wrong[one])
    return (
        f"gradients of a stack of models were found to differ from plain autograd's (that of {name!r} by "
        f"{wrong[name]:.0%})"
    ), same_draws


def _wrong_gradients(
    steps: list[_Step], found: list[Stack], plain: list[Stack]
) -> dict[str, float]:
    """Return relative errors of the second model's gradients that are wrong at every step.

    At one step alone a number that is rounded to the other side of a kink does that.
    """
    wrong: list[dict[str, float]] = []
    for step, stack, expected in zip(steps, found, plain, strict=True):
        wrong.append(differences(_member(stack, 1), expected))
        if wrong[-1]:
            wrong[-1] = differences(_member(stack, 1), expected, step.floor())
    return {name: max(wrong[0][name], wrong[1][name]) for name in wrong[0] if name in wrong[1]}


def _optimizer_fault(spec: OptimizerSpec, theta: Stack, gradients: list[Stack]) -> str:
    """Say which parameter the optimiser moves otherwise than its plain form, if one does."""
    plain = spec.plain()
    if plain == spec:
        return ""
    fast, slow = (_moved(one, theta, gradients) for one in (spec, plain))
    for found, expected in zip(fast, slow, strict=True):
        eps = {name: 4 * torch.finfo(part.dtype).eps for name, part in expected.items()}
        rounding = {name: eps[name] * norm(part) for name, part in expected.items()}
        wrong = differences(_change(theta, found), _change(theta, expected), rounding)
        if wrong:
            name = max(wrong, key=lambda one: wrong[one])
            return (
                f"torch's fast step of {spec.name} was found to differ "
                f"from its plain one (that of {name!r} by {wrong[name]:.0%}); the plain one is taken"
            )
    return ""


def _change(before: Stack, after: Stack) -> Stack:
    return {name: part - before[name] for name, part in after.items()}


def _moved(spec: OptimizerSpec, theta: Stack, gradients: list[Stack]) -> Iterator[Stack]:
    """Yield the parameters of the stack after each step."""
    stack = {name: theta[name].clone().requires_grad_() for name in gradients[0]}
    optimizer = spec.build(stack.values())
    for gradient in gradients:
        for name, part in dense(gradient, stack).items():
            stack[name].grad = part.clone()
        optimizer.step()
        yield {name: part.detach().clone() for name, part in stack.items()}
