"""Methods of trees: their rows and models, and rows that get other targets."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..._arrays import n_rows
from ..._validation import may_miss_values
from ...adapters import as_tree_model, default_trees
from ...base import BaseAttributor
from ...measured import Measured
from ...rows import RawRows
from ...trees import Forest, TreeModel

Floats = NDArray[np.float64]


class BaseTrees(BaseAttributor):
    """Base of the methods of trees: rows stay as they are, and the model is a `TreeModel`."""

    _of_trees = True

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseAttributor._parameter_constraints,
        "memory_budget": BaseAttributor._BUDGET_CONSTRAINTS["memory_budget"],
    }

    model_: TreeModel  # type: ignore[assignment]
    memory_budget: int

    def _default(self, y: NDArray[Any]) -> Any:
        return default_trees(y, self.random_state)

    def _leaves_rows(self, estimator: Any) -> bool:
        return True

    def _hands_on_rows(self, estimator: Any) -> bool:
        return True

    def _model_rows(self, X: Any, y: NDArray[Any] | None = None) -> Any:
        if not n_rows(X):  # some libraries predict of none
            raise ValueError("X must have at least one row, got none.")
        return RawRows(self._seen_by_model(X, y))

    def _freeze(self, X: Any, y: Any, sample_weight: Any) -> TreeModel:
        if len(X) < 2:
            raise ValueError("X must have at least 2 rows to leave one out, got n_samples = 1.")
        self._seen_rows = (X, y, sample_weight)
        return as_tree_model(self.estimator_, X.values, y, sample_weight, criterion=self.criterion)

    def _misses_values(self) -> bool:
        return may_miss_values(self._default(np.zeros(2)))

    def _caveats(self) -> list[str]:
        held = (
            "splits of the trees do not move in it: leave-one-out retraining is larger and random"
        )
        return [*super()._caveats(), held]

    def _blocks(self, test: Measured, bytes_of_row: int) -> list[Measured]:
        """Return blocks of test rows that take so many bytes each and fit the memory budget."""
        return test.split(max(1, self.memory_budget // max(bytes_of_row, 1)))

    def _relabels(
        self, rows: NDArray[np.int64], targets: NDArray[Any]
    ) -> tuple[NDArray[Any], Floats]:
        """Return new targets (k, ...) of rows, encoded, and the factors (k,) of their weights."""
        known, changed = self._with_targets(rows, targets)
        return changed.targets.cpu().numpy(), self._weight_ratio(known, changed)

    def _averaged(self, rows: NDArray[np.int64], targets: NDArray[Any]) -> Floats:
        """Return new targets (k, C) as leaves of a forest have means of them."""
        forest = self.model_.ensemble
        if isinstance(forest, Forest) and forest.weighs_classes:
            raise TypeError(
                f"{type(self).__name__} must have a forest without class_weight to relabel its rows: with "
                "it, rows are drawn or count by their class. Use TREX, or LeaveOneOut, which trains anew."
            )
        return self.model_.averaged(self._relabels(rows, targets)[0])
