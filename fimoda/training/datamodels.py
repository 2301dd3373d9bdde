"""Datamodels of trained subsets: their regression, and how far it depends on which subsets there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .subset_outcomes import SubsetOutcomes
from .subset_regression import FOLDS, regressed

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Datamodels:
    """Scores (n_test, n_train) by a regression on subsets, and what is known beside them.

    `sem` is their standard deviation over bootstrap samples of the subsets, `stability` (n_test,) the mean
    correlation with those of the samples, and `factor` (n_test,) that of the scores to start from.
    """

    scores: Array
    sem: Array
    stability: Array
    factor: Array


def datamodels(
    outcomes: SubsetOutcomes,
    start: Array | None,
    sparse: bool,
    n_bootstrap: int,
    random_state: np.random.RandomState,
    n_jobs: int | None,
) -> Datamodels:
    """Return datamodels of outcomes, which start from scores (n_test, n_train) or from none.

    Raises
    ------
    ValueError
        If too few subsets could be trained on.
    """
    measured = outcomes.mean
    trained = np.isfinite(measured).all(1)
    inside, measured = outcomes.subsets[trained].astype(float), measured[trained]
    if len(measured) < FOLDS:
        raise ValueError(
            f"subsets must have at least {FOLDS} that could be trained on, got {len(measured)}. "
            "Raise n_subsets."
        )
    found = regressed(inside, measured, start, sparse, n_jobs)
    draws = [random_state.randint(len(inside), size=len(inside)) for _ in range(n_bootstrap)]
    samples = [found.again(inside[k], measured[k]).scores for k in draws]
    stability = np.mean([_correlation(found.scores, one) for one in samples], 0)
    return Datamodels(found.scores, np.std(samples, 0), stability, found.factor)


def _correlation(a: Array, b: Array) -> Array:
    """Return the correlation of each row of a with that of b; NaN where one is constant."""
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def scores_to_start_from(prior: Any, outcomes: SubsetOutcomes) -> Array:
    """Return the scores that a regression starts from, if they are of the rows of its outcomes."""
    scores = np.asarray(prior, dtype=np.float64)
    expected = outcomes.measured.shape[1], outcomes.subsets.shape[1]
    if scores.shape != expected or not np.isfinite(scores).all():
        raise ValueError(
            f"prior must be finite scores (n_test, n_train) = {expected} of the same rows, got shape "
            f"{scores.shape}."
        )
    return scores
