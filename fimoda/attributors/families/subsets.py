"""Methods that train the model again from scratch, on parts of its rows."""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..._validation import (
    POSITIVE_INTEGER,
    POSITIVE_REAL,
    check_random_state,
    check_seeds,
    check_subsets,
)
from ...adapters import RefittableModel
from ...last_call import of_last_call
from ...measured import Measured
from ...rows import Rows
from ...training.random_subsets import drawn_subsets, n_to_cover, require_both
from ...training.store import one_warning
from ...training.subset_outcomes import SubsetOutcomes, assemble_subsets
from .trained_again import BaseTrainedAgain

#: Parameters of the methods that train on random subsets.
OF_SUBSETS: dict[str, list[Any]] = {
    "n_subsets": [POSITIVE_INTEGER],
    "ratio": [POSITIVE_REAL],
    "subsets": ["array-like", None],
}


if TYPE_CHECKING:
    _TrainedAgain = BaseTrainedAgain
else:
    _TrainedAgain = object


class SubsetsMixin(_TrainedAgain):
    """Mixin of methods that train on subsets: `fit` does so, `transform` measures the models.

    A subclass turns what was measured into scores (`_scores_of`), and may say which subsets to train
    on (`_subsets`; random ones by default).
    """

    n_subsets: int
    ratio: float
    subsets: Any

    # ---- fit --------------------------------------------------------------------------------

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

    def _drawn(self) -> list[Any]:
        random = [self.n_subsets] if getattr(self, "subsets", ()) is None else []
        return super()._drawn() + random

    def _order(self, subsets: NDArray[np.bool_]) -> tuple[NDArray[np.int64], int]:
        """Hook of `fit`: return the order of subsets, and how many to train on whatever the time."""
        return np.arange(len(subsets)), n_to_cover(subsets)

    def _keep(self, trained: NDArray[np.int64]) -> None:
        """Hook of `fit`: forget the subsets that there was no time for."""
        self.subsets_ = self.subsets_[trained]

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

    # ---- what `attribute` says --------------------------------------------------------------

    def _known_error(self, scores: NDArray[np.float64]) -> list[str]:
        alone = ["one seed: with more, standard errors tell how random training is"]
        return super()._known_error(scores) or alone

    def _caveats(self) -> list[str]:
        cut = f"the time was over after {self._n_trained} of {self._n_planned} trainings"
        return super()._caveats() + [cut] * (self._n_trained < self._n_planned)

    # ---- transform, by subclasses -----------------------------------------------------------

    @abstractmethod
    def _scores_of(
        self, outcomes: SubsetOutcomes
    ) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
        """Hook of `transform`: scores (n_test, n_columns), and what is known beside them."""
