"""Leaving out the training rows that hurt."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.model_selection import check_cv
from sklearn.utils import gen_batches
from sklearn.utils.metaestimators import available_if

from .._arrays import is_several, take_rows
from .._validation import Interval, StrOptions, check_is_fitted
from ..attributors.downsampling import Downsampling
from ..attributors.of_trees import method_of_trees
from ..base import BaseAttributor
from ._base import BaseSelection, Sample

#: Scores rows for held-out ones where the model has no gradients, and no method of trees takes it.
WITHOUT_GRADIENTS = Downsampling(n_subsets=50, n_seeds=1)


class InfluencePruner(BaseSelection):
    r"""Leaves out the training rows whose removal lowers the loss of held-out rows most.

    For each split of `cv` a model is fitted on one part of the rows, and
    :math:`\bar S_i = \frac1m \sum_z S_{z,i}` is taken over the m rows of the other part: no row is
    scored by its own loss. A row's score is the mean over the splits that train with it. The rows
    with the lowest negative scores are left out, at most `fraction` of all, and never the last one
    of a class.

    Held-out rows with wrong labels reward whatever keeps the model unsure, wrong labels among the
    training rows included. Where labels or targets are noisy, ``by="self"`` is the better rule: it
    leaves out the rows that the model fits only by their own presence, as `MislabelDetector` does.

    Parameters
    ----------
    estimator : object, default=None
        Unfitted model; it checks the rows itself, missing values and categories included. A finished
        search stands for its best model, fitted again. None is `LogisticRegression` or `Ridge`.
    attributor : BaseAttributor, default=None
        How rows are scored; its own ``estimator`` is replaced. None is `EKFACInfluence`, for boosted
        trees `LeafInfluence`, for forests `LeafKernel`, and for other models without gradients
        `Downsampling` with 50 subsets and one seed. With ``by="self"`` models without gradients, trees
        among them, have the loss under models that were fitted without the row (see
        `MislabelDetector`).
    fraction : float, default=0.1
        Largest share of the rows to leave out, in [0, 1).
    by : {"held-out", "self"}, default="held-out"
        Whether rows are left out by their effect on held-out rows, or by their self-influence.
    cv : int, splitter or iterable, default=5
        Splits into rows that are scored, and rows whose loss they are scored by; a number is that
        of (stratified) folds.
    random_state : int, RandomState or None, default=None
        For an attributor that has none of its own.

    Attributes
    ----------
    scores_ : ndarray of shape (n_samples,)
        Mean change of the held-out loss when the row is left out; negative: the row hurts. NaN for
        rows that no split trains with. With ``by="self"`` minus the change of the row's own loss, or
        minus the loss itself under models without the row.
    support_ : ndarray of bool of shape (n_samples,)
        Rows that are kept.

    Raises
    ------
    ValueError, TypeError
        As the attributor does, for a model that it does not take.

    References
    ----------
    Koh and Liang, "Understanding Black-box Predictions via Influence Functions", ICML 2017, section
    5.4.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.preprocessing import scale
    >>> from fimoda import InfluencePruner
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> X_kept, y_kept = InfluencePruner(fraction=0.05).fit_resample(scale(X), y)
    >>> len(X) - len(X_kept)
    28
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseSelection._parameter_constraints,
        "fraction": [Interval(Real, 0, 1, closed="left")],
        "by": [StrOptions({"held-out", "self"})],
        "cv": ["cv_object"],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        attributor: BaseAttributor | None = None,
        fraction: float = 0.1,
        by: str = "held-out",
        cv: Any = 5,
        random_state: Any = None,
    ):
        self.estimator = estimator
        self.attributor = attributor
        self.fraction = fraction
        self.by = by
        self.cv = cv
        self.random_state = random_state

    def _fit(self, sample: Sample) -> None:
        by_self = self.by == "self"
        self.scores_ = -self._own_losses(sample)[1] if by_self else self._held_out(sample)
        self.support_ = self._support(sample.y)

    def _held_out(self, sample: Sample) -> NDArray[np.float64]:
        """Return the mean effect of each row on held-out rows."""
        X, y, _ = sample
        total, times = np.zeros(len(y)), np.zeros(len(y))
        classes = self._is_classification(y)
        # scikit-learn cannot count the rows of a dict
        counted = np.zeros(len(y)) if is_several(X) else X
        for train, held_out in check_cv(self.cv, y, classifier=classes).split(counted, y):
            seen = held_out[np.isin(y[held_out], y[train])] if classes else held_out
            rows = sample.take(train)
            model = self._fitted(rows)
            attributor = self._scored(model, rows) or self._of_trees(model, rows)
            if attributor is None:
                attributor = self._of(WITHOUT_GRADIENTS, model).fit(*rows)
            columns = train[attributor.train_indices_]
            total[columns] += _mean_effect(attributor, sample.take(seen))
            times[columns] += 1
        return np.divide(total, times, out=np.full(len(y), np.nan), where=times > 0)

    def _of_trees(self, model: Any, sample: Sample) -> BaseAttributor | None:
        """Return the method for a model of trees, fitted on its rows; None if it does not take the model."""
        method = method_of_trees(model)
        if method is None:
            return None
        try:
            return self._of(method, model).fit(*sample)
        except (TypeError, ValueError):  # a loss or an option of the library
            return None

    def _support(self, y: NDArray[Any]) -> NDArray[np.bool_]:
        """Return the rows to keep, as a mask."""
        kept = np.ones(len(y), dtype=bool)
        lowest = np.argsort(self.scores_, kind="stable")[: int(self.fraction * len(y))]  # NaN last
        kept[lowest[self.scores_[lowest] < 0]] = False
        if self._is_classification(y):
            for gone in np.setdiff1d(y, y[kept]):
                rows = np.flatnonzero(y == gone)
                kept[rows[self.scores_[rows].argmax()]] = True
        return kept

    def fit_resample(
        self, X: Any, y: Any, sample_weight: ArrayLike | None = None
    ) -> tuple[Any, Any]:
        """Return the rows of ``support_`` and their targets after `fit`, which takes the same.

        They are of the kinds of `X` and `y`.
        """
        self.fit(X, y, sample_weight)
        kept = np.flatnonzero(self.support_)
        return take_rows(X, kept), take_rows(y, kept)


def _mean_effect(attributor: BaseAttributor, test: Sample) -> NDArray[np.float64]:
    """Return the mean over test rows of the scores of each column, a block of rows at a time."""
    n_test, total = len(test.y), np.zeros(len(attributor.train_indices_))
    for rows in gen_batches(n_test, 1024):
        X, y, _ = test.take(np.arange(rows.start, rows.stop))
        total += np.asarray(attributor.transform(X, y)).sum(0)
    return total / max(n_test, 1)


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
