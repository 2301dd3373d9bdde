"""Networks trained from scratch on subsets of the rows, many as one stack."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._identity import identity_of
from ..measured import Measured
from ..model import FinalModel
from .batches import LeaveOutMode
from .choice import Agreed, decided
from .run import Run, Way
from .subset_outcomes import as_reading
from .workers import one_thread


@dataclass(frozen=True, eq=False)
class SubsetUnit:
    """Some subsets of one seed: their numbers (L,) and their rows (L, n).

    `measured` says what is measured, where that is kept and not the models.
    """

    seed: int
    members: NDArray[np.int64]
    masks: NDArray[np.bool_]
    measured: str = ""

    @property
    def n_models(self) -> int:
        """Number of models."""
        return len(self.members)

    @cached_property
    def key(self) -> str:
        """Name of the unit's file."""
        own = np.packbits(self.masks) if self.masks.dtype == bool else self.masks
        rows = hashlib.sha256(repr(self.masks.shape).encode() + own.tobytes())
        kept = f"-measured-{self.measured}" if self.measured else ""
        return f"seed-{self.seed}-subsets-{rows.hexdigest()[:16]}{kept}"


def cut_units(
    subsets: NDArray[np.bool_], seeds: Sequence[int], kinds: NDArray[Any], size: int
) -> list[SubsetUnit]:
    """Return seeds x subsets in units of at most `size` subsets of the same kind."""
    groups = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]
    stacks = [part for g in groups for part in np.array_split(g, -(-len(g) // size))]
    return [SubsetUnit(seed, stack, subsets[stack]) for seed in seeds for stack in stacks]


@dataclass(frozen=True)
class StackedRetraining:
    """Retraining of a network from scratch, in stacks of `chunk_size` models.

    `start` has the initial parameters (p,) of each seed; those of seed 0, `probe`, tell one way of
    initialising from another. Rows leave their batches as `mode` says (see `Plan`).
    """

    may_be_stored: ClassVar[bool] = True
    is_random: ClassVar[bool] = True

    run: Run
    n_epochs: float
    start: dict[int, Tensor]
    probe: Tensor
    chunk_size: int | None = None
    mode: LeaveOutMode = "drop"

    @property
    def model(self) -> FinalModel:
        """The final model."""
        return self.run.model

    @property
    def bytes_per_model(self) -> int:
        """Bytes that `train` keeps of a model."""
        return self.probe.numel() * self.probe.element_size()

    @property
    def variant(self) -> str:
        """Name of the way of computing."""
        return self.run.variant

    def decided(
        self,
        compile: bool | str,
        engine: Way,
        n_models: int,
        agreed: Agreed | None = None,
    ) -> StackedRetraining:
        """Return the same in the way that is right for so many models (see `decided` of runs)."""
        run = decided(self.run, compile, engine, n_models, self.run.n_steps(self.n_epochs), agreed)
        return replace(self, run=run)

    def identity(self) -> dict[str, Any]:
        """Return what the run is, for the directory that keeps it."""
        untrained = self.run.model.at(torch.zeros_like(self.probe)).fingerprint
        return {
            **self.run.identity([self.run.n_steps(self.n_epochs)]),
            "model": untrained,
            "initial parameters": identity_of(self.probe),
            "shuffle": self.run.shuffle,
            **({} if self.mode == "drop" else {"rows leave by": self.mode}),
        }

    def units(self, subsets: NDArray[np.bool_], seeds: Sequence[int]) -> list[SubsetUnit]:
        """Cut seeds x subsets into stacks of models that take the same number of steps."""
        kinds = subsets.sum(1)
        if not self.run.model.is_stochastic:  # dropout would draw for the padding, too
            kinds = -(-kinds // self.run.batch_size)
        size = self.chunk_size or self.run.stack_size()
        return cut_units(subsets, seeds, kinds, size)

    def train(self, unit: SubsetUnit) -> NDArray[Any]:
        """Return the parameters (L, p) after training."""
        run = replace(self.run, start=self.start[unit.seed])
        plan = run.plan_of(unit.seed, torch.from_numpy(unit.masks), self.mode)
        with one_thread():
            theta = run.train(plan, [run.n_steps(self.n_epochs)], require_finite=False)
        return theta.cpu().numpy()

    def measure(self, kept: NDArray[Any], measurer: Measured) -> NDArray[Any]:
        """Return the measurements, or the reason of the failure, of each model that `train` kept."""
        theta = torch.from_numpy(np.array(kept)).to(self.run.model.device)
        finite = torch.isfinite(theta).all(1)
        measured = np.full((len(theta), len(measurer)), np.nan)
        if finite.any():
            values = measurer.of_stack(self.run.model, theta[finite])
            measured[finite.cpu().numpy()] = values.cpu().numpy()
        return as_reading(measured, self.reasons(kept))

    def reasons(self, kept: NDArray[Any]) -> list[str]:
        """Return the reason of the failure of each model that `train` kept, or an empty text."""
        reason = f"parameters are NaN or infinite after {self.n_epochs} epochs; lower lr"
        return ["" if np.isfinite(theta).all() else reason for theta in np.asarray(kept)]
