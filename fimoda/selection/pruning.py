"""Leaving out the training rows that hurt."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import check_cv
from sklearn.utils import gen_batches

from .._arrays import is_several, take_rows
from .._validation import Interval, StrOptions
from ..attributors.downsampling import Downsampling
from ..attributors.of_trees import method_of_trees
from ..base import BaseAttributor
from ..evaluation.groups_of_rows import sensitive_values
from ..evaluation.metric_influence import metric_influence
from ..evaluation.metrics import OUR_OWN
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

    With `scoring` the rows go whose removal raises a metric of the held-out rows, and with `sensitive` those
    whose removal lowers its difference between groups: rows that make the model unfair. Scores are then
    derivatives, as of `metric_influence`, which add up over rows; no more rows are left out than
    would close the difference. Whether the model got fairer has to be measured anew, by fitting it without
    them.

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
    scoring : str or callable, default=None
        A metric in place of the loss, of which more is better, as for `metric_influence`. None is the
        loss or, with `sensitive`, accuracy or R2.
    sensitive : str, int or array-like of shape (n_samples,), default=None
        Groups between which the metric should be the same: a column of X, or a value for each row.
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
        minus the loss itself under models without the row. With `scoring` minus the change of the metric,
        with `sensitive` the change of the difference between groups.
    gap_ : float or None
        Mean over the splits of the difference between groups of held-out rows; None without `sensitive`.
    support_ : ndarray of bool of shape (n_samples,)
        Rows that are kept.

    Raises
    ------
    ValueError, TypeError
        As the attributor does, for a model that it does not take, and as `metric_influence` does for a metric
        that is not defined for held-out rows.

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
        "scoring": [str, callable, None],
        "sensitive": [str, Integral, "array-like", None],
        "cv": ["cv_object"],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        attributor: BaseAttributor | None = None,
        fraction: float = 0.1,
        by: str = "held-out",
        scoring: Any = None,
        sensitive: Any = None,
        cv: Any = 5,
        random_state: Any = None,
    ):
        self.estimator = estimator
        self.attributor = attributor
        self.fraction = fraction
        self.by = by
        self.scoring = scoring
        self.sensitive = sensitive
        self.cv = cv
        self.random_state = random_state

    def _fit(self, sample: Sample) -> None:
        by_self = self.by == "self"
        self.gap_: float | None = None
        if self.scoring is not None or self.sensitive is not None:
            self._check_metric()
        self.scores_ = -self._own_losses(sample)[1] if by_self else self._held_out(sample)
        self.support_ = self._support(sample.y)

    def _check_metric(self) -> None:
        """Raise ValueError for a metric that says nothing of better and worse, or is not looked at."""
        if self.by == "self":
            raise ValueError(
                "by must be 'held-out' with scoring or sensitive, which are of held-out rows, got 'self'."
            )
        if self.sensitive is None and self.scoring in OUR_OWN:
            raise ValueError(
                f"sensitive must be given with scoring={self.scoring!r}, of which more is not better."
            )

    def _held_out(self, sample: Sample) -> NDArray[np.float64]:
        """Return the mean effect of each row on held-out rows."""
        X, y, _ = sample
        total, times, gaps = np.zeros(len(y)), np.zeros(len(y)), []
        groups = None if self.sensitive is None else self._groups(sample)
        classes = self._is_classification(y)
        # scikit-learn cannot count the rows of a dict
        counted = np.zeros(len(y)) if is_several(X) else X
        for train, held_out in check_cv(self.cv, y, classifier=classes).split(counted, y):
            seen = held_out[np.isin(y[held_out], y[train])] if classes else held_out
            attributor = self._attributed(sample.take(train))
            test, columns = sample.take(seen), train[attributor.train_indices_]
            if self.scoring is None and groups is None:
                total[columns] += _mean_effect(attributor, test)
            else:
                by = None if groups is None else groups[seen]
                given = {"scoring": self.scoring, "sensitive": by, "how": "derivative"}
                found = metric_influence(attributor, test.X, test.y, **given)
                total[columns] += found.scores if by is not None else -found.scores
                gaps.append(found.value)
            times[columns] += 1
        self.gap_ = None if groups is None else float(np.mean(gaps))
        return np.divide(total, times, out=np.full(len(y), np.nan), where=times > 0)

    def _groups(self, sample: Sample) -> NDArray[Any]:
        """Return the value of the sensitive attribute in each row."""
        by, names = self.sensitive, list(getattr(self, "feature_names_in_", []))
        if isinstance(by, str) and by in names and isinstance(sample.X, np.ndarray):
            by = names.index(by)  # of a frame whose rows were checked
        return sensitive_values(by, sample.X, len(sample.y))

    def _attributed(self, rows: Sample) -> BaseAttributor:
        """Return an attributor, fitted on a new model of the rows."""
        model = self._fitted(rows)
        attributor = self._scored(model, rows) or self._of_trees(model, rows)
        return attributor or self._of(WITHOUT_GRADIENTS, model).fit(*rows)

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
        lowest = lowest[self.scores_[lowest] < 0]
        if self.gap_ is not None:  # as many as close it
            lowest = lowest[: np.searchsorted(-self.scores_[lowest].cumsum(), self.gap_) + 1]
        kept[lowest] = False
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
