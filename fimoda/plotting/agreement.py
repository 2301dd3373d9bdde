"""Agreement with further training, drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..evaluation.agreement import AgreementCurve
from ._text import legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

_LABELS = {
    "cosine": "cosine with further training",
    "cosine_centred": "cosine with further training, both centred",
    "spearman": "rank correlation with further training",
}


class AgreementCurveDisplay:
    """Agreement with further training against its number of epochs.

    Parameters
    ----------
    agreement : AgreementCurve
        Result of `agreement_curve`.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes drawn on, after `plot`.
    figure_ : matplotlib Figure
        Their figure.

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
        self.ax_: Axes
        self.figure_: Figure | SubFigure

    @classmethod
    def from_attributors(
        cls, methods: Any, curve: Any, X_test: Any = None, y_test: Any = None, **plot: Any
    ) -> AgreementCurveDisplay:
        """Compute `agreement_curve` and plot it.

        Parameters
        ----------
        methods : dict of str to fitted attributor or ndarray
            As in `agreement_curve`.
        curve : FurtherTrainingCurve
            The gold standard.
        X_test, y_test : array-like, default=None
            The test rows of the curve; needed for attributors.
        **plot : dict
            Passed to `plot`.

        Returns
        -------
        AgreementCurveDisplay
        """
        from ..evaluation.agreement import agreement_curve

        return cls(agreement_curve(methods, curve, X_test, y_test)).plot(**plot)

    def plot(self, ax: Axes | None = None, *, metric: str = "cosine") -> AgreementCurveDisplay:
        """Draw one line a method, with a band of one standard error over test rows.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; new ones by default.
        metric : {"cosine", "cosine_centred", "spearman"}, default="cosine"

        Returns
        -------
        AgreementCurveDisplay
        """
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots()
        epochs = self.agreement.epochs
        means, sems = self.agreement.mean(metric), self.agreement.sem(metric)
        lines = []
        for name, mean, sem in zip(self.agreement.methods, means, sems, strict=True):
            (line,) = ax.plot(epochs, mean, marker="o", label=name)
            lines.append(line)
            ax.fill_between(epochs, mean - sem, mean + sem, color=line.get_color(), alpha=0.2, lw=0)
        ax.set(xscale="log", xlabel="epochs of further training", ylabel=_LABELS[metric])
        ax.set_ylim(min(0.0, float((means - np.nan_to_num(sems)).min())), 1.0)
        ax.set_xticks(epochs, labels=[str(int(e)) for e in epochs])
        ax.minorticks_off()
        ax.axhline(0, color="0.8", lw=0.8, zorder=0)
        legend(ax, lines, self.agreement.methods)
        self.ax_ = ax
        self.figure_ = ax.figure
        return self
