"""Which rows each model of a stack sees at each step, and with which weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

LeaveOutMode = Literal["mask", "drop", "expected"]

#: Stands for "no row left out" in a list of left-out rows.
FULL_DATA = -1


@dataclass(frozen=True)
class Batch:
    """One step of a stack of L models: rows (B,) for all or (L, B) for each, and their weights (L, B).

    Weights are those in each model's batch mean: they sum to one, or to zero where a model has no
    row in this batch. One that is taken out of a mean has a weight below zero.
    """

    rows: Tensor
    weights: Tensor


@dataclass(frozen=True, eq=False)
class Plan:
    """The batches of one seed for a stack of models that are each trained on some of the rows.

    The order of epoch e is the e-th ``torch.randperm(n, generator=g)`` of
    ``g = torch.Generator().manual_seed(seed)``, or without `shuffle` the rows' own, cut in pieces of
    `batch_size`. `inside` (L, n) masks the rows of each model (see `all_but`), and `weights` (n,) are
    theirs in the objective.

    In `mode` "mask" all models see the same batches, where rows that a model leaves out keep their
    place with weight zero. In "drop" each model cuts its own rows of the order into batches, as many
    as the others; the last ones of smaller models are filled up with rows of weight zero. In "expected",
    for models without one row each, this row is beside every batch and is taken out of its mean with its
    share :math:`s` in all rows: weights are :math:`1 / (1 - s)` times those of the batch, and
    :math:`-s / (1 - s)` for the row.
    """

    seed: int
    inside: Tensor
    weights: Tensor
    batch_size: int
    mode: LeaveOutMode = "mask"
    shuffle: bool = True

    @property
    def n_models(self) -> int:
        """Number L of models."""
        return len(self.inside)

    def apart(self) -> list[Plan]:
        """Return a plan for each model, of the same seed."""
        return [replace(self, inside=own) for own in self.inside.split(1)]

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of an epoch, which models on fewer rows have fewer of."""
        fewer = self.mode == "drop"
        n_rows = int(self.inside.sum(1).max()) if fewer else len(self.weights)
        return ceil(n_rows / self.batch_size)

    def own_steps(self, step: int, per_epoch: int) -> int:
        """Return the steps that are done when training on all rows, `per_epoch` each, has done `step`.

        Where an epoch has fewer here, what lies behind its last is reached with it.
        """
        epochs, rest = divmod(step, per_epoch)
        return epochs * self.steps_per_epoch + min(rest, self.steps_per_epoch)

    def batches(self, n_steps: int) -> Iterator[Batch]:
        """Yield the batches of so many steps."""
        epochs = self.epochs(ceil(n_steps / self.steps_per_epoch))
        return itertools.islice(itertools.chain.from_iterable(epochs), n_steps)

    def epochs(self, n_epochs: int) -> Iterator[Iterator[Batch]]:
        """Yield the batches of each epoch."""
        n = len(self.weights)
        generator = torch.Generator().manual_seed(self.seed)
        cut = {"mask": self._masked, "drop": self._dropped, "expected": self._beside}[self.mode]
        for _ in range(n_epochs):
            yield cut(torch.randperm(n, generator=generator) if self.shuffle else torch.arange(n))

    def _masked(self, order: Tensor) -> Iterator[Batch]:
        weights = batch_means((self.weights * self.inside)[:, order], self.batch_size)
        return map(Batch, order.split(self.batch_size), weights.split(self.batch_size, 1))

    def _dropped(self, order: Tensor) -> Iterator[Batch]:
        inside = self.inside[:, order]
        # each model's own rows first, in their order
        kept = torch.sort(inside.byte(), dim=1, descending=True, stable=True).indices
        kept = kept[:, : int(inside.sum(1).max())]
        rows = order[kept]
        weights = batch_means(self.weights[rows] * inside.gather(1, kept), self.batch_size)
        return map(Batch, rows.split(self.batch_size, 1), weights.split(self.batch_size, 1))

    def _beside(self, order: Tensor) -> Iterator[Batch]:
        left_out = (~self.inside).int().argmax(1)
        share = (self.weights / self.weights.sum())[left_out]
        share = torch.where(self.inside.all(1), 0, share)[:, None]
        own = share / (1 - share)
        weights = batch_means(self.weights[None, order], self.batch_size)
        for rows, w in zip(
            order.split(self.batch_size), weights.split(self.batch_size, 1), strict=True
        ):
            beside = torch.cat([rows.expand(self.n_models, -1), left_out[:, None]], 1)
            yield Batch(beside, torch.cat([w * (1 + own), -own], 1))


def all_but(left_out: Sequence[int], n: int) -> Tensor:
    """Return masks (L, n) of all rows but one each, or of all where that is `FULL_DATA`."""
    return torch.arange(n) != torch.tensor(left_out)[:, None]


def batch_means(weights: Tensor, batch_size: int) -> Tensor:
    """Return weights (L, n) that sum to one in each batch of each model, or are zero where all are."""
    n_models, n_rows = weights.shape
    batches = F.pad(weights, (0, -n_rows % batch_size)).view(n_models, -1, batch_size)
    total = batches.sum(2, keepdim=True)
    return (batches / torch.where(total > 0, total, 1)).view(n_models, -1)[:, :n_rows]
