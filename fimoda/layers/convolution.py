"""Convolutions of one to three dimensions, in groups of channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .calls import Axes, Call, OuterProducts, Part, Placed, Taken, written_out
from .factors import Factors
from .place import Place

#: Gradients in more groups are written out.
_GROUPS = 16


def _taken(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Taken:
    return Taken(input, weight, bias, (stride, padding, dilation, groups))


class Convolutions(OuterProducts):
    """A position is one of the output, its input the patch that is seen there."""

    functions = dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _taken)

    def inputs(self, taken: Taken) -> Tensor:
        stride, padding, dilation, _ = taken.settings
        return patches(taken.input, taken.weight.shape[2:], stride, padding, dilation)

    def signals(self, taken: Taken, slope: Tensor) -> Tensor:
        return slope.flatten(2).mT

    def gradients(self, call: Call, slopes: Sequence[Tensor], axes: Axes) -> list[Placed]:
        groups = call.taken.settings[3]
        if groups == 1 or call.weight is None:
            return super().gradients(call, slopes, axes)
        signals = axes.stacked([self.signals(call.taken, slope) for slope in slopes])
        inputs = axes.positions(self.inputs(call.taken).detach())
        return in_groups(inputs, signals, groups, call.weight, call.bias)


def in_groups(
    inputs: Tensor,
    signals: Tensor,
    groups: int,
    weight: Part,
    bias: Part | None = None,
    transposed: bool = False,
) -> list[Placed]:
    """Return the gradients in each group of channels, of inputs (n, T, in) and signals (n, T, C, out)."""
    a, d = inputs.unflatten(2, (groups, -1)), signals.unflatten(3, (groups, -1))
    if groups > _GROUPS:
        form = "ntgi,ntcgo->ncgio" if transposed else "ntgi,ntcgo->ncgoi"
        parts = [(torch.einsum(form, a, d).flatten(2), weight.taken)]
        if bias is not None:
            parts.append((signals.sum(1), bias.taken))
        return written_out(parts)
    found: list[Placed] = []
    for g in range(groups):
        own, slices = a[:, :, g], [_of_group(weight.taken, g, groups)]
        if bias is not None:
            own = F.pad(own, (0, 1), value=1.0)
            slices.append(_of_group(bias.taken, g, groups))
        place = Place(tuple(slices), d.shape[4], transposed)
        found.append((Factors(own, d[:, :, :, g]), place))
    return found


def _of_group(whole: slice, g: int, groups: int) -> slice:
    """Return the place of one group of several, in that of all."""
    width = (whole.stop - whole.start) // groups
    return slice(whole.start + g * width, whole.start + (g + 1) * width)


def patches(
    images: Tensor,
    kernel: Sequence[int],
    stride: int | Sequence[int],
    padding: str | int | Sequence[int],
    dilation: int | Sequence[int],
) -> Tensor:
    """Return what a kernel sees of images (N, channels, ...) at each place, (N, L, channels x kernel)."""
    n_axes = len(kernel)
    stride, dilation = each_axis(stride, n_axes), each_axis(dilation, n_axes)
    around: list[int] = []
    for axis in reversed(range(n_axes)):  # as F.pad wants them
        if isinstance(padding, str):
            total = dilation[axis] * (kernel[axis] - 1) if padding == "same" else 0
            around += [total // 2, total - total // 2]
        else:
            around += [each_axis(padding, n_axes)[axis]] * 2
    seen = F.pad(images, around) if any(around) else images
    for axis in range(n_axes):
        width = dilation[axis] * (kernel[axis] - 1) + 1
        seen = seen.unfold(2 + axis, width, stride[axis])[..., :: dilation[axis]]
    spatial, inside = range(2, 2 + n_axes), range(2 + n_axes, 2 + 2 * n_axes)
    return seen.permute(0, *spatial, 1, *inside).flatten(1 + n_axes).flatten(1, n_axes)


def each_axis(value: int | Sequence[int], n_axes: int) -> list[int]:
    """Return a setting for each axis."""
    given = [value] if isinstance(value, int) else list(value)
    return given * n_axes if len(given) == 1 else given
