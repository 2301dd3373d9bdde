"""A run of boosting on its training rows: walked back round by round, or made again without some rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from .ensemble import Boosting, Floats, Leaves

#: Numbers of an array that are worked on at a time, so that they stay in the processor's cache.
CACHED = 2**17

#: Relative error of recomputed leaf values from which on rows are not those of the training.
_ALIKE = 1e-2

#: Relative error of a leaf's value from which on it was kept from what its rows ask for.
_HELD = 1e-3

#: Relative rounding of scores that a library adds up in float32.
_SINGLE = float(np.finfo(np.float32).eps)

#: Largest part of the curvature in leaves that constraints may have kept from what their rows ask for.
_KEPT = 0.9


@dataclass(frozen=True, eq=False)
class Grown:
    r"""One tree on the training rows, of one output.

    Parameters
    ----------
    number : int
        Of the tree in the ensemble.
    output : int
        That the tree adds to.
    leaf : ndarray of shape (n,)
        The leaf of each training row.
    members : sparse array of shape (n_leaves, n)
        One where a row is in a leaf.
    values : ndarray of shape (n_leaves,)
        The leaves' values u, before the learning rate.
    rates : ndarray of shape (n_leaves,)
        The learning rate over :math:`H + \lambda` of each leaf; 0 where its value is held.
    pushes : ndarray of shape (n,)
        :math:`w_i (g_i + u h_i)`: times `rates` it is the change of the leaf without the row.
    weights : ndarray of shape (n,)
        Of the rows in this round.
    """

    number: int
    output: int
    leaf: Leaves
    members: csr_array
    values: Floats
    rates: Floats
    pushes: Floats
    weights: Floats


@dataclass(frozen=True, eq=False)
class Round:
    """One round of the run: the scores (C, n) before it, and its trees."""

    outputs: Floats
    trees: list[Grown]
    number: int

    @property
    def values(self) -> Floats:
        """The value u (C, n) that each row has had in this round."""
        found = np.zeros_like(self.outputs)
        for tree in self.trees:
            found[tree.output] = tree.values[tree.leaf]
        return found


@dataclass(frozen=True, eq=False)
class BoostingRun:
    """The rounds of boosting on its training rows.

    Parameters
    ----------
    boosting : Boosting
    leaves : ndarray of shape (n, n_trees)
        Of the training rows.
    targets : ndarray of shape (C, n)
        As the loss takes them.
    weights : ndarray of shape (n,)
    """

    boosting: Boosting
    leaves: Leaves
    targets: Floats
    weights: Floats

    def __len__(self) -> int:
        return len(self.leaves)

    @cached_property
    def by_tree(self) -> Leaves:
        """Leaves (n_trees, n), a tree's side by side."""
        return np.ascontiguousarray(self.leaves.T)

    @cached_property
    def _order(self) -> Leaves:
        """Rows (n_trees, n) by their leaf."""
        return np.argsort(self.by_tree, axis=1, kind="stable").astype(np.int32)

    def members(self, t: int) -> csr_array:
        """Return the matrix (n_leaves, n) that is one where a row is in a leaf of a tree."""
        order, n_leaves = self._order[t], self.boosting.trees[t].n_leaves
        ends = np.searchsorted(self.by_tree[t][order], np.arange(n_leaves + 1)).astype(np.int32)
        return csr_array((self._ones, order, ends), shape=(n_leaves, len(self)))

    @cached_property
    def _ones(self) -> Floats:
        return np.ones(len(self))

    def weights_in(self, number: int) -> Floats:
        """Return the weights (n,) of the rows in a round."""
        shares = self.boosting.shares
        return self.weights * (shares[number] if isinstance(shares, np.ndarray) else shares)

    @cached_property
    def start_weights(self) -> Floats:
        """Weights (n,) of the rows in the score before the first tree: 0 for those held out."""
        shares = self.boosting.shares
        known = self.weights * self.boosting.start_shares
        return known * (shares[0] > 0 if isinstance(shares, np.ndarray) else 1.0)

    @property
    def start_slopes(self) -> Floats | None:
        """Change (C, n) of the score before the first tree without each row, to first order, if it moves."""
        if not self.boosting.start_is_fitted:
            return None
        return self.boosting.loss.start_slopes(self.targets, self.start_weights)

    def trees(self, number: int) -> range:
        """Return the numbers of the trees of a round."""
        size = self.boosting.trees_of_round
        return range(number * size, (number + 1) * size)

    # ---- backwards --------------------------------------------------------------------------

    def backwards(self, first: int = 0) -> Iterator[Round]:
        """Yield the rounds from the last to number `first`, with the scores that they began with."""
        boosting = self.boosting
        outputs = boosting.outputs(self.leaves)
        for number in reversed(range(first, boosting.n_rounds)):
            for t in self.trees(number):
                tree = boosting.trees[t]
                outputs[tree.outputs] -= tree.values[self.by_tree[t]].T
            yield self._round(outputs, number)

    def _round(self, outputs: Floats, number: int) -> Round:
        boosting = self.boosting
        g, h = boosting.loss.derivatives(outputs, self.targets)
        weights, eta = self.weights_in(number), boosting.learning_rates[number]
        grown = []
        for t in self.trees(number):
            tree, leaf, members = boosting.trees[t], self.by_tree[t], self.members(t)
            for column, k in enumerate(range(*tree.outputs.indices(boosting.n_outputs))):
                G, H = members @ (weights * g[k]), members @ (weights * h[k])
                values = tree.values[:, column] / eta
                asked = boosting.value(G, H + tree.l2)
                free = self._free(values, asked) & (np.abs(asked) < boosting.max_step)
                if boosting.l1:
                    free &= np.abs(G) > boosting.l1
                total = H + tree.l2 + boosting.l2
                rates = np.divide(eta * free, total, out=np.zeros_like(H), where=total > 1e-150)
                pushes = weights * (g[k] + values[leaf] * h[k])
                grown.append(Grown(t, k, leaf, members, values, rates, pushes, weights))
        return Round(outputs, grown, number)

    def _free(self, values: Floats, asked: Floats) -> NDArray[np.bool_]:
        """Return whether the values of leaves are what their rows ask for."""
        if not (self.boosting.is_constrained and self.boosting.rows_are_known):
            return np.ones(len(values), dtype=bool)
        return np.abs(values - asked) <= _HELD * np.abs(asked).max(initial=0.0)

    # ---- forwards ---------------------------------------------------------------------------

    def without(
        self, rows: NDArray[np.int64], test: Leaves, first: int = 0
    ) -> tuple[Floats, Floats]:
        """Return scores (C, n_test, len(rows)) of test rows after the run without each row, and with all.

        The splits are held: the values of the leaves are computed anew, from round `first` on.
        """
        boosting, n = self.boosting, len(self)
        C, columns = boosting.n_outputs, np.arange(len(rows))
        known = [_before(boosting, leaves, first) for leaves in (self.leaves, test)]
        scores, found = (np.repeat(one[..., None], len(rows) + 1, axis=2) for one in known)
        if first == 0 and boosting.start_is_fitted:
            starts = boosting.loss.starts_without(self.targets, self.start_weights, rows)
            change = starts - boosting.loss.start(self.targets, self.start_weights)[:, None]
            for one in (scores, found):
                one[..., :-1] += change[:, None]
        for number in range(first, boosting.n_rounds):
            weights, eta = self.weights_in(number), boosting.learning_rates[number]
            g, h = np.empty_like(scores), np.empty_like(scores)
            step = max(1, CACHED // (C * (len(rows) + 1)))
            for start in range(0, n, step):
                part = slice(start, start + step)
                g[:, part], h[:, part] = boosting.loss.derivatives(
                    scores[:, part], self.targets[:, part, None]
                )
                g[:, part] *= weights[part, None]
                h[:, part] *= weights[part, None]
            g[:, rows, columns] = h[:, rows, columns] = 0
            for t in self.trees(number):
                tree, leaf, members = boosting.trees[t], self.by_tree[t], self.members(t)
                for column, k in enumerate(range(*tree.outputs.indices(C))):
                    H = members @ h[k] + np.reshape(tree.l2, (-1, 1))
                    value = eta * boosting.value(members @ g[k], H)
                    held = tree.values[:, column]
                    fixed = ~self._free(held, value[:, -1])
                    value[fixed] = held[fixed, None]
                    found[k] += value[test[:, t]]
                    for start in range(0, n, step):
                        part = slice(start, start + step)
                        scores[k, part] += value[leaf[part]]
        return found[..., :-1], found[..., -1]

    # ---- whether the rows are those of the training ------------------------------------------

    def require_own_rows(self) -> None:
        """Raise ValueError if the values of the leaves do not come from these rows."""
        boosting = self.boosting
        if not (boosting.rows_are_known and boosting.loss.is_smooth):
            return
        wrong = size = noise = kept = total = 0.0
        for round_ in self.backwards():
            eta = boosting.learning_rates[round_.number]
            g, h = boosting.loss.derivatives(round_.outputs, self.targets)
            rounding = _SINGLE * (np.abs(round_.outputs).max() + np.abs(g).max())
            for tree in round_.trees:
                G, H = (tree.members @ (tree.weights * part[tree.output]) for part in (g, h))
                asked = boosting.value(G, H + boosting.trees[tree.number].l2)
                free = self._free(tree.values, asked)
                differs = np.abs(tree.values - asked)
                wrong += float((eta**2 * H * differs**2)[free].sum())
                size += float((eta**2 * H * tree.values**2).sum())
                noise += float((eta**2 * H).sum()) * rounding**2
                kept += float(H[~free].sum())
                total += float(H.sum())
        differ = wrong > _ALIKE**2 * size + noise
        if differ or kept > _KEPT * total:
            far = f" by {np.sqrt(wrong / size):.0%}" if differ else ""
            raise ValueError(
                "X, y and sample_weight must be the rows that the model was trained on, in any order: from "
                f"these rows the values of its leaves would differ{far}. Pass all of its training rows "
                f"with the targets and weights of its fit. {boosting.doubts}".rstrip()
            )


def _before(boosting: Boosting, leaves: Leaves, first: int) -> Floats:
    """Return the scores (C, n) of rows before a round."""
    found = np.repeat(boosting.start[:, None], len(leaves), axis=1)
    for t in range(first * boosting.trees_of_round):
        tree = boosting.trees[t]
        found[tree.outputs] += tree.values[leaves[:, t]].T
    return found
