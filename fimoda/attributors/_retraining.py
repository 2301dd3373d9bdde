"""Methods that train the model again from scratch, on parts of its rows."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .._identity import identity_of
from .._validation import (
    POSITIVE_INTEGER,
    POSITIVE_REAL,
    StrOptions,
    check_random_state,
    check_seeds,
)
from ..adapters import (
    RefittableModel,
    as_refittable,
    has_earlier_steps,
    initial_parameters,
    is_network,
    last_step,
    own_training,
    part_to_refit,
    trained_in_stacks,
    training_epochs,
)
from ..measured import Measured
from ..measurements import Measurement, values
from ..model import FinalModel
from ..rows import RawRows
from ..training.optimizers import LearningRate
from ..training.refits import UNIT_SIZE, Refits
from ..training.run import Run
from ..training.store import UnitStore, one_warning
from ..training.subset_outcomes import SubsetOutcomes, assemble_subsets
from ..training.subsets import StackedRetraining, SubsetUnit
from ..training.workers import Result, run_units
from ._further_training import BaseFurtherTraining

Retraining = StackedRetraining | Refits

#: Parameters to leave alone where a model is trained again by a ``fit`` of its own.
OF_NETWORKS = (
    "n_epochs",
    "optimizer",
    "lr",
    "batch_size",
    "optimizer_params",
    "init",
    "criterion",
)


class BaseRetraining(BaseFurtherTraining):
    """Base of the methods that retrain: `fit` trains on subsets, `transform` measures the models.

    A subclass says which subsets (`_subsets`) and turns what was measured into scores
    (`_scores_of`).
    """

    _from_scratch = True
    _retrains = True

    @property
    def process(self) -> str:  # type: ignore[override]
        """What happens after a row is left out, and to which part of the model."""
        return training_anew(getattr(self, "estimator_", self.estimator), self.refit)

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseFurtherTraining._parameter_constraints,
        **BaseFurtherTraining._BUDGET_CONSTRAINTS,
        "n_epochs": [POSITIVE_INTEGER, None],
        "init": [callable, None],
        "refit": [StrOptions({"all", "last", "search"})],
        "compile": ["boolean", StrOptions({"auto"})],
        "checkpoint_dir": [str, os.PathLike, None],
        "max_seconds": [POSITIVE_REAL, None],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    }

    n_epochs: int | None

    def __init__(
        self,
        estimator: Any = None,
        *,
        n_epochs: int | None = None,
        n_seeds: int | Iterable[int] = 5,
        optimizer: str | type[torch.optim.Optimizer] | None = None,
        lr: LearningRate | None = None,
        batch_size: int | None = None,
        optimizer_params: dict[str, Any] | None = None,
        init: Callable[[], nn.Module] | None = None,
        refit: str = "all",
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        compile: bool | str = "auto",
        chunk_size: int | None = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        memory_budget: int = 2 * 2**30,
        max_seconds: float | None = None,
        random_state: Any = None,
        n_jobs: int | None = None,
        verbose: int = 0,
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
        self.init = init
        self.refit = refit
        self.compile = compile
        self.chunk_size = chunk_size
        self.checkpoint_dir = checkpoint_dir
        self.memory_budget = memory_budget
        self.max_seconds = max_seconds
        self.n_jobs = n_jobs
        self.verbose = verbose

    # ---- fit --------------------------------------------------------------------------------

    def _leaves_rows(self, estimator: Any) -> bool:
        return has_earlier_steps(estimator) or not trained_in_stacks(estimator, self.refit)

    def _hands_on_rows(self, estimator: Any) -> bool:
        return self._leaves_rows(estimator)

    @property
    def _in_stacks(self) -> bool:
        """Whether a network alone is trained again, and no estimator by its own ``fit``."""
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
        self._refuse_settings_of_networks()
        model = as_refittable(part_to_refit(self.estimator_, self.refit), X, y)
        model.require_predictable(X)
        return model

    def _prepare(self, X: Any, y: Any, sample_weight: Any) -> None:
        super()._prepare(X, y, sample_weight)
        numbers = not self.model_.loss.is_classifier
        if self._in_stacks or callable(self.measurement) or numbers:
            return
        measured = values(self._measure, self.model_.outputs(self._X), self._y)
        if not torch.isfinite(measured).all():
            raise ValueError(
                f"measurement={self.measurement!r} is not finite where a class has the probability 0 or "
                f"1, as {type(self.estimator_).__name__} gives. Use measurement='loss' or 'output'."
            )

    def _test(self, X: Any, y: Any) -> Measured:
        if isinstance(self.model_, RefittableModel):  # its complaints before those of this class
            self.model_.require_predictable(self._model_rows(X))
        return super()._test(X, y)

    def _fit(self) -> None:
        rng = check_random_state(self.random_state)
        self.subsets_ = self._subsets(rng)
        self.seeds_ = check_seeds(self.n_seeds, rng)
        self._way = self._retraining(self.seeds_)
        # fitted estimators are pickles, which a directory must not hold
        at_once = isinstance(self._way, Refits) and self.checkpoint_dir is not None
        self._n_planned = self._n_trained = len(self.subsets_) * len(self.seeds_)
        self._kept = None if at_once else self._train(self.subsets_, self.seeds_)
        if self._kept is not None:
            self._n_trained = sum(unit.n_models for unit in self._kept)
            trained = np.unique(np.concatenate([unit.members for unit in self._kept]))
            self._kept = {
                replace(unit, members=np.searchsorted(trained, unit.members)): kept
                for unit, kept in self._kept.items()
            }
            self._keep(trained)

    @abstractmethod
    def _subsets(self, random_state: np.random.RandomState) -> NDArray[np.bool_]:
        """Hook of `fit`: the subsets to train on, (M, n_train)."""

    def _order(self, subsets: NDArray[np.bool_]) -> tuple[NDArray[np.int64], int]:
        """Hook of `fit`: the order in which to train on subsets, and how many there have to be."""
        return np.arange(len(subsets)), len(subsets)

    def _keep(self, trained: NDArray[np.int64]) -> None:
        """Hook of `fit`: forget the subsets that there was no time for."""
        self.subsets_ = self.subsets_[trained]

    def _retraining(self, seeds: list[int]) -> Retraining:
        """How this model is trained on a subset."""
        if isinstance(self.model_, RefittableModel):
            X, y, weights = self._seen_rows
            part = part_to_refit(self.estimator_, self.refit)
            size = self.chunk_size or (UNIT_SIZE if self.max_seconds is None else 1)
            return Refits(part, self.model_, X, y, weights, size)
        steps = self._steps(seeds, None)

        def start(seed: int) -> Tensor:
            return initial_parameters(self.estimator_, self.model_, seed, self.init)

        shuffle = self.model_.recipe.shuffle
        run = Run(self._objective, steps.optimizer, steps.batch_size, shuffle=shuffle)
        epochs = training_epochs(self.estimator_, self.n_epochs)
        starts = {seed: start(seed) for seed in seeds}
        return StackedRetraining(run, epochs, starts, start(0), self.chunk_size)

    def _refuse_settings_of_networks(self) -> None:
        """Raise ValueError if a parameter is given that the estimator's own ``fit`` would not see."""
        given = [name for name in OF_NETWORKS if getattr(self, name) is not None]
        if self.compile is True:
            given.append("compile")
        if not given:
            return
        model = type(part_to_refit(self.estimator_, self.refit)).__name__
        instead = "Set it up as an estimator instead."
        if setting := own_training(last_step(self.estimator_)):
            instead = f"A network with {setting} is trained by nothing else."
        elif is_network(self.estimator_):
            instead = (
                "Set refit='last' to train its network alone, behind its earlier steps as they are."
            )
        raise ValueError(
            f"{', '.join(given)} must be left alone for {model}, which is trained again by its own "
            f"fit and not by steps of an optimiser. {instead}"
        )

    @one_warning()
    def _train(
        self, subsets: NDArray[np.bool_], seeds: list[int], measurer: Measured | None = None
    ) -> dict[SubsetUnit, Result]:
        """Train on all subsets; keep the models or, with a measurer, its readings of them."""
        way, variant = self._way, ""
        units = way.units(subsets, seeds)
        if isinstance(way, StackedRetraining):
            n_models = sum(unit.n_models for unit in units)
            compiled = way.run.compiles(self.compile, n_models, way.n_epochs)
            self._way = way = replace(way, run=replace(way.run, compile=compiled))
            variant = way.run.variant
        size = way.bytes_per_model if measurer is None else 8 * len(measurer)
        store = None
        if self.checkpoint_dir is None:
            self._require_memory(size, len(subsets), len(seeds))
        else:
            if measurer is not None:  # one directory holds what is measured on any test rows
                kept = identity_of(measurer.identity(self.n_outputs_))
                units = [replace(unit, measured=kept[:16]) for unit in units]
            store = UnitStore(self.checkpoint_dir, way.identity(), variant)
            store.require_space(size * sum(u.n_models for u in units if not store.has(u.key)))
        work = way.train if measurer is None else partial(_train_and_measure, way, measurer)
        n_required = 0
        if self.max_seconds is not None:
            units, n_required = self._in_order(units, subsets, seeds)
        found = dict(
            run_units(
                work,
                units,
                store=store,
                n_jobs=self.n_jobs,
                verbose=self.verbose,
                description="retraining",
                max_seconds=self.max_seconds,
                n_required=n_required,
            )
        )
        # the order of workers must not show
        return {unit: found[unit] for unit in units if unit in found}

    def _in_order(
        self, units: list[SubsetUnit], subsets: NDArray[np.bool_], seeds: list[int]
    ) -> tuple[list[SubsetUnit], int]:
        """The units as they are to be trained, and how many of them whatever the time."""
        order, n_needed = self._order(subsets)
        rank = np.argsort(order)
        place = {seed: k for k, seed in enumerate(seeds)}
        first = [(place[unit.seed], int(rank[unit.members].min())) for unit in units]
        sequence = sorted(range(len(units)), key=first.__getitem__)
        return [units[k] for k in sequence], sum(f[0] == 0 and f[1] < n_needed for f in first)

    def _require_memory(self, bytes_per_model: int, n_subsets: int, n_seeds: int) -> None:
        """Raise MemoryError if what is kept of all models would not fit."""
        needed = bytes_per_model * n_subsets * n_seeds
        if needed > self.memory_budget:
            raise MemoryError(
                f"{n_subsets} subsets x {n_seeds} seeds take {needed / 2**20:.0f} MiB, more than "
                f"memory_budget={self.memory_budget / 2**20:.0f} MiB. Set checkpoint_dir to keep "
                "them on disk, train on fewer subsets or seeds, or raise memory_budget."
            )

    # ---- transform --------------------------------------------------------------------------

    @one_warning()
    def _outcomes(self, measurer: Measured) -> SubsetOutcomes:
        """What the trained models measure."""
        if self._kept is None:
            readings = self._train(self.subsets_, self.seeds_, measurer)
        else:
            readings = {
                unit: self._way.measure(np.asarray(kept), measurer)
                for unit, kept in self._kept.items()
            }
        return assemble_subsets(self.subsets_, self.seeds_, readings)

    def _scores(self, test: Measured) -> NDArray[np.float64]:
        outcomes = self._outcomes(test)
        outcomes.require_some()
        scores, seen = self._scores_of(outcomes)
        self._seen.update(seen, failed_=outcomes.failed)
        self._require_scores(scores, outcomes)
        return scores

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

    @property
    def failed_(self) -> list[tuple[int, int, str]]:
        """Subset, seed and reason of each training that failed, as of the last transform."""
        return self._of_last_call("failed_")

    # ---- what `attribute` says --------------------------------------------------------------

    @classmethod
    def _known_parameters(cls) -> set[str]:
        return super()._known_parameters().difference(OF_NETWORKS)

    def _process(self) -> str:
        return self.process

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


def _train_and_measure(way: Retraining, measurer: Measured, unit: SubsetUnit) -> NDArray[Any]:
    return way.measure(way.train(unit), measurer)


def training_anew(estimator: Any, refit: str) -> str:
    """Return which part of an estimator is trained again, in words."""
    process = "training anew"
    if estimator is None or trained_in_stacks(estimator, refit):
        return process
    setting = own_training(last_step(estimator))
    process += f" by its own fit ({setting})" if setting else ""
    if refit == "last":
        alone = last_step(estimator) is estimator
        return (
            process if alone else f"{process}: its last step, {type(last_step(estimator)).__name__}"
        )
    part = estimator if refit == "search" else part_to_refit(estimator, refit)
    whole = "" if last_step(part) is part else f": the whole {type(part).__name__}"
    return f"{process}{whole}" + ", with its search" * (refit == "search")
