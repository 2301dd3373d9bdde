"""Scores of all rows at once, drawn: as a map, those of rows on themselves, and their noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from ..attributors.further_training_curve import FurtherTrainingCurve
from ..base import BaseAttributor
from ._base import Display

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class ScoreMapDisplay(Display):
    """All scores as a map of test rows by training rows, sorted so that blocks can be seen.

    Parameters
    ----------
    scores : array-like of shape (n_test, n_columns)
        NaN, of rows that could not be left out, is drawn grey.

    Examples
    --------
    >>> from fimoda import ScoreMapDisplay
    >>> ScoreMapDisplay([[0.3, -0.1], [0.0, 0.2]]).plot().ax_.get_ylabel()
    'test row'
    """

    def __init__(self, scores: ArrayLike):
        self.scores = np.asarray(scores, dtype=np.float64)
        if self.scores.ndim != 2 or np.isinf(self.scores).any():
            raise ValueError(
                f"scores must be a finite matrix (n_test, n_columns), got shape {self.scores.shape}"
                f"{' and infinite scores' * bool(np.isinf(self.scores).any())}."
            )

    @classmethod
    def from_estimator(cls, attributor: BaseAttributor, X: Any, y: Any = None) -> Self:
        """Score test rows with a fitted attributor.

        Parameters
        ----------
        attributor : BaseAttributor
            Fitted.
        X, y : array-like
            Test rows, and their targets or None, as in ``transform``.
        """
        return cls(attributor.transform(X, y))

    @classmethod
    def from_predictions(cls, scores: ArrayLike) -> Self:
        """Take scores as they are."""
        return cls(scores)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        test_order: ArrayLike | None = None,
        train_order: ArrayLike | None = None,
    ) -> Self:
        """Draw the map; colours end at the 99th percentile of the scores' sizes.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; new ones by default.
        test_order, train_order : array-like of int, default=None
            Orders of the rows and columns, for example by class (``np.argsort(y)``).
        """
        ax = self._on(ax)
        shown = self.scores
        if test_order is not None:
            shown = shown[np.asarray(test_order)]
        if train_order is not None:
            shown = shown[:, np.asarray(train_order)]
        known = np.abs(shown[~np.isnan(shown)])
        limit = (float(np.quantile(known, 0.99)) if known.size else 0.0) or 1.0
        colours: dict[str, Any] = {"cmap": "RdBu", "vmin": -limit, "vmax": limit}
        image = ax.imshow(shown, aspect="auto", interpolation="nearest", **colours)
        ax.set_facecolor("0.7")  # behind NaN
        ax.figure.colorbar(image, ax=ax, label="change without the row", extend="both")
        ax.set(xlabel="training row", ylabel="test row")
        return self


class SelfInfluenceDisplay(Display):
    """Distribution of self-influence; rows that are fitted only by their own presence lie far right.

    Parameters
    ----------
    scores : array-like of shape (n_columns,)
        NaN, of rows that could not be left out, is not drawn.
    marked : array-like of bool of shape (n_columns,), default=None
        Rows to show apart, for example those with a wrong label.

    Examples
    --------
    >>> from fimoda import SelfInfluenceDisplay
    >>> SelfInfluenceDisplay([0.1, 0.2, 3.0]).plot().ax_.get_xlabel()
    'self-influence'
    """

    def __init__(self, scores: ArrayLike, marked: ArrayLike | None = None):
        self.scores = np.asarray(scores, dtype=np.float64)
        self.marked = None if marked is None else np.asarray(marked, dtype=bool)
        if self.marked is not None and self.marked.shape != self.scores.shape:
            raise ValueError(
                f"marked must have one entry for each score, {self.scores.shape}, got "
                f"{self.marked.shape}."
            )

    @classmethod
    def from_estimator(cls, attributor: BaseAttributor, marked: ArrayLike | None = None) -> Self:
        """Ask a fitted attributor; `marked` is that of the display."""
        return cls(attributor.self_influence(), marked)

    @classmethod
    def from_predictions(cls, scores: ArrayLike, marked: ArrayLike | None = None) -> Self:
        """Take scores as they are; `marked` is that of the display."""
        return cls(scores, marked)

    def plot(self, ax: Axes | None = None, bins: int = 40) -> Self:
        """Draw the histogram, counts on a logarithmic axis.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; new ones by default.
        bins : int, default=40
            Number of bins.
        """
        ax = self._on(ax)
        parts, labels = [self.scores], ["rows"]
        if self.marked is not None:
            parts = [self.scores[~self.marked], self.scores[self.marked]]
            labels = ["other rows", "marked rows"]
        edges = np.histogram_bin_edges(self.scores[~np.isnan(self.scores)], bins)
        ax.hist(parts, edges.tolist(), stacked=True, label=labels, log=True)
        ax.set(xlabel="self-influence", ylabel="training rows")
        if self.marked is not None:
            ax.legend()
        return self


class SeedsNeededDisplay(Display):
    """Noise of the mean of so many seeds, beside the size of the scores.

    Parameters
    ----------
    seeds : array-like of shape (n_numbers,)
        Numbers of seeds.
    noise : array-like of shape (n_epochs, n_numbers)
        Standard error of the mean of so many seeds, as part of the scores' size (root mean squares
        over test rows and left-out rows).
    epochs : array-like of shape (n_epochs,)
        Horizons.

    Examples
    --------
    >>> from fimoda import SeedsNeededDisplay
    >>> SeedsNeededDisplay([1, 4], [[0.4, 0.2]], [10]).plot().ax_.get_xlabel()
    'seeds'
    """

    def __init__(self, seeds: ArrayLike, noise: ArrayLike, epochs: ArrayLike):
        self.seeds, self.noise = np.asarray(seeds), np.asarray(noise)
        self.epochs = np.asarray(epochs)

    @classmethod
    def from_curve(cls, curve: FurtherTrainingCurve, max_seeds: int = 50) -> Self:
        """Take the spread over the seeds of a curve, as :math:`\\sigma / \\sqrt{R}` for R seeds.

        Parameters
        ----------
        curve : FurtherTrainingCurve
            With 2 seeds or more.
        max_seeds : int, default=50
            Largest number of seeds to show.
        """
        per_seed = curve.per_seed
        n_seeds = per_seed.shape[-1]
        if n_seeds < 2:
            raise ValueError("curve must have 2 seeds or more to tell their spread, got 1.")
        variance = per_seed.var(-1, ddof=1).mean((1, 2))
        # the mean's own noise is part of its size
        size = np.maximum((per_seed.mean(-1) ** 2).mean((1, 2)) - variance / n_seeds, 0)
        seeds = np.arange(1, max_seeds + 1)
        part = variance[:, None] / np.where(size > 0, size, np.nan)[:, None]
        return cls(seeds, np.sqrt(part / seeds), curve.epochs)

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw one line a horizon, both axes logarithmic.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; new ones by default.
        """
        ax = self._on(ax)
        for epoch, line in zip(self.epochs, self.noise, strict=True):
            ax.plot(self.seeds, line, label=f"{epoch:g} epochs")
        ax.set(xlabel="seeds", ylabel="standard error / size of the scores")
        ax.set(xscale="log", yscale="log")
        ax.legend()
        return self
