"""The base of regressors with prediction intervals."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from math import ceil
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.utils import gen_batches, get_tags

from .._arrays import n_rows, take_rows
from .._validation import OPEN_SHARE, StrOptions, check_is_fitted
from ._base import BaseSelection, Sample

Floats = NDArray[np.float64]

#: Predictions without a training row that are held at a time.
_BLOCK = 2**23


class BaseIntervals(RegressorMixin, BaseSelection):
    """Base of regressors whose intervals come from predictions without each training row.

    A subclass implements `_fit_without` and `_without`.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseSelection._parameter_constraints,
        "method": [StrOptions({"plus", "minmax"})],
    }

    method: str

    # ---- hooks ------------------------------------------------------------------------------

    @abstractmethod
    def _fit_without(self, sample: Sample) -> Floats:
        """Hook of `fit`: return the prediction (n,) of each training row by a model without it."""

    @abstractmethod
    def _without(self, X: Any) -> Floats:
        """Hook of `predict_interval`: return predictions (n_test, n) without each training row."""

    def _blocks(self, X: Any) -> Iterator[Any]:
        """Hook of `predict_interval`: yield rows in parts whose predictions fit the memory."""
        size = max(1, _BLOCK // len(self.residuals_))
        for part in gen_batches(n_rows(X), size):
            yield take_rows(X, np.arange(part.start, part.stop))

    # ---- fit --------------------------------------------------------------------------------

    def _is_classification(self, y: NDArray[Any]) -> bool:
        return False

    def _fit(self, sample: Sample) -> None:
        if self.estimator is not None and get_tags(self.estimator).estimator_type == "classifier":
            raise ValueError(
                f"estimator must be a regressor, got the classifier {type(self.estimator).__name__}: an "
                "interval is of numbers, and a class has none."
            )
        if sample.y.size != len(sample.y) or sample.y.dtype.kind not in "biuf":
            raise ValueError(
                f"y must be one number a row, got {sample.y.dtype} of shape {sample.y.shape}. Fit one model "
                "for each target."
            )
        if len(sample.y) < 2:
            raise ValueError("X must have at least 2 rows to leave one out, got n_samples = 1.")
        self.estimator_ = self._fitted(sample)
        self.residuals_ = np.abs(sample.y.ravel() - self._fit_without(sample))

    # ---- predict ----------------------------------------------------------------------------

    def predict(self, X: Any) -> Floats:
        """Return predictions (n_samples,) of the model that was fitted on all rows, for rows X."""
        check_is_fitted(self, "estimator_")
        return predictions(self.estimator_, self._checked_rows(X, reset=False))

    def predict_interval(self, X: Any, confidence_level: float = 0.9) -> Floats:
        """Return an interval for the target of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, as the model takes them.
        confidence_level : float, default=0.9
            Share of the targets that are to be inside, in (0, 1).

        Returns
        -------
        interval : ndarray of shape (n_samples, 2)
            Lower and upper ends, in the unit of the target. With fewer than ``confidence_level / (1 -
            confidence_level)`` training rows they are infinite.

        Raises
        ------
        ValueError
            If `confidence_level` is not in (0, 1).
        """
        check_is_fitted(self, "residuals_")
        if not OPEN_SHARE.is_satisfied_by(confidence_level):
            raise ValueError(f"confidence_level must be in (0, 1), got {confidence_level!r}.")
        X = self._checked_rows(X, reset=False)
        return np.concatenate([self._interval(part, confidence_level) for part in self._blocks(X)])

    def _interval(self, X: Any, level: float) -> Floats:
        without, residuals = self._without(X), self.residuals_
        if self.method == "plus":
            upper = quantile(without + residuals, level)
            return np.stack([-quantile(residuals - without, level), upper], axis=1)
        largest = quantile(residuals[None], level)
        return np.stack([without.min(1) - largest, without.max(1) + largest], axis=1)


def quantile(values: Floats, level: float) -> Floats:
    """Return the ``ceil(level * (n + 1))``-th smallest of n values in each row; infinite beyond them."""
    n = values.shape[-1]
    place = ceil(round(level * (n + 1), 9))
    if place > n:
        return np.full(len(values), np.inf)
    return np.partition(values, place - 1, axis=-1)[..., place - 1]


def predictions(model: Any, X: Any) -> Floats:
    """Return predictions (n,) of a fitted regressor."""
    return np.asarray(model.predict(X), dtype=np.float64).reshape(n_rows(X))
