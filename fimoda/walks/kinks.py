"""The curvature of kinks, which automatic differentiation leaves out.

ReLU bends at zero: its second derivative is a delta function there, and zero is what automatic
differentiation makes of it. The units below have the value and the first derivative of the
originals, and the second derivative of softplus: a bump of area one and width one over
`sharpness`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..training.optimizers import OptimizerSpec


def bump(z: Tensor, sharpness: float) -> Tensor:
    """Return the second derivative of ``softplus(sharpness * z) / sharpness``."""
    s = torch.sigmoid(sharpness * z)
    return sharpness * s * (1 - s)


def kink_sharpness(
    given: float | str | None, optimizer: OptimizerSpec, auto: float | None
) -> float | None:
    """Return the sharpness that ``kink_smoothing`` asks for; "auto" is for SGD with any momentum.

    The preconditioner of an adaptive optimiser blows the curvature of kinks up.
    """
    if given == "auto":
        return auto if optimizer.step_of is torch.optim.SGD else None
    return None if given is None else float(given)


class _Step(torch.autograd.Function):
    """One where z is positive, zero elsewhere, with the derivative `bump`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, sharpness: float) -> Tensor:
        return (z > 0).to(z.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])
        ctx.sharpness = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * bump(ctx.saved_tensors[0], ctx.sharpness), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        return tangent * bump(ctx.saved_tensors[0], ctx.sharpness)


class _Relu(torch.autograd.Function):
    """ReLU whose first derivative is `_Step`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, sharpness: float) -> Tensor:
        return torch.clamp_min(z, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])
        ctx.sharpness = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * _Step.apply(ctx.saved_tensors[0], ctx.sharpness), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        return tangent * _Step.apply(ctx.saved_tensors[0], ctx.sharpness)


class SmoothedKinks(TorchFunctionMode):
    """Within this context kinks have curvature; values and first derivatives stay the same.

    Those of ReLU, LeakyReLU, ReLU6, Hardtanh, absolute values and losses, clamping from below, and max
    pooling over two axes. The sharpness is one over the width of a kink, in units of what goes into it.
    """

    def __init__(self, sharpness: float):
        super().__init__()
        self.sharpness = sharpness
        relu = self._relu
        self._replacements: dict[Any, Callable[..., Tensor]] = {
            torch.relu: relu,
            torch.relu_: relu,
            Tensor.relu: relu,
            F.relu: lambda z, inplace=False: relu(z),
            F.leaky_relu: self._leaky,
            F.relu6: lambda z, inplace=False: self._hardtanh(z, 0.0, 6.0),
            F.hardtanh: self._hardtanh,
            torch.abs: self._abs,
            Tensor.abs: self._abs,
            F.l1_loss: self._l1,
            torch.clamp_min: lambda z, min: z + relu(min - z),
            F.max_pool2d: self._max_pool2d,
            F.max_pool2d_with_indices: lambda *args, **options: self._max_pool2d(
                *args, **{**options, "return_indices": True}
            ),
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        replacement = self._replacements.get(func, func)
        return replacement(*args, **(kwargs or {}))

    def _relu(self, z: Tensor) -> Tensor:
        return _Relu.apply(z, self.sharpness)

    def _leaky(self, z: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
        return negative_slope * z + (1 - negative_slope) * self._relu(z)

    def _hardtanh(
        self, z: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
    ) -> Tensor:
        # each kink from its outside, since there ReLU's slope is zero at the kink itself
        return min_val + max_val - z + self._relu(z - min_val) - self._relu(max_val - z)

    def _abs(self, z: Tensor) -> Tensor:
        return self._relu(z) + self._relu(-z)

    def _l1(self, outputs: Tensor, targets: Tensor, **options: Any) -> Tensor:
        loss = self._abs(outputs - targets)
        reduction = options.get("reduction", "mean")
        return loss if reduction == "none" else getattr(loss, reduction)()

    def _max_pool2d(
        self,
        x: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Tensor:
        if ceil_mode or return_indices:
            raise ValueError(
                "kink_smoothing supports max pooling without ceil_mode and return_indices only. Set "
                "kink_smoothing=None."
            )
        (kh, kw), (sh, sw), (ph, pw), (dh, dw) = (
            (v, v) if isinstance(v, int) else tuple(v)
            for v in (kernel_size, stride or kernel_size, padding, dilation)
        )
        low = x.detach().amin() - 1  # below every pixel, so that padding never wins
        x = F.pad(x - low, (pw, pw, ph, ph))
        rows = (x.shape[-2] - dh * (kh - 1) - 1) // sh + 1
        columns = (x.shape[-1] - dw * (kw - 1) - 1) // sw + 1
        shifted = [
            x[..., i : i + sh * (rows - 1) + 1 : sh, j : j + sw * (columns - 1) + 1 : sw]
            for i in range(0, dh * kh, dh)
            for j in range(0, dw * kw, dw)
        ]
        largest = shifted[0]
        for one in shifted[1:]:
            largest = largest + self._relu(one - largest)
        return largest + low
