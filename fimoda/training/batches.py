"""Which rows each model of a stack sees at each step, and with which weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

LeaveOutMode = Literal["mask", "drop"]

#: Stands for "no row left out" in a list of left-out rows.
FULL_DATA = -1


@dataclass(frozen=True)
class Batch:
    """One step of a stack of L models.

    Parameters
    ----------
    rows : Tensor of shape (B,) or (L, B)
        Training rows, the same for all models or each its own.
    weights : Tensor of shape (L, B)
        Weight of each row in each model's batch mean; sums to one, or to zero where a model has
        no row in this batch.
    """

    rows: Tensor
    weights: Tensor


def epoch_orders(n_rows: int, n_epochs: int, seed: int, shuffle: bool = True) -> Iterator[Tensor]:
    """Order of the rows in each epoch: drawn with the seed, or without `shuffle` their own."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_epochs):
        yield torch.randperm(n_rows, generator=generator) if shuffle else torch.arange(n_rows)


def masked_epoch(
    order: Tensor, left_out: Sequence[int], row_weights: Tensor, batch_size: int
) -> Iterator[Batch]:
    """All models see the same batches; a left-out row keeps its place with weight zero."""
    weights = row_weights.expand(len(left_out), -1).clone()
    for model, row in enumerate(left_out):
        if row != FULL_DATA:
            weights[model, row] = 0
    weights = weights[:, order]
    weights = batch_means(weights, batch_size)
    for rows, batch in zip(order.split(batch_size), weights.split(batch_size, dim=1), strict=True):
        yield Batch(rows, batch)


def dropped_epoch(
    order: Tensor, left_out: Sequence[int], row_weights: Tensor, batch_size: int
) -> Iterator[Batch]:
    """Each model sees its own batches: the order without its left-out row."""
    orders = torch.stack([order[order != row] for row in left_out])
    weights = batch_means(row_weights[orders], batch_size)
    for rows, batch in zip(
        orders.split(batch_size, dim=1), weights.split(batch_size, dim=1), strict=True
    ):
        yield Batch(rows, batch)


def batch_means(weights: Tensor, batch_size: int) -> Tensor:
    """Weights (L, n) that sum to one in each batch of each model, or to zero where all are zero."""
    n_models, n_rows = weights.shape
    batches = F.pad(weights, (0, -n_rows % batch_size)).view(n_models, -1, batch_size)
    total = batches.sum(2, keepdim=True)
    return (batches / torch.where(total > 0, total, 1)).view(n_models, -1)[:, :n_rows]


@dataclass(frozen=True)
class LeaveOutPlan:
    """The batches of one seed for a stack of models that each leave out one row (or none).

    The order of epoch e is the e-th ``torch.randperm(n, generator=g)`` of
    ``g = torch.Generator().manual_seed(seed)``, cut in pieces of `batch_size`.

    Parameters
    ----------
    seed : int
        Seed of the batch order and of dropout.
    left_out : tuple of int
        Left-out row of each model, `FULL_DATA` for none. In mode ``"drop"`` full-data models
        must have a stack of their own, since they have one row more an epoch.
    row_weights : Tensor of shape (n,)
        Weight of each row in the training objective.
    batch_size : int
    mode : {"mask", "drop"}
    shuffle : bool
        Whether the order is drawn; otherwise each epoch has the rows' own.
    """

    seed: int
    left_out: tuple[int, ...]
    row_weights: Tensor
    batch_size: int
    mode: LeaveOutMode = "mask"
    shuffle: bool = True

    @property
    def n_models(self) -> int:
        return len(self.left_out)

    def epochs(self, n_epochs: int) -> Iterator[Iterator[Batch]]:
        """The batches of each epoch."""
        weights = self.row_weights.cpu()
        cut = masked_epoch if self.mode == "mask" else dropped_epoch
        for order in epoch_orders(len(weights), n_epochs, self.seed, self.shuffle):
            yield cut(order, self.left_out, weights, self.batch_size)
