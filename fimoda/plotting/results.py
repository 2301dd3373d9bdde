"""Displays of the results of `fimoda.evaluation`: what methods were judged to be worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ..evaluation.agreement import AgreementCurve, agreement_curve
from ..evaluation.labels import MislabelDetection, mislabel_detection
from ..evaluation.lds import LinearDatamodelingScore, linear_datamodeling_score
from ..evaluation.removal import RANDOM, SubsetRemovalCurve, subset_removal_curve
from ._base import FAINT, ResultDisplay, legend, line_at_zero

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


class AgreementCurveDisplay(ResultDisplay):
    """Agreement with further training against its number of epochs.

    What `from_attributors` takes are the parameters of `agreement_curve` and of `plot`.

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

    _result_of = staticmethod(agreement_curve)

    def __init__(self, agreement: AgreementCurve):
        self.agreement = agreement

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
    takes are the parameters of `subset_removal_curve` and of `plot`.

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
    ax.set_xticks(x, labels=[f"{one:g}" for one in x])
    line_at_zero(ax)
    legend(ax, lines, names)


class LinearDatamodelingScoreDisplay(ResultDisplay):
    """Linear datamodeling scores as bars, with their intervals and the noise ceiling.

    One group of bars a ratio, with bootstrap intervals as lines and the ceiling as dashes. What
    `from_attributors` takes are the parameters of `linear_datamodeling_score` and of `plot`.

    Parameters
    ----------
    lds : LinearDatamodelingScore
        Result of `linear_datamodeling_score`.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> import numpy as np
    >>> from fimoda import LinearDatamodelingScoreDisplay
    >>> rng = np.random.default_rng(0)
    >>> outcomes = SimpleNamespace(
    ...     subsets=rng.random((20, 9)) < 0.5, measured=rng.normal(size=(20, 3, 2))
    ... )
    >>> display = LinearDatamodelingScoreDisplay.from_attributors(
    ...     {"noise": rng.normal(size=(3, 9))}, outcomes, random_state=0
    ... )
    >>> display.ax_.get_ylabel()
    'linear datamodeling score'
    """

    _result_of = staticmethod(linear_datamodeling_score)

    def __init__(self, lds: LinearDatamodelingScore):
        self.lds = lds

    def _draw(self, ax: Axes) -> None:
        means, interval = self.lds.mean(), self.lds.interval()
        places = np.arange(len(self.lds.ratios))
        width = 0.8 / len(means)
        shown: list[Any] = []
        names = list(self.lds.methods)
        for m, name in enumerate(self.lds.methods):
            x = places + (m - (len(means) - 1) / 2) * width
            shown.append(ax.bar(x, means[m], width, label=name))
            # the percentile interval need not contain the mean
            ax.vlines(x, interval[m, :, 0], interval[m, :, 1], color="0.2", lw=1.2)
        ceiling = self.lds.ceiling.mean(-1)
        if np.isfinite(ceiling).any():
            left, right = places - 0.45, places + 0.45
            shown.append(ax.hlines(ceiling, left, right, "0.2", "dashed", label="noise ceiling"))
            names.append("noise ceiling")
        ax.set_xticks(places, labels=[f"{ratio:.3g}" for ratio in self.lds.ratios])
        ax.set(xlabel="share of rows kept", ylabel="linear datamodeling score")
        line_at_zero(ax)
        legend(ax, shown, names)


def _detections(methods: Mapping[str, Any], is_mislabelled: Any) -> dict[str, MislabelDetection]:
    """Return `mislabel_detection` of each method."""
    return {name: mislabel_detection(one, is_mislabelled) for name, one in methods.items()}


class MislabelDetectionDisplay(ResultDisplay):
    """Share of the mislabelled rows found against the share of rows inspected.

    One line a method, and those of chance and of the perfect order. What `from_attributors` takes are
    the parameters of `mislabel_detection`, the scores in a dict by the name of the method, and those
    of `plot`.

    Parameters
    ----------
    detections : dict of str to MislabelDetection
        Results of `mislabel_detection` by the name of the method.

    Examples
    --------
    >>> from fimoda import MislabelDetectionDisplay
    >>> display = MislabelDetectionDisplay.from_attributors(
    ...     {"self-influence": [0.9, 0.1, 0.8, 0.2]}, [True, False, False, True]
    ... )
    >>> display.ax_.get_xlabel()
    'share of training rows inspected'
    """

    _result_of = staticmethod(_detections)

    def __init__(self, detections: Mapping[str, MislabelDetection]):
        self.detections = detections

    def _draw(self, ax: Axes) -> None:
        lines = []
        for name, one in self.detections.items():
            label = f"{name} (AUC {one.roc_auc:.2f})"
            lines += ax.plot(one.inspected, one.found, label=label)
        for share in {one.share for one in self.detections.values()}:
            ax.plot([0, share, 1], [0, 1, 1], **FAINT)
        lines += ax.plot([0, 1], [0, 1], **FAINT | {"color": "0.5", "ls": "--", "label": "chance"})
        ax.set(xlabel="share of training rows inspected", ylabel="share of mislabelled rows found")
        legend(ax, lines, [str(line.get_label()) for line in lines])
