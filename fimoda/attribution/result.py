"""The result of `attribute`: scores, what they mean, and the rows behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._arrays import row_names
from ..base import BaseAttributor
from ..plotting.top_rows import TopRowsDisplay
from ..top_rows import TopRows

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class Attribution:
    """Scores, what they mean, and how far to trust them.

    Attributes
    ----------
    scores : ndarray of shape (n_test, n_columns)
        How the behaviour of the model on each test row changes when a training row is left out.
        With the loss as behaviour a positive score says that the training row helps.
    attributor : BaseAttributor
        The fitted attributor.
    reason : str
        The method, and why it was taken.
    seconds : float
        What everything took.
    behaviour, intervention, process : str
        The three facts that define a score: what is measured, what is done to the training rows,
        and what happens to the model then.
    errors : ndarray of shape (n_test, n_columns) or None
        Standard errors over seeds, for methods that have them; NaN where there was one seed, or where a
        row has no score (NaN, too).
    trust : str
        What the method knows about its own error.
    test_names : ndarray of shape (n_test,)
        Index of the test frame, or positions.
    data : dict of str to object
        ``X_train``, ``y_train``, ``X_test`` and ``y_test`` as they were given.
    """

    scores: NDArray[np.float64]
    attributor: BaseAttributor
    reason: str
    seconds: float
    behaviour: str
    intervention: str
    process: str
    errors: NDArray[np.float64] | None
    trust: str
    test_names: NDArray[Any]
    data: dict[str, Any] = field(repr=False)

    def top(self, k: int = 5) -> TopRows:
        """Return the k most helpful and most harmful training rows of each test row.

        Parameters
        ----------
        k : int, default=5
            Rows of each kind.

        Returns
        -------
        TopRows
            With the names of both kinds of rows; printed, it is a table.
        """
        labels, given = self.attributor._told_labels(), row_names(self.data["X_test"])
        names: Any = self.test_names if given is None else given
        columns = self.attributor.train_indices_
        return TopRows.of(self.scores, columns, k, self.errors, labels, names)

    def to_frame(self) -> Any:
        """Return the scores as a pandas DataFrame (n_test, n_columns): test rows by training rows.

        Its index is that of the test frame, its columns are the index of the training frame, with
        labels and level names as they are; without frames, positions and ``row0``, ``row1``, ...
        """
        import pandas as pd

        columns = self.attributor._row_labels()
        return pd.DataFrame(self.scores, index=self._test_labels, columns=columns)

    @property
    def _test_labels(self) -> Any:
        """Return the index of the test frame, with all it knows, or the names."""
        given = self.data["X_test"]
        return given.index if hasattr(given, "iloc") else self.test_names

    def plot(
        self,
        row: Any = 0,
        k: int = 5,
        ax: Axes | None = None,
        *,
        image_shape: Sequence[int] | None = None,
    ) -> TopRowsDisplay:
        """Draw the most helpful and most harmful training rows of one test row; return the display.

        Parameters
        ----------
        row : int or object, default=0
            The test row: an integer is its position, anything else its name.
        k : int, default=5
            Rows of each kind.
        ax : matplotlib Axes, default=None
            Axes to draw on; new ones by default.
        image_shape : tuple of int, default=None
            Draw the rows themselves, as images of (height, width), with 1 or 3 channels before or
            after; by default their scores.
        """
        if image_shape is None:
            return self._display(k).plot(row, ax)
        return self._display(k).plot_images(row, ax, image_shape=image_shape)

    def table(self, row: Any = 0, k: int = 5) -> Any:
        """Return the most helpful and most harmful training rows of one test row, beside it.

        It is a pandas Styler with their scores, targets and values, and how these differ from the test
        row's; `row` and `k` are as in `plot`.
        """
        return self._display(k).style(row)

    def _display(self, k: int) -> TopRowsDisplay:
        return TopRowsDisplay(self.top(k), **self.data)

    @property
    def _facts(self) -> list[tuple[str, str]]:
        shape = f"{self.scores.shape[0]} test rows x {self.scores.shape[1]} training rows"
        return [
            ("scores", f"{shape}, in {self.seconds:.1f} s"),
            ("behaviour", self.behaviour),
            ("intervention", self.intervention),
            ("process", self.process),
            ("method", self.reason),
            ("trust", self.trust),
        ]

    def __repr__(self) -> str:
        return "\n".join(f"{name + ':':14}{text}" for name, text in self._facts)

    def _repr_html_(self) -> str:
        rows = (
            f"<tr><th style='text-align:left'>{name}</th>"
            f"<td style='text-align:left'>{escape(text)}</td></tr>"
            for name, text in self._facts
        )
        return f"<table>{''.join(rows)}</table>"
