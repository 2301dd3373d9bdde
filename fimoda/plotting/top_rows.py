"""The rows that matter most for a test row, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arrays import row_names
from ..base import BaseAttributor
from ..top_rows import KINDS, TopRows, shortened
from ._base import LITERAL, Display, upright_at_zero
from ._row_table import as_frame, styled, with_values
from ._thumbnails import draw, pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Characters of a name above a thumbnail.
_TITLE = 20


class TopRowsDisplay(Display):
    """The most helpful and most harmful training rows of one test row: bars, a table, or images.

    Parameters
    ----------
    top : TopRows
        Of one or more test rows.
    names : dict of int to str, default=None
        Name of each training row, by its position; those that `top` knows by default.
    X_train, y_train : array-like of shape (n_train, ...), default=None
        All training rows and their targets, for `to_frame`, `style` and `plot_images`.
    X_test, y_test : array-like of shape (n_test, ...), default=None
        The test rows and their targets, likewise.

    Examples
    --------
    >>> from fimoda import TopRowsDisplay
    >>> display = TopRowsDisplay.from_predictions([[0.3, -0.1, 0.0, 0.2]], k=2).plot()
    >>> [label.get_text() for label in display.ax_.get_yticklabels()]
    ['0', '3', '2', '1']
    """

    def __init__(
        self,
        top: TopRows,
        names: Mapping[int, Any] | None = None,
        *,
        X_train: Any = None,
        y_train: Any = None,
        X_test: Any = None,
        y_test: Any = None,
    ):
        tests = top.test_names
        if tests is None and X_test is not None:
            tests = row_names(X_test)
        named = top.names if names is None else dict(names)
        self.top = replace(top, names=named, test_names=tests)
        self.X_train = X_train
        self.y_train = y_train
        self.X_test = X_test
        self.y_test = y_test

    @classmethod
    def from_estimator(
        cls, attributor: BaseAttributor, X: Any, y: Any = None, *, k: int = 5, **rows: Any
    ) -> Self:
        """Score test rows with a fitted attributor.

        Parameters
        ----------
        attributor : BaseAttributor
            Fitted.
        X : array-like of shape (n_test, n_features)
            Test rows.
        y : array-like of shape (n_test,), default=None
            Their targets, as in ``transform``.
        k : int, default=5
            Rows of each kind.
        **rows : dict
            Parameters `X_train` and `y_train` of the display.
        """
        return cls(attributor.top(X, y, k=k), X_test=X, y_test=y, **rows)

    @classmethod
    def from_predictions(
        cls,
        scores: ArrayLike,
        *,
        k: int = 5,
        train_indices: ArrayLike | None = None,
        errors: ArrayLike | None = None,
        **rows: Any,
    ) -> Self:
        """Take scores as they are.

        Parameters
        ----------
        scores : array-like of shape (n_test, n_columns)
            One column for each training row.
        k : int, default=5
            Rows of each kind.
        train_indices : array-like of shape (n_columns,), default=None
            Training row of each column.
        errors : array-like of shape (n_test, n_columns), default=None
            Standard errors.
        **rows : dict
            Parameters `names`, `X_train`, `y_train`, `X_test` and `y_test` of the display.
        """
        given = np.asarray(scores, dtype=np.float64)
        columns = np.arange(given.shape[1]) if train_indices is None else np.asarray(train_indices)
        sems = None if errors is None else np.asarray(errors, dtype=np.float64)
        return cls(TopRows.of(given, columns, k, sems), **rows)

    # ---- bars -------------------------------------------------------------------------------

    def plot(self, row: Any = 0, ax: Axes | None = None) -> Self:
        """Draw the scores for one test row, helpful ones above, with two standard errors.

        Parameters
        ----------
        row : int or object, default=0
            The test row: an integer is its position, anything else its name.
        ax : matplotlib Axes, default=None
            Axes to draw on; new ones by default.
        """
        place = self.top.position(row)
        rows, sizes, sems = self.top.of_row(place)
        ax = self._on(ax)
        k = len(rows) // 2
        order = np.r_[:k, 2 * k - 1 : k - 1 : -1]  # the most harmful one last
        xerr, colours = None if sems is None else 2 * sems[order], ["C0"] * k + ["C3"] * k
        ax.barh(np.arange(2 * k), sizes[order], xerr=xerr, color=colours, ecolor="0.3")
        names = [shortened(name) for name in self.top.named(rows[order])]
        ax.set_yticks(np.arange(2 * k), labels=names, **LITERAL)
        ax.invert_yaxis()
        upright_at_zero(ax)
        ax.set(xlabel="change of the measurement without the row", ylabel="training row")
        name = shortened(self.top.name(place))
        ax.set_title(f"test row {name}: helpful (blue), harmful (red)", **LITERAL)
        return self

    def _labels(self, row: int, rows: NDArray[np.int64]) -> list[Any]:
        """Return the targets of the test row and of its training rows; None where they are not known."""
        test = None if self.y_test is None else np.asarray(self.y_test)[row]
        train = [None] * len(rows) if self.y_train is None else np.asarray(self.y_train)[rows]
        return [test, *train]

    def _check_given(self) -> None:
        if self.X_train is None or self.X_test is None:
            raise ValueError(
                "X_train and X_test must be given to the display to show what its rows hold, got "
                "None. Pass all training rows and the test rows that were scored."
            )

    # ---- a table ----------------------------------------------------------------------------

    def to_frame(self, row: Any = 0) -> Any:
        """Return the rows of one test row as a pandas DataFrame, with their differences from it.

        Parameters
        ----------
        row : int or object, default=0
            The test row: an integer is its position, anything else its name.

        Returns
        -------
        DataFrame of shape (1 + 2 k, n_facts + 2 n_features)
            The test row, then its helpful and its harmful rows by rank. Columns: ``row``, ``score``,
            ``error`` and ``target`` where they are known, then each feature under ``value``, and
            under ``difference`` (numbers: less the test row's; others: whether they differ).
        """
        import pandas as pd

        self._check_given()
        place = self.top.position(row)
        rows, scores, errors = self.top.of_row(place)
        k = len(rows) // 2
        test, train = as_frame(self.X_test), as_frame(self.X_train)
        facts = {"row": [self.top.name(place), *self.top.named(rows)], "score": [np.nan, *scores]}
        if errors is not None:
            facts["error"] = [np.nan, *errors]
        if self.y_train is not None or self.y_test is not None:
            facts["target"] = self._labels(place, rows)
        frame = with_values(facts, test.iloc[[place]], train, rows)
        index = [("test", 0), *((kind, rank + 1) for kind in KINDS for rank in range(k))]
        return frame.set_index(pd.MultiIndex.from_tuples(index, names=["kind", "rank"]))

    def style(self, row: Any = 0) -> Any:
        """Return the rows of one test row (as in `to_frame`) as a pandas Styler, for notebooks.

        Each value has its difference from the test row's in brackets; red is above, blue below (full
        colour: two standard deviations of the training rows), yellow another category.
        """
        caption = "score: change of the measurement without the row; (difference from the test row)"
        return styled(self.to_frame(row), as_frame(self.X_train), caption)

    # ---- images -----------------------------------------------------------------------------

    def plot_images(
        self, row: Any = 0, ax: Axes | None = None, *, image_shape: Sequence[int] | None = None
    ) -> Self:
        """Draw one test row and its training rows as thumbnails, helpful ones above.

        Parameters
        ----------
        row : int or object, default=0
            The test row: an integer is its position, anything else its name.
        ax : matplotlib Axes, default=None
            Axes to draw on; new ones by default.
        image_shape : tuple of int, default=None
            (height, width), with 1 or 3 channels before or after; that of the rows by default.
        """
        self._check_given()
        place = self.top.position(row)
        rows, scores, _ = self.top.of_row(place)
        images = pictures(self.X_test, place, self.X_train, rows, image_shape)
        ax = self._on(ax, figsize=(1.3 * (len(rows) // 2 + 1), 3.6))
        labels = ["" if one is None else f": {one}" for one in self._labels(place, rows)]
        titles = [shortened(f"test {self.top.name(place)}{labels[0]}", _TITLE)]
        for name, label, score in zip(self.top.named(rows), labels[1:], scores, strict=True):
            titles.append(f"{shortened(f'{name}{label}', _TITLE)}\n{score:+.2g}")
        draw(images, titles, ax)
        ax.set_title("helpful above, harmful below; change without the row", fontsize="medium")
        return self
