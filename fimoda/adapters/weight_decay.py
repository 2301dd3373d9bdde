"""The weight decay of a torch optimiser as a penalty of the training objective."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

#: Optimisers that add the decay to the gradient, before anything else is done with it.
_COUPLED = (
    torch.optim.ASGD,
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.SGD,
)


def penalty_of_optimizer(optimizer: Any, module: nn.Module) -> Tensor | None:
    r"""Return the second derivative (p,) of the penalty that weight decay stands for.

    Decay that is added to the gradient is the penalty ``0.5 * weight_decay * theta**2``. Decoupled
    decay (AdamW) moves the parameters beside the preconditioned gradient, so that training rests where
    :math:`P \nabla L + \lambda \theta = 0`: the penalty :math:`\lambda P^{-1}`, with
    :math:`P^{-1} = \sqrt{\hat v} + \epsilon` from the second moments that the optimiser holds.

    It is None if there is no decay, or it cannot be said what it stands for: the second moments are
    gone, or the optimiser, as it stands after training, is none of torch's that are known here.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        return None
    found: dict[int, Tensor] = {}
    for group in optimizer.param_groups:
        strength = float(group.get("weight_decay", 0.0))
        for parameter in group["params"] if strength else ():
            scale = _scale(optimizer, group, parameter)
            if scale is None:
                return None
            found[id(parameter)] = strength * scale
    trained = [p for p in module.parameters() if p.requires_grad]
    if not any(id(p) in found for p in trained):
        return None
    parts = [found.get(id(p), torch.zeros_like(p)).reshape(-1) for p in trained]
    return torch.cat(parts).detach()


def _scale(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: Tensor
) -> Tensor | None:
    """Return the factor that makes the decay of one parameter a penalty on the loss."""
    decoupled = isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay")
    if not decoupled:
        return torch.ones_like(parameter) if isinstance(optimizer, _COUPLED) else None
    state = optimizer.state.get(parameter, {})
    square = state.get("max_exp_avg_sq", state.get("exp_avg_sq"))
    if square is None or "step" not in state:
        return None
    corrected = square / (1 - group["betas"][1] ** float(state["step"]))
    return corrected.sqrt() + group["eps"]
