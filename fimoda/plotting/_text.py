"""Names that a user has given, in a figure: letter by letter, on one line, never as formulas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..top_rows import shortened

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

#: Properties of a matplotlib text that is no formula, whatever it holds.
LITERAL: dict[str, Any] = {"parse_math": False, "usetex": False}


def legend(ax: Axes, handles: Sequence[Artist], names: Iterable[str], **options: Any) -> None:
    """Draw a legend with these names, those that begin with an underscore included."""
    names = [shortened(name) for name in names]
    # matplotlib before 3.10 leaves out names that it is given with an underscore
    drawn = ax.legend(handles, ["name"] * len(names), **options)
    for text, name in zip(drawn.get_texts(), names, strict=True):
        text.set(text=name, **LITERAL)
