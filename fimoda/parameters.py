"""The trainable parameters of a module as one flat vector."""

from __future__ import annotations

from functools import cached_property
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from .batch_statistics import BatchStatistics, statistics_in


class ParameterVector:
    """The parameters of a module that require gradients as vectors (p,), by their names and places.

    With ``batch_statistics="update"`` running statistics of batches follow them, in vectors of p + b numbers.
    """

    module: nn.Module
    batch_statistics: BatchStatistics

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """Shape of each trainable parameter, in the order of the flat vector."""
        return {k: p.shape for k, p in self.module.named_parameters() if p.requires_grad}

    @cached_property
    def slices(self) -> dict[str, slice]:
        """The place of each trainable parameter in the flat vector."""
        ends = np.cumsum([0, *(prod(s) for s in self.shapes.values())])
        return {
            k: slice(int(a), int(b)) for k, a, b in zip(self.shapes, ends, ends[1:], strict=False)
        }

    @cached_property
    def statistics(self) -> dict[str, torch.Size]:
        """Shape of each running statistic that training changes, in the order behind the parameters."""
        return statistics_in(self.module) if self.batch_statistics == "update" else {}

    @property
    def n_parameters(self) -> int:
        """Number p of trainable parameters."""
        return sum(prod(s) for s in self.shapes.values())

    @cached_property
    def theta(self) -> Tensor:
        """The final parameters as one vector (p,)."""
        parameters = dict(self.module.named_parameters())
        return torch.cat([parameters[k].detach().reshape(-1) for k in self.shapes])

    @cached_property
    def state(self) -> Tensor:
        """The final parameters and the statistics that training changes, as one vector (p + b,)."""
        buffers = dict(self.module.named_buffers())
        parts = [buffers[k].to(self.theta).reshape(-1) for k in self.statistics]
        return torch.cat([self.theta, *parts]) if parts else self.theta

    def vector_of(self, given: nn.Module | dict[str, Tensor], name: str) -> Tensor:
        """Return the parameters (p,) of another network of the architecture, or of its ``state_dict``.

        With the statistics that training changes, where there are any.
        ValueError, which calls them by `name`, if one is missing or has another shape.
        """
        found = given.state_dict() if isinstance(given, nn.Module) else given
        known = self.shapes | self.statistics
        for own, shape in known.items():
            part = found.get(own)
            if not isinstance(part, Tensor) or part.shape != shape:
                got = tuple(part.shape) if isinstance(part, Tensor) else part
                raise ValueError(
                    f"{name} must have the parameters of the model: {own!r} must have shape "
                    f"{tuple(shape)}, got {got}. Pass a network of the same architecture, or its "
                    "state_dict()."
                )
        return self.flatten({own: found[own].detach().to(self.theta) for own in known})

    def flatten(self, parameters: dict[str, Tensor]) -> Tensor:
        """Return the vector or stack of vectors (..., p) whose `views` these are, as a copy."""
        known = self.shapes | self.statistics
        shapes = {k: known[k] for k in known if k in self.shapes or k in parameters}
        lead = next(parameters[k].dim() - len(s) for k, s in shapes.items())
        pairs = [(parameters[k], s) for k, s in shapes.items()]
        return torch.cat([v.flatten(lead) if s else v.unsqueeze(-1) for v, s in pairs], dim=-1)

    def views(self, theta: Tensor) -> dict[str, Tensor]:
        """Return the named parameters as views of `theta` (..., p), each of shape ``(..., *shape)``."""
        whole = theta.shape[-1] > self.n_parameters
        shapes = self.shapes | self.statistics if whole else self.shapes
        parts = theta.split([prod(s) for s in shapes.values()], -1)
        return {
            k: part.unflatten(-1, tuple(s)) if s else part.squeeze(-1)
            for (k, s), part in zip(shapes.items(), parts, strict=True)
        }
