"""Estimators whose fits to many subsets of the rows have a form for all of them at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import issparse
from sklearn.base import BaseEstimator
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Ridge,
)
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from .mlp import is_class_target

_KINDS = (KNeighborsClassifier, KNeighborsRegressor, LinearRegression, Ridge, LogisticRegression)

#: Numbers that a linear model may have: its equations are solved for each subset.
_MOST_NUMBERS = 128


@dataclass(frozen=True)
class LeastSquaresForm:
    """Least squares with the penalty `alpha` times the squared coefficients."""

    alpha: float
    intercept: bool


@dataclass(frozen=True)
class LogisticForm:
    """Log-loss, summed over the rows, with half the squared coefficients over C."""

    C: float
    intercept: bool


@dataclass(frozen=True)
class NeighboursForm:
    """Means over the nearest rows, which the estimator finds."""

    n_neighbors: int


Form = LeastSquaresForm | LogisticForm | NeighboursForm


def closed_form(estimator: Any, X: Any, n_outputs: int) -> Form | None:
    """Return the form of a fitted estimator's fits to rows X, or None if it is fitted one at a time."""
    kind = type(estimator)
    if kind not in _KINDS or issparse(X):
        return None
    X = np.asarray(X)
    if X.ndim != 2 or X.dtype.kind not in "fiub":
        return None
    if kind in (KNeighborsClassifier, KNeighborsRegressor):
        if estimator.weights == "uniform" and estimator.metric != "precomputed":
            return NeighboursForm(estimator.n_neighbors)
        return None
    if not np.isfinite(X).all() or (X.shape[1] + 1) * n_outputs > _MOST_NUMBERS:
        return None
    if kind in (LinearRegression, Ridge) and not estimator.positive:
        alpha = getattr(estimator, "alpha", 0.0)
        exact = getattr(estimator, "solver", "auto") in ("auto", "svd", "cholesky")
        if np.ndim(alpha) == 0 and exact:
            return LeastSquaresForm(float(alpha), bool(estimator.fit_intercept))
    if kind is LogisticRegression and _is_smooth(estimator):
        return LogisticForm(float(estimator.C), bool(estimator.fit_intercept))
    return None


def _is_smooth(estimator: LogisticRegression) -> bool:
    """Return whether the fit is the one minimum of the log-loss with an L2 penalty."""
    ridge = estimator.penalty == "l2" or (
        estimator.penalty == "deprecated" and not estimator.l1_ratio
    )
    return (
        ridge
        and estimator.class_weight is None
        and np.isfinite(estimator.C)
        and estimator.solver in ("lbfgs", "newton-cg", "newton-cholesky")
        and getattr(estimator, "multi_class", "deprecated") in ("deprecated", "auto", "multinomial")
        and (len(estimator.classes_) == 2 or len(estimator.coef_) == len(estimator.classes_))
    )


def default_neighbours(y: ArrayLike, n_neighbors: int) -> BaseEstimator:
    """Return the nearest neighbours that stand in for ``estimator=None`` where rows are only compared."""
    model = KNeighborsClassifier if is_class_target(y) else KNeighborsRegressor
    return model(min(n_neighbors, len(np.asarray(y))))
