"""Weights of semivalues: how much the sets of each size count."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import betabinom, binom


def beta_probabilities(n: int, alpha: float, beta: float) -> NDArray[np.float64]:
    r"""Return the part (n,) that sets of 0, 1, ..., n - 1 other rows have in a row's Beta Shapley value.

    They are those of a beta-binomial distribution, :math:`\binom{n-1}{s}
    B(s + \beta, n - 1 - s + \alpha) / B(\alpha, \beta)`, and sum to one. All are :math:`1/n` for
    :math:`\alpha = \beta = 1`, the Shapley value.
    """
    return np.asarray(betabinom(n - 1, beta, alpha).pmf(np.arange(n)), dtype=np.float64)


def banzhaf_probabilities(n: int) -> NDArray[np.float64]:
    """Return the part (n,) of the sizes where all sets of the other rows are equally likely."""
    return np.asarray(binom(n - 1, 0.5).pmf(np.arange(n)), dtype=np.float64)
