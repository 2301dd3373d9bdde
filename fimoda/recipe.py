"""The recipe of a model: its training, as far as it says so itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """The training that a model has had: what further training uses unless told otherwise.

    ``None`` stands for "the model does not say"; `solved` says that a solver has found the minimum of
    the (convex) objective, where no entry of the gradient of the mean is larger than `tolerance`;
    `stopped_early` that it ran out of iterations before.
    Training from scratch takes the rows in a new order in each epoch, or without `shuffle` in their own.
    `beside` is what was done to steps beside the settings `params` of the optimiser, such as
    ``{"max_grad_norm": 1.0}``.
    Training began with the learning rate `lr`; where it ended with another, that is `last_lr`, and
    `last_lr_from` says who knows it.
    """

    optimizer: Any = None
    lr: float | None = None
    batch_size: int | None = None
    params: dict[str, Any] = field(default_factory=dict)
    beside: dict[str, Any] = field(default_factory=dict)
    shuffle: bool = True
    obstacle: str | None = None
    solved: bool = False
    tolerance: float = 0.0
    stopped_early: bool = False
    last_lr: float | None = None
    last_lr_from: str = ""

    @property
    def unseen(self) -> str | None:
        """In words, the part of its steps of which the optimiser's class and settings do not tell."""
        return self.obstacle or in_words(self.beside)

    @property
    def continued(self) -> Recipe:
        """The recipe of a training that goes on where this one ended.

        The learning rates of parameter groups have followed that of the other parameters.
        """
        if self.last_lr is None:
            return self
        beside = dict(self.beside)
        if "param_groups" in beside and self.lr is not None:
            factor = self.last_lr / self.lr
            beside["param_groups"] = [
                (pattern, {k: v * factor if k == "lr" else v for k, v in settings.items()})
                for pattern, settings in beside["param_groups"]
            ]
        return replace(self, lr=self.last_lr, beside=beside)


#: What may be done to steps beside the settings of an optimiser.
_BESIDE = {
    "max_grad_norm": "its gradients were clipped by their norm",
    "max_grad_value": "its gradients were clipped",
    "param_groups": "it has parameter groups with settings of their own",
}


def in_words(settings: Mapping[str, Any]) -> str | None:
    """Return what was done to steps beside the settings of an optimiser, the first of it, in words."""
    return next((words for name, words in _BESIDE.items() if name in settings), None)


@dataclass(frozen=True)
class Weighting:
    """The weights of rows in the training objective, as far as the removal of one changes them.

    Parameters
    ----------
    total : {"mean", "rows", "sum"}
        The objective is a mean of losses by weight, a sum of weighted losses divided by the number
        of rows, or such a sum alone; with the penalty beside it, which stays as it is.
    balanced : {"weights", "rows"} or None
        Whether classes are balanced by the weight or by the number of their rows, so that the class
        weights change with the rows.
    """

    total: str = "mean"
    balanced: str | None = None
