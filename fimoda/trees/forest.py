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
_ALIKE = 1e-6

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
    units : ndarray of shape (n_trees, n)
        The weight in each tree of a row that is drawn once.
    chances : ndarray of shape (most + 1, n) or None
        The chance of each row to be drawn 0, 1, ... times for a tree; None if rows are not drawn.
    branches : list of Branches
        The nodes of each tree.
    leaf_weights : list of ndarray of shape (n_leaves,)
        The weight of the rows that each leaf was made of, as the trees tell it.
    leaves_are_means : bool
        Whether leaves are the means of the targets of their rows; medians are none.
    is_constrained : bool
        Whether values may be kept from those means, as monotonic constraints do.
    weighs_classes : bool
        Whether a row has a weight by its class, or is drawn by it.
    """

    bags: Floats = field(default_factory=lambda: np.empty((0, 0)))
    units: Floats = field(default_factory=lambda: np.empty((0, 0)))
    chances: Floats | None = None
    branches: list[Branches] = field(default_factory=list)
    leaf_weights: list[Floats] = field(default_factory=list)
    leaves_are_means: bool = True
    is_constrained: bool = False
    weighs_classes: bool = False


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
        what = "the rows that the model was trained on, in the order of its fit"
        for t, known in enumerate(self.forest.leaf_weights):
            if not np.allclose(self._means(t)[0], known, rtol=_ALIKE, atol=0):
                raise ValueError(
                    f"X and sample_weight must be {what}: with these rows its leaves would hold others than "
                    "they do. Pass all of its training rows with the weights of its fit."
                )
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
                f"X, y and sample_weight must be {what}: from these rows the values of its leaves would "
                f"differ by {np.sqrt(wrong / size):.0%}. "
                "Pass all of its training rows with the targets and weights of its fit."
            )

    def changes(self, redrawn: bool = False) -> list[csr_array]:
        r"""Return the change of every leaf without each row (n_leaves, n), one matrix for each output.

        Over the number of trees, so that the product with the forest's `indicators` is the change of outputs.
        In a leaf whose further rows have the weight W and the mean v it is :math:`\frac{w}{W + w} (v - y)`,
        for the row's weight w in the bag; if `redrawn`, with the mean of that factor over what may be drawn.
        In a leaf without further rows, v is that of the nearest node above that has some, and the factor is
        1, or the chance that the row is drawn. Held leaves do not change.
        """
        found, forest = [], self.forest
        for t, branches in enumerate(forest.branches):
            bag, (weight, total, held) = forest.bags[t], self._means(t)
            inside = bag > 0
            everyone = redrawn and forest.chances is not None
            rows = np.flatnonzero((inside | everyone) & ~held[self.leaves[:, t]])
            leaf, own, y = self.leaves[rows, t], bag[rows], self.targets[rows]
            number = branches.sums(self._of_leaves(t, inside.astype(np.float64)))
            nodes = np.where(inside[rows], branches.nearest(number > 1, leaf), branches.nodes[leaf])
            left = np.maximum(branches.sums(weight)[nodes] - own, 0)
            known = number[nodes] > inside[rows]
            rest = branches.sums(total)[nodes] - own[:, None] * y
            mean = rest / np.where(known, left, 1)[:, None]
            others = np.where(nodes == branches.nodes[leaf], left, 0)
            part = self._parts(t, rows, others) if redrawn else own / (others + own)
            found.append((leaf + forest.firsts[t], rows, (known * part)[:, None] * (mean - y)))
        at, rows, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return [self._matrix(at, rows, one / len(forest.trees)) for one in values.T]

    def _parts(self, t: int, rows: NDArray[np.int64], others: Floats) -> Floats:
        """Return the mean part of some rows in leaves with others of a weight, over what may be drawn."""
        forest = self.forest
        if forest.chances is None:
            own = forest.bags[t, rows]
            return np.divide(own, others + own, out=np.zeros(len(rows)), where=own > 0)
        found = np.zeros(len(rows))
        for times, chance in enumerate(forest.chances[1:], 1):
            own = times * forest.units[t, rows]
            total = others + own
            found += chance[rows] * np.divide(own, total, out=np.zeros_like(own), where=total > 0)
        return found

    def changes_of_targets(
        self, rows: NDArray[np.int64], targets: Floats, redrawn: bool = False
    ) -> list[csr_array]:
        r"""Return the change of every leaf where rows have other targets (k, C), each alone (n_leaves, k).

        One matrix for each output, as in `changes`: in a leaf it is :math:`\frac{w}{W + w} (y' - y)`, if
        `redrawn` with the mean of that factor over what may be drawn.
        """
        forest, found = self.forest, []
        moved = targets - self.targets[rows]
        for t in range(len(forest.trees)):
            leaf, bag, (weight, _, held) = (
                self.leaves[rows, t],
                forest.bags[t, rows],
                self._means(t),
            )
            if redrawn:
                part = self._parts(t, rows, np.maximum(weight[leaf] - bag, 0))
            else:
                part = bag / np.where(bag > 0, weight[leaf], 1)
            found.append((leaf + forest.firsts[t], np.where(held[leaf], 0, part)[:, None] * moved))
        at, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
        columns = np.tile(np.arange(len(rows)), len(forest.trees))
        shape = int(forest.firsts[-1]), len(rows)
        return [
            csr_array((one / len(forest.trees), (at, columns)), shape=shape) for one in values.T
        ]

    def shares(self) -> csr_array:
        """Return the share (n_leaves, n) of each row in the mean of its leaf, over the number of trees."""
        T = len(self.forest.trees)
        weights = [self.forest.bags[t] / self._means(t)[0][self.leaves[:, t]] / T for t in range(T)]
        at = (self.leaves + self.forest.firsts[:-1]).T.ravel()
        return self._matrix(at, np.tile(np.arange(len(self)), T), np.concatenate(weights))

    def _matrix(self, leaves: NDArray[Any], rows: NDArray[Any], values: Floats) -> csr_array:
        """Return the matrix (n_leaves, n) of values."""
        return csr_array((values, (leaves, rows)), shape=(int(self.forest.firsts[-1]), len(self)))
