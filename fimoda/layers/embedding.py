"""Embeddings, and sums or means of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .calls import Axes, Call, Kind, Placed, Taken
from .lookups import Lookups
from .place import Place


def _one(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Taken | None:
    """Return what an embedding takes; None where the gradient of a row depends on other rows."""
    if max_norm is not None or scale_grad_by_freq:
        return None
    return Taken(input.unsqueeze(-1), weight, None, (padding_idx, None))


def _bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Taken | None:
    if max_norm is not None or scale_grad_by_freq or mode == "max" or input.dim() != 2:
        return None
    used = torch.ones_like(input) if padding_idx is None else input != padding_idx
    weights = used.to(weight.dtype)
    if mode == "mean":
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
    if per_sample_weights is not None:
        weights = weights * per_sample_weights.detach()
    return Taken(input, weight, None, (padding_idx, weights))


class Embeddings(Kind):
    """The gradient of a row is sparse: vectors at the entries of the table that it looks up."""

    functions = {F.embedding: _one, F.embedding_bag: _bag}

    def gradients(self, call: Call, slopes: Sequence[Tensor], axes: Axes) -> list[Placed]:
        taken = call.taken
        padding, weights = taken.settings
        size, width = taken.weight.shape
        entries = taken.input
        if padding is not None:
            entries = torch.where(entries == padding % size, -1, entries)
        L = entries.shape[-1]  # entries that share a slope
        signals = axes.stacked([slope.reshape(-1, 1, width) for slope in slopes])
        entries = axes.positions(entries.reshape(-1, 1, L)).flatten(1)
        if L > 1 or weights is not None:
            signals = signals.repeat_interleave(L, dim=1)
        if weights is not None:
            signals = signals * axes.positions(weights.unsqueeze(1)).flatten(1)[..., None, None]
        return [(Lookups(entries, signals, size), Place((call.weight.taken,), width, True))]
