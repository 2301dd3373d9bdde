"""Curves of several methods, with bands of one standard error over test rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ..evaluation.agreement import AgreementCurve, agreement_curve
from ..evaluation.removal import RANDOM, SubsetRemovalCurve, subset_removal_curve
from ._base import Display, ResultDisplay, legend, line_at_zero

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_METRICS = {
    "cosine": "cosine with further training",
    "cosine_centred": "cosine with further training, both centred",
    "spearman": "rank correlation with further training",
}
_EFFECTS = {
    "classification": "fraction of test rows misclassified",
    "regression": "change of the absolute error",
}


class AgreementCurveDisplay(Display):
    """Agreement with further training against its number of epochs.

    Parameters
    ----------
    agreement : AgreementCurve
        Result of `agreement_curve`.

    Examples
    --------
    >>> import numpy as np
    >>> from fimoda import AgreementCurveDisplay
    >>> from fimoda.evaluation.agreement import AgreementCurve
    >>> values = {"cosine": np.full((1, 2, 3), 0.9)}
    >>> display = AgreementCurveDisplay(AgreementCurve(["Grad-Dot"], np.array([1, 5]), values))
    >>> display.plot().ax_.get_xlabel()
    'epochs of further training'
    """

    def __init__(self, agreement: AgreementCurve):
        self.agreement = agreement

    @classmethod
    def from_attributors(
        cls, methods: Any, curve: Any, X_test: Any = None, y_test: Any = None, **plot: Any
    ) -> Self:
        """Compute `agreement_curve`, plot it, and return the display.

        Parameters
        ----------
        methods, curve, X_test, y_test : object
            As in `agreement_curve`.
        **plot : dict
            Passed to `plot`.
        """
        return cls(agreement_curve(methods, curve, X_test, y_test)).plot(**plot)

    def plot(self, ax: Axes | None = None, *, metric: str = "cosine") -> Self:
        """Draw one line a method, with a band of one standard error over test rows.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; new ones by default.
        metric : {"cosine", "cosine_centred", "spearman"}, default="cosine"
            Agreement that is drawn.
        """
        ax = self._on(ax)
        means, sems = self.agreement.mean(metric), self.agreement.sem(metric)
        ax.set(xscale="log", xlabel="epochs of further training", ylabel=_METRICS[metric])
        _draw_curves(ax, self.agreement.epochs, self.agreement.methods, means, sems)
        ax.set_ylim(min(0.0, float((means - np.nan_to_num(sems)).min())), 1.0)
        ax.minorticks_off()
        return self


class SubsetRemovalCurveDisplay(ResultDisplay):
    """Effect of removing the most helpful rows against their number.

    One line a method, with a band of one standard error over test rows. What `from_attributors`
    takes are the parameters of `subset_removal_curve`, and the axes.

    Parameters
    ----------
    curve : SubsetRemovalCurve
        Result of `subset_removal_curve`.

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

    _result_of = staticmethod(subset_removal_curve)

    def __init__(self, curve: SubsetRemovalCurve):
        self.curve = curve

    def _draw(self, ax: Axes) -> None:
        curve = self.curve
        ax.set(xlabel="training rows removed", ylabel=_EFFECTS[curve.task])
        _draw_curves(ax, curve.k, curve.methods, curve.mean(), curve.sem())


def _draw_curves(
    ax: Axes,
    x: NDArray[np.int64],
    names: list[str],
    means: NDArray[np.float64],
    sems: NDArray[np.float64],
) -> None:
    """Draw a line with a band for each method, that of the baseline grey."""
    lines = []
    for name, mean, sem in zip(names, means, sems, strict=True):
        style: dict[str, Any] = {"color": "0.5", "ls": "--"} if name == RANDOM else {}
        lines += ax.plot(x, mean, marker="o", label=name, **style)
        colour = lines[-1].get_color()
        ax.fill_between(x, mean - sem, mean + sem, color=colour, alpha=0.2, lw=0)
    ax.set_xticks(x, labels=[str(int(one)) for one in x])
    line_at_zero(ax)
    legend(ax, lines, names)
