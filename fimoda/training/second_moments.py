"""The buffer in which an optimiser averages squared gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .differentiable import Buffers, state_names
from .linear_steps import second_moment_name
from .optimizers import OptimizerSpec


@dataclass(frozen=True)
class SecondMoments:
    r"""The buffer `name` of an optimiser, :math:`v \leftarrow \kappa v + \tau g^2`, and its two numbers."""

    name: str
    kept: float
    taken: float

    @classmethod
    def of(cls, spec: OptimizerSpec) -> SecondMoments | None:
        """Return the buffer, or None if the optimiser has none or it is not known."""
        name, options = second_moment_name(spec), spec.defaults()
        if name is None:
            return None
        if name == "sum":
            return cls(name, 1.0, 1.0)
        kept = float(options["betas"][1] if "betas" in options else options["alpha"])
        return cls(name, kept, 1 - kept)

    def after(self, squares: Tensor, n_steps: int) -> Tensor:
        """Return the buffer after steps with these squared gradients, from zero."""
        steps = n_steps if self.kept == 1 else (1 - self.kept**n_steps) / (1 - self.kept)
        return squares * (self.taken * steps)

    def raised(
        self, spec: OptimizerSpec, buffers: Buffers, gradient: Tensor, squares: Tensor, n_steps: int
    ) -> Buffers:
        """Return buffers with which a step leaves no less behind than steps with these squares would.

        `n_steps` are done before it; `buffers` are empty before the first one.
        """
        buffers = dict(buffers) or _empty(spec, gradient)
        v = buffers[self.name]
        missing = self.after(squares, n_steps + 1) - (self.kept * v + self.taken * gradient**2)
        buffers[self.name] = v + missing.clamp_min(0) / self.kept
        return buffers


def _empty(spec: OptimizerSpec, like: Tensor) -> Buffers:
    """Return what the optimiser has before its first step."""
    parameter = torch.zeros_like(like)
    optimizer = spec.build([parameter])
    parameter.grad = torch.zeros_like(like)
    optimizer.step()
    buffers = dict(optimizer.state[parameter])
    for name in [*state_names(buffers, len(like)), *({"step"} & buffers.keys())]:
        buffers[name] = torch.zeros_like(torch.as_tensor(buffers[name]))
    return buffers
