"""Linear datamodeling scores, drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..evaluation.lds import LinearDatamodelingScore, linear_datamodeling_score
from ._base import ResultDisplay, legend, line_at_zero

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class LinearDatamodelingScoreDisplay(ResultDisplay):
    """Linear datamodeling scores as bars, with their intervals and the noise ceiling.

    One group of bars a ratio, with bootstrap intervals as lines and the ceiling as dashes. What
    `from_attributors` takes are the parameters of `linear_datamodeling_score`, and the axes.

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
