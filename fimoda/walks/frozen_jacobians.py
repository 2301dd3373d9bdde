"""A network whose Jacobians stand still: its batches' curvature, and the network itself."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from ..derivatives import Linearization, push_outputs
from ..formulas import by_formulas, is_recurrent
from ..rows import Rows
from .batch_hessian import BatchHessian

#: Numbers in the outputs of all vectors of a block.
_NUMBERS = 2**18


class FrozenJacobians(BatchHessian):
    r"""Curvature :math:`\sum_b s_b J_b^\top W_b J_b` with Jacobians J of the final model.

    The residuals and their derivatives W are those at the parameters that are passed. Dropout is off.
    """

    def __call__(
        self, theta: Tensor, batch: Rows, V: Tensor, total: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        model, x, y = self.model, batch.inputs, batch.targets
        outputs = model.forward(theta, x)
        w = batch.shares.to(outputs)
        moved = push_outputs(model, x, model.theta, V)
        with self._smoothed():
            curved = model.loss.curved(outputs, y, moved)
        bent = (curved * w[:, None, None]).transpose(0, 1)
        linear = Linearization(model, lambda parameters: model.call(parameters, x, grouped=True))
        block = max(1, _NUMBERS // bent[:1].numel())
        total = torch.zeros_like(V) if total is None else total
        for part, into in zip(bent.split(block), total.split(block), strict=True):
            into += linear.pull(part)
        return total, self._slopes(outputs, y, moved)

    def slopes(self, theta: Tensor, batch: Rows, V: Tensor) -> Tensor:
        model, x = self.model, batch.inputs
        moved = push_outputs(model, x, model.theta, V)
        return self._slopes(model.forward(theta, x), batch.targets, moved)

    def _slopes(self, outputs: Tensor, targets: Tensor, moved: Tensor) -> Tensor:
        """Return slopes (k, B) of losses from outputs (B, C) that move by (B, k, C)."""
        return torch.einsum("bkc,bc->kb", moved, self.model.loss.gradient(outputs, targets))


class LinearizedModule(nn.Module):
    """The first-order expansion of a module around the parameters it has now."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = copy.deepcopy(module)
        self._recurrent = is_recurrent(module)
        self._base = {name: p.detach().clone() for name, p in module.named_parameters()}

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        moved = {name: p - self._base[name] for name, p in self.module.named_parameters()}

        def outputs(parameters: dict[str, Tensor]) -> Tensor:
            found = functional_call(self.module, parameters, inputs, named)
            return found[0] if isinstance(found, tuple) else found

        with by_formulas(self._recurrent):
            value, change, *_ = jvp(outputs, (self._base,), (moved,))
        return value + change
