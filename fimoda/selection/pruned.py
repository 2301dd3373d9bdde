"""Models that are fitted without the training rows that hurt."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.metaestimators import available_if

from .._validation import check_is_fitted
from ._base import Sample
from .pruning import InfluencePruner


class BasePruned(InfluencePruner):
    """Base of models that are fitted on the rows an `InfluencePruner` keeps."""

    def _fit(self, sample: Sample) -> None:
        super()._fit(sample)
        self.estimator_ = self._fitted(sample.take(np.flatnonzero(self.support_)))

    def _answer(self, name: str, X: Any) -> NDArray[Any]:
        """Return what a method of the fitted model says of rows."""
        check_is_fitted(self, "estimator_")
        return getattr(self.estimator_, name)(self._checked_rows(X, reset=False))

    def predict(self, X: Any) -> NDArray[Any]:
        """Return predictions (n_samples,) of the model for rows X (n_samples, n_features)."""
        return self._answer("predict", X)


class PrunedRegressor(RegressorMixin, BasePruned):
    """A regressor that is fitted without the rows that raise the held-out loss.

    Rows are chosen as `InfluencePruner` does, and the model is fitted on those it keeps. Held-out
    rows of `cv` come from the rows given to ``fit``: rows of an outer split are never seen.

    Parameters
    ----------
    estimator : object, default=None
        Unfitted regressor, as for `InfluencePruner`. None is `Ridge`.
    attributor : BaseAttributor, default=None
        How rows are scored, as for `InfluencePruner`; its own ``estimator`` is replaced.
    fraction : float, default=0.1
        Largest share of the rows to leave out, in [0, 1); 0 fits the model on all.
    by : {"held-out", "self"}, default="held-out"
        Whether rows are left out by their effect on held-out rows, or by their self-influence.
    scoring : str or callable, default=None
        A metric in place of the loss, of which more is better, as for `metric_influence`. None is the
        loss or, with `sensitive`, accuracy or R2.
    sensitive : str, int or array-like of shape (n_samples,), default=None
        Groups between which the metric should be the same: a column of X, or a value for each row.
    cv : int, splitter or iterable, default=5
        Splits into rows that are scored, and rows whose loss they are scored by.
    random_state : int, RandomState or None, default=None
        For an attributor that has none of its own.

    Attributes
    ----------
    estimator_ : object
        The model, fitted on the rows that are kept.
    scores_, support_ : ndarray of shape (n_samples,)
        Scores of the rows, and which are kept, as for `InfluencePruner`.
    gap_ : float or None
        Mean over the splits of the difference between groups of held-out rows; None without `sensitive`.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from fimoda import PrunedRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = PrunedRegressor(fraction=0.05).fit(X, y)
    >>> int(model.support_.sum()), model.predict(X).shape
    (420, (442,))
    """

    def _is_classification(self, y: NDArray[Any]) -> bool:
        return False


def _has(name: str) -> Any:
    """Offer a method if the model has it."""

    def check(self: PrunedClassifier) -> bool:
        inner = getattr(self, "estimator_", self.estimator)
        if inner is not None:
            getattr(inner, name)  # raises AttributeError
        return True

    return available_if(check)


class PrunedClassifier(ClassifierMixin, BasePruned):
    """A classifier that is fitted without the rows that raise the held-out loss.

    Rows are chosen as `InfluencePruner` does, and the model is fitted on those it keeps. Held-out
    rows of `cv` come from the rows given to ``fit``: rows of an outer split are never seen.

    Parameters
    ----------
    estimator : object, default=None
        Unfitted classifier, as for `InfluencePruner`. None is `LogisticRegression`.
    attributor : BaseAttributor, default=None
        How rows are scored, as for `InfluencePruner`; its own ``estimator`` is replaced.
    fraction : float, default=0.1
        Largest share of the rows to leave out, in [0, 1); 0 fits the model on all.
    by : {"held-out", "self"}, default="held-out"
        Whether rows are left out by their effect on held-out rows, or by their self-influence.
    scoring : str or callable, default=None
        A metric in place of the loss, of which more is better, as for `metric_influence`. None is the
        loss or, with `sensitive`, accuracy or R2.
    sensitive : str, int or array-like of shape (n_samples,), default=None
        Groups between which the metric should be the same: a column of X, or a value for each row.
    cv : int, splitter or iterable, default=5
        Splits into rows that are scored, and rows whose loss they are scored by.
    random_state : int, RandomState or None, default=None
        For an attributor that has none of its own.

    Attributes
    ----------
    estimator_ : object
        The model, fitted on the rows that are kept.
    scores_, support_ : ndarray of shape (n_samples,)
        Scores of the rows, and which are kept, as for `InfluencePruner`.
    gap_ : float or None
        Mean over the splits of the difference between groups of held-out rows; None without `sensitive`.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.preprocessing import scale
    >>> from fimoda import PrunedClassifier
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> model = PrunedClassifier(fraction=0.05).fit(scale(X), y)
    >>> int(model.support_.sum()), model.predict_proba(scale(X)).shape
    (541, (569, 2))
    """

    def _is_classification(self, y: NDArray[Any]) -> bool:
        return True

    @property
    def classes_(self) -> NDArray[Any]:
        """Classes (n_classes,) of the fitted model."""
        check_is_fitted(self, "estimator_")
        return self.estimator_.classes_

    @_has("predict_proba")
    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return class probabilities (n_samples, n_classes) for rows X (n_samples, n_features)."""
        return self._answer("predict_proba", X)

    @_has("decision_function")
    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return the decision function of the model for rows X (n_samples, n_features).

        Of shape (n_samples,) or (n_samples, n_classes).
        """
        return self._answer("decision_function", X)
