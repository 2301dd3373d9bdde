"""A round of boosting on the training rows: its trees, in one Newton step of their leaves or several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from scipy.sparse import csc_array

from .ensemble import Floats, Leaves


def sums(leaf: Leaves, numbers: Floats, n_leaves: int) -> Floats:
    """Return the sums (n_leaves, ...) of numbers (n, ...) over the rows of each leaf."""
    if numbers.ndim == 1:
        return np.bincount(leaf, numbers, n_leaves).astype(np.float64, copy=False)
    n = len(leaf)
    members = csc_array((np.ones(n), leaf, np.arange(n + 1)), shape=(n_leaves, n))
    found: Floats = members @ numbers
    return found


@dataclass(frozen=True, eq=False)
class Grown:
    r"""One tree on the training rows, of one output and in one step.

    Parameters
    ----------
    number : int
        Of the tree in the ensemble.
    output : int
        That the tree adds to.
    leaf : ndarray of shape (n,)
        The leaf of each training row.
    values : ndarray of shape (n_leaves,)
        The leaves' values u, before the learning rate.
    asked : ndarray of shape (n_leaves,)
        The values that the rows ask for: those of the formula.
    curvatures : ndarray of shape (n_leaves,)
        The leaves' H, of this output.
    rates : ndarray of shape (n_leaves,) or (C, n_leaves)
        The learning rate over :math:`H + \lambda` of each leaf; 0 where its value is held. Where H is a
        matrix over outputs, the row of its inverse.
    pushes : ndarray of shape (n,)
        :math:`w_i (g_i + u h_i)`: times `rates` it is the change of the leaf without the row.
    curved : ndarray of shape (n,)
        The part of these that comes with the leaf's value, :math:`w_i u h_i`.
    weights : ndarray of shape (n,)
        Of the rows in this round.
    """

    number: int
    output: int
    leaf: Leaves
    values: Floats
    asked: Floats
    curvatures: Floats
    rates: Floats
    pushes: Floats
    curved: Floats
    weights: Floats


def given_and_asked(trees: Sequence[Grown]) -> tuple[Floats, Floats]:
    """Return the values of a tree, summed over its steps, and those that the rows ask for in the last one."""
    given = reduce(np.add, [tree.values for tree in trees])
    return given, given - trees[-1].values + trees[-1].asked


@dataclass(frozen=True, eq=False)
class Step:
    r"""One Newton step of the leaves of a round.

    Parameters
    ----------
    outputs : ndarray of shape (C, n)
        The scores that it begins with.
    trees : list of Grown
    steepest : float
        The largest size of a gradient g.
    bends : ndarray of shape (C, C, n_leaves) or None
        How :math:`G + H u` of a leaf moves with what the steps before have added to its rows, over the
        learning rate; None in the first step.
    """

    outputs: Floats
    trees: list[Grown]
    steepest: float
    bends: Floats | None = None

    @property
    def values(self) -> Floats:
        """The value u (C, n) that each row has had in this step."""
        found = np.zeros_like(self.outputs)
        for tree in self.trees:
            found[tree.output] = tree.values[tree.leaf]
        return found

    def asked(self, pulls: list[Floats]) -> list[Floats]:
        """Return the derivatives in the leaves' -G from those in their values, (n_leaves, m) a tree."""
        if all(tree.rates.ndim == 1 for tree in self.trees):
            return [tree.rates[:, None] * c for tree, c in zip(self.trees, pulls, strict=True)]
        stacked = np.stack(pulls)
        return [np.einsum("kl,klm->lm", tree.rates, stacked) for tree in self.trees]


@dataclass(frozen=True, eq=False)
class Round:
    """One round of the run: its number, and the steps that its values are the sum of."""

    number: int
    steps: list[Step]

    @property
    def trees(self) -> list[Grown]:
        """The trees of the round, in its last step."""
        return self.steps[-1].trees

    def asked(self, pulls: list[Floats]) -> Iterator[tuple[Step, list[Floats]]]:
        """Yield the steps, the last one first, with what `Step.asked` makes of derivatives in the values."""
        for step in reversed(self.steps):
            found = step.asked(pulls)
            yield step, found
            if step.bends is not None:
                moved = np.einsum("jkl,klm->jlm", step.bends, np.stack(found))
                pulls = [c - one for c, one in zip(pulls, moved, strict=True)]
