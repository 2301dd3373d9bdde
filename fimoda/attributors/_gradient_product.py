"""What methods that multiply test gradients with training gradients have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..base import BaseAttributor
from ..measurements import Measurement
from ..model import DEFAULT_BUDGET
from ..row_gradients import Measure, RowDifferentiator, RowGradients


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
        self._differentiate = RowDifferentiator(self.model_, self._X[:3])

    def _chunk(self, n_rows: int) -> int:
        """Rows whose gradients fit half of the memory budget."""
        fitting = self.memory_budget // (2 * self._differentiate.row_bytes())
        return self.chunk_size or int(min(max(fitting, 1), n_rows, 4096))

    def _pairs(
        self,
        X: Tensor,
        y: Tensor,
        measure: Measure,
        product: Callable[[RowGradients, RowGradients], Tensor],
    ) -> NDArray[np.float64]:
        """``product`` of every test chunk with every training chunk, assembled (n_test, n_train)."""
        result = np.empty((len(X), len(self._X)))
        for test_rows, test in self._differentiate.chunks(X, y, measure, self._chunk(len(X))):
            for rows, train in self._differentiate.chunks(
                self._X, self._y, self.model_.loss, self._chunk(len(self._X))
            ):
                result[test_rows, rows] = product(test, train).cpu().numpy()
        return result

    def _diagonal(
        self, product: Callable[[RowGradients, RowGradients], Tensor]
    ) -> NDArray[np.float64]:
        """``product`` of each training row's measurement gradient with its own loss gradient."""
        chunk = self._chunk(len(self._X))
        test = self._differentiate.chunks(self._X, self._y, self._measure, chunk)
        train = self._differentiate.chunks(self._X, self._y, self.model_.loss, chunk)
        pairs = zip(test, train, strict=True)
        return np.concatenate([product(a, b).cpu().numpy() for (_, a), (_, b) in pairs])
