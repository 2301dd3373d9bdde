"""Networks trained from scratch on subsets of the rows, many as one stack."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._identity import identity_of
from ..measured import Measured
from .batches import Batch, batch_means, epoch_orders
from .runner import Training, one_thread
from .stack import StackTrainer, stack_size
from .subset_outcomes import as_reading


@dataclass(frozen=True)
class SubsetPlan:
    """The batches of one seed for a stack of models that are each trained on a subset.

    The order of epoch e is the e-th ``torch.randperm(n, generator=g)`` of
    ``g = torch.Generator().manual_seed(seed)``; each model keeps its own rows of it and cuts them
    into batches. Where subsets differ in size the last batches of the smaller ones are filled up
    with rows of weight zero.

    Parameters
    ----------
    seed : int
        Seed of the batch order and of dropout.
    subsets : Tensor of bool of shape (L, n)
        Rows of each model; all must make the same number of batches.
    row_weights : Tensor of shape (n,)
        Weight of each row in the training objective.
    batch_size : int
    shuffle : bool
        Whether the order is drawn; otherwise each epoch has the rows' own.
    """

    seed: int
    subsets: Tensor
    row_weights: Tensor
    batch_size: int
    shuffle: bool = True

    @property
    def n_models(self) -> int:
        return len(self.subsets)

    def epochs(self, n_epochs: int) -> Iterator[Iterator[Batch]]:
        """The batches of each epoch."""
        weights = self.row_weights.cpu()
        for order in epoch_orders(len(weights), n_epochs, self.seed, self.shuffle):
            yield self._epoch(order, weights)

    def _epoch(self, order: Tensor, weights: Tensor) -> Iterator[Batch]:
        inside = self.subsets[:, order]
        # each model's own rows first, in their order
        kept = torch.sort(inside.byte(), dim=1, descending=True, stable=True).indices
        kept = kept[:, : int(inside.sum(1).max())]
        rows = order[kept]
        weighted = batch_means(weights[rows] * inside.gather(1, kept), self.batch_size)
        for chosen, batch in zip(
            rows.split(self.batch_size, 1), weighted.split(self.batch_size, 1), strict=True
        ):
            yield Batch(chosen, batch)


@dataclass(frozen=True, eq=False)
class SubsetUnit:
    """Some subsets of one seed.

    Parameters
    ----------
    seed : int
    members : ndarray of int of shape (L,)
        Numbers of the subsets.
    masks : ndarray of bool of shape (L, n)
        The subsets.
    measured : str
        What is measured, where that is kept and not the models.
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
        rows = hashlib.sha256(repr(self.masks.shape).encode() + np.packbits(self.masks).tobytes())
        kept = f"-measured-{self.measured}" if self.measured else ""
        return f"seed-{self.seed}-subsets-{rows.hexdigest()[:16]}{kept}"


def cut_units(
    subsets: NDArray[np.bool_], seeds: Sequence[int], kinds: NDArray[Any], size: int
) -> list[SubsetUnit]:
    """Seeds x subsets in units of at most `size` subsets of the same kind."""
    groups = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]
    stacks = [part for g in groups for part in np.array_split(g, -(-len(g) // size))]
    return [SubsetUnit(seed, stack, subsets[stack]) for seed in seeds for stack in stacks]


@dataclass(frozen=True)
class StackedRetraining:
    """Retraining of a network from scratch, in stacks.

    Parameters
    ----------
    training : Training
        What is trained, to its only mark.
    start : dict of int to Tensor
        Initial parameters (p,) of each seed.
    probe : Tensor of shape (p,)
        Initial parameters of seed 0, which tell one way of initialising from another.
    chunk_size : int or None
        Models in a stack.
    """

    training: Training
    start: dict[int, Tensor]
    probe: Tensor
    chunk_size: int | None = None

    @property
    def bytes_per_model(self) -> int:
        """What `train` keeps of a model."""
        return self.probe.numel() * self.probe.element_size()

    def identity(self) -> dict[str, Any]:
        """What the run is, for the directory that keeps it."""
        untrained = self.training.model.at(torch.zeros_like(self.probe)).fingerprint
        return {
            **self.training.identity(),
            "model": untrained,
            "initial parameters": identity_of(self.probe),
            "shuffle": self.training.model.recipe.shuffle,
        }

    def units(self, subsets: NDArray[np.bool_], seeds: Sequence[int]) -> list[SubsetUnit]:
        """Cut seeds x subsets into stacks of models that take the same number of steps."""
        training = self.training
        kinds = subsets.sum(1)
        if not training.model.is_stochastic:  # dropout would draw for the padding, too
            kinds = -(-kinds // training.batch_size)
        size = self.chunk_size or stack_size(training.model, training.batch_size)
        return cut_units(subsets, seeds, kinds, size)

    def train(self, unit: SubsetUnit) -> NDArray[Any]:
        """Parameters (L, p) after training."""
        training = self.training
        plan = SubsetPlan(
            unit.seed,
            torch.from_numpy(unit.masks),
            training.row_weights,
            training.batch_size,
            training.model.recipe.shuffle,
        )
        with one_thread():
            trainer = StackTrainer(
                training.model, training.X, training.y, training.optimizer, training.compile
            )
            theta = trainer.run(
                plan,
                training.marks,
                lambda *_: None,
                self.start[unit.seed].expand(unit.n_models, -1),
                require_finite=False,
            )
        return theta.cpu().numpy()

    def measure(self, kept: NDArray[Any], measurer: Measured) -> NDArray[Any]:
        """Records of measurement and failure of each model that `train` kept."""
        theta = torch.from_numpy(np.array(kept)).to(self.training.model.device)
        finite = torch.isfinite(theta).all(1)
        measured = np.full((len(theta), len(measurer)), np.nan)
        if finite.any():
            values = measurer.of_stack(self.training.model, theta[finite])
            measured[finite.cpu().numpy()] = values.cpu().numpy()
        epochs = self.training.marks[-1]
        reason = f"parameters are NaN or infinite after {epochs} epochs; lower lr"
        return as_reading(measured, ["" if ok else reason for ok in finite.tolist()])
