"""Removal curves, drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..evaluation.removal import RANDOM, SubsetRemovalCurve, subset_removal_curve
from ._text import legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_LABELS = {
    "classification": "fraction of test rows misclassified",
    "regression": "change of the absolute error",
}


class SubsetRemovalCurveDisplay:
    """Effect of removing the most helpful rows against their number.

    Parameters
    ----------
    curve : SubsetRemovalCurve
        Result of `subset_removal_curve`.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes drawn on, after `plot`.
    figure_ : matplotlib Figure
        Their figure.

    Examples
    --------
    >>> import numpy as np
    >>> from fimoda import SubsetRemovalCurve, SubsetRemovalCurveDisplay
    >>> effects = np.array([[[0.0, 1.0], [1.0, 1.0]]])
    >>> curve = SubsetRemovalCurve(
    ...     ["Grad-Dot"], np.array([1, 5]), np.array([0, 1]), effects, "classification", 5, 0
    ... )
    >>> SubsetRemovalCurveDisplay(curve).plot().ax_.get_xlabel()
    'training rows removed'
    """

    def __init__(self, curve: SubsetRemovalCurve):
        self.curve = curve
        self.ax_: Axes
        self.figure_: Figure | SubFigure

    @classmethod
    def from_attributors(
        cls,
        methods: Any,
        train: Any,
        y_train: Any,
        X_test: Any = None,
        y_test: Any = None,
        *,
        ax: Axes | None = None,
        **options: Any,
    ) -> SubsetRemovalCurveDisplay:
        """Compute `subset_removal_curve` and plot it.

        Parameters
        ----------
        methods : dict of str to fitted attributor or ndarray
            As in `subset_removal_curve`.
        train : estimator, attributor or callable
            Is trained or trains, as in `subset_removal_curve`.
        y_train : array-like of shape (n_train,)
            Targets of the training rows.
        X_test, y_test : array-like, default=None
            The test rows and their targets; needed for attributors.
        ax : matplotlib Axes, default=None
            Axes to draw on; new ones by default.
        **options : dict
            Passed to `subset_removal_curve`, such as `X_train`.

        Returns
        -------
        SubsetRemovalCurveDisplay
        """
        return cls(subset_removal_curve(methods, train, y_train, X_test, y_test, **options)).plot(
            ax
        )

    def plot(self, ax: Axes | None = None) -> SubsetRemovalCurveDisplay:
        """Draw one line a method, with a band of one standard error over test rows.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; new ones by default.

        Returns
        -------
        SubsetRemovalCurveDisplay
        """
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots()
        k = self.curve.k
        lines = []
        for name, mean, sem in zip(
            self.curve.methods, self.curve.mean(), self.curve.sem(), strict=True
        ):
            style: dict[str, Any] = {"color": "0.5", "ls": "--"} if name == RANDOM else {}
            (line,) = ax.plot(k, mean, marker="o", label=name, **style)
            lines.append(line)
            ax.fill_between(k, mean - sem, mean + sem, color=line.get_color(), alpha=0.2, lw=0)
        ax.set(xlabel="training rows removed", ylabel=_LABELS[self.curve.task])
        ax.set_xticks(k, labels=[str(int(size)) for size in k])
        ax.axhline(0, color="0.8", lw=0.8, zorder=0)
        legend(ax, lines, self.curve.methods)
        self.ax_ = ax
        self.figure_ = ax.figure
        return self
