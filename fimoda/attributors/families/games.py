"""Methods that ask what a row is worth: values of a game between the training rows."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..._arrays import n_rows
from ..._validation import (
    MAX_SEED,
    POSITIVE_INTEGER,
    FitFailedWarning,
    StrOptions,
    check_is_fitted,
    check_random_state,
    check_seeds,
    check_targets,
)
from ...adapters import RefittableModel
from ...games.constant import constant_outputs
from ...games.estimates import Estimate, settled, with_mean
from ...games.exact import all_subsets
from ...games.scoring import Scoring, as_scorer, scored
from ...games.utility import Utility
from ...games.ways import fast_way
from ...gradient_mode import with_gradients
from ...last_call import of_last_call
from ...measured import Measured
from ...training.store import one_warning
from .trained_again import BaseTrainedAgain

#: Beginning of the reasons for which small sets of rows have no model: classes are missing, or neighbours.
TOO_FEW = "its rows "


if TYPE_CHECKING:
    _TrainedAgain = BaseTrainedAgain
else:
    _TrainedAgain = object


class GameMixin(_TrainedAgain):
    """Mixin of methods that train on sets of the rows while `transform` runs, and value each row.

    A subclass says how values follow from the utilities of all sets (`_exactly`), and of some
    (`_sampled`).
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **{k: v for k, v in BaseTrainedAgain._parameter_constraints.items() if k != "max_seconds"},
        "n_samples": [POSITIVE_INTEGER, StrOptions({"auto", "exact"})],
        "scoring": [str, callable, None],
    }

    intervention = "each training row added to sets of the others"
    _in_unit = False

    max_seconds: float | None = None
    n_samples: int | str
    scoring: Scoring | None

    # ---- fit --------------------------------------------------------------------------------

    def _fit(self) -> None:
        n = len(self._objective)
        if n < 2:
            raise ValueError(f"X must have at least 2 rows to share a value, got n_samples = {n}.")
        if self.n_samples == "exact":
            all_subsets(n)
        if self.scoring is not None:
            as_scorer(self.scoring)
        rng = check_random_state(self.random_state)
        self.seeds_ = check_seeds(self.n_seeds, rng)
        self._seed_of_samples = int(rng.randint(MAX_SEED))
        retraining = self._retrained_with(self.seeds_)
        way = fast_way(retraining.way, self.n_outputs_)
        # without max_seconds, since each set needs its utility
        self._retraining = replace(retraining, way=way, max_seconds=None)
        rows = self._objective.rows
        self._without_rows = constant_outputs(
            self.model_.loss, rows.targets, rows.shares, self.n_outputs_
        )

    # ---- transform --------------------------------------------------------------------------

    @with_gradients
    def values(self, X: Any, y: Any = None) -> NDArray[np.float64]:
        """Return the value of each training row for all test rows together.

        It is the row's part in ``scoring`` of the whole test set, positive where the row helps; without
        `scoring` it is the mean of the scores of `transform` over the test rows.

        Parameters
        ----------
        X : array-like of shape (n_test, n_features) or (n_test, ...)
            Test rows, made as those of `fit`.
        y : array-like of shape (n_test,), default=None
            Their targets, which `scoring` needs.

        Returns
        -------
        values : ndarray of shape (n_train,)
            In the unit of the score, and kept in ``values_`` with standard errors ``values_sem_``.
        """
        check_is_fitted(self, "model_")
        test = self._test(X, y)
        if self.scoring is None:
            return self._finite(self._solve(self._utility(test)).total)
        if y is None:
            raise ValueError("y must be given to values: scoring is a score of predictions.")
        targets = self._model_targets(check_targets(y, n_rows(X)))
        whole = scored(self.model_, self.scoring, test.rows, X, targets)
        score = float(whole.measure(self.model_.outputs(test.inputs), test.targets)[0])
        if not np.isfinite(score):
            raise ValueError(
                f"scoring={self.scoring!r} is not defined for these test rows: that of the model is {score}. "
                "Some scores need test rows of every class."
            )
        return self._finite(self._solve(self._utility(whole, 1.0, as_one=True)).total)

    def _scores(self, test: Measured) -> NDArray[np.float64]:
        return self._solve(self._utility(test)).mean

    def _self_influence(self) -> NDArray[np.float64]:
        return np.diagonal(self._scores(self._own)).copy()  # all at once, since each call trains

    def _utility(self, test: Measured, sign: float = -1.0, as_one: bool = False) -> Utility:
        """Return the utility of sets of rows for test rows."""
        return Utility(
            self._retraining,
            test,
            self._without_rows,
            len(self._objective),
            isinstance(self.model_, RefittableModel),
            sign,
            as_one,
        )

    @one_warning()
    def _solve(self, utility: Utility) -> Estimate:
        """Return the values, and remember what is known of them."""
        if self.n_samples == "exact":
            sets = all_subsets(utility.n_rows)
            values = self._exactly(with_mean(utility(sets)))
            found = Estimate.of(values, np.zeros_like(values), len(sets))
        else:
            found = self._sampled(utility, check_random_state(self._seed_of_samples))
        self._tell_failures(utility)
        self._seen.update(
            scores_sem_=found.sem,
            values_=found.total,
            values_sem_=found.total_sem,
            n_samples_=found.n_samples,
            failed_=utility.failed,
        )
        return found

    def _tell_failures(self, utility: Utility) -> None:
        """Warn of sets without a model for other reasons than that their rows are too few."""
        told = [one for one in utility.failed if not one[2].startswith(TOO_FEW)]
        if told:
            number, seed, reason = told[0]
            warnings.warn(
                f"{len(told)} of {utility.n_trained} trainings on sets of rows failed, and count as those on "
                f"no rows; the first is that of set {number} with seed {seed}: {reason}. failed_ lists them.",
                FitFailedWarning,
                stacklevel=2,
            )

    def _drawn(self) -> list[Any]:
        return [self.n_seeds] if self.n_samples == "exact" else [self.n_seeds, self.n_samples]

    def _settled(self, first: int, most: int, take: Callable[[int], Estimate]) -> Estimate:
        """Return the estimate from as many samples as were asked for, which `take` draws."""
        asked, seconds = self.n_samples, self.max_seconds
        return settled(asked, first, most, take, max_seconds=seconds, verbose=self.verbose)

    @abstractmethod
    def _exactly(self, utilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Hook of `transform`: values (T, n) from the utilities (2 ** n, T) of all sets."""

    @abstractmethod
    def _sampled(self, utility: Utility, random_state: np.random.RandomState) -> Estimate:
        """Hook of `transform`: values from the utilities of some sets."""

    scores_sem_ = of_last_call(
        "scores_sem_",
        "Standard error over samples of the scores last returned, (n_test, n_train).",
    )
    values_ = of_last_call("values_", "Values over all test rows of the last call, (n_train,).")
    values_sem_ = of_last_call("values_sem_", "Standard error of ``values_``, (n_train,).")
    n_samples_ = of_last_call("n_samples_", "Samples behind the values last returned.")

    # ---- what `attribute` says --------------------------------------------------------------

    def _n_runs(self) -> int:
        return int(self._seen.get("n_samples_", 1))
