"""The search for the smallest set of rows that turns a prediction, of all test rows together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

#: No training rows.
NO_ROWS = np.zeros(0, dtype=np.int64)

#: From sets of rows, each with its test row, to the share of seeds in which its prediction turns.
Turned = Callable[[Sequence[tuple[int, Rows]]], NDArray[np.float64]]

#: Parts of a set that are put back, each on its own, to see whether it is needed.
_PARTS = 8


@dataclass
class Prefix:
    """The shortest beginning of an order of rows that turns the prediction of a test row.

    Lengths are doubled until one turns it, and then halved between the longest that does not and the
    shortest that does.
    """

    test_row: int
    order: Rows
    below: int = 0  # does not turn it
    found: int | None = None  # turns it
    share: float = 0.0

    @property
    def next(self) -> int | None:
        """Length to try next, None at the end."""
        if self.found is None:
            return (
                None if self.below == len(self.order) else min(2 * self.below or 1, len(self.order))
            )
        return None if self.found - self.below <= 1 else (self.below + self.found) // 2

    def learn(self, length: int, share: float, least: float) -> None:
        """Take note of the share of seeds that a length turns, and whether it is enough."""
        if share >= least:
            self.found, self.share = length, share
        else:
            self.below = length


@dataclass
class Shrinking:
    """A set that turns a prediction, from which rows are put back as long as it does."""

    test_row: int
    rows: Rows
    share: float
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = max(1, len(self.rows) // 2)
        self._done = len(self.rows) < 2

    @property
    def smaller(self) -> list[Rows]:
        """The sets to try next, each without a part of the rows; the last rows are put back first."""
        if self._done:
            return []
        starts = range(0, len(self.rows), self.size)
        sets = [np.delete(self.rows, slice(a, a + self.size)) for a in reversed(starts)]
        return [rows for rows in sets if len(rows)][:_PARTS]

    def learn(self, shares: NDArray[np.float64], tried: list[Rows], least: float) -> None:
        """Keep the set that turns most seeds, if that is enough, or go on with smaller parts."""
        best = int(shares.argmax())
        if shares[best] >= least:
            self.rows, self.share = tried[best], float(shares[best])
            self.size = min(self.size, max(1, len(self.rows) // 2))
            self._done = len(self.rows) < 2
        elif self.size == 1:
            self._done = True
        else:
            self.size = max(1, self.size // 2)


def shortest(prefixes: Sequence[Prefix], turned: Turned, least: float) -> None:
    """Search all orders, one length of each at a time; a set turns with that share of seeds at least."""
    while open_ := [(one, one.next) for one in prefixes if one.next is not None]:
        shares = turned([(one.test_row, one.order[:length]) for one, length in open_])
        for (one, length), share in zip(open_, shares, strict=True):
            one.learn(length or 0, float(share), least)


def shrink(sets: Sequence[Shrinking], turned: Turned, least: float) -> None:
    """Put rows of all sets back, a round of parts of each at a time; as `shortest` has it."""
    while asked := [(one, smaller) for one in sets if (smaller := one.smaller)]:
        shares = turned([(one.test_row, rows) for one, smaller in asked for rows in smaller])
        ends = np.cumsum([len(smaller) for _, smaller in asked])[:-1]
        for (one, smaller), found in zip(asked, np.split(shares, ends), strict=True):
            one.learn(found, smaller, least)
