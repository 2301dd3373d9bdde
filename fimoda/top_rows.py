"""`TopRows`: the training rows that matter most for each test row."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any
from unicodedata import category

import numpy as np
from numpy.typing import NDArray

from ._validation import check_top, is_integer

#: Test rows, rows of each kind and characters of a name that are printed.
_TESTS, _RANKS, _LENGTH = 5, 10, 40

#: Kinds of training rows, in their order.
KINDS = ("helpful", "harmful")

#: In place of a training row, where too few have a score.
MISSING = -1


@dataclass(frozen=True, repr=False)
class TopRows:
    """The training rows that matter most for each test row.

    Printed, or shown in a notebook, it is a table of the first test rows.

    Attributes
    ----------
    helpful, harmful : ndarray of shape (n_test, k)
        Positions of training rows; removing a helpful row raises the measurement most, removing a
        harmful one lowers it most. (For ``measurement="loss"``: helpful rows hold the loss down.)
        A score that is NaN does not rank: -1 where fewer than k rows have one.
    helpful_scores, harmful_scores : ndarray of shape (n_test, k)
        Their scores, in the unit of the measurement; NaN where there is no row.
    helpful_sem, harmful_sem : ndarray of shape (n_test, k) or None
        Standard errors of the scores, for methods that have them.
    names : dict of int to object or None
        Names of these training rows, by their positions.
    test_names : sequence of length n_test or None
        Names of the test rows.

    Examples
    --------
    >>> import numpy as np
    >>> from fimoda import TopRows
    >>> scores = np.array([[0.3, -0.1, 0.02, 0.2], [-0.5, 0.4, 0.1, 0.6]])
    >>> TopRows.of(scores, np.arange(4), 2, names=["Ada", "Bo", "Cy", "Di"])
    test row  helpful  score  harmful  score
    0         Ada       +0.3  Bo        -0.1
              Di        +0.2  Cy       +0.02
    1         Di        +0.6  Ada       -0.5
              Bo        +0.4  Cy        +0.1
    """

    helpful: NDArray[np.int64]
    helpful_scores: NDArray[np.float64]
    harmful: NDArray[np.int64]
    harmful_scores: NDArray[np.float64]
    helpful_sem: NDArray[np.float64] | None = None
    harmful_sem: NDArray[np.float64] | None = None
    names: dict[int, Any] | None = None
    test_names: Sequence[Any] | None = None

    @classmethod
    def of(
        cls,
        scores: NDArray[np.float64],
        train_indices: NDArray[np.int64],
        k: int,
        errors: NDArray[np.float64] | None = None,
        names: Sequence[Any] | None = None,
        test_names: Sequence[Any] | None = None,
    ) -> TopRows:
        """Return the k largest and smallest of scores (n_test, n_columns), with their errors.

        ``names`` has one for each column.
        """
        check_top(k, scores.shape[1])
        counts = (~np.isnan(scores)).sum(1)
        if (counts < k).any():
            warnings.warn(
                f"{(counts < k).sum()} of {len(scores)} test rows have fewer than {k} training rows "
                "with a score; NaN does not rank. The places that are left hold -1.",
                stacklevel=3,
            )
        order = np.argsort(scores, axis=1, kind="stable")  # NaN last
        from_the_end = counts[:, None] - 1 - np.arange(k)
        missing = from_the_end < 0

        def values(of: NDArray[Any] | None, columns: NDArray[np.int64]) -> Any:
            if of is None:
                return None
            return np.where(missing, np.nan, np.take_along_axis(of, columns, 1))

        sides = [np.take_along_axis(order, from_the_end.clip(0), 1), order[:, :k]]
        rows = [np.where(missing, MISSING, train_indices[columns]) for columns in sides]
        found, sems = ([values(of, columns) for columns in sides] for of in (scores, errors))
        known = None
        if names is not None:
            shown = np.unique([columns[~missing] for columns in sides])
            known = {int(train_indices[j]): names[j] for j in shown}
        return cls(rows[0], found[0], rows[1], found[1], sems[0], sems[1], known, test_names)

    # ---- one test row -----------------------------------------------------------------------

    def position(self, row: Any) -> int:
        """Return the position of a test row that is given by its position or its name.

        An integer is a position, as in ``iloc``; anything else is a name. ValueError if there is no
        such row, or more than one of that name.
        """
        positions = f"row must be the position of a test row, 0 to {len(self.helpful) - 1}"
        if is_integer(row):
            if 0 <= row < len(self.helpful):
                return int(row)
            raise ValueError(f"{positions}, got {row}.")
        known = [] if self.test_names is None else [as_text(name) for name in self.test_names]
        places = [z for z, name in enumerate(known) if name == as_text(row)]
        if len(places) == 1:
            return places[0]
        if places:
            raise ValueError(
                f"row must name one test row, and {len(places)} are called {row!r}: give a position, "
                f"one of {', '.join(map(str, places[:5]))}{', ...' * (len(places) > 5)}."
            )
        shown = ", ".join(map(repr, known[:3])) + ", ..." * (len(known) > 3)
        raise ValueError(f"{positions}, or its name ({shown or 'these have none'}), got {row!r}.")

    def name(self, row: int) -> Any:
        """Return the name of the test row at a position; the position if it has none."""
        return row if self.test_names is None else self.test_names[row]

    def of_row(
        self, row: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64] | None]:
        """Return the training rows of one test row, their scores and errors.

        Half of them helpful, then as many harmful ones, each the foremost first.
        """
        there = self.helpful[row] != MISSING  # as many on either side
        rows = np.r_[self.helpful[row, there], self.harmful[row, there]]
        scores = np.r_[self.helpful_scores[row, there], self.harmful_scores[row, there]]
        if self.helpful_sem is None or self.harmful_sem is None:
            return rows, scores, None
        return rows, scores, np.r_[self.helpful_sem[row, there], self.harmful_sem[row, there]]

    # ---- as a table -------------------------------------------------------------------------

    def to_frame(self) -> Any:
        """Return all of it as a pandas DataFrame, one line for each pair of rows.

        Indexed by ``test`` (name or position), ``kind`` ("helpful" or "harmful") and ``rank`` (from 1).
        Columns: ``row`` (name or position of the training row), ``position``, ``score`` and, where it
        is known, ``error``.
        """
        import pandas as pd

        index: list[tuple[Any, str, int]] = []
        columns = ["row", "position", "score"] + ["error"] * (self.helpful_sem is not None)
        parts: dict[str, list[Any]] = {name: [] for name in columns}
        for z in range(len(self.helpful)):
            rows, scores, errors = self.of_row(z)
            ranks = range(1, len(rows) // 2 + 1)
            index += [(self.name(z), kind, rank) for kind in KINDS for rank in ranks]
            found: list[Any] = [self.named(rows), rows, scores, errors]
            for part, more in zip(
                parts.values(), found, strict=False
            ):  # without errors three parts
                part.extend(more)
        levels = [list(level) for level in zip(*index, strict=True)] or [[], [], []]
        names = ["test", "kind", "rank"]
        return pd.DataFrame(parts, index=pd.MultiIndex.from_arrays(levels, names=names))

    def named(self, rows: NDArray[np.int64]) -> list[Any]:
        """Return the names of training rows; their positions if they have none."""
        return [int(i) if self.names is None else self.names[int(i)] for i in rows]

    def _lines(self) -> tuple[list[str], list[list[str]], str]:
        """Return head, cells and what is left out of the printed table."""
        head = ["test row"]
        for kind in KINDS:
            head += [kind, "score"] + ["error"] * (self.helpful_sem is not None)
        cells = []
        n_test, k = self.helpful.shape
        for z in range(min(n_test, _TESTS)):
            rows, scores, errors = self.of_row(z)
            names, found = self.named(rows), len(rows) // 2
            for rank in range(min(found, _RANKS)):
                line = ["" if rank else shortened(self.name(z))]
                for place in (rank, rank + found):
                    line += [shortened(names[place]), f"{scores[place]:+.3g}"]
                    line += [] if errors is None else [f"{errors[place]:.2g}"]
                cells.append(line)
            if not found:
                cells.append([shortened(self.name(z)), "none", *[""] * (len(head) - 2)])
        more = [f"{n_test - _TESTS} more test rows"] * (n_test > _TESTS)
        more += [f"{k - _RANKS} more rows of each kind"] * (k > _RANKS)
        return head, cells, f"... and {', '.join(more)}: see to_frame()" if more else ""

    def __repr__(self) -> str:
        head, cells, more = self._lines()
        left = [j for j, title in enumerate(head) if title in ("test row", *KINDS)]
        return aligned([head, *cells], left) + f"\n{more}" * bool(more)

    def _repr_html_(self) -> str:
        head, cells, more = self._lines()
        titles = "".join(f"<th>{title}</th>" for title in head)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>"
            for line in cells
        )
        table = f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"
        return table + (f"<p>{more}</p>" if more else "")


def aligned(lines: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Return cells as text in columns, those at `left` set to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if j in left else cell.rjust(width)
            for j, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def as_text(name: Any) -> str:
    """Return a label as text; the levels of a MultiIndex are joined by commas."""
    return ", ".join(map(str, name)) if isinstance(name, tuple) else str(name)


def printable(text: str) -> str:
    """Return text without signs that control a terminal; lines stay lines."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if sign != "\n" and category(sign) == "Cc" else sign
        for sign in text
    )


def shortened(name: Any, length: int = _LENGTH) -> str:
    """Return a name as text of one line, its middle left out where it is longer than `length`."""
    text = printable(" ".join(as_text(name).split()))
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return f"{text[: length - 1 - half]}…{text[-half:]}"


def distinct(names: Sequence[str], positions: NDArray[np.int64]) -> list[str]:
    """Return names that differ: one that occurs again is followed by its position."""
    found: dict[str, None] = {}
    for name, position in zip(names, positions, strict=True):
        while name in found:
            name = f"{name} (row {position})"
        found[name] = None
    return list(found)
