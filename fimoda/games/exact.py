"""Values from the utilities of all sets of rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import comb

#: Rows from which on there are too many sets: 2 ** 14 are trained in minutes.
MOST_ROWS = 14


def all_subsets(n: int) -> NDArray[np.bool_]:
    """Return all sets (2 ** n, n) of n rows; ValueError for more than `MOST_ROWS`."""
    if n > MOST_ROWS:
        raise ValueError(
            f"n_samples='exact' goes through all 2**n sets of rows, and takes at most {MOST_ROWS} rows, got "
            f"{n}. Set n_samples to a number of samples, or to 'auto'."
        )
    return (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(bool)


def semivalues(
    utilities: NDArray[np.float64], probabilities: NDArray[np.float64]
) -> NDArray[np.float64]:
    r"""Return the values (T, n) of rows from the utilities (2 ** n, T) of `all_subsets`.

    .. math:: \phi_i = \sum_{S \not\ni i} \frac{p_{|S|}}{\binom{n-1}{|S|}}
                       \bigl( v(S \cup i) - v(S) \bigr)
    """
    n = len(probabilities)
    inside, other = all_subsets(n), np.arange(n)
    weights = probabilities / comb(n - 1, other)
    sizes = inside.sum(1, keepdims=True)
    signed = np.where(inside, weights[sizes - 1], -weights[np.minimum(sizes, n - 1)])
    return np.asarray(utilities.T @ signed, dtype=np.float64)
