"""Convolutions of images, one group of channels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Kind


class Convolutions(Kind):
    """``nn.Conv2d``: a position is a pixel of the output, its input the patch that is seen there."""

    module = nn.Conv2d
    many_positions = True

    def treats(self, layer: nn.Conv2d) -> bool:
        return layer.groups == 1

    def inputs(self, layer: nn.Conv2d, seen: Tensor, n: int) -> Tensor:
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        padded = F.pad(seen, layer._reversed_padding_repeated_twice, mode=mode)
        kernel, dilation, stride = layer.kernel_size, layer.dilation, layer.stride
        return F.unfold(padded, kernel, dilation=dilation, stride=stride).mT

    def signals(self, layer: nn.Conv2d, slopes: Tensor, n: int) -> Tensor:
        return slopes.flatten(2).mT
