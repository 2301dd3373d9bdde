"""What methods that multiply test gradients with training gradients have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..base import BaseAttributor
from ..curvature.checks import check_gradients
from ..measured import Measured
from ..measurements import Measurement
from ..model import DEFAULT_BUDGET
from ..row_gradients import RowDifferentiator, RowGradients

Product = Callable[[RowGradients, RowGradients], Tensor]


@dataclass(frozen=True)
class GradientProducts:
    """Products of gradients at one model, a chunk of rows at a time.

    Parameters
    ----------
    differentiate : RowDifferentiator
    chunk_size : int or None
        Rows whose gradients are held at a time.
    memory_budget : int
        Bytes for gradients.
    """

    differentiate: RowDifferentiator
    chunk_size: int | None
    memory_budget: int

    def chunk(self, n_rows: int) -> int:
        """Rows whose gradients fit half of the memory budget."""
        fitting = self.memory_budget // (2 * self.differentiate.row_bytes())
        return self.chunk_size or int(min(max(fitting, 1), n_rows, 4096))

    def _chunks(self, rows: Measured) -> Iterator[tuple[slice, RowGradients]]:
        """Gradients of rows."""
        return self.differentiate.chunks(rows, self.chunk(len(rows)))

    def pairs(self, test: Measured, train: Measured, product: Product) -> NDArray[np.float64]:
        """``product`` of every test chunk with every training chunk, assembled (m, n)."""
        result = np.empty((len(test), len(train)))
        for at, left in self._chunks(test):
            for rows, right in self._chunks(train):
                result[at, rows] = product(left, right).cpu().numpy()
        return result

    def mapped(self, rows: Measured, features: Callable[[RowGradients], Tensor]) -> Tensor:
        """``features`` of the gradients, (n, k)."""
        return torch.cat([features(gradients) for _, gradients in self._chunks(rows)])

    def along(self, rows: Measured, vectors: Tensor) -> NDArray[np.float64]:
        """Inner products of the gradients with vectors (k, p), (n, k)."""
        return self.mapped(rows, lambda g: g.apply(vectors)).double().cpu().numpy()

    def combined(self, rows: Measured, coefficients: NDArray[np.float64]) -> Tensor:
        """Linear combinations of the gradients with coefficients (n, k), (k, p)."""
        theta = self.differentiate.model.theta
        total = theta.new_zeros(coefficients.shape[1], len(theta))
        for at, gradients in self._chunks(rows):
            total += gradients.combine(torch.from_numpy(coefficients[at]).to(theta))
        return total

    def rowwise(self, left: Measured, right: Measured, product: Product) -> NDArray[np.float64]:
        """``product`` of row k of the one with row k of the other, (n,)."""
        pairs = zip(self._chunks(left), self._chunks(right), strict=True)
        return np.concatenate([product(a, b).cpu().numpy() for (_, a), (_, b) in pairs])


class BaseGradientProduct(BaseAttributor):
    """Inner products of test and training gradients, a chunk of rows at a time."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseAttributor._parameter_constraints,
        **BaseAttributor._BUDGET_CONSTRAINTS,
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        chunk_size: int | None = None,
        memory_budget: int = DEFAULT_BUDGET,
        random_state: Any = None,
    ):
        super().__init__(
            estimator, measurement=measurement, criterion=criterion, random_state=random_state
        )
        self.chunk_size = chunk_size
        self.memory_budget = memory_budget

    def _fit(self) -> None:
        check_gradients(self._objective)
        self._differentiate = self._objective.differentiate
        self._products = GradientProducts(self._differentiate, self.chunk_size, self.memory_budget)
        self._chunk = self._products.chunk
        self._train_rows = self._objective.losses

    def _pairs(self, test: Measured, product: Product) -> NDArray[np.float64]:
        """``product`` of test with training gradients, (n_test, n_train)."""
        return self._products.pairs(test, self._train_rows, product)

    def _diagonal(self, product: Product) -> NDArray[np.float64]:
        """``product`` of each training row's measurement gradient with its own loss gradient."""
        return self._products.rowwise(self._own, self._train_rows, product)
