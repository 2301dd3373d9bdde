"""The rows that matter most for a test row, drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..base import BaseAttributor, TopRows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


class TopRowsDisplay:
    """The most helpful and most harmful training rows of one test row, as bars.

    Parameters
    ----------
    top : TopRows
        Of one or more test rows.
    names : dict of int to str, default=None
        Name of each training row, by its index; the index by default.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes drawn on, after `plot`.
    figure_ : matplotlib Figure
        Their figure.

    Examples
    --------
    >>> import numpy as np
    >>> from fimoda import TopRowsDisplay
    >>> scores = np.array([[0.3, -0.1, 0.0, 0.2]])
    >>> display = TopRowsDisplay.from_predictions(scores, k=2).plot()
    >>> [label.get_text() for label in display.ax_.get_yticklabels()]
    ['0', '3', '2', '1']
    """

    def __init__(self, top: TopRows, names: Mapping[int, Any] | None = None):
        self.top = top
        self.names = names
        self.ax_: Axes
        self.figure_: Figure | SubFigure

    @classmethod
    def from_estimator(
        cls, attributor: BaseAttributor, X: Any, y: Any = None, *, k: int = 5
    ) -> TopRowsDisplay:
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

        Returns
        -------
        TopRowsDisplay
        """
        return cls(attributor.top(X, y, k=k))

    @classmethod
    def from_predictions(
        cls,
        scores: ArrayLike,
        *,
        k: int = 5,
        train_indices: ArrayLike | None = None,
        errors: ArrayLike | None = None,
        names: Mapping[int, Any] | None = None,
    ) -> TopRowsDisplay:
        """Take scores as they are.

        Parameters
        ----------
        scores : array-like of shape (n_test, n_columns)
        k : int, default=5
            Rows of each kind.
        train_indices : array-like of shape (n_columns,), default=None
            Training row of each column.
        errors : array-like of shape (n_test, n_columns), default=None
            Standard errors.
        names : dict of int to str, default=None
            Name of each training row, by its index; the index by default.

        Returns
        -------
        TopRowsDisplay
        """
        given = np.asarray(scores, dtype=np.float64)
        columns = np.arange(given.shape[1]) if train_indices is None else np.asarray(train_indices)
        sems = None if errors is None else np.asarray(errors, dtype=np.float64)
        return cls(TopRows.of(given, columns, k, sems), names)

    def plot(self, row: int = 0, ax: Axes | None = None) -> TopRowsDisplay:
        """Draw the rows of one test row, helpful ones above, with two standard errors.

        Parameters
        ----------
        row : int, default=0
            The test row, by its position.
        ax : matplotlib Axes, default=None
            Axes to draw on; new ones by default.

        Returns
        -------
        TopRowsDisplay
        """
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots()
        top = self.top
        n_test, k = top.helpful.shape
        if not 0 <= row < n_test:
            raise ValueError(
                f"row must be the position of a test row, 0 to {n_test - 1}, got {row}."
            )
        rows = np.concatenate([top.helpful[row], top.harmful[row][::-1]])
        sizes = np.concatenate([top.helpful_scores[row], top.harmful_scores[row][::-1]])
        sems = None
        if top.helpful_sem is not None and top.harmful_sem is not None:
            sems = 2 * np.concatenate([top.helpful_sem[row], top.harmful_sem[row][::-1]])
        places = np.arange(2 * k)
        colours = ["C0"] * k + ["C3"] * k
        ax.barh(places, sizes, xerr=sems, color=colours, ecolor="0.3")
        labels = [str(i) if self.names is None else str(self.names[i]) for i in rows]
        ax.set_yticks(places, labels=labels)
        ax.invert_yaxis()
        ax.axvline(0, color="0.8", lw=0.8, zorder=0)
        ax.set(
            xlabel="change of the measurement without the row",
            ylabel="training row",
            title=f"test row {row}: helpful (blue), harmful (red)",
        )
        self.ax_ = ax
        self.figure_ = ax.figure
        return self
