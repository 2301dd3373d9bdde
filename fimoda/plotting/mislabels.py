"""Mislabelled rows found against rows inspected, drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..evaluation.mislabels import MislabelDetection, mislabel_detection
from ._base import FAINT, ResultDisplay, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _detections(methods: Mapping[str, Any], is_mislabelled: Any) -> dict[str, MislabelDetection]:
    """Return `mislabel_detection` of each method."""
    return {name: mislabel_detection(one, is_mislabelled) for name, one in methods.items()}


class MislabelDetectionDisplay(ResultDisplay):
    """Share of the mislabelled rows found against the share of rows inspected.

    One line a method, and those of chance and of the perfect order. What `from_attributors` takes are
    the parameters of `mislabel_detection`, with its ``scores`` in a dict by the name of the method, and
    the axes.

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
