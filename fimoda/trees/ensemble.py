"""A frozen view of trees: the leaf of every row in every tree, and the values of the leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from .losses import BoostingLoss

#: Smallest penalty on a matrix of second derivatives, by its largest element.
_SMALLEST = float(np.finfo(np.float32).eps)

Floats = NDArray[np.float64]
Leaves = NDArray[np.int32]

#: From rows, as the model takes them, to the number of the leaf (n, n_trees) of each in each tree.
LeavesOf = Callable[[Any], Leaves]


@dataclass(frozen=True, eq=False)
class Tree:
    """A tree without its splits.

    Parameters
    ----------
    values : ndarray of shape (n_leaves, n_own)
        What each leaf adds to the outputs.
    outputs : slice
        The outputs that it adds to: one of them, all, or none where no leaf was made of its rows.
    l2 : float or ndarray of shape (n_leaves,)
        A penalty of its leaves beside that of all trees.
    """

    values: Floats
    outputs: slice
    l2: float | Floats = 0.0

    @property
    def n_leaves(self) -> int:
        """Number of leaves."""
        return len(self.values)


@dataclass(frozen=True, eq=False)
class TreeEnsemble:
    """Trees whose values are added to a first score.

    Parameters
    ----------
    leaves_of : callable
        From rows to the leaves (n, n_trees) that they fall into, numbered from 0 in each tree.
    trees : list of Tree
    start : ndarray of shape (n_outputs,)
        The raw score before the first tree.
    """

    leaves_of: LeavesOf
    trees: list[Tree]
    start: Floats

    @property
    def n_outputs(self) -> int:
        """Number of raw scores of a row."""
        return len(self.start)

    @cached_property
    def firsts(self) -> NDArray[np.int64]:
        """Number of the first leaf of each tree, through all trees; behind them that of all leaves."""
        return np.cumsum([0, *(tree.n_leaves for tree in self.trees)])

    def indicators(self, leaves: Leaves) -> csr_array:
        """Return the matrix (n, number of all leaves) that is one where a row is in a leaf."""
        columns = leaves + self.firsts[:-1]
        ends = np.arange(0, columns.size + 1, columns.shape[1])
        shape = len(leaves), int(self.firsts[-1])
        return csr_array((np.ones(columns.size), columns.ravel(), ends), shape=shape)

    def outputs(self, leaves: Leaves) -> Floats:
        """Return the raw scores (C, n) of rows that fall into these leaves (n, n_trees)."""
        found = np.repeat(self.start[:, None], len(leaves), axis=1)
        for tree, leaf in zip(self.trees, leaves.T, strict=True):
            found[tree.outputs] += tree.values.T.take(leaf, axis=1)
        return found


@dataclass(frozen=True, eq=False)
class Boosting(TreeEnsemble):
    r"""Trees that were grown one round after another, each on what the rounds before it left over.

    The value of a leaf is :math:`\eta u` with
    :math:`u = -G / (H + \lambda)`, :math:`G = \sum_i w_i g_i` and :math:`H = \sum_i w_i h_i` over its rows.

    Parameters
    ----------
    loss : BoostingLoss
        Of which g and h are taken, at the scores before the round.
    learning_rates : ndarray of shape (n_rounds,)
        The factor :math:`\eta` of each round.
    l2 : float
        The penalty :math:`\lambda`.
    l1 : float
        G is made smaller by so much, down to zero.
    start_is_fitted : bool
        Whether the first score is the best constant for the training rows, and moves without one of them.
    shares : float or ndarray of shape (n_rounds, n)
        The part of its weight with which a row takes part in each round: 1 or 0 where it is known which
        rows were drawn, and the part that was drawn where it is not.
    draws_rows : bool
        Whether rows were drawn for each round, and it is not known which: `shares` are then expected ones.
    is_constrained : bool
        Whether values may be kept from what the rows ask for, as monotonic constraints do.
    trees_of_round : int
        One, with all outputs or the only one, or one for each output.
    n_steps : int
        Newton steps that u is the sum of, each at the scores that the steps before it have moved by their
        whole values. More than one where a round has one tree.
    obstacle : str
        Why the run cannot be followed back, if so: the message of the error.
    max_step : float
        Largest size of u.
    start_shares : float or ndarray of shape (n,)
        The part of its weight with which a row takes part in the first score.
    n_trained : int or None
        Number of rows with a weight that the first tree was grown from, if it is known.
    curvature : float or None
        The sum of :math:`w_i h_i` over the rows that the first tree was grown from, if it is known.
    doubts : str
        What else may be the reason if the leaves' values do not come from the rows, for messages.
    """

    loss: BoostingLoss
    learning_rates: Floats
    l2: float = 0.0
    l1: float = 0.0
    start_is_fitted: bool = True
    shares: float | Floats = 1.0
    draws_rows: bool = False
    is_constrained: bool = False
    trees_of_round: int = field(default=1)
    n_steps: int = 1
    obstacle: str = ""
    max_step: float = np.inf
    start_shares: float | Floats = 1.0
    n_trained: int | None = None
    curvature: float | None = None
    doubts: str = ""

    @property
    def n_rounds(self) -> int:
        """Number of rounds."""
        return len(self.learning_rates)

    def until(self, n_rounds: int) -> Boosting:
        """Return the same boosting stopped after so many rounds."""
        shares = self.shares[:n_rounds] if isinstance(self.shares, np.ndarray) else self.shares
        return replace(
            self,
            trees=self.trees[: n_rounds * self.trees_of_round],
            learning_rates=self.learning_rates[:n_rounds],
            shares=shares,
        )

    def stages(self, leaves: Leaves, first: int = 0) -> Floats:
        """Return the raw scores (C, n_rounds - first, n) before each round from number `first` on."""
        size = self.trees_of_round
        outputs = self.until(first).outputs(leaves[:, : first * size])
        found = np.empty((len(outputs), self.n_rounds - first, len(leaves)))
        for t in range(first * size, self.n_rounds * size):
            if t % size == 0:
                found[:, t // size - first] = outputs
            outputs[self.trees[t].outputs] += self.trees[t].values.T.take(leaves[:, t], axis=1)
        return found

    @property
    def rows_are_known(self) -> bool:
        """True if it is known which rows took part in each round."""
        return not self.draws_rows

    @property
    def may_hold_values(self) -> bool:
        """True if a value that the rows do not ask for tells that it was kept from it."""
        return self.is_constrained and self.rows_are_known

    @property
    def arrays_of_a_run(self) -> int:
        """Number of arrays (C, n) that a run without a row takes: scores, g, h, and scores between steps."""
        return 2 + (self.n_outputs if self.loss.is_coupled else 1) + (self.n_steps > 1)

    def value(self, gradients: Floats, inverse: Floats) -> Floats:
        """Return the value u of leaves, before the learning rate, from their G and `inverse`."""
        if self.l1:
            gradients = np.sign(gradients) * np.maximum(np.abs(gradients) - self.l1, 0)
        if self.loss.is_coupled:
            return -np.einsum("kj...,j...->k...", inverse, gradients)
        return np.minimum(np.maximum(-gradients * inverse, -self.max_step), self.max_step)

    def moves(self, gradients: Floats, values: Floats) -> NDArray[np.bool_]:
        """Return whether values u change with their G, which l1 and the largest step may prevent."""
        found = np.abs(values) < self.max_step
        return found & (np.abs(gradients) > self.l1) if self.l1 else found

    def inverse(self, curvatures: Floats) -> Floats:
        """Return 1 / (H + l2) of leaves, or the inverse (C, C, ...) of their matrices, and 0 for no rows."""
        if not self.loss.is_coupled:
            total = curvatures + self.l2
            return np.divide(1.0, total, out=np.zeros_like(total), where=total > 1e-150)
        matrices = np.moveaxis(curvatures, (0, 1), (-2, -1))
        largest = np.diagonal(matrices, axis1=-2, axis2=-1).max(-1)
        penalty = np.maximum(self.l2, _SMALLEST * largest) + 1e-150
        found = np.linalg.inv(matrices + penalty[..., None, None] * np.eye(len(curvatures)))
        return np.moveaxis(found, (-2, -1), (0, 1))
