"""Rows with what is measured of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._identity import identity_of
from .measurements import Measure, stacked_values, values
from .model import FinalModel
from .rows import Inputs, Rows, doubled, mapped

#: Rows whose outputs are computed at a time for a whole stack.
ROWS = 1024


@dataclass(frozen=True, eq=False)
class Measured:
    """Rows, and the measurement that is taken of each.

    Test rows are measured by what is attributed, training rows by their loss:
    ``measure(outputs, targets)`` gives one number a row.
    """

    rows: Rows
    measure: Measure

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: slice | Tensor | NDArray[Any] | list[int]) -> Measured:
        """Return some of the rows with the same measurement."""
        return Measured(self.rows[key], self.measure)

    @property
    def inputs(self) -> Inputs:
        """Inputs of the rows."""
        return self.rows.inputs

    @property
    def targets(self) -> Tensor:
        """Encoded targets of the rows."""
        return self.rows.targets

    @property
    def double(self) -> Measured:
        """The same rows in float64."""
        return Measured(self.rows.double, self.measure)

    def share_ratio(self, known: Measured) -> Tensor:
        """Return the shares (n,) of the rows as parts of those that they have in `known`; 1 without one."""
        return (self.rows.shares / known.rows.shares).nan_to_num(1.0)

    def split(self, size: int) -> list[Measured]:
        """Return parts of at most `size` rows, in their order."""
        return [Measured(rows, self.measure) for rows in self.rows.split(size)]

    def blocks(self, memory_budget: int, row_bytes: int) -> list[Measured]:
        """Return parts whose rows, of so many bytes each, fit a memory budget, in their order."""
        return self.split(max(1, memory_budget // max(row_bytes, 1)))

    def of_stack(self, model: FinalModel, thetas: Tensor) -> Tensor:
        """Return the measurements (L, n) of the models with parameters (L, p), in float64."""
        return torch.cat(
            [
                stacked_values(
                    self.measure, outputs_of_stack(model, thetas, rows.inputs), rows.targets
                )
                for rows in self.rows.split(ROWS)
            ],
            dim=1,
        )

    def of_model(self, model: FinalModel, theta: Tensor | None = None) -> NDArray[np.float64]:
        """Return the measurements (n,) of one model, the final one unless parameters are given."""
        theta = model.theta if theta is None else theta
        return self.of_stack(model, theta[None])[0].cpu().numpy()

    def slopes(self, outputs: Tensor) -> Tensor:
        """Return the gradient of each row's measurement in its outputs, (n, C), or (k, n, C) of k models."""
        flat = outputs.reshape(-1, outputs.shape[-1])
        times = len(flat) // max(len(self), 1)
        targets = self.targets.repeat(times, *[1] * (self.targets.ndim - 1))
        found = torch.func.grad(lambda f: self.measure(f, targets).sum())(flat)
        return found.reshape(outputs.shape)

    def identity(self, n_outputs: int) -> dict[str, str]:
        """Return what is measured, for the directory that keeps it.

        The measurement is known by its code and settings and, for what these do not show, by its
        values on made-up outputs: probabilities, numbers of either sign, and large ones.
        """
        generator = torch.Generator().manual_seed(0)
        shape = (len(self), n_outputs)
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        normal = torch.randn(shape, generator=generator, dtype=torch.float64)
        probes = [probe.to(self.rows.device) for probe in (uniform, normal, 1e3 * normal)]
        return {
            "X_test": identity_of(self.inputs),
            "y_test": identity_of(self.targets),
            "measurement": identity_of([self.measure, [self._value(probe) for probe in probes]]),
        }

    def _value(self, outputs: Tensor) -> Tensor | str:
        """Return the measurement of outputs, or the name of its error where it has no value there."""
        try:
            return values(self.measure, outputs, self.targets).detach()
        except Exception as error:  # what callables raise has no class in common
            return type(error).__name__


def outputs_of_stack(model: FinalModel, thetas: Tensor, inputs: Inputs) -> Tensor:
    """Return outputs (L, n, C) in float64, computed in it unless the forward names another type."""
    try:
        return model.double.stacked_outputs(thetas.double(), mapped(doubled, inputs))
    except RuntimeError:
        return model.stacked_outputs(thetas, inputs).double()
