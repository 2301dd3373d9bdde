"""Padding that a module is tried on, to see whether it can be cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._arrays import take_rows
from ..model import FinalModel
from ..padding import MASK, ends_of
from ..rows import Padding
from .first_run import FAILURES
from .private_copy import same_outputs

#: Rows that are tried, the shortest.
_TRIED = 16


def with_padding(model: FinalModel, X: Any) -> FinalModel:
    """Return the model that is given less padding, if its outputs are the same then, or else itself.

    They must also stay as they are where other tokens stand in place of the padding.
    """
    padding = _padding_of(model, X)
    if padding is None:
        return model
    mask = torch.tensor(np.asarray(X[MASK]))
    ends = ends_of(mask, padding.value).numpy()
    order = np.argsort(ends, kind="stable")
    if ends[order[0]] == mask.shape[1]:  # nothing can be tried
        return model
    rows = model.encode_X(take_rows(X, order[:_TRIED]))
    longest = model.encode_X(take_rows(X, order[-1:]))
    shorter = replace(model, padding=padding)
    try:
        with torch.no_grad():
            outputs = model.outputs(rows)
            filled = model.outputs(_filled(rows, longest, padding))
            few = [shorter.outputs(shorter.encode_X(part)) for part in (rows, rows[:1])]
    except FAILURES:
        return model
    same = [same_outputs(found, outputs[: len(found)]) for found in (*few, filled)]
    return shorter if all(same) else model


def _padding_of(model: FinalModel, X: Any) -> Padding | None:
    """Return the padding of rows for a module, if they may have some."""
    if not isinstance(X, Mapping) or np.ndim(X.get(MASK, 0)) != 2:
        return None
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.module.modules()):
        return None  # in training its statistics are over padding, too
    length = np.shape(X[MASK])[1]
    shared = [key for key, part in X.items() if np.ndim(part) > 1 and np.shape(part)[1] == length]
    return Padding(MASK, 0, tuple(shared))


def _filled(rows: Any, longest: Any, padding: Padding) -> Any:
    """Return rows with the tokens of the longest in place of their padding; the mask stays."""
    holds = rows.given[padding.tells] != padding.value

    def fill(key: Any, part: Tensor, other: Tensor) -> Tensor:
        if key == padding.tells or key not in padding.shared:
            return part
        where = holds.view(*holds.shape, *[1] * (part.dim() - 2))
        return torch.where(where, part, other)

    both = zip(rows.keys, rows.tensors, longest.tensors, strict=True)
    return rows.of(fill(key, part, other) for key, part, other in both)
