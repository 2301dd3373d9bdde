"""Scores of all rows, corrected by what training without some of them says."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Least and largest factor of an approximation.
SCALES = 0.05, 20.0


class Refined(NamedTuple):
    """Scores (n_test, n) with what training says of some, and how far the two agree there."""

    scores: NDArray[np.float64]
    scale: NDArray[np.float64]
    weight: NDArray[np.float64]
    agreement: float


def refine(
    scores: NDArray[np.float64],
    rows: NDArray[np.int64],
    trained: NDArray[np.float64],
    errors: NDArray[np.float64],
    smaller: NDArray[np.int64],
) -> Refined:
    """Return scores (n_test, n), brought near to those of training (n_test, k) without some rows.

    Their scale is that of the `smaller` of these rows, places among them.
    """
    own = scores[:, rows]
    scale = fitted_scale(own[:, smaller], trained[:, smaller])
    refined = scale[:, None] * scores
    difference = trained - refined[:, rows]
    weight = weight_of_training(difference, errors)
    refined[:, rows] += weight[:, None] * difference
    return Refined(refined, scale, weight, mean_cosine(own, trained))


def fitted_scale(
    approximate: NDArray[np.float64], trained: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return factors (n_test,) that bring scores (n_test, k) near to those of training."""
    products, squares = (approximate * trained).sum(1), np.square(approximate).sum(1)
    scale = np.divide(products, squares, out=np.ones_like(products), where=squares > 0)
    return scale.clip(*SCALES)


def mean_cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the cosine of scores (n_test, k), mean over test rows; zero where there are none."""
    products, sizes = (a * b).sum(1), np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.divide(products, sizes, out=np.zeros_like(products), where=sizes > 0).mean())


def weight_of_training(
    difference: NDArray[np.float64], errors: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return weights (n_test,) of training that differs so much and has such standard errors, (n_test, k)."""
    noise = np.square(errors).mean(1)
    beyond = np.maximum(np.square(difference).mean(1) - noise, 0)
    total = beyond + noise  # NaN for one seed
    return np.divide(beyond, total, out=np.ones_like(noise), where=total > 0)
