"""Mislabelled rows found against rows inspected, drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from ..evaluation.mislabels import MislabelDetection, mislabel_detection
from ._base import Display, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class MislabelDetectionDisplay(Display):
    """Share of the mislabelled rows found against the share of rows inspected.

    One line a method, and those of chance and of the perfect order.

    Parameters
    ----------
    detections : dict of str to MislabelDetection
        Results of `mislabel_detection` by the name of the method.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes drawn on, after `plot`.
    figure_ : matplotlib Figure
        Their figure.

    Examples
    --------
    >>> from fimoda import MislabelDetectionDisplay
    >>> display = MislabelDetectionDisplay.from_attributors(
    ...     {"self-influence": [0.9, 0.1, 0.8, 0.2]}, [True, False, False, True]
    ... )
    >>> display.ax_.get_xlabel()
    'share of training rows inspected'
    """

    def __init__(self, detections: Mapping[str, MislabelDetection]):
        self.detections = detections

    @classmethod
    def from_attributors(
        cls, methods: Mapping[str, Any], is_mislabelled: Any, *, ax: Axes | None = None
    ) -> Self:
        """Compute `mislabel_detection` for each method and plot it.

        Parameters
        ----------
        methods : dict of str to fitted attributor or array-like of shape (n_train,)
            Attributors, asked for their self-influence, or scores of the training rows.
        is_mislabelled : array-like of bool, shape (n_train,)
            True for the rows with a wrong label.
        ax : matplotlib Axes, default=None
            Axes to draw on; new ones by default.

        Returns
        -------
        MislabelDetectionDisplay
        """
        return cls(
            {name: mislabel_detection(one, is_mislabelled) for name, one in methods.items()}
        ).plot(ax)

    def _draw(self, ax: Axes) -> None:
        lines = []
        for name, one in self.detections.items():
            label = f"{name} (AUC {one.roc_auc:.2f})"
            lines += ax.plot(one.inspected, one.found, label=label)
        for share in {one.share for one in self.detections.values()}:
            ax.plot([0, share, 1], [0, 1, 1], color="0.8", lw=0.8, zorder=0)
        lines += ax.plot([0, 1], [0, 1], color="0.5", ls="--", lw=0.8, zorder=0, label="chance")
        ax.set(xlabel="share of training rows inspected", ylabel="share of mislabelled rows found")
        legend(ax, lines, [str(line.get_label()) for line in lines])
