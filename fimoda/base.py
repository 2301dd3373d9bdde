"""`BaseAttributor`: what every attribution method has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import nan
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from . import measurements
from ._arrays import row_names
from ._validation import (
    POSITIVE_INTEGER,
    check_is_fitted,
    check_top,
    checks_parameters,
)
from .adapters import caveats
from .as_estimator import AsEstimator
from .changed_rows import ChangedRows
from .fallbacks import explanations
from .gradient_mode import with_gradients
from .measured import Measured
from .measurements import Measurement
from .objective import Objective
from .top_rows import TopRows
from .trials import Trial


class BaseAttributor(ChangedRows, AsEstimator, ABC):
    """Base of all attributors: ``fit`` on training rows, ``transform`` of test rows to scores.

    ``S[z, i]`` estimates ``E[m_z(model without row i)] - E[m_z(model with all rows)]`` for the
    measurement m. With ``measurement="loss"`` a positive score says that row i helps on z.

    A subclass implements `_fit` (whatever depends on training rows only) and `_scores`, and may
    implement `_self_influence`. They find the frozen model in ``model_``, and with its encoded training
    rows in ``_objective``.
    """

    #: What is done to the training rows, in a few words; what `attribute` tells of a score.
    intervention: ClassVar[str] = "each training row left out, alone"

    #: What happens after a row is left out, in a few words; what `attribute` tells of a score.
    process: ClassVar[str] = "as the method says"

    #: The model is trained again from its beginning, by `SubsetTrainer`.
    _retrains: ClassVar[bool] = False

    #: Scores estimate changes by the removal of a row, in the unit of the measurement, as the contract
    #: says; some only rank, and those of games are averages over sets of rows.
    _in_unit: ClassVar[bool] = True
    #: Scores are about test rows; otherwise each training row has one score, whatever they are.
    _of_test_rows: ClassVar[bool] = True

    #: The method averages over several models itself (parameter ``models``), not its scores.
    _averages_models: ClassVar[bool] = False

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "estimator": "no_validation",
        "measurement": [str, callable],
        "criterion": [nn.Module, None],
        "random_state": ["random_state"],
    }
    _BUDGET_CONSTRAINTS: ClassVar[dict[str, list[Any]]] = {
        "chunk_size": [POSITIVE_INTEGER, None],
        "memory_budget": [POSITIVE_INTEGER],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        random_state: Any = None,
    ):
        self.estimator = estimator
        self.measurement = measurement
        self.criterion = criterion
        self.random_state = random_state

    # ---- fit --------------------------------------------------------------------------------

    @with_gradients
    @checks_parameters
    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Compute whatever depends on the training rows only.

        Parameters
        ----------
        X : array-like of shape (n_train, n_features) or (n_train, ...)
            The rows the model was trained on, as the model (or its Pipeline) takes them. For a module of
            several inputs a dict of arrays by the names of its arguments, or a tuple of arrays.
        y : array-like of shape (n_train,) or (n_train, n_outputs)
            Their targets.
        sample_weight : array-like of shape (n_train,), default=None
            Weights of the rows in the training objective, if the model was trained with them.

        Returns
        -------
        self : BaseAttributor
        """
        self._prepare(X, y, sample_weight)
        self.train_indices_ = np.arange(len(self._objective))
        self._fit()
        return self

    @abstractmethod
    def _fit(self) -> None:
        """Hook of `fit`."""

    # ---- transform --------------------------------------------------------------------------

    @with_gradients
    def transform(self, X: Any, y: Any = None) -> NDArray[np.float64]:
        """Score every training row for each test row.

        Parameters
        ----------
        X : array-like of shape (n_test, n_features) or (n_test, ...)
            Test rows, made as those of `fit`.
        y : array-like of shape (n_test,), default=None
            Their targets. Without them the measurement is the prediction (regression), or is taken
            at the predicted class (classification).

        Returns
        -------
        S : ndarray of shape (n_test, n_columns)
            Scores in the unit of the measurement; column j is training row ``train_indices_[j]``.
        """
        check_is_fitted(self, "model_")
        return self._finite(self._scores(self._test(X, y)))

    def _finite(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the scores, if all are numbers."""
        if not np.isfinite(scores).all():
            raise FloatingPointError(
                f"{type(self).__name__} gave scores that are NaN or infinite: the measurement of a "
                "test row, or its gradient, is not finite at the final model."
            )
        return scores

    if TYPE_CHECKING:

        def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> NDArray[np.float64]:
            """Do as scikit-learn does: `fit`, then `transform` of the same rows without targets."""

    @abstractmethod
    def _scores(self, test: Measured) -> NDArray[np.float64]:
        """Hook of `transform`: scores (n_test, n_columns) in float64."""

    def _coupled(self, test: Measured) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Hook of `DistributionalInfluence`: measurements and scores, run by run.

        The measurements (n_runs, n_test) where each run ends, and the scores (n_runs, n_test,
        n_columns) there. This one has the final model alone.
        """
        scores = self._scores(test)
        measured = measurements.values(test.measure, self.model_.outputs(test.inputs), test.targets)
        return measured.cpu().numpy()[None], scores[None]

    # ---- views of the scores ----------------------------------------------------------------

    @with_gradients
    def self_influence(self) -> NDArray[np.float64]:
        """Score of each training row on itself, without building the matrix.

        Returns
        -------
        scores : ndarray of shape (n_columns,)
            In the order of ``train_indices_``.
        """
        check_is_fitted(self, "model_")
        return self._finite(self._self_influence())

    def _suspicion(self) -> NDArray[np.float64]:
        """Return a number for each column (n_columns,), larger for rows that look like wrong labels."""
        return self.self_influence()

    def _self_influence(self) -> NDArray[np.float64]:
        """Hook of `self_influence`; this one goes through `_scores` in blocks of rows."""
        columns = np.arange(len(self.train_indices_))
        blocks = np.array_split(columns, -(-len(columns) // 256))
        own = self._own
        return np.concatenate(
            [self._scores(own[self.train_indices_[b]])[np.arange(len(b)), b] for b in blocks]
        )

    @with_gradients
    def top(self, X: Any, y: Any = None, k: int = 5) -> TopRows:
        """Return the k most helpful and most harmful training rows of each test row.

        Parameters
        ----------
        X : array-like of shape (n_test, n_features) or (n_test, ...)
            Test rows, made as those of `fit`.
        y : array-like of shape (n_test,), default=None
            Their targets, as in `transform`.
        k : int, default=5

        Returns
        -------
        TopRows
            Rows have the names of a frame's index; texts are their own names.
        """
        check_is_fitted(self, "model_")
        check_top(k, len(self.train_indices_))
        scores = self._finite(self._scores(self._test(X, y)))
        names = self._told_labels(), row_names(X)
        return TopRows.of(scores, self.train_indices_, k, self._standard_errors(), *names)

    def _at_horizons(self, X: Any, y: Any, epochs: list[float]) -> NDArray[np.float64]:
        """Hook of `agreement_curve`: return scores (n_epochs, n_test, n_columns) at each horizon.

        Or the only ones (n_test, n_columns), of a method that does not have them all.
        """
        return np.asarray(self.transform(X, y), dtype=np.float64)

    # ---- answers to the rest of fimoda ------------------------------------------------------

    @classmethod
    def _known_parameters(cls) -> set[str]:
        """Return the parameters that can be set without knowing the model."""
        return set(cls._parameter_constraints)

    def _expected_seconds(self, trial: Trial) -> float:
        """Return the seconds that fit and scores are thought to take; NaN if it cannot be said.

        Called before `fit`, with rows to try methods on.
        """
        return nan

    def _restrict(self, rows: NDArray[np.int64]) -> None:
        """Keep some of the rows only, after `_prepare`: for trials."""
        self._objective = self._objective.restricted(rows)
        self.train_indices_ = np.arange(len(rows))

    def _process(self) -> str:
        """Return `process`, with what was set or found."""
        return self.process

    def _caveats(self) -> list[str]:
        """Return what the scores do not say about the estimator as a whole."""
        held = self.model_.weighting.balanced is not None and not self._rebalances()
        fixed = "balanced class weights are held as they are, and would change without a row"
        return caveats(self.estimator_) + [fixed] * held + explanations(self.model_)

    def _rebalances(self) -> bool:
        """Return whether balanced class weights change when a row leaves."""
        return bool(getattr(self, "reweight_others", False))

    def _n_runs(self) -> int:
        """Return the number of runs behind the standard errors."""
        return 1

    def _standard_errors(self) -> NDArray[np.float64] | None:
        """Return standard errors of the scores last computed, if the method has any."""
        return self._seen.get("scores_sem_")

    def _known_error(self, scores: NDArray[np.float64]) -> list[str]:
        """Return what is known of the error of the scores last computed."""
        errors = self._standard_errors()
        if errors is None or not np.isfinite(errors).any():
            return []
        known = np.isfinite(errors) & np.isfinite(scores)
        size = max(float((scores[known] ** 2).mean()), 1e-300)
        ratio = np.sqrt((errors[known] ** 2).mean() / size)
        return [f"standard errors are {ratio:.0%} of the scores (root mean squares)"]


def prepared(
    method: BaseAttributor, X: Any, y: Any, sample_weight: Any, X_test: Any, y_test: Any
) -> tuple[Objective, Measured]:
    """Return the training objective and the measured test rows of a method, without fitting it.

    For functions that take what a method takes: rows and parameters are checked as it checks them.
    """
    method._validate_params()
    method._prepare(X, y, sample_weight)
    return method._objective, method._test(X_test, y_test)
