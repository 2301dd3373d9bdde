"""Training of several models with different seeds."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from torch import Tensor, nn

from .._validation import POSITIVE_INTEGER, check_random_state, check_seeds
from ..adapters import (
    initial_parameters,
    is_network,
    last_step,
    own_training,
    refit,
    training_epochs,
)
from ..measurements import Measurement
from ..model import FinalModel
from ..training.ensemble import Ensemble
from ..training.optimizers import LearningRate
from ..training.recording import Checkpoints, record
from ..training.run import Run
from ..trajectory import Trajectory
from ._further_training import BaseFurtherTraining


class BaseEnsembleTraining(BaseFurtherTraining):
    """Base of what trains the model again, as it was trained, with other seeds (`_trained`)."""

    _from_scratch = True

    n_epochs: int | None

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseFurtherTraining._parameter_constraints,
        "n_epochs": [POSITIVE_INTEGER, None],
        "checkpoints": [POSITIVE_INTEGER, str, "array-like"],
        "init": [callable, None],
        "n_jobs": [Integral, None],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_seeds: int | Iterable[int] = 5,
        checkpoints: Checkpoints = 6,
        n_epochs: int | None = None,
        optimizer: str | type[torch.optim.Optimizer] | None = None,
        lr: LearningRate | None = None,
        batch_size: int | None = None,
        optimizer_params: dict[str, Any] | None = None,
        init: Callable[[], nn.Module] | None = None,
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        random_state: Any = None,
        n_jobs: int | None = None,
    ):
        super().__init__(
            estimator,
            n_epochs=n_epochs,
            n_seeds=n_seeds,
            optimizer=optimizer,
            lr=lr,
            batch_size=batch_size,
            optimizer_params=optimizer_params,
            measurement=measurement,
            criterion=criterion,
            random_state=random_state,
        )
        self.checkpoints = checkpoints
        self.init = init
        self.n_jobs = n_jobs

    def _freeze(
        self, X: NDArray[Any], y: NDArray[Any], sample_weight: NDArray[np.float64] | None
    ) -> FinalModel:
        self._seen_rows = (X, y, sample_weight)
        return super()._freeze(X, y, sample_weight)

    def _trained(
        self, start: Ensemble | None, directory: str | os.PathLike[str] | None = None
    ) -> Ensemble:
        """Models trained from scratch, or from those of `start` as a stage that comes next."""
        if directory is not None and not os.fspath(directory):
            raise ValueError("directory must be the path of a directory, got ''.")
        if start is None:
            seeds = check_seeds(self.n_seeds, check_random_state(self.random_state))
        else:
            seeds = start.seeds
        if not is_network(self.estimator_):
            X, y, weights = self._seen_rows
            model = last_step(self.estimator_)
            return Ensemble([refit(model, X, y, weights, seed) for seed in seeds], [], seeds)
        if setting := own_training(last_step(self.estimator_)):
            warnings.warn(
                f"{type(last_step(self.estimator_)).__name__} has {setting}, which the recorded trainings "
                "do not repeat: they go through all rows, with one learning rate (lr) and for a fixed "
                "number of epochs (n_epochs).",
                UserWarning,
                stacklevel=3,
            )
        steps = self._steps(seeds, None)
        shuffle = self.model_.recipe.shuffle
        run = Run(self._objective, steps.optimizer, steps.batch_size, shuffle=shuffle)
        epochs = training_epochs(self.estimator_, self.n_epochs)
        folder = None if directory is None else Path(directory)
        befores: list[Trajectory | None]
        if start is None:
            points: list[Tensor] = [
                initial_parameters(self.estimator_, self.model_, seed, self.init) for seed in seeds
            ]
            befores = [None] * len(seeds)
        else:
            points = [model.theta for model in start.models]
            befores = list(start.trajectories)
        done = Parallel(n_jobs=self.n_jobs)(
            delayed(record)(
                replace(run, start=point), seed, epochs, self.checkpoints, folder, stage
            )
            for seed, point, stage in zip(seeds, points, befores, strict=True)
        )
        models = [self.model_.at(theta) for theta, _ in done]
        return Ensemble(models, [recorded for _, recorded in done], seeds)
