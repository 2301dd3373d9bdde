"""Regression of what models of subsets measure on the rows that are in them, from scores or from nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sklearn.linear_model import Lasso, LassoCV, Ridge, RidgeCV

Array = NDArray[np.float64]

#: Parts of the subsets in the lasso's cross-validation.
FOLDS = 5

#: Smallest candidates of the lasso penalty, as shares of the largest.
PENALTY_RANGES = 1e-2, 1e-4

#: Candidates of the ridge penalty.
RIDGE_PENALTIES = np.logspace(-3, 4, 15)


@dataclass(frozen=True, eq=False)
class SubsetRegression:
    """Scores by a linear regression on subsets, which begins with scores of another method or with none.

    Parameters
    ----------
    scores : ndarray of shape (n_test, n)
        Those to start from by their factor, less the weights of the regression.
    factor : ndarray of shape (n_test,)
        Factor of the scores to start from; NaN if there are none.
    penalties : ndarray of shape (n_test,)
    sparse : bool
        Whether the penalty is that of the lasso, or of ridge regression.
    scale : ndarray of shape (n_test,)
        Size of the measurements that are regressed, in which the penalties are.
    start : ndarray of shape (n_test, n) or None
    """

    scores: Array
    factor: Array
    penalties: Array
    sparse: bool
    scale: Array
    start: Array | None

    def again(self, inside: Array, measured: Array) -> SubsetRegression:
        """Return the same regression, with the same penalties, on other subsets (M, n)."""
        factor, left = _left_over(self.start, inside, measured)
        weights = (_lasso if self.sparse else _ridge)(inside, left / self.scale, self.penalties)
        scores = _joined(self.start, factor, weights * self.scale[:, None])
        return replace(self, scores=scores, factor=factor)


def regressed(
    inside: Array,
    measured: Array,
    start: Array | None = None,
    sparse: bool = True,
    n_jobs: int | None = None,
) -> SubsetRegression:
    """Return the regression of measurements (M, n_test) on subsets (M, n), penalties by cross-validation."""
    factor, left = _left_over(start, inside, measured)
    scale = left.std(0)  # the penalties' candidates are for targets of unit size
    scale[scale == 0] = 1
    targets = left / scale
    weights, penalties = (
        _lasso_cv(inside, targets, n_jobs) if sparse else _ridge_cv(inside, targets)
    )
    scores = _joined(start, factor, weights * scale[:, None])
    return SubsetRegression(scores, factor, penalties, sparse, scale, start)


def _left_over(start: Array | None, inside: Array, measured: Array) -> tuple[Array, Array]:
    """Return the factor (n_test,) of scores to start from, and what they leave of centred measurements."""
    centred = measured - measured.mean(0)
    if start is None:
        return np.full(measured.shape[1], np.nan), centred
    predicted = -(inside - inside.mean(0)) @ start.T
    size = (predicted**2).sum(0)
    product = (predicted * centred).sum(0)
    factor = np.divide(product, size, out=np.zeros_like(size), where=size > 0)
    return factor, centred - factor * predicted


def _joined(start: Array | None, factor: Array, weights: Array) -> Array:
    """Return scores (n_test, n) from those to start from and the weights of a regression."""
    return -weights if start is None else factor[:, None] * start - weights


def _lasso_cv(inside: Array, targets: Array, n_jobs: int | None) -> tuple[Array, Array]:
    """Return weights (n_test, n) and the chosen penalties (n_test,)."""
    # threads: the solver lets go of the interpreter, and the rows are shared
    workers = Parallel(n_jobs=n_jobs, prefer="threads")
    fits = workers(delayed(_lasso_cv_of_row)(inside, target) for target in targets.T)
    return np.stack([fit.coef_ for fit in fits]), np.array([fit.alpha_ for fit in fits])


def _lasso_cv_of_row(inside: Array, target: Array) -> LassoCV:
    """Return the fit of one test row.

    Small penalties take longest and are of use with little noise only: tried if they seem to be.
    """
    gram = inside.shape[1] < 2 * len(inside)
    for smallest in PENALTY_RANGES:  # (the solver takes a number from numpy's generator, unused)
        fit = LassoCV(cv=FOLDS, eps=smallest, precompute=gram, random_state=0).fit(inside, target)
        if fit.alpha_ > 2 * fit.alphas_[-1]:
            break
    return fit


def _lasso(inside: Array, targets: Array, penalties: Array) -> Array:
    pairs = zip(penalties, targets.T, strict=True)
    return np.stack(
        [Lasso(alpha, random_state=0).fit(inside, target).coef_ for alpha, target in pairs]
    )


def _ridge_cv(inside: Array, targets: Array) -> tuple[Array, Array]:
    """Return weights (n_test, n) and the chosen penalties (n_test,)."""
    fit = RidgeCV(RIDGE_PENALTIES, alpha_per_target=True).fit(inside, targets)
    return np.atleast_2d(fit.coef_), np.atleast_1d(fit.alpha_)


def _ridge(inside: Array, targets: Array, penalties: Array) -> Array:
    return np.atleast_2d(Ridge(penalties).fit(inside, targets).coef_)
