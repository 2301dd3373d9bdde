"""Shapley values of votes and means of the k nearest rows, in closed form."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def of_vote(parts: Floats, k: int) -> Floats:
    r"""Return the values (z, n) where :math:`v(S)` is the sum over k of the parts of the k nearest in S.

    `parts` (z, n) are sorted, nearest first; fewer than k rows are summed as they are. Neighbours in this
    order differ by :math:`(c_i - c_{i+1}) \min(k, i) / (k i)`, and all sum to v of all rows.
    """
    n = parts.shape[1]
    i = np.arange(1, n)
    steps = (parts[:, :-1] - parts[:, 1:]) * np.minimum(k, i) / (k * i)
    return _from_steps(steps, parts[:, :k].sum(1) / k)


def of_mean(targets: Floats, goals: Floats, k: int) -> Floats:
    r"""Return the values (z, n) where :math:`v(S) = -(\sum_{j} y_j / k - t)^2` over the k nearest in S.

    `targets` y (z, n) are sorted, nearest first; `goals` t (z,) are those of the test rows. Neighbours in
    this order differ by the mean, over the sets S that come before both in a random order, of

    .. math:: \tfrac1k (y_{i+1} - y_i) \bigl( \tfrac1k (2 T_S + y_i + y_{i+1}) - 2 t \bigr)

    where fewer than k of S are nearer than both; T is the sum over the k - 1 nearest in S.
    """
    n = targets.shape[1]
    goals = goals[:, None]
    i = np.arange(1, n)  # counts from one
    near = np.minimum(k, i) / i  # how often fewer than k are nearer
    m = np.minimum(k, i)
    before = (
        m * (m - 1) / (2 * i * np.maximum(i - 1, 1))
    )  # and how often a certain nearer one is in S
    j = np.arange(1, n + 1)
    q = np.minimum(k - 1, np.maximum(j - 2, 0))
    behind = q * (q + 1) / (2 * np.maximum(j - 2, 1) * np.maximum(j - 1, 1))  # a farther one
    sums = np.cumsum(targets, axis=1)
    nearer = np.concatenate([np.zeros((len(targets), 1)), sums[:, :-2]], axis=1)
    weighted = targets * behind
    farther = weighted.sum(1, keepdims=True) - np.cumsum(weighted, axis=1)[:, 1:]
    others = nearer * before + farther
    pair = targets[:, :-1] + targets[:, 1:]
    steps = (np.diff(targets, axis=1) / k) * ((2 * others + pair * near) / k - 2 * goals * near)
    total = goals[:, 0] ** 2 - (targets[:, :k].sum(1) / k - goals[:, 0]) ** 2
    return _from_steps(steps, total)


def _from_steps(steps: Floats, total: Floats) -> Floats:
    """Return values (z, n) with these differences from one row to the next, and this sum."""
    n = steps.shape[1] + 1
    above = np.zeros((len(steps), n))
    above[:, :-1] = np.cumsum(steps[:, ::-1], axis=1)[:, ::-1]
    return above + ((total - above.sum(1)) / n)[:, None]
