"""What displays have in common: their axes, and names that a user has given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

from ..top_rows import shortened

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

#: Properties of a matplotlib text that is no formula, whatever it holds.
LITERAL: dict[str, Any] = {"parse_math": False, "usetex": False}


class OnAxes:
    """Base of what is drawn on axes and keeps them."""

    ax_: Axes
    figure_: Figure | SubFigure

    def _on(self, ax: Axes | None, **figure: Any) -> Axes:
        """Return the axes to draw on, those of a new figure by default."""
        import matplotlib.pyplot as plt

        self.ax_ = plt.subplots(**figure)[1] if ax is None else ax
        self.figure_ = self.ax_.figure
        return self.ax_


class Display(OnAxes):
    """Base of displays that are drawn in one way only, by `_draw`."""

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw it.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; new ones by default.

        Returns
        -------
        self : Display
        """
        self._draw(self._on(ax))
        return self

    def _draw(self, ax: Axes) -> None:
        """Hook of `plot`."""
        raise NotImplementedError


def legend(ax: Axes, handles: Sequence[Artist], names: Iterable[str], **options: Any) -> None:
    """Draw a legend with these names, letter by letter, those that begin with an underscore included."""
    names = [shortened(name) for name in names]
    # matplotlib before 3.10 leaves out names that it is given with an underscore
    drawn = ax.legend(handles, ["name"] * len(names), **options)
    for text, name in zip(drawn.get_texts(), names, strict=True):
        text.set(text=name, **LITERAL)


def line_at_zero(ax: Axes) -> None:
    """Draw a faint horizontal line at zero."""
    ax.axhline(0, color="0.8", lw=0.8, zorder=0)
