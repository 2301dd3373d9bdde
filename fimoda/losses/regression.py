"""Losses of real outputs, with targets of the same shape."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .base import RowLoss


class Regression(RowLoss):
    """A loss of real outputs (..., C) and targets of the same shape."""

    outputs_are = "regression"

    #: Axes of the outputs of a row before they are put side by side, where there are several.
    axes: tuple[int, ...] = ()

    def encode(self, y: NDArray[Any], n_outputs: int, classes: NDArray[Any] | None) -> NDArray[Any]:
        y = super().encode(y, n_outputs, classes)
        if y.ndim == 1 and n_outputs == 1:
            y = y[:, None]
        if len(self.axes) > 1 and y.shape[1:] == self.axes:
            y = y.reshape(len(y), -1)
        if y.shape[1:] != (n_outputs,):
            wanted = ", ".join(map(str, self.axes or (n_outputs,)))
            raise ValueError(
                f"y must have one column per output of the model ({wanted}), got shape "
                f"{y.shape}. Pass y of shape (n_samples, {wanted})."
            )
        return y.astype(np.float64)

    def predicted_targets(self, outputs: Tensor, threshold: float = 0.5) -> Tensor:
        return outputs


class SquaredError(Regression):
    """``scale * (f - y)**2``, averaged (or summed) over the outputs."""

    def __init__(self, scale: float = 1.0, over_outputs: Literal["mean", "sum"] = "mean"):
        self.scale = scale
        self.over_outputs = over_outputs

    def constant_curvature(self, n_outputs: int) -> float:
        return 2 * self.scale / (n_outputs if self.over_outputs == "mean" else 1)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        half = self.constant_curvature(outputs.shape[-1]) / 2
        return half * (outputs - targets).square().sum(-1)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.constant_curvature(outputs.shape[-1]) * (outputs - targets)

    def output_hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        curvature = self.constant_curvature(outputs.shape[-1])
        return torch.diag_embed(torch.full_like(outputs, curvature))

    def sample_targets(
        self, outputs: Tensor, generator: torch.Generator, own: Tensor | None = None
    ) -> Tensor:
        # exp(-loss) is Gaussian with the variance one over the curvature
        noise = torch.randn(outputs.shape, generator=generator, dtype=torch.float64)
        noise = noise / self.constant_curvature(outputs.shape[-1]) ** 0.5
        return (outputs.double().cpu() + noise).to(outputs)


class PinballLoss(Regression):
    """``q * max(y - f, 0) + (1 - q) * max(f - y, 0)``, least at the q-quantile; summed over outputs."""

    def __init__(self, level: float = 0.5):
        self.level = level

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        over = outputs - targets
        return torch.maximum(-self.level * over, (1 - self.level) * over).sum(-1)


class TweedieLoss(Regression):
    r"""The deviance of positive targets, of the logarithm f of their mean; summed over the outputs.

    .. math:: \frac{e^{(2 - \rho) f}}{2 - \rho} - y \frac{e^{(1 - \rho) f}}{1 - \rho}

    with :math:`e^f - y f` at power 1 (Poisson) and :math:`f + y e^{-f}` at power 2 (gamma).
    """

    outputs_are = "logarithms of means"

    def __init__(self, power: float = 1.0):
        self.power = power

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (_power(outputs, 2 - self.power) - targets * _power(outputs, 1 - self.power)).sum(-1)

    def predicted_targets(self, outputs: Tensor, threshold: float = 0.5) -> Tensor:
        return outputs.exp()


def _power(logs: Tensor, exponent: float) -> Tensor:
    """Return the integral of ``exp(exponent * f)``, which is f itself for the exponent 0."""
    return logs if exponent == 0 else (exponent * logs).exp() / exponent
