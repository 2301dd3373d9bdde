"""Trees grown each on its own: means of the rows in their leaves, with and without each row."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from .ensemble import Floats, Leaves, TreeEnsemble

#: Relative error of recomputed leaf values from which on rows are not those of the training.
_ALIKE = 1e-2

#: Error of a leaf's value, in parts of the largest one, from which on it was kept from its rows' mean.
_HELD = 1e-6


@dataclass(frozen=True, eq=False)
class Branches:
    """The nodes of a tree, of which some are its leaves.

    Parameters
    ----------
    parents : ndarray of shape (n_nodes,)
        The node above each node; the root, number 0, is above itself.
    nodes : ndarray of shape (n_leaves,)
        The node that each leaf is.
    """

    parents: NDArray[np.int64]
    nodes: NDArray[np.int64]

    @cached_property
    def levels(self) -> list[NDArray[np.int64]]:
        """Nodes by their distance from the root, which is first and alone."""
        distance, above = np.zeros(len(self.parents), dtype=np.int64), np.arange(len(self.parents))
        while above.any():
            distance += above > 0
            above = self.parents[above]
        order = np.argsort(distance, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(distance[order])) + 1)

    def sums(self, of_leaves: Floats) -> Floats:
        """Return the sums (n_nodes, ...) of numbers (n_leaves, ...) over the leaves below each node."""
        found = np.zeros((len(self.parents), *of_leaves.shape[1:]))
        found[self.nodes] = of_leaves
        for level in reversed(self.levels[1:]):
            np.add.at(found, self.parents[level], found[level])
        return found

    def nearest(self, suits: NDArray[np.bool_], leaves: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the nearest node that suits, at or above each of some leaves; the root if none does."""
        found = self.nodes[leaves]
        while (climbs := ~suits[found] & (found > 0)).any():
            found = np.where(climbs, self.parents[found], found)
        return found


@dataclass(frozen=True, eq=False)
class Forest(TreeEnsemble):
    """Trees that were grown each on its own, on its own bag of the training rows.

    Outputs are the mean of what the trees say: each adds that over their number.

    Parameters
    ----------
    bags : ndarray of shape (n_trees, n)
        How often each training row is in the bag of each tree, times its weight; 0 where it is not.
    branches : list of Branches
        The nodes of each tree.
    leaves_are_means : bool
        Whether leaves are the means of the targets of their rows; medians are none.
    is_constrained : bool
        Whether values may be kept from those means, as monotonic constraints do.
    """

    bags: Floats = field(default_factory=lambda: np.empty((0, 0)))
    branches: list[Branches] = field(default_factory=list)
    leaves_are_means: bool = True
    is_constrained: bool = False


@dataclass(frozen=True, eq=False)
class ForestRows:
    """The training rows of a forest in its leaves; leaves are numbered through all trees.

    Parameters
    ----------
    forest : Forest
    leaves : ndarray of shape (n, n_trees)
        Of the training rows.
    targets : ndarray of shape (n, C)
        Numbers, or one at the class of a row and zero elsewhere.
    """

    forest: Forest
    leaves: Leaves
    targets: Floats

    def __len__(self) -> int:
        return len(self.leaves)

    def _of_leaves(self, t: int, numbers: Floats) -> Floats:
        """Return sums (n_leaves, ...) over the bag of a tree of numbers (n, ...) of the training rows."""
        leaf, n_leaves = self.leaves[:, t], self.forest.trees[t].n_leaves
        columns = numbers.reshape(len(numbers), -1).T
        found: Floats = np.stack([np.bincount(leaf, one, n_leaves) for one in columns], 1)
        return found.reshape(n_leaves, *numbers.shape[1:])

    def _means(self, t: int) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Return sums of weights and of weighted targets in the leaves, and which leaves are held."""
        w = self.forest.bags[t]
        weight, total = self._of_leaves(t, w), self._of_leaves(t, w[:, None] * self.targets)
        known = len(self.forest.trees) * self.forest.trees[t].values
        off = np.abs(known - total / np.maximum(weight, 1e-300)[:, None]).max(1)
        held = off > _HELD * np.abs(known).max(initial=1e-300)
        return weight, total, held & self.forest.is_constrained

    def require_own_rows(self) -> None:
        """Raise ValueError if the values of the leaves do not come from these rows."""
        wrong = size = 0.0
        for t, tree in enumerate(self.forest.trees if self.forest.leaves_are_means else []):
            weight, total, held = self._means(t)
            known = len(self.forest.trees) * tree.values
            asked = total / np.maximum(weight, 1e-300)[:, None]
            free = (weight * ~held)[:, None]
            wrong += float((free * (known - asked) ** 2).sum())
            size += float((weight[:, None] * known**2).sum())
        if wrong > _ALIKE**2 * size:
            raise ValueError(
                "X, y and sample_weight must be the rows that the model was trained on, in the order of its "
                f"fit: from these rows the values of its leaves would differ by {np.sqrt(wrong / size):.0%}. "
                "Pass all of its training rows with the targets and weights of its fit."
            )

    def changes(self) -> list[csr_array]:
        r"""Return the change of every leaf without each row (n_leaves, n), one matrix for each output.

        Over the number of trees, so that the product with the forest's `indicators` is the change of outputs.
        In a leaf of weight W, mean v and further rows it is :math:`w (v - y) / (W - w)`. A leaf that loses
        its last row takes the mean of the nearest node above it that has others. Held leaves do not change.
        """
        found, T = [], len(self.forest.trees)
        for t, branches in enumerate(self.forest.branches):
            w, (weight, total, held) = self.forest.bags[t], self._means(t)
            rows = np.flatnonzero((w > 0) & ~held[self.leaves[:, t]])
            leaf = self.leaves[rows, t]
            number = self._of_leaves(t, (w > 0).astype(np.float64))
            node = branches.nearest(branches.sums(number) > 1, leaf)
            left = branches.sums(weight)[node] - w[rows]
            without = branches.sums(total)[node] - w[rows, None] * self.targets[rows]
            mean = total[leaf] / weight[leaf, None]
            alone = branches.sums(number)[node] < 2
            change = np.where(alone[:, None], 0, without / np.where(alone, 1, left)[:, None] - mean)
            found.append((leaf + self.forest.firsts[t], rows, change / T))
        at, rows, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return [self._matrix(at, rows, one) for one in values.T]

    def shares(self) -> csr_array:
        """Return the share (n_leaves, n) of each row in the mean of its leaf, over the number of trees."""
        T = len(self.forest.trees)
        weights = [self.forest.bags[t] / self._means(t)[0][self.leaves[:, t]] / T for t in range(T)]
        at = (self.leaves + self.forest.firsts[:-1]).T.ravel()
        return self._matrix(at, np.tile(np.arange(len(self)), T), np.concatenate(weights))

    def _matrix(self, leaves: NDArray[Any], rows: NDArray[Any], values: Floats) -> csr_array:
        """Return the matrix (n_leaves, n) of values."""
        return csr_array((values, (leaves, rows)), shape=(int(self.forest.firsts[-1]), len(self)))
