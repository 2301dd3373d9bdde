"""Coefficients of scikit-learn as layers of torch, and the penalty on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


def dense_layer(coef: NDArray[Any], intercept: NDArray[Any] | None) -> nn.Linear:
    """Return a Linear layer with weights (out, in)."""
    weight = torch.from_numpy(np.array(coef, copy=True))
    with torch.random.fork_rng([]):  # a new layer draws its weights, which nobody wants
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=intercept is not None)
    layer.weight = nn.Parameter(weight)
    if intercept is not None:
        bias = np.broadcast_to(intercept, weight.shape[:1]).astype(coef.dtype)
        layer.bias = nn.Parameter(torch.from_numpy(bias))
    return layer


def weight_penalty(module: nn.Module, weight_l2: float | NDArray[Any]) -> Tensor:
    """Return the penalty per coordinate: `weight_l2` (one number, or one per output) on weights only."""
    parts = []
    for name, p in module.named_parameters():
        strength = torch.as_tensor(weight_l2, dtype=p.dtype).reshape(-1, 1)
        parts.append(
            (torch.zeros_like(p) if name.endswith("bias") else strength.expand(p.shape)).reshape(-1)
        )
    return torch.cat(parts).detach()
