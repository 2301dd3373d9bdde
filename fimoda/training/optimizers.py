"""Which optimiser further training uses, and whether it may act on a stack of models."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..model import Recipe

LearningRate = float | Callable[[int], float]

DEFAULT_LR = 0.01
DEFAULT_BATCH_SIZE = 128


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimiser class with its settings and learning rate.

    Parameters
    ----------
    cls : type
        A ``torch.optim.Optimizer`` that updates every coordinate on its own.
    lr : float or callable
        Learning rate; a callable gives that of an epoch, counted from 0.
    params : dict
        Other settings (momentum, weight_decay, betas, ...).
    """

    cls: Callable[..., torch.optim.Optimizer]
    lr: LearningRate
    params: dict[str, Any] = field(default_factory=dict)

    def lr_at(self, epoch: int) -> float:
        return float(self.lr(epoch)) if callable(self.lr) else float(self.lr)

    def build(self, stack: Tensor) -> torch.optim.Optimizer:
        """The optimiser over a stack of parameters, in its fused form where there is one."""
        params = dict(self.params)
        if "fused" in inspect.signature(self.cls).parameters and stack.is_floating_point():
            params.setdefault("fused", True)
        return self.cls([stack], lr=self.lr_at(0), **params)

    def describe(self) -> dict[str, Any]:
        """What identifies the optimiser in a fingerprint."""
        lr = [self.lr_at(e) for e in range(8)] if callable(self.lr) else self.lr
        return {
            "optimizer": getattr(self.cls, "__qualname__", repr(self.cls)),
            "lr": lr,
            **{k: repr(v) for k, v in sorted(self.params.items())},
        }


def resolve_optimizer(
    optimizer: str | type[torch.optim.Optimizer] | None,
    lr: LearningRate | None,
    params: dict[str, Any] | None,
    recipe: Recipe,
) -> OptimizerSpec:
    """The optimiser asked for; what is None is the model's own.

    Settings of the model's own optimiser (momentum, weight decay, ...) are kept only if the
    optimiser is the model's own too. A model that has none gets SGD with learning rate 0.01.

    Raises
    ------
    ValueError
        If the name is unknown, a setting is not one of the optimiser's, or the optimiser mixes
        coordinates and so would mix the models of a stack.
    """
    if optimizer is None and recipe.obstacle is not None:
        raise ValueError(
            f"optimizer must be given for this model: {recipe.obstacle}, which further training "
            "cannot repeat. Choose one, for example optimizer='SGD' with lr."
        )
    own = recipe.optimizer if recipe.optimizer is not None else "SGD"
    chosen = own if optimizer is None else optimizer
    if isinstance(chosen, str):
        name = chosen
        chosen = getattr(torch.optim, name, None)
        if not (inspect.isclass(chosen) and issubclass(chosen, torch.optim.Optimizer)):
            raise ValueError(
                f"optimizer must be a torch.optim class or its name ('SGD', 'Adam', ...), got {name!r}."
            )
    if not (inspect.isclass(chosen) and issubclass(chosen, torch.optim.Optimizer)):
        raise ValueError(f"optimizer must be a torch.optim class or its name, got {chosen!r}.")
    same = chosen is own or chosen is getattr(torch.optim, str(own), None)
    settings = {**(recipe.params if same else {}), **(params or {})}
    allowed = inspect.signature(chosen).parameters
    unknown = sorted(set(settings) - set(allowed))
    if unknown:
        raise ValueError(
            f"optimizer_params has {unknown}, which {chosen.__name__} does not take; it takes "
            f"{sorted(set(allowed) - {'params', 'lr'})}."
        )
    if lr is None:
        lr = recipe.lr if same and recipe.lr is not None else DEFAULT_LR
    spec = OptimizerSpec(chosen, lr, settings)
    rate = spec.lr_at(0)
    if not rate > 0:
        raise ValueError(f"lr must be positive, got {rate}.")
    if not acts_elementwise(spec):
        raise ValueError(
            f"optimizer {chosen.__name__} mixes coordinates, so models trained as one stack would "
            "disturb each other. Use one that updates every coordinate on its own: SGD, Adam, "
            "AdamW, RMSprop, Adagrad, ..."
        )
    return spec


def acts_elementwise(spec: OptimizerSpec) -> bool:
    """Whether each coordinate's update depends on that coordinate alone, found by trying.

    Three steps on a stack of two vectors must equal three steps on each vector by itself.
    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    gradients = torch.randn(3, 2, 3, generator=generator, dtype=torch.float64)

    def run(rows: slice) -> Tensor:
        stack = start[rows].clone().requires_grad_()
        optimizer = spec.build(stack)
        for gradient in gradients:
            stack.grad = gradient[rows].clone()
            optimizer.step()
        return stack.detach()

    spec.build(start.clone().requires_grad_())  # a bad setting is the optimiser's own error
    try:
        together = run(slice(0, 2))
        apart = torch.cat([run(slice(0, 1)), run(slice(1, 2))])
    except (TypeError, RuntimeError):  # wants a closure, sparse gradients, ...
        return False
    return bool(torch.allclose(together, apart, rtol=1e-10, atol=1e-12))
