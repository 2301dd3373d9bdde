"""Scores of any method beside further training of a few rows, on the model at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base import BaseAttributor
from ..evaluation._correlation import centred, pearson
from ..evaluation.failures import FAILURES
from ..training.workers import Deadline

#: Rows that are trained without.
N_ROWS = 10


class Check:
    """Further training without a few rows, done once, with which scores of methods are compared.

    `seconds` are those that `gold` would take for all rows; nothing is done where there is no time for a few.
    """

    def __init__(
        self,
        gold: BaseAttributor,
        seconds: Callable[[], float],
        rows: tuple[Any, Any, Any],
        test_rows: tuple[Any, Any],
        clock: Deadline,
    ):
        self._gold, self._seconds, self._clock = gold, seconds, clock
        self._rows, self._test_rows = rows, test_rows
        self._found: tuple[NDArray[np.int64], NDArray[np.float64]] | None = None

    def agreement(self, scores: NDArray[np.float64]) -> float | None:
        """Return the correlation of scores (m, n) with further training over the rows, on average.

        None where it cannot be known in the time that is left.
        """
        if self._found is None:
            try:
                self._found = self._trained(scores)
            except FAILURES:
                return None
        if self._found is None:
            return None
        rows, expected = self._found
        return float(pearson(scores[:, rows], expected).mean())

    def _trained(
        self, scores: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        """Train without rows of all sizes of scores, the largest first of all."""
        n = scores.shape[1]
        if not self._clock.is_within(self._seconds() * (N_ROWS + 1) / (n + 1)):
            return None
        largest_first = np.argsort(-np.linalg.norm(centred(scores), axis=0), kind="stable")
        rows = np.sort(largest_first[np.unique(np.geomspace(1, n, N_ROWS).astype(int)) - 1])
        gold = self._gold.__sklearn_clone__().set_params(leave_out=rows, max_seconds=None)
        return rows, np.asarray(gold.fit(*self._rows).transform(*self._test_rows))
