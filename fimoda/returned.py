"""From what a module returns to its outputs: a tensor, or one of a tuple, a dict or an object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

#: The name of a classifier's outputs in a dict or an object, as models of ``transformers`` have it.
_NAME = "logits"


def outputs_in(returned: Any, n_rows: int, joined: bool = False) -> Tensor:
    """Return the tensor of outputs in what a module has returned for some rows.

    That is the first of a tuple or a list, what is named "logits" in a dict or an object, and otherwise
    the only tensor of floating point numbers in it that has a row for each. ValueError if none is. All
    tensors of a tuple or a list are `joined`, side by side.
    """
    if isinstance(returned, Tensor):
        return returned
    if joined and isinstance(returned, tuple | list):
        return torch.cat([flattened(outputs_in(part, n_rows)) for part in returned], 1)
    named = _named(returned)
    found = named.get(_NAME)
    if found is None and isinstance(returned, tuple | list) and returned:
        found = returned[0]
    if isinstance(found, Tensor):
        return found
    fitting = [part for part in named.values() if _has_rows(part, n_rows)]
    if len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(f"{name!r} ({_told(part)})" for name, part in named.items())
    raise ValueError(
        "estimator must return its outputs as a tensor with one row for each row of X, or a tuple or a list "
        f"whose first one they are, or a dict or an object that names them 'logits'; it returned "
        f"{type(returned).__name__}{f' with {listed}' if listed else ''}. Wrap it in a module whose "
        "forward returns the outputs alone."
    )


def flattened(outputs: Tensor, classes_second: bool = False) -> Tensor:
    """Return outputs (n, C), from (n,), or from positions, with their classes last or on the second axis."""
    if outputs.dim() == 2:
        return outputs
    if outputs.dim() == 1:
        return outputs.unsqueeze(-1)
    return (outputs.movedim(1, -1) if classes_second else outputs).flatten(1)


def _named(returned: Any) -> dict[Any, Any]:
    """Return the parts of a dict, a tuple, a list or an object, by name or number."""
    if isinstance(returned, Mapping):
        return dict(returned)
    if hasattr(returned, "_asdict"):  # a named tuple
        return dict(returned._asdict())
    if isinstance(returned, tuple | list):
        return dict(enumerate(returned))
    return dict(getattr(returned, "__dict__", {}))


def _has_rows(part: Any, n_rows: int) -> bool:
    is_number = isinstance(part, Tensor) and part.is_floating_point()
    return is_number and part.dim() > 0 and len(part) == n_rows


def _told(part: Any) -> str:
    """Return a part in a few words, for a message."""
    return f"shape {tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
