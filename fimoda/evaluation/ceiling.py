"""The highest score that the noise of repeated trainings leaves room for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._validation import POSITIVE_INTEGER, check_random_state, checks_arguments
from ._correlation import spearman


@checks_arguments(n_splits=[POSITIVE_INTEGER])
def noise_ceiling(measured: Any, *, n_splits: int = 20, random_state: Any = None) -> NDArray[Any]:
    r"""Estimate the rank correlation that the exact expected measurement would reach.

    A method that predicts the expected measurement of every subset exactly is still compared with
    means of R noisy trainings. The seeds are split into two halves of h, and the rank correlation r
    of the halves' means over subsets, averaged over splits, gives by the formula of Spearman and
    Brown, with k = R / h, the reliability of the mean of all seeds and the ceiling

    .. math:: c = \sqrt{\frac{k r}{1 + (k - 1) r}},

    or 0 for r < 0. It is an estimate with the noise of r, and of every test row by itself: read its
    mean over test rows. The formula is one of ordinary correlations; applied to ranks it is too
    high, by less than 0.01 for normal signal and noise.

    Parameters
    ----------
    measured : array-like of shape (n_subsets, n_test, n_seeds)
        Measurements after training on each subset with each seed. Subsets with a failed training
        (NaN) are left out.
    n_splits : int, default=20
        Random splits of the seeds.
    random_state : int, RandomState instance or None, default=None
        Draws the splits.

    Returns
    -------
    ceiling : ndarray of shape (n_test,)
        In [0, 1]. NaN for a single seed, or fewer than 3 subsets.

    References
    ----------
    Spearman, "Correlation calculated from faulty data", 1910. Brown, "Some experimental results in
    the correlation of mental abilities", 1910.

    Examples
    --------
    >>> import numpy as np
    >>> from fimoda import noise_ceiling
    >>> rng = np.random.default_rng(0)
    >>> signal, noise = rng.normal(size=(500, 1, 1)), rng.normal(size=(500, 1, 4))
    >>> noise_ceiling(signal + noise, random_state=0).round(1)  # sqrt(1 / (1 + 1 / 4))
    array([0.9])
    """
    measured = np.asarray(measured, dtype=float)
    if measured.ndim != 3:
        raise ValueError(
            "measured must have shape (n_subsets, n_test, n_seeds), got shape "
            f"{measured.shape}. Keep the seeds as the last axis."
        )
    measured = measured[np.isfinite(measured).all((1, 2))]
    n_subsets, n_test, n_seeds = measured.shape
    if n_seeds < 2 or n_subsets < 3:
        return np.full(n_test, np.nan)
    half = n_seeds // 2
    by_row = measured.transpose(2, 1, 0)
    rng = check_random_state(random_state)
    drawn = [rng.permutation(n_seeds) for _ in range(1 if n_seeds == 2 else n_splits)]
    r = np.mean(
        [spearman(by_row[p[:half]].mean(0), by_row[p[half : 2 * half]].mean(0)) for p in drawn], 0
    )
    k, r = n_seeds / half, r.clip(0)
    return np.sqrt(k * r / (1 + (k - 1) * r))
