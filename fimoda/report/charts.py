"""Charts of a report: matplotlib's SVG, once for light and once for dark pages."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..evaluation.agreement import AgreementCurve
from ..plotting._base import LITERAL, upright_at_zero
from ..plotting.results import AgreementCurveDisplay

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Colours of lines and text, and of bars above and below zero: blue and orange, which all eyes tell apart.
_THEMES = {
    "light": ("#444a54", "#0068a8", "#c2540a"),
    "dark": ("#b9c0cb", "#5fb3e8", "#f0984a"),
}

#: Bars of a histogram, and groups that are drawn.
_BINS, _GROUPS = 60, 20


@dataclass(frozen=True)
class Chart:
    """A chart as data URIs, and what it shows in words."""

    light: str
    dark: str
    alt: str


def chart(draw: Callable[[Axes, str, str], Any], alt: str, height: float = 2.4) -> Chart:
    """Draw on axes, with a colour for what is above zero and one for what is below, in each theme."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    found = []
    for ink, above, below in _THEMES.values():
        lines = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
        style: dict[Any, Any] = dict.fromkeys(lines, ink)
        style |= {"svg.fonttype": "none", "svg.hashsalt": "fimoda"}
        style |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
        with rc_context(style | {"savefig.transparent": True, "font.size": 9}):
            figure, file = Figure(figsize=(6.4, height), layout="constrained"), BytesIO()
            draw(figure.subplots(), above, below)
            figure.savefig(file, format="svg", metadata={"Date": None})
        found.append(f"data:image/svg+xml;base64,{b64encode(file.getvalue()).decode()}")
    return Chart(found[0], found[1], alt)


def histogram(values: NDArray[np.float64], label: str, counted: str, alt: str) -> Chart | None:
    """Return the distribution of values, counts on a logarithmic axis; None without any value."""
    known = values[np.isfinite(values)]
    if not known.size:
        return None
    counts, edges = np.histogram(known, _BINS)

    def draw(ax: Axes, above: str, below: str) -> None:
        is_above = edges[1:] + edges[:-1] >= 0
        for shown, colour in ((is_above, above), (~is_above, below)):
            ax.stairs(np.where(shown, counts, 0), edges, fill=True, color=colour)
        ax.set(yscale="log", ylim=(0.7, 2 * counts.max()))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.minorticks_off()
        upright_at_zero(ax)
        ax.set(xlabel=label, ylabel=counted)

    return chart(draw, alt)


def agreement_chart(curve: AgreementCurve) -> Chart:
    """Return the agreement of methods with further training by epochs."""
    return chart(
        lambda ax, above, below: AgreementCurveDisplay(curve).plot(ax),
        f"Agreement with further training (cosine) by epochs, of {', '.join(curve.methods)}; the "
        "table below has the numbers.",
        3,
    )


def effects_chart(groups: dict[str, list[Any]]) -> Chart:
    """Return the effects of groups as bars, the largest first."""
    names, effects = groups["name"][:_GROUPS], groups["effect"][:_GROUPS]
    sizes = np.array([np.nan if one is None else one for one in effects], dtype=np.float64)

    def draw(ax: Axes, above: str, below: str) -> None:
        places = np.arange(len(sizes))
        ax.barh(places, sizes, color=[below if size < 0 else above for size in sizes])
        ax.set_yticks(places, labels=names, **LITERAL)
        ax.invert_yaxis()
        upright_at_zero(ax)
        ax.set_xlabel("effect of removing the group together")

    return chart(
        draw, "Effects of groups; the table below has the numbers.", 0.9 + 0.22 * len(names)
    )
