"""CV+ intervals, from models that are fitted without a fold of the rows."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn.model_selection import KFold, check_cv
from sklearn.utils import Tags

from .._arrays import take_rows
from .._validation import MAX_SEED, check_random_state, is_integer
from ._base import Sample
from ._intervals import BaseIntervals, predictions

Floats = NDArray[np.float64]


class CVPlusRegressor(BaseIntervals):
    r"""A regressor with CV+ intervals, from models that are fitted without each fold of the rows.

    :math:`\mu_{-i}` is the model fitted without the fold of training row i, :math:`R_i = |y_i -
    \mu_{-i}(x_i)|`, and the interval is made of them as that of `JackknifePlusRegressor`. It takes any
    regressor. If the rows are exchangeable, it holds a new target with probability
    :math:`1 - 2\alpha - \sqrt{2 / n}` at least, and nearly always about :math:`1 - \alpha`. With
    ``cv=sklearn.model_selection.LeaveOneOut()`` it is the exact jackknife+.

    Parameters
    ----------
    estimator : object, default=None
        Unfitted regressor of one target; it checks the rows itself, missing values and categories
        included. A finished search stands for its best model, fitted again. None is `Ridge`.
    cv : int, splitter, iterable or None, default=10
        Splits that hold out each row once; a number is that of folds of shuffled rows. None is 5 folds of
        rows in their order.
    method : {"plus", "minmax"}, default="plus"
        "minmax" takes the least and the largest prediction without a row and :math:`q_{1-\alpha}\{R_i\}`:
        wider.
    random_state : int, RandomState or None, default=None
        Shuffles the rows.
    n_jobs : int, default=None
        joblib workers that fit models.

    Attributes
    ----------
    estimator_ : object
        The model, fitted on all rows.
    models_ : list of object
        The models fitted without each fold.
    fold_ : ndarray of shape (n_samples,)
        Model that was fitted without each row.
    residuals_ : ndarray of shape (n_samples,)
        Absolute error of each row's prediction without it.

    Raises
    ------
    ValueError
        For a classifier, several targets, and splits that do not hold out each row once.

    References
    ----------
    Barber, Candes, Ramdas and Tibshirani, "Predictive inference with the jackknife+", Annals of
    Statistics 49, 2021, arXiv 1905.02928, section 3.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.ensemble import RandomForestRegressor
    >>> from fimoda import CVPlusRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> forest = RandomForestRegressor(20, random_state=0)
    >>> model = CVPlusRegressor(forest, random_state=0).fit(X[:300], y[:300])
    >>> lower, upper = model.predict_interval(X[300:]).T
    >>> round(float(((lower <= y[300:]) & (y[300:] <= upper)).mean()), 1)
    0.9
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseIntervals._parameter_constraints,
        "cv": ["cv_object"],
        "n_jobs": [None, int],
    }

    attributor = None

    def __init__(
        self,
        estimator: Any = None,
        *,
        cv: Any = 10,
        method: str = "plus",
        random_state: Any = None,
        n_jobs: int | None = None,
    ):
        self.estimator = estimator
        self.cv = cv
        self.method = method
        self.random_state = random_state
        self.n_jobs = n_jobs

    def _fit_without(self, sample: Sample) -> Floats:
        splits = self._splits(sample)
        self.models_ = Parallel(n_jobs=self.n_jobs)(
            delayed(self._fitted)(sample.take(train)) for train, _ in splits
        )
        held_out = [rows for _, rows in splits]
        self.fold_ = np.repeat(np.arange(len(splits)), [len(rows) for rows in held_out])
        self.fold_ = self.fold_[np.argsort(np.concatenate(held_out))]
        found = np.empty(len(sample.y))
        for model, rows in zip(self.models_, held_out, strict=True):
            found[rows] = predictions(model, take_rows(sample.X, rows))
        return found

    def _splits(self, sample: Sample) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Return the rows that are fitted and held out in each split."""
        n, cv = len(sample.y), self.cv
        if is_integer(cv):
            seed = check_random_state(self.random_state).randint(MAX_SEED)
            cv = KFold(min(cv, n), shuffle=True, random_state=seed)
        splits = list(check_cv(cv).split(np.zeros(n), sample.y))
        held_out = np.concatenate([rows for _, rows in splits])
        if not np.array_equal(np.sort(held_out), np.arange(n)):
            raise ValueError(
                f"cv must hold out each of the {n} rows once, got {len(held_out)} held-out rows of which "
                f"{len(np.unique(held_out))} differ. Use KFold or LeaveOneOut."
            )
        return splits

    def _without(self, X: Any) -> Floats:
        return np.stack([predictions(model, X) for model in self.models_], axis=1)[:, self.fold_]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.non_deterministic = self.random_state is None
        return tags
