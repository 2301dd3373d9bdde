"""A model without any rows to learn from: the constant outputs that suit all rows best."""

from __future__ import annotations

import torch
from torch import Tensor

from ..losses import RowLoss, ZeroOneLoss

#: From the shares of the classes to outputs, by what the outputs of a loss are.
_OF_SHARES = {
    "probabilities": lambda shares: shares,
    "log probabilities": torch.log,
    "logits": torch.log,
    "one vs rest logits": torch.logit,
    "binary probability": lambda shares: shares[1:],
    "binary logit": lambda shares: torch.logit(shares[1:]),
}


def constant_outputs(loss: RowLoss, targets: Tensor, shares: Tensor, n_outputs: int) -> Tensor:
    """Return the outputs (C,) in float64 with the smallest mean loss of rows with `shares` (n,).

    They are the classes' shares, as the loss wants them (the largest class, where outputs are predicted
    classes); the mean target of the squared error.
    """
    shares, targets = shares.double().cpu(), targets.cpu()
    if loss.is_classifier and targets.dim() == 1 and loss.outputs_are in _OF_SHARES:
        n_classes = loss.n_classes(n_outputs)
        classes = torch.zeros(n_classes, dtype=torch.float64).index_add(0, targets, shares)
        if isinstance(loss, ZeroOneLoss):
            return (torch.arange(n_classes) == classes.argmax()).double()
        eps = torch.finfo(torch.float64).eps
        return _OF_SHARES[loss.outputs_are](classes.clamp(eps, 1 - eps))
    return _of_smallest_loss(loss, targets, shares, n_outputs)


def _of_smallest_loss(loss: RowLoss, targets: Tensor, shares: Tensor, n_outputs: int) -> Tensor:
    """Return constant outputs (C,) by minimisation; ValueError if they are not finite."""
    targets = targets.double() if targets.is_floating_point() else targets
    outputs = torch.zeros(n_outputs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [outputs],
        max_iter=200,
        tolerance_grad=1e-12,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        mean = loss(outputs.expand(len(targets), -1), targets) @ shares
        mean.backward()  # type: ignore[no-untyped-call]
        return mean

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[arg-type]
    if not torch.isfinite(outputs).all():
        raise ValueError(
            "the loss has no smallest value among constant outputs, which stand for a model without rows."
        )
    return outputs.detach()
