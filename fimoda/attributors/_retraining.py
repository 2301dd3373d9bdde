"""Methods that train the model again from scratch, on parts of its rows."""

from __future__ import annotations

import copy
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .._validation import (
    POSITIVE_INTEGER,
    POSITIVE_REAL,
    StrOptions,
    check_random_state,
    check_seeds,
    check_subsets,
)
from ..adapters import (
    RefittableModel,
    as_refittable,
    has_earlier_steps,
    initial_parameters,
    part_to_refit,
    trained_in_stacks,
    training_epochs,
)
from ..base import BaseAttributor
from ..batch_statistics import BATCH_STATISTICS, BatchStatistics
from ..last_call import of_last_call
from ..measured import Measured
from ..model import FinalModel
from ..rows import RawRows, Rows
from ..training.optimizers import LearningRate
from ..training.random_subsets import drawn_subsets, n_to_cover, require_both
from ..training.refits import (
    OF_NETWORKS,
    UNIT_SIZE,
    Refits,
    refuse_settings_of_networks,
    require_finite,
    training_anew,
)
from ..training.retraining import Retraining, SubsetTrainer
from ..training.run import WAYS, Way, resolve_run
from ..training.store import one_warning
from ..training.subset_outcomes import SubsetOutcomes, assemble_subsets
from ..training.subsets import StackedRetraining

#: Parameters of the methods that train on random subsets.
OF_SUBSETS: dict[str, list[Any]] = {
    "n_subsets": [POSITIVE_INTEGER],
    "ratio": [POSITIVE_REAL],
    "subsets": ["array-like", None],
}


class BaseRetraining(BaseAttributor):
    """Base of the methods that retrain: `fit` trains on subsets, `transform` measures the models.

    A subclass turns what was measured into scores (`_scores_of`), and may say which subsets to train
    on (`_subsets`; random ones by default).
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
    n_subsets: int
    ratio: float
    subsets: Any

    # ---- fit --------------------------------------------------------------------------------

    def _leaves_rows(self, estimator: Any) -> bool:
        return has_earlier_steps(estimator) or not trained_in_stacks(estimator, self.refit)

    def _hands_on_rows(self, estimator: Any) -> bool:
        return self._leaves_rows(estimator)

    @property
    def _in_stacks(self) -> bool:
        """True if a network alone is trained again, and no estimator by its own ``fit``."""
        return trained_in_stacks(self.estimator_, self.refit)

    def _model_rows(self, X: Any, y: NDArray[Any] | None = None) -> Any:
        if self._in_stacks:
            return super()._model_rows(X, y)
        return RawRows(self._seen_by_model(X, y) if self.refit == "last" else X)

    def _check_columns(self, X: Any) -> None:
        if self._in_stacks:  # what is fitted again is asked to predict, whatever it overrides
            super()._check_columns(X)

    def _model_targets(self, y: NDArray[Any]) -> NDArray[Any]:
        return super()._model_targets(y) if self._in_stacks or self.refit == "last" else y

    def _freeze(
        self, X: Any, y: NDArray[Any], sample_weight: NDArray[np.float64] | None
    ) -> FinalModel:
        self._seen_rows = (X, y, sample_weight)
        if self._in_stacks:
            return super()._freeze(X, y, sample_weight)
        refuse_settings_of_networks(self, self.estimator_, self.refit)
        model = as_refittable(part_to_refit(self.estimator_, self.refit), X, y)
        model.require_predictable(X)
        return model

    def _prepare(self, X: Any, y: Any, sample_weight: Any) -> None:
        super()._prepare(X, y, sample_weight)
        if not self._in_stacks:
            require_finite(self, self._objective, self._measure)

    def _test(self, X: Any, y: Any) -> Measured:
        if isinstance(self.model_, RefittableModel):  # its complaints before those of this class
            self.model_.require_predictable(self._model_rows(X))
        return super()._test(X, y)

    def _fit(self) -> None:
        rng = check_random_state(self.random_state)
        self.subsets_ = self._subsets(rng)
        self.seeds_ = check_seeds(self.n_seeds, rng)
        self._retraining = self._retrained_with(self.seeds_)
        self._n_planned = self._n_trained = len(self.subsets_) * len(self.seeds_)
        self._kept = None
        if self._retraining.keeps_models:
            kept = self._retraining.train(self.subsets_, None, *self._order(self.subsets_))
            self._n_trained = sum(unit.n_models for unit in kept)
            trained = np.unique(np.concatenate([unit.members for unit in kept]))
            self._kept = {
                replace(unit, members=np.searchsorted(trained, unit.members)): models
                for unit, models in kept.items()
            }
            self._keep(trained)

    def _subsets(self, random_state: np.random.RandomState) -> NDArray[np.bool_]:
        """Hook of `fit`: return the subsets (M, n_train) to train on; these are random ones."""
        n, cover = len(self._objective), self.max_seconds is not None
        if self.subsets is None:
            subsets = drawn_subsets(n, self.n_subsets, self.ratio, random_state, cover)
        else:
            subsets = check_subsets(self.subsets, n)
        require_both(subsets)
        return subsets

    def _order(self, subsets: NDArray[np.bool_]) -> tuple[NDArray[np.int64], int]:
        """Hook of `fit`: return the order of subsets, and how many to train on whatever the time."""
        return np.arange(len(subsets)), n_to_cover(subsets)

    def _keep(self, trained: NDArray[np.int64]) -> None:
        """Hook of `fit`: forget the subsets that there was no time for."""
        self.subsets_ = self.subsets_[trained]

    def _retrained_with(self, seeds: list[int]) -> Retraining:
        """Return how this model is trained on a subset."""
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

    def trainer(
        self, X: Any, y: Any, X_test: Any, y_test: Any, sample_weight: Any = None
    ) -> SubsetTrainer:
        """Return what trains this model on subsets of rows X and measures test rows; needs no `fit`."""
        self._validate_params()
        self._prepare(X, y, sample_weight)
        seeds = check_seeds(self.n_seeds, check_random_state(self.random_state))
        retraining = self._retrained_with(seeds)
        return SubsetTrainer(retraining, self._test(X_test, y_test), len(self._objective))

    # ---- transform --------------------------------------------------------------------------

    @one_warning()
    def _outcomes(self, test: Measured) -> SubsetOutcomes:
        """Return what the trained models measure."""
        if self._kept is None:
            order = self._order(self.subsets_)
            readings = self._retraining.train(self.subsets_, test, *order)
        else:
            readings = self._retraining.measure(self._kept, test)
        return assemble_subsets(self.subsets_, self.seeds_, readings)

    def _scores(self, test: Measured) -> NDArray[np.float64]:
        outcomes = self._outcomes(test)
        outcomes.require_some()
        scores, seen = self._scores_of(outcomes)
        self._seen.update(seen, failed_=outcomes.failed)
        self._require_scores(scores, outcomes)
        return scores

    def _scores_of_others(self, outcomes: SubsetOutcomes) -> NDArray[np.float64]:
        """Return scores (n_test, n_train) from models that were trained elsewhere."""
        self._validate_params()
        require_both(outcomes.subsets)
        return self._finite(self._scores_of(outcomes)[0])

    def _self_influence(self) -> NDArray[np.float64]:
        if self._kept is not None:
            return super()._self_influence()
        rows = self.train_indices_  # all at once, since each call trains
        return np.diagonal(self._scores(self._own[rows])).copy()

    def _require_scores(self, scores: NDArray[np.float64], outcomes: SubsetOutcomes) -> None:
        """Raise FloatingPointError if trainings failed and a row has no score for it."""
        if outcomes.failed and not np.isfinite(scores).all():
            subset, seed, reason = outcomes.failed[0]
            raise FloatingPointError(
                f"{len(outcomes.failed)} of {outcomes.n_trained} models failed, too many for scores of "
                f"all rows. The first is that of subset {subset} with seed {seed}: {reason}."
            )
        if self.max_seconds is not None and not np.isfinite(scores).all():
            raise FloatingPointError(
                f"max_seconds={self.max_seconds} were over before every row had a score. Call transform "
                "again to go on from what checkpoint_dir holds, or raise max_seconds."
            )

    # ---- groups and targets -----------------------------------------------------------------

    def _group_methods(self) -> tuple[str, ...]:
        return "first-order", "exact"

    def _without(
        self, test: Measured, groups: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        subsets = np.concatenate([np.ones((1, groups.shape[1]), dtype=bool), ~groups])
        return self._retraining.differences(subsets, test)

    def _relabelled(
        self, test: Measured, rows: NDArray[np.int64], targets: NDArray[Any]
    ) -> NDArray[np.float64]:
        """Train on the other rows and a copy of the row that has the new target."""
        n = len(self._objective)
        both = np.append(np.arange(n), rows)
        own, changed = copy.copy(self), self._with_targets(rows, targets)[1].rows
        known = self._objective.rows
        weights = None
        if known.weights is not None and changed.weights is not None:
            weights = torch.cat([known.weights, changed.weights])
        encoded = torch.cat([known.targets, changed.targets.to(known.targets)])
        own._objective = self._objective.of_rows(Rows(known.inputs[both], encoded, weights))
        if isinstance(self.model_, RefittableModel):
            X, y, given = self._seen_rows
            y = np.concatenate([y, np.asarray(targets).astype(y.dtype)])
            own._seen_rows = X[both], y, None if given is None else given[both]
        subsets = np.zeros((len(rows) + 1, len(both)), dtype=bool)
        subsets[:, :n] = True
        subsets[np.arange(1, len(subsets)), rows] = False
        subsets[1:, n:] = np.eye(len(rows), dtype=bool)
        retraining = replace(own._retrained_with(self.seeds_), checkpoint_dir=None)
        return retraining.differences(subsets, test)[0]

    scores_sem_ = of_last_call(
        "scores_sem_",
        "Standard error over seeds of the scores last returned, (n_test, n_columns).",
    )
    failed_ = of_last_call(
        "failed_", "Subset, seed and reason of each training that failed, as of the last transform."
    )

    # ---- what `attribute` says --------------------------------------------------------------

    @classmethod
    def _known_parameters(cls) -> set[str]:
        return super()._known_parameters().difference(OF_NETWORKS)

    def _n_runs(self) -> int:
        return len(self.seeds_)

    def _known_error(self, scores: NDArray[np.float64]) -> list[str]:
        alone = ["one seed: with more, standard errors tell how random training is"]
        return super()._known_error(scores) or alone

    def _rebalances(self) -> bool:
        return not self._in_stacks

    def _caveats(self) -> list[str]:
        in_part = self._in_stacks or self.refit == "last"
        cut = f"the time was over after {self._n_trained} of {self._n_planned} trainings"
        return super()._caveats() * in_part + [cut] * (self._n_trained < self._n_planned)

    # ---- transform, by subclasses -----------------------------------------------------------

    @abstractmethod
    def _scores_of(
        self, outcomes: SubsetOutcomes
    ) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
        """Hook of `transform`: scores (n_test, n_columns), and what is known beside them."""
