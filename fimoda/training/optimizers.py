"""Which optimiser further training uses, and whether it may act on a stack of models."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from .._identity import identity_of
from ..recipe import Recipe
from .clipping import NORM, VALUE, Clipping

LearningRate = float | Callable[[int], float]

DEFAULT_LR = 0.01
DEFAULT_BATCH_SIZE = 128

#: Parameter groups, as they stand among the settings of an optimiser.
GROUPS = "param_groups"


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimiser that updates every coordinate on its own, with its learning rate and other settings.

    A learning rate that is callable gives that of an epoch, counted from 0. Gradients are clipped before
    the optimiser sees them. `groups` are patterns of names of parameters, with the learning rate and the
    weight decay that these have in place of the others' (`Groups`).
    """

    cls: type[torch.optim.Optimizer]
    lr: LearningRate
    params: dict[str, Any] = field(default_factory=dict)
    clipping: Clipping = field(default_factory=Clipping)
    groups: tuple[tuple[str, dict[str, float]], ...] = ()

    @property
    def name(self) -> str:
        """The optimiser as messages and recorded runs call it."""
        return self.cls.__name__

    @property
    def step_of(self) -> type:
        """The class whose ``step`` it takes: a subclass that has its own is another optimiser."""
        own = inspect.unwrap(self.cls.step)
        bases = [one for one in self.cls.__mro__ if issubclass(one, torch.optim.Optimizer)]
        return [one for one in bases if inspect.unwrap(one.step) is own][-1]

    def lr_at(self, epoch: int) -> float:
        """Return the learning rate of an epoch; ValueError if a callable gives no positive number."""
        if not callable(self.lr):
            return float(self.lr)
        given = self.lr(epoch)
        try:
            rate = math.nan if isinstance(given, bool | str) else float(given)
        except (TypeError, ValueError):
            rate = math.nan
        if not 0 < rate < math.inf:
            raise ValueError(
                f"lr must be positive, got {given!r} for epoch {epoch}: a callable must return a "
                "finite number above zero for every epoch, counted from 0."
            )
        return rate

    def check_epochs(self, n_epochs: int) -> None:
        """Raise ValueError unless there is a learning rate for every epoch."""
        for epoch in range(n_epochs if callable(self.lr) else 0):
            self.lr_at(epoch)

    def build(self, stack: Iterable[Any], **options: Any) -> torch.optim.Optimizer:
        """Return the optimiser of tensors, or of groups of them, in its fused form where there is one.

        `options` (``differentiable=True``) come on top of the settings.
        """
        params = {**self.params, **options}
        chosen = {"fused", "foreach", "differentiable"} & set(params)
        if not chosen and "fused" in inspect.signature(self.cls).parameters:
            params["fused"] = True
        return self.cls(list(stack), lr=self.lr_at(0), **params)  # type: ignore[call-arg]

    def plain(self) -> OptimizerSpec:
        """Return it as a loop over the parameters, neither fused nor by whole lists."""
        known = inspect.signature(self.cls).parameters
        switches = {name: False for name in ("fused", "foreach") if name in known}
        if self.params.get("differentiable"):  # is such a loop, and goes with neither
            return self
        return replace(self, params={**self.params, **switches})

    def defaults(self) -> dict[str, Any]:
        """Return all settings but the learning rate, the optimiser's own defaults included."""
        return {**self.build([torch.zeros(1, requires_grad=True)]).defaults}

    @property
    def beside(self) -> dict[str, Any]:
        """Clipping and groups, as they stand among the settings of an optimiser."""
        groups = [[pattern, dict(sorted(own.items()))] for pattern, own in self.groups]
        return self.clipping.settings | ({GROUPS: groups} if groups else {})

    def describe(self, n_epochs: int) -> dict[str, Any]:
        """Return what identifies the optimiser of a run of `n_epochs`."""
        lr = [self.lr_at(e) for e in range(n_epochs)] if callable(self.lr) else self.lr_at(0)
        own = optimizer_class(self.name) is not self.cls
        return {
            "optimizer": f"{self.name} {identity_of(self.cls)}" if own else self.name,
            "lr": lr,
            "optimizer_params": {
                k: v if isinstance(v, bool | int | float | str | NoneType) else identity_of(v)
                for k, v in sorted(self.params.items())
            }
            | self.beside,
        }


def optimizer_class(optimizer: Any) -> type[torch.optim.Optimizer] | None:
    """Return the optimiser that a class, or the name of one of torch, stands for; None if none."""
    found = getattr(torch.optim, optimizer, None) if isinstance(optimizer, str) else optimizer
    return found if inspect.isclass(found) and issubclass(found, torch.optim.Optimizer) else None


def resolve_optimizer(
    optimizer: str | type[torch.optim.Optimizer] | None,
    lr: LearningRate | None,
    params: dict[str, Any] | None,
    recipe: Recipe,
) -> OptimizerSpec:
    """Return the optimiser asked for; what is None is the model's own.

    Settings of the model's own optimiser (momentum, weight decay, ...) are kept only if the
    optimiser is the model's own too. A model that has none gets SGD with learning rate 0.01.

    Raises ValueError if the name is unknown, a setting is not one of the optimiser's, or the optimiser
    mixes coordinates and so would mix the models of a stack.
    """
    if optimizer is None and recipe.obstacle is not None:
        raise ValueError(
            f"optimizer must be given for this model: {recipe.obstacle}, which further training "
            "cannot repeat. Choose one, for example optimizer='SGD' with lr."
        )
    theirs = torch.optim.SGD if recipe.optimizer is None else recipe.optimizer
    asked = theirs if optimizer is None else optimizer
    chosen = optimizer_class(asked)
    if chosen is None:
        raise ValueError(
            f"optimizer must be a torch.optim class or its name ('SGD', 'Adam', ...), got {asked!r}."
        )
    same = chosen is optimizer_class(theirs)
    own = {**recipe.params, **recipe.beside} if same else {}
    settings = {**own, **(params or {})}
    clipping = Clipping.taken_from(settings)
    groups = _taken_groups(settings, chosen)
    allowed = inspect.signature(chosen).parameters
    unknown = sorted(set(settings) - set(allowed))
    if unknown:
        raise ValueError(
            f"optimizer_params has {unknown}, which {chosen.__name__} does not take; it takes "
            f"{sorted({*allowed, NORM, VALUE, GROUPS} - {'params', 'lr'})}."
        )
    if lr is None:
        lr = recipe.lr if same and recipe.lr is not None else DEFAULT_LR
    spec = OptimizerSpec(chosen, lr, settings, clipping, groups)
    if not spec.lr_at(0) > 0:
        raise ValueError(f"lr must be positive, got {spec.lr_at(0)}.")
    if not acts_elementwise(spec):
        raise ValueError(
            f"optimizer {chosen.__name__} mixes coordinates, so models trained as one stack would "
            "disturb each other. Use one that updates every coordinate on its own: SGD, Adam, "
            "AdamW, RMSprop, Adagrad, ..."
        )
    return spec


def _taken_groups(
    settings: dict[str, Any], chosen: type[torch.optim.Optimizer]
) -> tuple[tuple[str, dict[str, float]], ...]:
    """Take the parameter groups out of settings; ValueError if they are none."""
    given = settings.pop(GROUPS, None) or ()
    allowed = {"lr", "weight_decay"} & set(inspect.signature(chosen).parameters)
    found = []
    for one in given if isinstance(given, Iterable) else (given,):
        pattern, own = one if isinstance(one, tuple | list) and len(one) == 2 else (None, None)
        if not (isinstance(pattern, str) and isinstance(own, dict) and own and set(own) <= allowed):
            raise ValueError(
                f"optimizer_params: {GROUPS} must be pairs of a pattern of names and a dict of "
                f"{' and '.join(sorted(allowed))}, such as ('*.bias', {{'lr': 0.1}}), got {one!r}."
            )
        for name, value in own.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and 0 <= value < math.inf and (value or name != "lr")):
                raise ValueError(
                    f"optimizer_params: {GROUPS} has {name}={value!r} for {pattern!r}."
                )
        found.append((pattern, {name: float(value) for name, value in own.items()}))
    if found and issubclass(chosen, torch.optim.ASGD):
        raise ValueError(
            "optimizer ASGD keeps its learning rate in its state, and has no param_groups here."
        )
    return tuple(found)


def acts_elementwise(spec: OptimizerSpec) -> bool:
    """Return whether each coordinate's update depends on that coordinate alone, found by trying.

    Four steps on a stack of two vectors must equal four steps on each coordinate by itself, with
    gradients of very different sizes: clipping shows at large ones only.
    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    gradients = torch.randn(4, 2, 3, generator=generator, dtype=torch.float64)
    gradients *= torch.tensor([1, 1e-3, 1e6, 1]).view(4, 1, 1)

    def run(stack: Tensor, gradients: Tensor) -> Tensor:
        stack = stack.clone().requires_grad_()
        optimizer = spec.build([stack])
        for gradient in gradients:
            stack.grad = gradient.clone()
            optimizer.step()
        return stack.detach()

    spec.build([start.clone().requires_grad_()])  # a bad setting is the optimiser's own error
    try:
        together = run(start, gradients)
        alone = zip(start.view(6, 1, 1), gradients.view(4, 6, 1, 1).unbind(1), strict=True)
        apart = [run(one, of_it) for one, of_it in alone]
    except (TypeError, RuntimeError):  # wants a closure, sparse gradients, ...
        return False
    return bool(torch.allclose(together, torch.cat(apart).view(2, 3), rtol=1e-10, atol=1e-12))
