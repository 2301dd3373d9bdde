"""Errors of methods that do not apply to a model: what goes on with the next method, and how it is told."""

from __future__ import annotations

#: Errors of a method on rows and parameters that are known to be right: too little memory, what torch cannot
#: differentiate, optimisers that are refused, divergence.
FAILURES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)

#: Characters of an error's text that are told.
_LENGTH = 300


def told(error: Exception) -> str:
    """Return the class of an error and the first lines of what it says, in one line."""
    text = " ".join(str(error).split())
    if len(text) > _LENGTH:
        text = text[:_LENGTH].rsplit(" ", 1)[0] + " ..."
    return f"{type(error).__name__}: {text}"
