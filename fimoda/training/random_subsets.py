"""Random subsets of the training rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._validation import check_count, check_random_state

#: How often each row is in a subset, and how often out of one, whatever the time: errors need two.
TIMES = 2


def random_subsets(
    n: int, n_subsets: int, ratio: float = 0.5, random_state: Any = None
) -> NDArray[np.bool_]:
    """Return random subsets of ``round(ratio * n)`` rows each.

    Parameters
    ----------
    n : int
        Number of rows.
    n_subsets : int
        Number of subsets.
    ratio : float, default=0.5
        Part of the rows that is in a subset.
    random_state : int, RandomState or None, default=None
        Draws them. The first k of m subsets are the k that would have been drawn alone.

    Returns
    -------
    subsets : ndarray of bool of shape (n_subsets, n)
        True where the row is in the subset.

    Raises
    ------
    ValueError
        If a subset would have no rows, or all.

    Examples
    --------
    >>> from fimoda import random_subsets
    >>> random_subsets(10, 3, 0.3, random_state=0).sum(1)
    array([3, 3, 3])
    """
    size = round(ratio * n)
    if not 0 < size < n:
        raise ValueError(
            f"ratio must leave some of the {n} rows in a subset and some out, got {ratio}, which is "
            f"{size} rows."
        )
    check_count(n_subsets, "n_subsets")
    rng = check_random_state(random_state)
    subsets = np.zeros((n_subsets, n), dtype=bool)
    for subset in subsets:
        subset[rng.permutation(n)[:size]] = True
    return subsets


def covering_subsets(
    n: int, ratio: float, random_state: np.random.RandomState
) -> NDArray[np.bool_]:
    """Return as few subsets (M, n) as can be with every row in some and out of others.

    They are windows of one random order of the rows, moved on until they have covered all; two
    halves for an even number of rows and a ratio of one half.
    """
    size = round(ratio * n)
    step = min(size, n - size)
    starts = np.arange(-(-n // step)) * step
    subsets = np.zeros((len(starts), n), dtype=bool)
    windows = (starts[:, None] + np.arange(size)) % n
    np.put_along_axis(subsets, random_state.permutation(n)[windows], True, axis=1)
    return subsets


def drawn_subsets(
    n: int, n_subsets: int, ratio: float, random_state: np.random.RandomState, cover: bool
) -> NDArray[np.bool_]:
    """Return random subsets (n_subsets, n); the first ones cover all rows, if they are to."""
    if n < 2:
        raise ValueError("X must have at least 2 rows for a subset, got n_samples = 1.")
    subsets = random_subsets(n, n_subsets, ratio, random_state)
    if cover:
        first = np.concatenate([covering_subsets(n, ratio, random_state) for _ in range(TIMES)])
        subsets[: len(first)] = first[: len(subsets)]
    return subsets


def n_to_cover(subsets: NDArray[np.bool_]) -> int:
    """Return after how many of the subsets (M, n) each row was in and out often enough."""
    inside, number = subsets.cumsum(0), np.arange(1, len(subsets) + 1)[:, None]
    covered = (np.minimum(inside, number - inside) >= TIMES).all(1)
    return int(covered.argmax()) + 1 if covered.any() else len(subsets)


def require_both(subsets: NDArray[np.bool_]) -> None:
    """Raise ValueError unless each row is in some subset and out of another."""
    often = subsets.sum(0)
    constant = np.flatnonzero((often == 0) | (often == len(subsets)))
    if constant.size:
        where = "in none" if often[constant[0]] == 0 else "in all"
        raise ValueError(
            f"subsets must have every row in some and out of others; row {constant[0]} is {where} "
            f"of the {len(subsets)}. Raise n_subsets, or choose a ratio closer to 0.5."
        )
