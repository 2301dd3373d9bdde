"""Measurements of trained stacks, put together by left-out row and seed, and corrected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._identity import identity_of
from ..measurements import stacked_values, values
from ..model import FinalModel
from ..row_gradients import Measure
from .batches import FULL_DATA
from .runner import Result, Unit

#: Test rows whose outputs are computed at a time for a whole stack.
ROWS = 1024


@dataclass(frozen=True)
class Measurer:
    """Measures a stack of models on test rows, in float64.

    Parameters
    ----------
    X : Tensor or RawRows
        Encoded test rows; as they were given for estimators that are fitted again.
    y : Tensor
        Encoded targets.
    measure : callable
    """

    X: Any
    y: Tensor
    measure: Measure

    def __call__(self, model: FinalModel, theta: Tensor) -> Tensor:
        """Measurement of each model on each test row, (L, n_test)."""
        return torch.cat(
            [
                stacked_values(self.measure, _outputs(model, theta, x), y)
                for x, y in zip(self.X.split(ROWS), self.y.split(ROWS), strict=True)
            ],
            dim=1,
        )

    def of_model(self, model: FinalModel, theta: Tensor) -> NDArray[np.float64]:
        """Measurement of one model (p,) on each test row, (n_test,)."""
        return self(model, theta[None])[0].cpu().numpy()

    def identity(self, n_outputs: int) -> dict[str, str]:
        """What is measured, for the directory that keeps it.

        The measurement is known by its code and settings and, for what these do not show, by its
        values on made-up outputs: probabilities, numbers of either sign, and large ones.
        """
        generator = torch.Generator().manual_seed(0)
        shape = (len(self.y), n_outputs)
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        normal = torch.randn(shape, generator=generator, dtype=torch.float64)
        probes = [probe.to(self.X.device) for probe in (uniform, normal, 1e3 * normal)]
        return {
            "X_test": identity_of(self.X),
            "y_test": identity_of(self.y),
            "measurement": identity_of([self.measure, [self._value(probe) for probe in probes]]),
        }

    def _value(self, outputs: Tensor) -> Tensor | str:
        """The measurement of outputs, or the name of its error where it has no value there."""
        try:
            return values(self.measure, outputs, self.y).detach()
        except Exception as error:  # what callables raise has no class in common
            return type(error).__name__


def _outputs(model: FinalModel, theta: Tensor, x: Tensor) -> Tensor:
    """Outputs (L, n, C) in float64, computed in it unless the forward names another type."""
    try:
        return model.double.stacked_outputs(theta.double(), _double(x))
    except RuntimeError:
        return model.stacked_outputs(theta, x).double()


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def keep_parameters(model: FinalModel, theta: Tensor) -> Tensor:
    """A reader that keeps the stack itself."""
    return theta


@dataclass(frozen=True)
class Outcomes:
    """Measurements after further training.

    Parameters
    ----------
    left_out : ndarray of shape (..., n_test, n_left_out, n_seeds)
        Without each row.
    full : ndarray of shape (..., n_test, n_seeds)
        With all rows.
    final : ndarray of shape (n_test,)
        Of the final model, before further training.
    """

    left_out: NDArray[np.float64]
    full: NDArray[np.float64]
    final: NDArray[np.float64]

    def scores(self, correction: str | None) -> NDArray[np.float64]:
        """Scores of each seed, of the shape of `left_out`."""
        if correction == "full":
            return self.left_out - self.full[..., None, :]
        if correction == "mean":  # the run on all rows cancels
            return self.left_out - self.left_out.mean(-2, keepdims=True)
        return self.left_out - self.final[:, None, None]


def assemble(
    readings: Mapping[Unit, Result],
    seeds: Sequence[int],
    leave_out: Sequence[int] | NDArray[np.int64],
    final: NDArray[np.float64],
) -> Outcomes:
    """Outcomes from the measurements (n_marks, L, n_test) of all units."""
    n_marks, _, n_test = np.asarray(next(iter(readings.values()))).shape
    left_out = np.empty((n_marks, n_test, len(leave_out), len(seeds)))
    full = np.empty((n_marks, n_test, len(seeds)))
    column = {int(row): k for k, row in enumerate(leave_out)}
    place = {seed: s for s, seed in enumerate(seeds)}
    for unit, reading in readings.items():
        s = place[unit.seed]
        values = np.asarray(reading)
        for model, row in enumerate(unit.left_out):
            if row == FULL_DATA:
                full[:, :, s] = values[:, model]
            else:
                left_out[:, :, column[row], s] = values[:, model]
    return Outcomes(left_out, full, final)


def standard_error(per_seed: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard error of the mean over the last axis; NaN for a single seed."""
    n = per_seed.shape[-1]
    if n < 2:
        return np.full(per_seed.shape[:-1], np.nan)
    return per_seed.std(-1, ddof=1) / np.sqrt(n)


def relative_error(per_seed: NDArray[np.float64]) -> float:
    """Root mean square of the standard errors over that of the scores."""
    size = np.sqrt(np.mean(per_seed.mean(-1) ** 2))
    error = np.sqrt(np.mean(standard_error(per_seed) ** 2))
    return float(error / size) if size > 0 else 0.0
