"""Methods of trees: their rows and models, and rows that get other targets."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...base import BaseAttributor
from ...trees import Forest, TreeModel
from ...views import TreeView

Floats = NDArray[np.float64]


class BaseTrees(BaseAttributor):
    """Base of the methods of trees: rows stay as they are, and the model is a `TreeModel`."""

    _sees = TreeView

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseAttributor._parameter_constraints,
        "memory_budget": BaseAttributor._BUDGET_CONSTRAINTS["memory_budget"],
    }

    model_: TreeModel  # type: ignore[assignment]
    memory_budget: int

    def _caveats(self) -> list[str]:
        held = (
            "splits of the trees do not move in it: leave-one-out retraining is larger and random"
        )
        return [*super()._caveats(), held]

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
