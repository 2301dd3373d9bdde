"""The loss of a Gaussian whose mean and variance are both outputs."""

from __future__ import annotations

from math import log, pi
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from .regression import Regression


class GaussianNLL(Regression):
    r"""Negative log-likelihood :math:`\frac12 (\log v + (y - m)^2 / v)`, averaged over the targets.

    Outputs (..., 2 C) are C means m and then C variances v. A variance below `eps` counts as `eps`, but has
    its slope, as in torch. With `full` the constant :math:`\frac12 \log 2 \pi` is added.
    """

    outputs_are = "means and variances"
    detail = "of a Gaussian whose mean and variance are outputs"

    def __init__(self, eps: float = 1e-6, full: bool = False):
        self.eps = eps
        self.full = full
        self.power = 1.0

    def _parts(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and variances."""
        mean, variance = outputs.chunk(2, -1)
        return mean, variance + (variance.clamp_min(self.eps) - variance).detach()

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        mean, variance = self._parts(outputs)
        losses = 0.5 * (variance.log() + (targets - mean).square() / variance)
        if self.full:
            losses = losses + 0.5 * log(2 * pi)
        return losses.sum(-1) / mean.shape[-1] ** self.power

    @property
    def likelihood(self) -> GaussianNLL:
        drawn = GaussianNLL(self.eps, self.full)
        drawn.power = self.power / 2
        return drawn

    def fisher_cotangents(self, outputs: Tensor, targets: Tensor) -> list[Tensor]:
        mean, variance = self._parts(outputs)
        roots = torch.cat([variance.rsqrt(), 0.5**0.5 / variance], -1)
        return list((torch.diag_embed(roots) / mean.shape[-1] ** 0.5).unbind(-1))

    def encode(self, y: NDArray[Any], n_outputs: int, classes: NDArray[Any] | None) -> NDArray[Any]:
        return super().encode(y, n_outputs // 2, classes)

    def predicted_targets(self, outputs: Tensor, threshold: float = 0.5) -> Tensor:
        return outputs.chunk(2, -1)[0]

    def sample_targets(
        self, outputs: Tensor, generator: torch.Generator, own: Tensor | None = None
    ) -> Tensor:
        mean, variance = self._parts(outputs.double().cpu())
        noise = torch.randn(mean.shape, generator=generator, dtype=torch.float64)
        return (mean + variance.sqrt() * noise).to(outputs)

    def target_output(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the only mean."""
        return super().target_output(outputs.chunk(2, -1)[0], targets)
