"""Runs of further training, linearised: what may be asked of the runs of all seeds."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._validation import ConvergenceWarning
from ..measured import Measured
from ..training.recorded import ObservedRun
from ..training.run import Run
from .row_changes import Relabelled

#: Part of the outputs' change that the linearised run may miss before it is said.
MISSED = 0.5

#: Change of the outputs, beside their spread over the rows, from which it is worth a warning.
VISIBLE = 0.01


class LinearizedRun(ABC):
    """The run of a seed, linearised."""

    run: Run
    observed: ObservedRun

    @abstractmethod
    def scores(self, test: Measured, horizons: Sequence[int]) -> Tensor:
        """Return the scores (n_horizons, m, n) of all training rows for test rows.

        Horizons are numbers of steps.
        """

    @abstractmethod
    def relabelled(self, test: Measured, horizon: int, change: Relabelled) -> Tensor:
        """Return the effect (m, n_columns) of giving rows other targets, each alone, to first order."""

    def reweighted(self, test: Measured, horizon: int, factors: Tensor) -> Tensor:
        """Return the change (m,) when rows' weights are multiplied (n,), where that is exact."""
        raise TypeError("rows are removed exactly by their kernel only")

    @abstractmethod
    def changes(self, horizons: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the change of the training rows' outputs (n_horizons, n, C), real and linearised."""


class RunOfOutputs(LinearizedRun):
    """A run that is linearised in the outputs of the rows, whose residuals say what a row does."""

    @abstractmethod
    def scores(
        self, test: Measured, horizons: Sequence[int], own_residuals: Tensor | None = None
    ) -> Tensor:
        """Return the scores (n_horizons, m, n) of all training rows for test rows.

        `own_residuals` (n_knots, n, C) are those of each row when it is the one left out, if they are others
        than in the run; its removal is to first order then.
        """

    def relabelled(self, test: Measured, horizon: int, change: Relabelled) -> Tensor:
        residuals, rows = self.observed.residuals, change.rows
        other = residuals.clone()
        for knot, outputs in enumerate(self.observed.outputs[:, rows]):
            own = self.run.model.loss.gradient(outputs, change.changed.targets)
            other[knot, rows] = change.ratio.to(own)[:, None] * own
        before, after = (
            self.scores(test, [horizon], own)[0][:, rows] for own in (residuals, other)
        )
        return (before - after).double() * (1 - change.known.rows.shares)


def discrepancy(runs: Sequence[LinearizedRun], horizons: Sequence[int]) -> NDArray[np.float64]:
    """Return the part (n_horizons,) of the outputs' change that linearised runs miss, over seeds."""
    changes = [run.changes(horizons) for run in runs]
    missed = sum((true - linear).double().square().sum((1, 2)) for true, linear in changes)
    total = sum(true.double().square().sum((1, 2)) for true, _ in changes)
    ratio = torch.as_tensor(missed / total).sqrt()
    return torch.nan_to_num(ratio, nan=0.0).cpu().numpy()


def warn_of_discrepancy(
    runs: Sequence[LinearizedRun], found: NDArray[np.float64], begin: str, advice: str
) -> None:
    """Warn if linearised runs miss much of a change of the outputs that is visible at all."""
    outputs = torch.stack([run.observed.outputs[[0, -1]] for run in runs])
    change = (outputs[:, 1] - outputs[:, 0]).square().mean().sqrt()
    if found[-1] > MISSED and bool(change > VISIBLE * outputs[0, 0].std(0).norm()):
        n_epochs = runs[0].run.n_epochs(runs[0].observed.knots[-1])
        warnings.warn(
            f"{begin}the linearised run misses {found[-1]:.0%} of the outputs' change over {n_epochs:g} "
            f"epochs (discrepancy_). {advice}, lower n_epochs, or use UnrolledDifferentiation.",
            ConvergenceWarning,
            stacklevel=3,
        )


def require_memory(needed: int, budget: int, advice: str) -> None:
    """Raise a MemoryError that says what to do if the bytes are more than the budget."""
    if needed > budget:
        raise MemoryError(
            f"linearised runs take {needed / 2**20:.0f} MiB, more than memory_budget="
            f"{budget / 2**20:.0f} MiB: {advice}."
        )
