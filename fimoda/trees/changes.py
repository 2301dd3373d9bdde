"""Changes of one training row at a time, and what each pushes on the leaves of a round."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .ensemble import Floats
from .other_rows import OtherRows
from .rounds import Step
from .run import BoostingRun


class RowChange(ABC):
    """A change of each training row, alone."""

    @abstractmethod
    def pushes(self, run: BoostingRun, step: Step) -> list[tuple[Floats, Floats]]:
        """Return what the changes push on each tree of a step, (n,), and the part that `Grown.curved` has.

        Times the tree's `rates` it is the change of the row's leaf.
        """

    @abstractmethod
    def of_start(self, run: BoostingRun) -> Floats | None:
        """Return the change (C, n) of the score before the first tree, to first order, if it moves."""


class Leaving(RowChange):
    """Each row leaves."""

    def pushes(self, run: BoostingRun, step: Step) -> list[tuple[Floats, Floats]]:
        return [(tree.pushes, tree.curved) for tree in step.trees]

    def of_start(self, run: BoostingRun) -> Floats | None:
        return run.start_slopes


class TargetsByOne(RowChange):
    """The target of each row is larger by 1, of a squared error."""

    def pushes(self, run: BoostingRun, step: Step) -> list[tuple[Floats, Floats]]:
        return [(tree.weights, np.zeros(len(run))) for tree in step.trees]

    def of_start(self, run: BoostingRun) -> Floats | None:
        moves, weights = run.start_slopes, run.start_weights
        return None if moves is None else np.broadcast_to(weights / weights.sum(), moves.shape)


@dataclass(frozen=True, eq=False)
class Relabelled(RowChange):
    """Some rows get other targets: each leaves, and comes back; nothing is changed of the others.

    Parameters
    ----------
    rows : ndarray of shape (k,)
    targets : ndarray of shape (C, k)
        As the loss of boosting takes them.
    factors : ndarray of shape (k,)
        Of the rows' weights: a class may have its own.
    """

    rows: NDArray[np.int64]
    targets: Floats
    factors: Floats

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: slice | NDArray[np.bool_]) -> Relabelled:
        """Return some of the rows."""
        return Relabelled(self.rows[key], self.targets[:, key], self.factors[key])

    def in_runs(self, run: BoostingRun) -> OtherRows:
        """Return runs in each of which one of the rows is relabelled."""
        given = np.arange(len(self)), self.targets, self.factors, self._start_factors(run)
        return OtherRows(len(self), self.rows, *given)

    def _start_factors(self, run: BoostingRun) -> Floats:
        """Return the factors (k,) of the rows' weights in the score before the first tree.

        One where weights of classes do not count there.
        """
        apart = isinstance(run.boosting.start_shares, np.ndarray)
        return np.ones(len(self)) if apart else self.factors

    def pushes(self, run: BoostingRun, step: Step) -> list[tuple[Floats, Floats]]:
        rows, loss, found = self.rows, run.boosting.loss, []
        g, h = loss.derivatives(step.outputs[:, rows], self.targets)
        values = step.values[:, rows]
        bent = np.einsum("kjn,jn->kn", h, values) if loss.is_coupled else h * values
        for tree in step.trees:
            weights, k = tree.weights[rows] * self.factors, tree.output
            pushes, curved = np.zeros(len(run)), np.zeros(len(run))
            curved[rows] = tree.curved[rows] - weights * bent[k]
            pushes[rows] = tree.pushes[rows] - weights * (g[k] + bent[k])
            found.append((pushes, curved))
        return found

    def of_start(self, run: BoostingRun) -> Floats | None:
        if run.start_slopes is None:
            return None
        rows, loss, weights = self.rows, run.boosting.loss, run.start_weights
        means = loss.means(run.targets, weights)[:, None]
        back = (self.targets - means) * self._start_factors(run)
        changes = np.zeros(run.targets.shape)
        changes[:, rows] = (back - (run.targets[:, rows] - means)) * weights[rows] / weights.sum()
        return loss.link_slopes(means[:, 0], changes)
