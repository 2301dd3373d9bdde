"""Scale and shift of layers that normalise."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from .calls import Axes, Call, Kind, Placed, Taken, written_out


def _layer(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Taken:
    shape = list(normalized_shape)
    return Taken(
        input, weight, bias, (len(shape), lambda x: F.layer_norm(x, shape, None, None, eps))
    )


def _root_mean_square(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Taken:
    shape = list(normalized_shape)
    return Taken(input, weight, None, (len(shape), lambda x: F.rms_norm(x, shape, None, eps)))


def _batch(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Taken | None:
    """Return what batch normalisation takes; None where the rows of a batch are normalised together."""
    if training:
        return None
    return Taken(
        input,
        weight,
        bias,
        (0, lambda x: F.batch_norm(x, running_mean, running_var, None, None, False, 0.0, eps)),
    )


def _instance(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Taken:
    statistics = (None, None) if use_input_stats else (running_mean, running_var)
    return Taken(
        input,
        weight,
        bias,
        (0, lambda x: F.instance_norm(x, *statistics, None, None, use_input_stats, 0.0, eps)),
    )


def _group(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Taken:
    return Taken(input, weight, bias, (0, lambda x: F.group_norm(x, num_groups, None, None, eps)))


class Normalizations(Kind):
    """Gradients are written out: what is normalised times the slope, and the slope, summed over positions.

    The settings are the number of last axes that have a scale of their own, none where channels have it, and
    the function without scale and shift.
    """

    functions = {
        F.layer_norm: _layer,
        F.rms_norm: _root_mean_square,
        F.batch_norm: _batch,
        F.instance_norm: _instance,
        F.group_norm: _group,
    }

    def gradients(self, call: Call, slopes: Sequence[Tensor], axes: Axes) -> list[Placed]:
        n_axes, normalized = call.taken.settings
        parts = []
        if call.weight is not None:
            plain = normalized(call.taken.input.detach())
            scales = [_vectors(slope * plain, n_axes) for slope in slopes]
            parts.append((axes.stacked(scales).sum(1), call.weight.taken))
        if call.bias is not None:
            shifts = [_vectors(slope, n_axes) for slope in slopes]
            parts.append((axes.stacked(shifts).sum(1), call.bias.taken))
        return written_out(parts)


def _vectors(values: Tensor, n_axes: int) -> Tensor:
    """Return values (N, channels, ...), or with so many axes last, as vectors at L positions, (N, L, k)."""
    if n_axes:
        return values.flatten(-n_axes).flatten(0, -2).unsqueeze(1)
    return values.flatten(2).mT if values.dim() > 2 else values.unsqueeze(1)
