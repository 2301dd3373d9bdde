"""Images with their channels last, where torch's convolutions and pooling are fast on processors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..model import FinalModel
from ..rows import Inputs


def takes_images(model: FinalModel, x: Inputs) -> bool:
    """Return whether rows are images (C, H, W) that a network on the processor convolves."""
    images = isinstance(x, Tensor) and x.dim() == 4 and x.is_floating_point()
    return images and x.device.type == "cpu" and any(len(s) == 4 for s in model.shapes.values())


def channels_last(x: Tensor) -> Tensor:
    """Return images (B, C, H, W) with channels last; also one channel, of which torch would not say so."""
    _, C, H, W = x.shape
    last = x.permute(0, 2, 3, 1).contiguous()
    return last.as_strided(x.shape, (C * H * W, 1, W * C, C))


def models_last(x: Tensor) -> Tensor:
    """Return images (L, B, C, H, W) as (B, L, C, H, W), with the channels of all models last."""
    L, B, C, H, W = x.shape
    last = channels_last(x.transpose(0, 1).reshape(B, L * C, H, W))
    return last.unflatten(1, (L, C))


#: Whether a network takes channels last, by its key.
_LAST: dict[object, bool] = {}


def as_last(model: FinalModel, x: Inputs) -> bool:
    """Return whether rows are images, and the network takes their channels last: it may want a ``view``."""
    if not takes_images(model, x):
        return False
    if model.key not in _LAST:
        with torch.no_grad():
            try:
                model.call(model.views(model.theta), channels_last(x))
                _LAST[model.key] = True
            except RuntimeError:
                _LAST[model.key] = False
    return _LAST[model.key]


@contextmanager
def images_last() -> Iterator[None]:
    """Keep channels last inside ``vmap``: in max pooling, and where a forward takes a ``view``."""
    with _Last():
        yield


class _Last(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _OWN.get(func, func)(*args, **(kwargs or {}))


def _view(x: Tensor, *shape: Any, **named: Any) -> Tensor:
    """Return a view of other sizes, or a copy where the numbers lie otherwise."""
    if named or isinstance(shape[0], torch.dtype):
        return x.view(*shape, **named)
    return x.reshape(*shape)


def _max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Return the maxima, with the channels of all models last where they alone are asked for."""
    settings = kernel_size, stride, padding, dilation, ceil_mode
    if return_indices or input.dim() != 4:
        return F.max_pool2d(input, *settings, return_indices)  # type: ignore[call-overload]
    return _MaxPool.apply(input, *settings)


def _group_norm(input: Tensor, *settings: Any, **named: Any) -> Tensor:
    """Return the normalised images, with their channels first: `vmap` has no other way."""
    return F.group_norm(input.contiguous(), *settings, **named)


#: Functions of this file by those of torch that have the same arguments.
_OWN: dict[Any, Any] = {
    Tensor.view: _view,
    F.max_pool2d: _max_pool2d,
    F.group_norm: _group_norm,
}


class _MaxPool(torch.autograd.Function):
    """Torch's max pooling, of which ``vmap`` makes pooling of more channels and not of more images."""

    @staticmethod
    def forward(x: Tensor, *settings: Any) -> Tensor:
        return F.max_pool2d(x, *settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing: the way back is that of `vmap`'s own pooling."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, *settings: Any) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 1)
        pooled = F.max_pool2d(x.flatten(1, 2), *settings)
        return pooled.unflatten(1, x.shape[1:3]), 1
