"""Gradients of rows in all parameters at once, of any network."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad, vmap

from ..measured import Measured
from ..model import FinalModel
from ..rows import Inputs, mapped


def gradients_by_autograd(model: FinalModel, measured: Measured) -> Tensor:
    """Return the gradient of each row's measurement in the parameters, (n, p)."""

    def one(theta: Tensor, x: Inputs, target: Tensor) -> Tensor:
        outputs = model.forward(theta, mapped(lambda part: part.unsqueeze(0), x))
        return measured.measure(outputs, target.unsqueeze(0)).squeeze(0)

    inputs, targets = measured.inputs, measured.targets
    try:
        return vmap(grad(one), in_dims=(None, 0, 0))(model.theta, inputs, targets)
    except RuntimeError:  # vmap has no rule for a layer, such as nn.GRU
        pass
    theta = model.theta.clone().requires_grad_()
    with torch.enable_grad():
        losses = [one(theta, inputs[k], target) for k, target in enumerate(targets)]
        return torch.stack([torch.autograd.grad(loss, theta)[0] for loss in losses])
