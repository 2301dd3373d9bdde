"""Parameters that are added to what the network holds, or that multiply it, entry by entry."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .calls import Axes, Call, Kind, Part, Placed, Taken, written_out


def _sum(input: Tensor | float, other: Tensor | float) -> Taken | None:
    return _operands(input, other, False)


def _product(input: Tensor | float, other: Tensor | float) -> Taken | None:
    return _operands(input, other, True)


def _expanded(input: Tensor, *sizes: int) -> Taken:
    return Taken(input, input, None, False)


def _operands(input: Tensor | float, other: Tensor | float, product: bool) -> Taken | None:
    if not (isinstance(input, Tensor) and isinstance(other, Tensor)):
        return None
    return Taken(input, input, other, product)


class Elementwise(Kind):
    """Either operand may be a parameter, such as positions of a sequence, or the first of them.

    So may what is expanded to the rows of a batch.
    """

    functions = {
        torch.add: _sum,
        Tensor.add: _sum,
        torch.mul: _product,
        Tensor.mul: _product,
        Tensor.expand: _expanded,
    }

    def slice(self, part: Part | None) -> slice | None:
        return None if part is None else part.whole

    def gradients(self, call: Call, slopes: Sequence[Tensor], axes: Axes) -> list[Placed]:
        first, second, parts = call.taken.weight, call.taken.bias, []
        for part, own, other in ((call.weight, first, second), (call.bias, second, first)):
            if part is not None and own is not None:
                factor = other.detach() if call.taken.settings and other is not None else None
                found = torch.stack(
                    [_rowwise(s if factor is None else s * factor, own, axes) for s in slopes], 1
                )
                before = part.taken.start - part.whole.start
                after = part.whole.stop - part.taken.stop
                parts.append((torch.nn.functional.pad(found, (before, after)), part.whole))
        return written_out(parts)


def _rowwise(values: Tensor, own: Tensor, axes: Axes) -> Tensor:
    """Return the sums (n, k) over what an operand of k entries was spread to, row by row."""
    if own.dim() <= 1:
        width = own.numel() if own.dim() else values.shape[-1]
        found = axes.positions(values.reshape(-1, 1, width)).sum(1)
        return found if own.dim() and own.numel() > 1 else found.sum(1, keepdim=True)
    shape = (1,) * (values.dim() - own.dim()) + tuple(own.shape)
    if len(values) != axes.n or shape[0] != 1:
        raise RuntimeError("an operand without an axis for rows")
    spread = [k for k in range(1, values.dim()) if shape[k] == 1]
    return (values.sum(spread) if spread else values).reshape(axes.n, -1)
