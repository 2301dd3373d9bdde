"""A model of boosting with its run: one of several that scores are averaged over."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..measured import Measured
from .ensemble import Leaves
from .model import TreeModel
from .run import BoostingRun


@dataclass(frozen=True, eq=False)
class Member:
    """A model whose run of boosting is followed, and its training rows."""

    model: TreeModel
    run: BoostingRun
    rows: NDArray[np.int64]

    def leaves(self, test: Measured) -> Leaves:
        """Return the leaves (n_test, n_trees) of test rows in the trees of the run."""
        return self.model.leaves(test.inputs)[:, : len(self.run.boosting.trees)]

    def after(self, n_rounds: int | None) -> Member:
        """Return the same run stopped after so many rounds of those that are followed; None are all."""
        run = self.run
        if n_rounds is None or run.first + n_rounds == run.boosting.n_rounds:
            return self
        return replace(self, run=run.until(run.first + n_rounds))

    def numbers(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers in the run of training rows that the model was grown on."""
        has_all = len(self.run) > len(self.rows)  # with weight zero for those left out
        return rows if has_all else np.searchsorted(self.rows, rows)
