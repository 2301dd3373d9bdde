"""Transposed convolutions, of one to three dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .calls import Axes, Call, Kind, Placed, Taken, biases
from .convolution import each_axis, in_groups, patches


def _taken(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Taken:
    return Taken(input, weight, bias, (stride, padding, dilation, groups))


class TransposedConvolutions(Kind):
    """A position is one of the input; its signal is what the kernel sees there of the output's slopes."""

    functions = dict.fromkeys(
        (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), _taken
    )

    def gradients(self, call: Call, slopes: Sequence[Tensor], axes: Axes) -> list[Placed]:
        found: list[Placed] = []
        if call.bias is not None:
            found += biases(call, axes.stacked([slope.flatten(2).mT for slope in slopes]))
        if call.weight is None:
            return found
        stride, padding, dilation, groups = call.taken.settings
        images, kernel = call.taken.input.detach(), call.taken.weight.shape[2:]
        inputs = axes.positions(images.flatten(2).mT)
        seen = [
            patches(
                _whole(slope, images.shape[2:], kernel, stride, padding, dilation),
                kernel,
                stride,
                0,
                dilation,
            )
            for slope in slopes
        ]
        return found + in_groups(inputs, axes.stacked(seen), groups, call.weight, transposed=True)


def _whole(
    slope: Tensor,
    images: Sequence[int],
    kernel: Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
) -> Tensor:
    """Return the slopes in all that the kernel reaches, zero where the output does not have it."""
    settings = [each_axis(value, len(kernel)) for value in (stride, padding, dilation)]
    around: list[int] = []
    for n, k, size, s, p, d in zip(images, kernel, slope.shape[2:], *settings, strict=True):
        around = [p, (n - 1) * s + d * (k - 1) + 1 - p - size, *around]  # the last axis comes first
    return F.pad(slope, around)
