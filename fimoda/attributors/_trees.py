"""Methods of trees: whatever they have in common."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import Tags, get_tags

from ..adapters import as_tree_model, default_trees
from ..base import BaseAttributor
from ..measured import Measured
from ..measurements import values
from ..rows import RawRows
from ..trees import BoostingRun, TreeModel

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
        return RawRows(self._seen_by_model(X, y))

    def _freeze(self, X: Any, y: Any, sample_weight: Any) -> TreeModel:
        if len(X) < 2:
            raise ValueError("X must have at least 2 rows to leave one out, got n_samples = 1.")
        return as_tree_model(self.estimator_, X.values, y, sample_weight)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        if self.estimator is None:
            tags.input_tags = get_tags(self._default(np.zeros(2))).input_tags
            tags.input_tags.sparse = False
        return tags

    def _blocks(self, test: Measured, bytes_of_row: int) -> list[Measured]:
        """Return blocks of test rows that take so many bytes each and fit the memory budget."""
        return test.split(max(1, self.memory_budget // max(bytes_of_row, 1)))


class BaseBoosting(BaseTrees):
    """Base of the methods that follow the run of boosting."""

    _run: BoostingRun

    def _fit(self) -> None:
        self._run = self.model_.run(self._objective.rows)

    @property
    def _bytes_of_row(self) -> int:
        """Bytes of what is known of all training rows for each test row: scores, adjoints, a copy."""
        return 8 * len(self._run) * (self._run.boosting.n_outputs + 2)


def slopes(test: Measured, outputs: Floats) -> Floats:
    """Return the gradient (C, n) of each row's measurement in its raw scores (C, n)."""
    found: Floats = test.slopes(torch.from_numpy(outputs.T.copy())).numpy()
    return found.T


def differences(test: Measured, outputs: Floats, changes: Floats) -> Floats:
    """Return how the measurements (m, n) differ if the outputs (C, m) of test rows change by (C, m, n)."""
    C, m, n = changes.shape
    changed = outputs[..., None] + changes
    flat = torch.from_numpy(changed.reshape(C, m * n).T.copy())
    targets = test.targets.repeat_interleave(n, dim=0)
    before = values(test.measure, torch.from_numpy(outputs.T.copy()), test.targets).numpy()
    return values(test.measure, flat, targets).numpy().reshape(m, n) - before[:, None]
