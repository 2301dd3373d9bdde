"""Tests of scores against the noise of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control, t

from .._validation import OPEN_SHARE, StrOptions, checks_arguments
from ..base import BaseAttributor


@dataclass(frozen=True)
class Significance:
    """Scores that are distinguishable from noise.

    Attributes
    ----------
    mask : ndarray of bool, shape (n_test, n_columns)
        True where the score is distinguishable from zero.
    p_values : ndarray of shape (n_test, n_columns)
        Adjusted p-values: the smallest false discovery rate at which the score is in the mask.
    """

    mask: NDArray[np.bool_]
    p_values: NDArray[np.float64]


@checks_arguments(fdr=[OPEN_SHARE], method=[StrOptions({"bh", "by"})])
def significant_scores(
    scores: BaseAttributor | ArrayLike,
    X_test: Any = None,
    y_test: Any = None,
    *,
    sem: ArrayLike | None = None,
    n_seeds: int | None = None,
    fdr: float = 0.05,
    method: Literal["bh", "by"] = "bh",
) -> Significance:
    r"""Find the training rows that matter for a test row by more than the noise over seeds.

    A t-test of each score against zero, :math:`t = s / \mathrm{sem}` with R - 1 degrees of freedom
    for R seeds, two-sided, and for each test row a control of the false discovery rate over all its
    training rows. Looking at the top rows only needs no further correction: of the rows in the mask
    a share of at most `fdr` is expected to be noise. A score of zero with a standard error of zero
    is not distinguishable.

    The standard error has to come from independent runs, and the test trusts that the mean over
    seeds is about normal. With two or three seeds it has little power.

    Parameters
    ----------
    scores : fitted attributor or array-like of shape (n_test, n_columns)
        An attributor with standard errors (``scores_sem_``), or score matrix.
    X_test, y_test : array-like, default=None
        Test rows; needed for an attributor.
    sem : array-like of shape (n_test, n_columns), default=None
        Standard errors over seeds; needed for a score matrix.
    n_seeds : int, default=None
        Number of seeds behind each standard error; needed for a score matrix.
    fdr : float, default=0.05
        False discovery rate.
    method : {"bh", "by"}, default="bh"
        Benjamini-Hochberg, or Benjamini-Yekutieli, which allows any dependence between the scores
        and finds less.

    Returns
    -------
    Significance

    Raises
    ------
    ValueError
        If there are no standard errors, or fewer than two seeds.

    References
    ----------
    Benjamini and Hochberg, "Controlling the False Discovery Rate", 1995.

    Examples
    --------
    >>> from fimoda import significant_scores
    >>> significant_scores([[0.5, 0.1, -0.4]], sem=[[0.05, 0.1, 0.05]], n_seeds=10).mask
    array([[ True, False,  True]])
    """
    if isinstance(scores, BaseAttributor):
        scores, sem, n_seeds = _of_attributor(scores, X_test, y_test)
    if sem is None or n_seeds is None:
        raise ValueError(
            f"{'sem' if sem is None else 'n_seeds'} must be given with a score matrix: without the "
            "noise over seeds no score can be told from it."
        )
    values, errors = np.asarray(scores, dtype=float), np.asarray(sem, dtype=float)
    if values.ndim != 2 or errors.shape != values.shape:
        raise ValueError(
            "scores and sem must both have shape (n_test, n_columns), got "
            f"{values.shape} and {errors.shape}."
        )
    if n_seeds < 2:
        raise ValueError(f"n_seeds must be at least 2 for a standard error, got {n_seeds}.")
    if not np.isfinite(values).all() or not np.isfinite(errors).all() or (errors < 0).any():
        raise ValueError("scores and sem must be finite, and sem not negative.")
    size = np.abs(values)
    ratio = np.divide(size, errors, out=np.where(size > 0, np.inf, 0.0), where=errors > 0)
    p_values = false_discovery_control(2 * t.sf(ratio, n_seeds - 1), axis=1, method=method)
    return Significance(p_values <= fdr, p_values)


def _of_attributor(
    attributor: BaseAttributor, X_test: Any, y_test: Any
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Return scores, their standard errors and the number of runs."""
    if X_test is None:
        raise ValueError("X_test must be given to score with an attributor.")
    values = np.asarray(attributor.transform(X_test, y_test), dtype=float)
    errors = attributor._standard_errors()
    if errors is None:
        raise ValueError(
            f"scores must be an attributor with standard errors over seeds (scores_sem_), got "
            f"{type(attributor).__name__}, which has none. FurtherTraining has them."
        )
    return values, errors, attributor._n_runs()
