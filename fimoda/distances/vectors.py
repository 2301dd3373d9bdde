"""The distance between two samples of vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validation import check_random_state
from .distributions import Wasserstein


@dataclass(frozen=True)
class SlicedWasserstein:
    r"""Wasserstein-2 distance of vectors, averaged over random directions.

    .. math:: SW_2^2 = d \, \mathrm{mean}_u \, W_2^2(u^\top P, u^\top Q), \qquad |u| = 1,

    for vectors of d numbers of the same unit. With the factor d a shift by a vector is its length,
    as for the Wasserstein distance itself.

    Parameters
    ----------
    n_directions : int, default=100
    random_state : int, RandomState or None, default=0
        Draws the directions.

    References
    ----------
    Bonneel et al., "Sliced and Radon Wasserstein Barycenters of Measures", 2015.

    Examples
    --------
    >>> import numpy as np
    >>> from fimoda.distances import SlicedWasserstein
    >>> full = np.random.default_rng(0).normal(size=(50, 2))
    >>> float(SlicedWasserstein(2000)(full + [3.0, 4.0], full).round(1))
    5.0
    """

    n_directions: int = 100
    random_state: Any = 0

    def __call__(self, left_out: ArrayLike, full: ArrayLike) -> NDArray[np.float64]:
        """Return an array of the other axes, from vectors (n_left_out, d, ...), (n_full, d, ...)."""
        ours, theirs = np.asarray(left_out, dtype=float), np.asarray(full, dtype=float)
        if min(ours.ndim, theirs.ndim) < 2 or ours.shape[1] != theirs.shape[1]:
            raise ValueError(
                "left_out and full must be samples of vectors of one length, (n, d, ...), got "
                f"shapes {ours.shape} and {theirs.shape}."
            )
        d = ours.shape[1]
        directions = check_random_state(self.random_state).normal(size=(self.n_directions, d))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        plain = Wasserstein(2)
        squares = [
            plain(np.tensordot(ours, u, (1, 0)), np.tensordot(theirs, u, (1, 0))) ** 2
            for u in directions
        ]
        return np.sqrt(d * np.mean(squares, axis=0))
