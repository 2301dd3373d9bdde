"""The base of estimators that fit models in order to score their rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, MetaEstimatorMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import Tags, column_or_1d, get_tags
from sklearn.utils.multiclass import check_classification_targets

from .._arrays import n_rows, take_rows
from .._validation import check_targets, check_weights, checks_parameters, validate_data
from ..adapters import default_linear_model, fit_with, is_class_target, takes_pairs
from ..attributors.ekfac_influence import EKFACInfluence
from ..base import BaseAttributor
from ..checked_rows import checked_rows
from .held_out import held_out_losses


class Sample(NamedTuple):
    """Rows as a model takes them, their targets and weights."""

    X: Any
    y: NDArray[Any]
    weights: NDArray[Any] | None

    def take(self, indices: NDArray[np.int64]) -> Sample:
        """Return some of the rows."""
        weights = None if self.weights is None else self.weights[indices]
        return Sample(take_rows(self.X, indices), self.y[indices], weights)


class BaseSelection(MetaEstimatorMixin, BaseEstimator, ABC):
    """Base of estimators with an `estimator` to fit and an `attributor` to score its rows with."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "estimator": "no_validation",
        "attributor": [BaseAttributor, None],
        "random_state": ["random_state"],
    }

    estimator: Any
    attributor: BaseAttributor | None
    random_state: Any

    @checks_parameters
    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the model, score its rows, and choose among them.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, as the model takes them.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Their targets, right or wrong. An `estimator` is fitted to numbers in the shape that they have; a
            column of labels is made flat, with a warning.
        sample_weight : array-like of shape (n_samples,), default=None
            Their weights, if the model takes any.

        Returns
        -------
        self : estimator
        """
        if isinstance(self.estimator, BaseAttributor):
            name = type(self.estimator).__name__
            raise TypeError(
                f"estimator must be a model; got the attributor {name}. Pass the model as estimator, and "
                f"attributor={name}(...) beside it."
            )
        rows = self._checked_rows(X, reset=True)
        targets = check_targets(y, n_rows(rows))
        is_class = self._is_classification(targets)
        if targets.ndim == 2 and targets.shape[1] == 1 and (is_class or self.estimator is None):
            targets = column_or_1d(
                targets, warn=True
            )  # a column of numbers is for the model to take
        if is_class:
            check_classification_targets(targets)
        weights = check_weights(sample_weight, np.zeros((len(targets), 1)))
        self._fit(Sample(rows, targets, weights))
        return self

    @abstractmethod
    def _fit(self, sample: Sample) -> None:
        """Hook of `fit`, of validated rows; those for an `estimator` are left for it to check."""

    def _checked_rows(self, X: Any, reset: bool) -> Any:
        if self.estimator is not None:
            return checked_rows(self, X, reset, raw=True)
        return validate_data(self, X, reset=reset, dtype="numeric")

    def _is_classification(self, y: NDArray[Any]) -> bool:
        """Return whether targets are classes: as the model says, if one is given."""
        if self.estimator is None:
            return is_class_target(y)
        return get_tags(self.estimator).estimator_type == "classifier"

    def _fitted(self, sample: Sample) -> Any:
        """Return a new model fitted on rows."""
        if self.estimator is None:
            return fit_with(default_linear_model(self._is_classification(sample.y)), *sample)
        # a finished search stands for the model that it found
        model = clone(getattr(self.estimator, "best_estimator_", self.estimator))
        if takes_pairs(model):
            raise ValueError(
                f"estimator {type(model).__name__} must take features of each row, not a column for "
                "every training row (a precomputed kernel or metric), which there is none of once "
                "rows are dropped. Use one that computes its kernel or metric itself."
            )
        return fit_with(model, *sample)

    def _scored(self, model: Any, sample: Sample) -> BaseAttributor | None:
        """Return the attributor, fitted on a model of the rows; None by default without gradients."""
        if self.attributor is not None:
            return self._of(self.attributor, model).fit(*sample)
        try:
            return self._of(EKFACInfluence(), model).fit(*sample)
        except (TypeError, ValueError):  # not for the rows: the model has taken them
            if isinstance(model, FrozenEstimator):  # is never fitted again
                raise
        return None

    def _of(self, attributor: BaseAttributor, model: Any) -> BaseAttributor:
        """Return a clone of an attributor, for a model."""
        new = clone(attributor).set_params(estimator=model)
        return new.set_params(random_state=self.random_state) if new.random_state is None else new

    def _own_losses(self, sample: Sample) -> tuple[Any, NDArray[np.float64]]:
        """Return a new model and each row's self-influence, or held-out loss without gradients."""
        model = self._fitted(sample)
        attributor = self._scored(model, sample)
        if attributor is None:
            return model, held_out_losses(model, *sample, self.random_state)
        return model, attributor._suspicion()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.sparse = False
        return tags
