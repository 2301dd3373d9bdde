"""Methods that speak of the same further training: its parameters, and what they mean for a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from .._validation import POSITIVE_INTEGER, POSITIVE_REAL, check_seeds
from ..base import BaseAttributor
from ..last_call import of_last_call
from ..measurements import Measurement
from ..training.optimizers import (
    DEFAULT_BATCH_SIZE,
    LearningRate,
    OptimizerSpec,
    resolve_optimizer,
)


@dataclass(frozen=True)
class Steps:
    """The steps of further training.

    Parameters
    ----------
    optimizer : OptimizerSpec
        Optimiser with its learning rate and other settings.
    batch_size : int
        At most the number of training rows.
    seeds : list of int
        Seeds of the batch orders; the batches of each are those of a `LeaveOutPlan`.
    """

    optimizer: OptimizerSpec
    batch_size: int
    seeds: list[int]


class BaseFurtherTraining(BaseAttributor):
    """Base of the methods that train further, or say what further training would do.

    `_steps` gives what the parameters mean for the model and the training rows at hand.
    """

    process = "further training of the final model"

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseAttributor._parameter_constraints,
        "n_epochs": [POSITIVE_INTEGER],
        "n_seeds": [POSITIVE_INTEGER, "array-like"],
        "optimizer": [str, type, None],
        "lr": [POSITIVE_REAL, callable, None],
        "batch_size": [POSITIVE_INTEGER, None],
        "optimizer_params": [dict, None],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_epochs: int | Iterable[int] | None = 10,
        n_seeds: int | Iterable[int] | str = 10,
        optimizer: str | type[torch.optim.Optimizer] | None = None,
        lr: LearningRate | None = None,
        batch_size: int | None = None,
        optimizer_params: dict[str, Any] | None = None,
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        random_state: Any = None,
    ):
        super().__init__(
            estimator, measurement=measurement, criterion=criterion, random_state=random_state
        )
        self.n_epochs = n_epochs
        self.n_seeds = n_seeds
        self.optimizer = optimizer
        self.lr = lr
        self.batch_size = batch_size
        self.optimizer_params = optimizer_params

    def _steps(self, n_seeds: Any, random_state: Any) -> Steps:
        """Steps with `n_seeds` seeds (a number or a list); what is None is the model's own."""
        recipe = self.model_.recipe.continued
        batch_size = self.batch_size or recipe.batch_size or DEFAULT_BATCH_SIZE
        return Steps(
            resolve_optimizer(self.optimizer, self.lr, self.optimizer_params, recipe),
            min(batch_size, len(self._X)),
            check_seeds(n_seeds, random_state),
        )

    def _process(self) -> str:
        steps = self._steps(1, 0)
        spec = steps.optimizer
        recipe = self.model_.recipe
        own = self.lr is None and recipe.last_lr == spec.lr
        source = f" ({recipe.last_lr_from}; its training began with {recipe.lr:g})" if own else ""
        return (
            f"{self.process}: {self.n_epochs} epochs of {spec.name}, learning rate "
            f"{spec.lr_at(0):g}{source}, batches of {steps.batch_size}"
        )

    scores_sem_ = of_last_call(
        "scores_sem_",
        "Standard error over seeds of the scores last returned, (n_test, n_columns).",
    )

    def _n_runs(self) -> int:
        return len(self.seeds_)
