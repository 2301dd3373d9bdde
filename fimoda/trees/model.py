"""`TreeModel`: a frozen view of a fitted tree ensemble, with its outputs and its loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..model import FinalModel
from ..rows import RawRows, Rows
from .ensemble import Boosting, TreeEnsemble
from .forest import Forest, ForestRows
from .own_rows import require_own_rows
from .run import BoostingRun

#: Rows whose leaves are found at a time.
_ROWS = 2**15


class _Nothing(nn.Module):
    """No network: one empty parameter, to have a device and a dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.empty(0, dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class TreeModel(FinalModel):
    """A fitted tree ensemble: leaves of rows in place of parameters.

    Rows stay as they are, until the library that grew the trees gets them.

    Parameters
    ----------
    ensemble : TreeEnsemble
        Its trees.
    """

    ensemble: TreeEnsemble = None  # type: ignore[assignment]

    @classmethod
    def of(cls, ensemble: TreeEnsemble, **known: Any) -> TreeModel:
        """Return the view of an ensemble; `known` are fields of `FinalModel`."""
        return cls(_Nothing().eval(), ensemble=ensemble, **known)

    def encode_X(self, X: Any) -> Any:
        """Return the rows, as the estimator takes them."""
        return X if isinstance(X, RawRows) else RawRows(X)

    @property
    def n_rounds(self) -> int:
        """Number of rounds of boosting."""
        return self.ensemble.n_rounds if isinstance(self.ensemble, Boosting) else 0

    def rows(self, X: RawRows, y: NDArray[Any], sample_weight: NDArray[Any] | None) -> Rows:
        """Return training rows with encoded targets, and with their weights and those of their classes."""
        targets = self.encode_y(y, self.ensemble.n_outputs)
        given = None if sample_weight is None else torch.tensor(sample_weight)
        return Rows(X, targets, self.row_weights(targets, given))

    def run(self, rows: Rows, first: int = 0) -> BoostingRun:
        """Return the run of boosting on its training rows, which are those of the rounds from `first` on.

        Raises
        ------
        TypeError
            If the trees were not grown one after another, the loss has no second derivative, or the
            training did more than the formula of the leaves says.
        ValueError
            If the leaves' values do not come from these rows.
        """
        boosting = self.ensemble
        if not isinstance(boosting, Boosting):
            raise TypeError(
                "estimator must be boosted trees for this method; the trees of this one were grown each on "
                "its own. Use LeafKernel, TREX or LeaveOneOut."
            )
        if not boosting.loss.is_smooth:
            raise TypeError(
                "estimator must be trained with a loss that has a second derivative for this method; the "
                "leaves of this one are medians or quantiles of residuals. Use TREX, LeaveOneOut or "
                "FurtherTraining."
            )
        if boosting.obstacle:
            raise TypeError(boosting.obstacle)
        targets = boosting.loss.encoded(rows.targets.cpu().numpy(), boosting.n_outputs)
        weights = (
            np.ones(len(rows)) if rows.weights is None else rows.weights.double().cpu().numpy()
        )
        run = BoostingRun(boosting, self.leaves(rows.inputs), targets, weights, first)
        require_own_rows(run)
        return run

    def forest_rows(self, rows: Rows) -> ForestRows:
        """Return the training rows in the leaves of the forest.

        Raises
        ------
        TypeError
            If the trees were grown one after another, or their leaves are no means.
        ValueError
            If the leaves' values do not come from these rows.
        """
        forest = self.ensemble
        if not isinstance(forest, Forest):
            raise TypeError(
                "estimator must be a forest, a bag of trees or a single tree for this method; the trees of "
                "this one were grown one after another, each on what the others left over. Use LeafRefit, "
                "LeafInfluence or TREX."
            )
        if not forest.leaves_are_means:
            raise TypeError(
                "estimator must have leaves that are means of their rows for this method; with "
                "criterion='absolute_error' they are medians. Use TREX or LeaveOneOut, or another criterion."
            )
        targets = self.averaged(rows.targets.cpu().numpy())
        found = ForestRows(forest, self.leaves(rows.inputs), targets)
        found.require_own_rows()
        return found

    def averaged(self, targets: NDArray[Any]) -> NDArray[np.float64]:
        """Return encoded targets (n, C) as leaves of a forest have means of them: classes as 0 and 1."""
        if self.loss.is_classifier:
            targets = targets[:, None] == np.arange(self.ensemble.n_outputs)
        return np.asarray(targets, dtype=np.float64).reshape(len(targets), -1)

    def leaves(self, X: RawRows) -> NDArray[np.int32]:
        """Return the leaf (n, n_trees) of each row in each tree."""
        parts = [self.ensemble.leaves_of(rows.values) for rows in X.split(_ROWS)]
        return np.concatenate(parts)

    def outputs(self, X: Any, theta: Tensor | None = None, chunk_size: int = _ROWS) -> Tensor:
        """Return the raw scores (n, C) in float64."""
        parts = [
            self.ensemble.outputs(self.ensemble.leaves_of(rows.values))
            for rows in X.split(chunk_size)
        ]
        return torch.from_numpy(np.concatenate(parts, axis=1).T.copy())
