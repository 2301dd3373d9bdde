"""Methods that speak of the same further training: its parameters, and what they mean for a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import nn

from .._validation import POSITIVE_INTEGER, POSITIVE_REAL
from ..base import BaseAttributor
from ..last_call import of_last_call
from ..measurements import Measurement
from ..training.optimizers import LearningRate
from ..training.run import Run, resolve_run


class BaseFurtherTraining(BaseAttributor):
    """Base of the methods that train further, or say what further training would do.

    `_run` gives what the parameters mean for the model and the training rows at hand.
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

    def _run(self) -> Run:
        """Return the run that the parameters ask for; what is None is the model's own."""
        chosen = self.optimizer, self.lr, self.optimizer_params, self.batch_size
        return resolve_run(self._objective, self.model_.recipe.continued, *chosen)

    def _process(self) -> str:
        run, recipe = self._run(), self.model_.recipe
        spec = run.optimizer
        own = self.lr is None and recipe.last_lr == spec.lr
        source = f" ({recipe.last_lr_from}; its training began with {recipe.lr:g})" if own else ""
        return (
            f"{self.process}: {self.n_epochs} epochs of {spec.name}, learning rate "
            f"{spec.lr_at(0):g}{source}, batches of {run.batch_size}"
        )

    scores_sem_ = of_last_call(
        "scores_sem_",
        "Standard error over seeds of the scores last returned, (n_test, n_columns).",
    )

    def _n_runs(self) -> int:
        return len(self.seeds_)
