"""Gradients that are clipped before each step, those of each model on their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: What torch adds to a norm before it divides by it.
_EPS = 1e-6

#: Parameters of clipping, as they stand among the settings of an optimiser.
NORM, VALUE = "max_grad_norm", "max_grad_value"


@dataclass(frozen=True)
class Clipping:
    r"""Clipping by torch's formulas: of each number by `value`, or of all of a model by their `norm`.

    .. math:: g \leftarrow g \min(1, c / (|g| + \epsilon))
    """

    norm: float | None = None
    value: float | None = None

    def __bool__(self) -> bool:
        return self.norm is not None or self.value is not None

    @classmethod
    def taken_from(cls, settings: dict[str, Any]) -> Clipping:
        """Take what says how to clip out of settings; ValueError if it is no positive number or None."""
        found = [settings.pop(name, None) for name in (NORM, VALUE)]
        for name, limit in zip((NORM, VALUE), found, strict=True):
            number = isinstance(limit, int | float) and not isinstance(limit, bool)
            if limit is not None and not (number and 0 < limit < math.inf):
                raise ValueError(
                    f"optimizer_params: {name} must be a positive number, or None for no clipping, got "
                    f"{limit!r}."
                )
        if None not in found:
            raise ValueError(
                f"optimizer_params: {NORM} and {VALUE} both clip, and which comes first matters. Give one."
            )
        return cls(*found)

    @property
    def settings(self) -> dict[str, float]:
        """The limits, as they stand among the settings of an optimiser."""
        limits = {NORM: self.norm, VALUE: self.value}
        return {name: limit for name, limit in limits.items() if limit is not None}

    def clip(self, gradients: Iterable[Tensor]) -> None:
        """Cut the gradients (L, ...) of the parameters of L models, in place."""
        parts = list(gradients)
        if self.value is not None:
            for part in parts:
                part.clamp_(-self.value, self.value)
        if self.norm is not None:
            norms = [torch.linalg.vector_norm(part.reshape(len(part), -1), dim=1) for part in parts]
            factor = self._factor(torch.linalg.vector_norm(torch.stack(norms), dim=0))
            for part in parts:
                part.mul_(factor.view(-1, *[1] * (part.dim() - 1)))

    def derivative(self, gradient: Tensor) -> Callable[[Tensor], Tensor] | None:
        r"""Return the product of vectors (k, p) with the derivative at a gradient (p,), or None for one.

        It is symmetric: 0 or 1 for each number, or for a norm n that is clipped
        :math:`\frac{c}{n + \epsilon} \bigl(I - \frac{g g^\top}{n (n + \epsilon)}\bigr)`.
        """
        if self.value is not None:
            inside = gradient.abs() <= self.value
            return lambda vectors: vectors * inside
        norm = torch.linalg.vector_norm(gradient)
        if bool(self._factor(norm) == 1):
            return None

        def product(vectors: Tensor) -> Tensor:
            along = vectors @ gradient.to(vectors) / (norm * (norm + _EPS)).to(vectors)
            return (vectors - along[:, None] * gradient) * self._factor(norm).to(vectors)

        return product

    def _factor(self, norms: Tensor) -> Tensor:
        """Return the numbers that gradients of these norms are multiplied by."""
        limit = math.inf if self.norm is None else self.norm
        return (limit / (norms + _EPS)).clamp(max=1)
