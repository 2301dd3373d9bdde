"""Methods that train the model again from scratch: its parameters, and the way it is trained."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import nn

from ..._validation import (
    POSITIVE_INTEGER,
    POSITIVE_REAL,
    StrOptions,
    check_random_state,
    check_seeds,
    warn_of_seeds,
)
from ...adapters import (
    RefittableModel,
    initial_parameters,
    part_to_refit,
    training_epochs,
)
from ...base import BaseAttributor
from ...batch_statistics import BATCH_STATISTICS, BatchStatistics
from ...last_call import of_last_call
from ...training.optimizers import LearningRate
from ...training.refits import (
    OF_NETWORKS,
    UNIT_SIZE,
    Refits,
    refuse_settings_of_networks,
    training_anew,
)
from ...training.retraining import Retraining, SubsetTrainer
from ...training.run import WAYS, Way, resolve_run
from ...training.subsets import StackedRetraining
from ...views import View, refitted_view


class BaseTrainedAgain(BaseAttributor):
    """Base of the methods that train the model again: `_retrained_with` some seeds.

    A network alone is trained as a stack, any other estimator by its own ``fit``. A subclass says on which
    rows, and what becomes of it (`_fit` and `_scores`).
    """

    _retrains = True

    @property
    def process(self) -> str:  # type: ignore[override]
        """The training that follows when a row is left out, and the part of the model that it is of."""
        return training_anew(getattr(self, "estimator_", self.estimator), self.refit)

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseAttributor._parameter_constraints,
        **BaseAttributor._BUDGET_CONSTRAINTS,
        "n_epochs": [POSITIVE_INTEGER, None],
        "n_seeds": [POSITIVE_INTEGER, "array-like"],
        "optimizer": [str, type, None],
        "lr": [POSITIVE_REAL, callable, None],
        "batch_size": [POSITIVE_INTEGER, None],
        "optimizer_params": [dict, None],
        "init": [callable, None],
        "refit": [StrOptions({"all", "last", "search"})],
        "batch_statistics": [StrOptions(set(BATCH_STATISTICS))],
        "compile": ["boolean", StrOptions({"auto"})],
        "engine": [StrOptions(set(WAYS))],
        "checkpoint_dir": [str, os.PathLike, None],
        "max_seconds": [POSITIVE_REAL, None],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    }

    n_epochs: int | None
    n_seeds: int | Iterable[int]
    optimizer: str | type[torch.optim.Optimizer] | None
    lr: LearningRate | None
    batch_size: int | None
    optimizer_params: dict[str, Any] | None
    init: Callable[[], nn.Module] | None
    refit: str
    batch_statistics: BatchStatistics
    compile: bool | str
    engine: Way
    chunk_size: int | None
    checkpoint_dir: str | os.PathLike[str] | None
    memory_budget: int
    max_seconds: float | None
    n_jobs: int | None
    verbose: int

    # ---- the model --------------------------------------------------------------------------

    def _view(self, estimator: Any) -> View:
        return refitted_view(estimator, self.refit)

    @property
    def _in_stacks(self) -> bool:
        """True if a network alone is trained again, and no estimator by its own ``fit``."""
        return not isinstance(self.model_, RefittableModel)

    def _prepare(self, X: Any, y: Any, sample_weight: Any) -> None:
        super()._prepare(X, y, sample_weight)
        if not self._in_stacks:
            refuse_settings_of_networks(self, self.estimator_, self.refit)

    # ---- training ---------------------------------------------------------------------------

    def _retrained_with(self, seeds: list[int]) -> Retraining:
        """Return how this model is trained on a subset."""
        warn_of_seeds(self.checkpoint_dir, self._drawn(), self.random_state)
        way: StackedRetraining | Refits
        if isinstance(self.model_, RefittableModel):
            X, y, weights = self._seen_rows
            part = part_to_refit(self.estimator_, self.refit)
            size = self.chunk_size or (UNIT_SIZE if self.max_seconds is None else 1)
            way = Refits(part, self.model_, X, y, weights, size)
        else:
            recipe = self.model_.recipe
            run = resolve_run(
                self._objective,
                recipe,
                self.optimizer,
                self.lr,
                self.optimizer_params,
                self.batch_size,
                self.batch_statistics,
            )
            probe, *starts = (
                initial_parameters(self.estimator_, run.model, seed, self.init)
                for seed in (0, *seeds)
            )
            way = StackedRetraining(
                replace(run, shuffle=recipe.shuffle),
                training_epochs(self.estimator_, self.n_epochs),
                dict(zip(seeds, starts, strict=True)),
                probe,
                self.chunk_size,
            )
        return Retraining(
            way,
            seeds,
            self.n_outputs_,
            self.compile,
            self.engine,
            self.checkpoint_dir,
            self.memory_budget,
            self.max_seconds,
            self.n_jobs,
            self.verbose,
        )

    def _drawn(self) -> list[Any]:
        """Return what is drawn where it is a number: seeds, and rows to leave out."""
        return [self.n_seeds, getattr(self, "leave_out", None)]

    def trainer(
        self, X: Any, y: Any, X_test: Any, y_test: Any, sample_weight: Any = None
    ) -> SubsetTrainer:
        """Return what trains this model on subsets of rows X and measures test rows; needs no `fit`."""
        self._validate_params()
        self._prepare(X, y, sample_weight)
        seeds = check_seeds(self.n_seeds, check_random_state(self.random_state))
        retraining = self._retrained_with(seeds)
        return SubsetTrainer(retraining, self._test(X_test, y_test), len(self._objective))

    failed_ = of_last_call(
        "failed_", "Subset, seed and reason of each training that failed, as of the last transform."
    )

    # ---- what `attribute` says --------------------------------------------------------------

    @classmethod
    def _known_parameters(cls) -> set[str]:
        return super()._known_parameters().difference(OF_NETWORKS)

    def _n_runs(self) -> int:
        return len(self.seeds_)

    def _caveats(self) -> list[str]:
        return super()._caveats() if self._in_stacks or self.refit == "last" else []

    def _rebalances(self) -> bool:
        return not self._in_stacks
