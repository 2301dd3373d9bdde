"""Training without sets of rows, to see which predictions turn."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .._arrays import n_rows, take_rows
from ..attributors.families.trained_again import BaseTrainedAgain
from ..losses import RowLoss
from ..training.retraining import SubsetTrainer
from ._search import Rows


@dataclass
class Turning:
    """Trains without sets of rows, or with other labels for them, and sees which predictions turn.

    `search` and `fresh` have other seeds. `copies` are the places, behind the `n_rows` training rows, of
    rows with another label, by row and label.
    """

    search: SubsetTrainer
    fresh: SubsetTrainer
    n_rows: int
    labels: NDArray[Any] | None
    copies: dict[tuple[int, Any], int]
    n_trained: int = 0

    @classmethod
    def of(
        cls,
        method: BaseTrainedAgain,
        train: tuple[Any, Any, NDArray[np.float64] | None],
        test: tuple[Any, NDArray[Any]],
        seeds: list[int],
        labels: NDArray[Any] | None,
        orders: Iterable[NDArray[np.int64]],
    ) -> Turning:
        X, y, weights = train
        n, copies = n_rows(X), {}
        if labels is not None:
            pairs = {
                (int(i), labels[z])
                for order in orders
                for z, rows in enumerate(order)
                for i in rows
            }
            copies = {pair: n + k for k, pair in enumerate(sorted(pairs))}
            y = np.concatenate([np.asarray(y), np.array([label for _, label in copies])])
            rows = np.array([*range(n), *(row for row, _ in copies)])
            X, weights = take_rows(X, rows), None if weights is None else weights[rows]
        half = len(seeds) // 2
        search, fresh = (
            _trainer(method, some, (X, y, weights), test) for some in (seeds[:half], seeds[half:])
        )
        return cls(search, fresh, n, labels, copies)

    def turned(self, sets: Sequence[tuple[int, Rows]], fresh: bool = False) -> NDArray[np.float64]:
        """Return the share of seeds in which each set turns the prediction of its test row."""
        if not sets:
            return np.zeros(0)
        trainer = self.fresh if fresh else self.search
        subsets = np.zeros((len(sets), self.n_rows + len(self.copies)), dtype=bool)
        subsets[:, : self.n_rows] = True
        for subset, (z, rows) in zip(subsets, sets, strict=True):
            subset[rows] = False
            if self.labels is not None:
                subset[[self.copies[int(row), self.labels[z]] for row in rows]] = True
        distinct, place = np.unique(subsets, axis=0, return_inverse=True)
        measured = trainer(distinct).measured  # NaN where training failed: nothing turned
        self.n_trained += measured.shape[0] * measured.shape[2]
        test_rows = [z for z, _ in sets]
        return np.nan_to_num(measured[place.ravel(), test_rows]).mean(1)


def _trainer(
    method: BaseTrainedAgain,
    seeds: list[int],
    train: tuple[Any, Any, NDArray[np.float64] | None],
    test: tuple[Any, NDArray[Any]],
) -> SubsetTrainer:
    """Return what trains with some seeds, and measures whether predictions turn."""
    X, y, sample_weight = train
    with warnings.catch_warnings():  # copies of rows were not in its training
        warnings.filterwarnings("ignore", message=".* was trained on .* rows and is given")
        trainer = method.set_params(n_seeds=seeds).trainer(X, y, *test, sample_weight)
    model = trainer.retraining.way.model
    measure = partial(_turned, model.loss, model.threshold)
    return replace(trainer, measured=replace(trainer.measured, measure=measure))


def _turned(loss: RowLoss, threshold: float, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1 where the predicted class is another than the target, 0 elsewhere."""
    return (loss.predicted_targets(outputs, threshold) != targets).to(outputs.dtype)
