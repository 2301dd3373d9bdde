"""The base of displays: their axes, and names that a user has given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ..top_rows import shortened

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

#: Properties of a matplotlib text that is no formula, whatever it holds.
LITERAL: dict[str, Any] = {"parse_math": False, "usetex": False}

#: Lines that only help to read.
FAINT: dict[str, Any] = {"color": "0.8", "lw": 0.8, "zorder": 0}


class Display:
    """Base of what is drawn on axes and keeps them."""

    #: Axes that `plot` has drawn on.
    ax_: Axes
    #: Figure of these axes.
    figure_: Figure | SubFigure

    def _on(self, ax: Axes | None, **figure: Any) -> Axes:
        """Return the axes to draw on, those of a new figure by default."""
        import matplotlib.pyplot as plt

        self.ax_ = plt.subplots(**figure)[1] if ax is None else ax
        self.figure_ = self.ax_.figure
        return self.ax_


class ResultDisplay(Display):
    """Base of displays of one result, that of a function of attributors."""

    #: The function whose result is drawn.
    _result_of: ClassVar[Callable[..., Any]]

    def __init__(self, result: Any):
        raise NotImplementedError

    @classmethod
    def from_attributors(cls, *args: Any, **options: Any) -> Self:
        """Compute the result, plot it, and return the display.

        Parameters
        ----------
        *args : tuple
            Passed to the function whose result is drawn; attributors or scores first.
        **options : dict
            Passed to the same function, and those that `plot` has to it.
        """
        names = signature(cls.plot).parameters.keys() & options.keys()
        drawn = {name: options.pop(name) for name in names}
        return cls(cls._result_of(*args, **options)).plot(**drawn)

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw it, and return the display.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; new ones by default.
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
    ax.axhline(0, **FAINT)


def upright_at_zero(ax: Axes) -> None:
    """Draw a faint vertical line at zero."""
    ax.axvline(0, **FAINT)
