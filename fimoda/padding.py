"""Rows of different lengths, cut to the longest one: a network is not run on padding alone.

Rows keep their padding. It is cut where a network is called, so that nobody else has to know of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .rows import Inputs

#: The input that says which positions of a row hold a token, as tokenizers call it.
MASK = "attention_mask"

#: Groups of rows of similar length, and the fewest rows of one.
_GROUPS, _FEWEST = 8, 32

#: As few rows are not cut: what a row takes is measured on them.
_FEW = 3


def cut(inputs: Inputs) -> Inputs:
    """Return inputs without the positions at the end where no row has a token."""
    ends = _ends(inputs)
    return inputs if ends is None else _until(inputs, int(ends.max()))


@dataclass(frozen=True)
class Groups:
    """Rows in groups of similar length: index and inputs of each, and the index that puts all back."""

    parts: list[tuple[Any, Inputs]]
    back: Tensor | None = None

    def joined(self, found: list[Tensor]) -> Tensor:
        """Return what was found for each group as one tensor (n, ...), rows in their own order."""
        return found[0] if self.back is None else torch.cat(found)[self.back]


def by_length(inputs: Inputs) -> Groups:
    """Return rows in groups of similar length, each cut to its longest one."""
    ends = _ends(inputs)
    if ends is None:
        return Groups([(slice(None), inputs)])
    if ends.dim() != 1 or len(ends) < 2 * _FEWEST:
        return Groups([(slice(None), _until(inputs, int(ends.max())))])
    order = ends.argsort(stable=True)
    groups = order.split(max(_FEWEST, -(-len(order) // _GROUPS)))
    parts = [(rows, _until(inputs[rows], int(ends[rows[-1]]))) for rows in groups]
    return Groups(parts, order.argsort())


def order_by_length(inputs: Inputs) -> Tensor | None:
    """Return the order of rows from the shortest to the longest; None if their padding is not cut."""
    ends = _ends(inputs)
    return None if ends is None else ends.argsort(stable=True)


def chunks(inputs: Inputs, n_whole: int, most: int) -> Iterator[slice]:
    """Yield slices of rows that take what `n_whole` whole ones do, of `most` rows at most."""
    ends = _ends(inputs)
    if ends is None or ends.dim() != 1:
        size = min(n_whole, most)
        for start in range(0, len(inputs), size):
            yield slice(start, min(start + size, len(inputs)))
        return
    n_positions = n_whole * inputs.given[inputs.padding.tells].shape[-1]
    start, longest = 0, 0
    for row, end in enumerate(ends.tolist()):
        longest = max(longest, end)
        size = row - start
        if size and (size == most or (size + 1) * longest > n_positions):
            yield slice(start, row)
            start, longest = row, end
    yield slice(start, len(inputs))


def uncut(inputs: Inputs) -> Inputs:
    """Return inputs whose padding is not cut, for what must have as many positions for all rows."""
    return inputs if _padding(inputs) is None else replace(inputs, padding=None)


def ends_of(tells: Tensor, value: int) -> Tensor:
    """Return the positions of each row (...) up to its last token, 1 or more, from values (..., T)."""
    positions = torch.arange(1, tells.shape[-1] + 1, device=tells.device)
    return ((tells != value) * positions).amax(-1).clamp_min(1)


def _padding(inputs: Inputs) -> Any:
    return getattr(inputs, "padding", None)


def _ends(inputs: Inputs) -> Tensor | None:
    """Return `ends_of` inputs, or None if their padding is not to be cut, or cannot be looked at."""
    padding = _padding(inputs)
    if padding is None:
        return None
    ends = ends_of(inputs.given[padding.tells], padding.value)
    if ends.numel() <= _FEW:
        return None
    try:
        int(ends.max())
    except RuntimeError:  # rows of a batch of torch's (vmap) have no numbers
        return None
    return ends


def _until(inputs: Inputs, end: int) -> Inputs:
    """Return inputs up to a position."""
    tells, shared = inputs.given[inputs.padding.tells], inputs.padding.shared
    if tells.shape[-1] == end:
        return inputs
    axis = tells.dim() - 1
    pairs = zip(inputs.keys, inputs.tensors, strict=True)
    return inputs.of(p.narrow(axis, 0, end) if key in shared else p for key, p in pairs)
