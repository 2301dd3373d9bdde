"""A run of boosting on its training rows: walked back round by round, or made again without some rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ensemble import Boosting, Floats, Leaves
from .other_rows import OtherRows
from .rounds import Grown, Round, Step, given_and_asked, sums

#: Numbers of an array that are worked on at a time, so that they stay in the processor's cache.
CACHED = 2**17

#: Bytes that rounds may take to be remembered from one walk to the next.
_REMEMBERED = 2**26

#: Relative error of a leaf's value from which on it was kept from what its rows ask for.
_HELD = 1e-3


@dataclass(frozen=True, eq=False)
class BoostingRun:
    """The rounds of boosting on its training rows, from the first or from a later one on.

    Parameters
    ----------
    boosting : Boosting
    leaves : ndarray of shape (n, n_trees)
        Of the training rows.
    targets : ndarray of shape (C, n)
        As the loss takes them.
    weights : ndarray of shape (n,)
    first : int
        The round from which on the run is followed.
    """

    boosting: Boosting
    leaves: Leaves
    targets: Floats
    weights: Floats
    first: int = 0

    def __len__(self) -> int:
        return len(self.leaves)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def by_tree(self) -> Leaves:
        """Leaves (n_trees, n), a tree's side by side."""
        return np.ascontiguousarray(self.leaves.T)

    def weights_in(self, number: int) -> Floats:
        """Return the weights (n,) of the rows in a round."""
        shares = self.boosting.shares
        if isinstance(shares, np.ndarray):
            return self.weights * shares[number]
        return self.weights if shares == 1 else self.weights * shares

    @cached_property
    def start_weights(self) -> Floats:
        """Weights (n,) of the rows in the score before the first tree: 0 for those held out."""
        shares = self.boosting.shares
        known = self.weights * self.boosting.start_shares
        return known * (shares[0] > 0 if isinstance(shares, np.ndarray) else 1.0)

    @property
    def start_slopes(self) -> Floats | None:
        """Change (C, n) of the score before the first tree without each row, to first order, if it moves."""
        if self.first or not self.boosting.start_is_fitted:
            return None
        return self.boosting.loss.start_slopes(self.targets, self.start_weights)

    def trees(self, number: int) -> range:
        """Return the numbers of the trees of a round."""
        size = self.boosting.trees_of_round
        return range(number * size, (number + 1) * size)

    def until(self, n_rounds: int) -> BoostingRun:
        """Return the same run stopped after so many rounds."""
        leaves = self.leaves[:, : n_rounds * self.boosting.trees_of_round]
        return replace(self, boosting=self.boosting.until(n_rounds), leaves=leaves)

    # ---- backwards --------------------------------------------------------------------------

    def backwards(self) -> Iterable[Round]:
        """Return the rounds from the last to the first, with the scores that they began with."""
        boosting = self.boosting
        arrays = 3 * boosting.n_outputs * boosting.n_steps * (boosting.n_rounds - self.first)
        return self._rounds if 8 * arrays * len(self) <= _REMEMBERED else self._walk()

    @cached_property
    def _rounds(self) -> list[Round]:
        return list(self._walk())

    def _walk(self) -> Iterator[Round]:
        boosting = self.boosting
        outputs = boosting.outputs(self.leaves)
        for number in reversed(range(self.first, boosting.n_rounds)):
            outputs = outputs.copy()
            for t in self.trees(number):
                tree = boosting.trees[t]
                outputs[tree.outputs] -= tree.values.T.take(self.by_tree[t], axis=1)
            yield self._round(outputs, number)

    def _round(self, outputs: Floats, number: int) -> Round:
        boosting, eta = self.boosting, self.boosting.learning_rates[number]
        left = {t: boosting.trees[t].values.T / eta for t in self._growing(number)}
        steps = [self._step(outputs, number, left if boosting.n_steps == 1 else None)]
        while len(steps) < boosting.n_steps:
            outputs = outputs + steps[-1].values
            for tree in steps[-1].trees:
                left[tree.number][tree.output] -= tree.values
            is_last = len(steps) + 1 == boosting.n_steps
            step = self._step(outputs, number, left if is_last else None)
            steps.append(replace(step, bends=self._bends(step, number)))
        if boosting.may_hold_values:
            for trees in zip(*(step.trees for step in steps), strict=True):
                free = self.free(*given_and_asked(trees))
                for tree in trees:
                    np.multiply(tree.rates, free, out=tree.rates)
        return Round(number, steps)

    def _step(self, outputs: Floats, number: int, given: dict[int, Floats] | None) -> Step:
        """Return a step from scores, with the values `given`, or else those that its rows ask for."""
        boosting, eta = self.boosting, self.boosting.learning_rates[number]
        g, h = boosting.loss.derivatives(outputs, self.targets)
        weights, grown = self.weights_in(number), []
        weighted_g, weighted_h = weights * g, weights * h
        for t in self._growing(number):
            own = self._outputs_of(t)
            G, H = self._sums(t, weighted_g, weighted_h)
            inverse = boosting.inverse(H)
            asked, rates = boosting.value(G, inverse), eta * inverse
            if not boosting.loss.is_coupled:
                rates *= boosting.moves(G, asked)
            values = asked if given is None else given[t]
            at_rows = values.take(self.by_tree[t], axis=1)
            if boosting.loss.is_coupled:
                curved, H = np.einsum("kjn,jn->kn", weighted_h, at_rows), np.einsum("kkl->kl", H)
            else:
                curved = weighted_h[own.start : own.stop] * at_rows
            for column, k in enumerate(own):
                found = values[column], asked[column], H[column], rates[column]
                pushes = weighted_g[k] + curved[column], curved[column]
                grown.append(Grown(t, k, self.by_tree[t], *found, *pushes, weights))
        return Step(outputs, grown, float(np.abs(g).max()))

    def _bends(self, step: Step, number: int) -> Floats:
        """Return the `bends` of a step, in which one tree has all outputs."""
        C, n = step.outputs.shape
        each, tree = np.arange(C), step.trees[0]
        vectors = np.zeros((C, n, C))
        vectors[each, :, each] = tree.weights
        pulled = self.boosting.loss.pull(step.outputs, self.targets, step.values, vectors)
        found = np.stack([sums(tree.leaf, one, len(tree.values)) for one in pulled])
        return found.transpose(0, 2, 1) / self.boosting.learning_rates[number]

    def _growing(self, number: int) -> list[int]:
        """Return the trees of a round that add to outputs."""
        return [t for t in self.trees(number) if self._outputs_of(t)]

    def _outputs_of(self, t: int) -> range:
        """Return the outputs that a tree adds to."""
        return range(*self.boosting.trees[t].outputs.indices(self.boosting.n_outputs))

    def _sums(self, t: int, g: Floats, h: Floats) -> tuple[Floats, Floats]:
        """Return G (own, n_leaves, ...) and H, the same or (own, own, n_leaves, ...), of weighted g and h.

        H has in it the penalty of the tree's own.
        """
        outputs, tree = self._outputs_of(t), self.boosting.trees[t]
        leaf = self.by_tree[t].astype(np.intp)  # once for all sums
        total = partial(sums, leaf, n_leaves=tree.n_leaves)
        G = np.array([total(g[k]) for k in outputs])
        if not self.boosting.loss.is_coupled:
            penalty = np.asarray(tree.l2).reshape(-1, *[1] * (g.ndim - 2))
            return G, np.array([total(h[k]) for k in outputs]) + penalty
        return G, np.array([[total(h[k, j]) for j in outputs] for k in outputs])

    def free(self, values: Floats, asked: Floats) -> NDArray[np.bool_]:
        """Return whether the values of leaves are what their rows ask for."""
        if not self.boosting.may_hold_values:
            return np.ones(values.shape, dtype=bool)
        return np.abs(values - asked) <= _HELD * np.abs(asked).max(initial=0.0)

    # ---- forwards ---------------------------------------------------------------------------

    def without(self, removed: NDArray[np.bool_], test: Leaves) -> tuple[Floats, Floats]:
        """Return scores (C, n_test, k) of test rows after the runs without some rows, and with all.

        Each column of `removed` (n, k) says which rows a run is without.
        """
        return self.with_others(OtherRows.removed(removed), test)

    def with_others(self, other: OtherRows, test: Leaves) -> tuple[Floats, Floats]:
        """Return scores (C, n_test, k) of test rows after runs with other rows, and with those of training.

        The splits are held: the values of the leaves are computed anew.
        """
        boosting = self.boosting
        before, taken = boosting.until(self.first), slice(self.first * boosting.trees_of_round)
        known = [before.outputs(leaves[:, taken]) for leaves in (self.leaves, test)]
        scores, found = (np.repeat(one[..., None], other.n_runs + 1, axis=2) for one in known)
        if self.first == 0 and boosting.start_is_fitted:
            starts = boosting.loss.link(other.means(self.targets, self.start_weights))
            change = starts - boosting.loss.start(self.targets, self.start_weights)[:, None]
            for one in (scores, found):
                one[..., :-1] += change[:, None]
        for number in range(self.first, boosting.n_rounds):
            totals: dict[int, Floats] = {}
            moved = scores.copy() if boosting.n_steps > 1 else scores
            for step in range(boosting.n_steps):
                weighted = self._weighted(moved, number, other)
                for t in self._growing(number):
                    G, H = self._sums(t, *weighted)
                    asked = boosting.value(G, boosting.inverse(H))
                    totals[t] = totals[t] + asked if step else asked
                    if step + 1 < boosting.n_steps:
                        self._add(moved, t, asked)
            for t, total in totals.items():
                value, held = boosting.learning_rates[number] * total, boosting.trees[t].values.T
                fixed = ~self.free(held, value[..., -1])
                value[fixed] = held[fixed][:, None]
                found[boosting.trees[t].outputs] += value[:, test[:, t]]
                self._add(scores, t, value)
        return found[..., :-1], found[..., -1]

    def _weighted(self, scores: Floats, number: int, other: OtherRows) -> tuple[Floats, Floats]:
        """Return g and h by weight at scores (C, n, k + 1), those of the other rows in their runs."""
        C, n, runs = scores.shape
        weights, loss = self.weights_in(number), self.boosting.loss
        g, h = np.empty_like(scores), np.empty((C, C, n, runs) if loss.is_coupled else (C, n, runs))
        for part in self._parts(scores):
            at = loss.derivatives(scores[:, part], self.targets[:, part, None])
            g[:, part], h[..., part, :] = (one * weights[part, None] for one in at)
        at_other = other.rows, other.runs
        g[(..., *at_other)] = h[(..., *at_other)] = 0
        if other.targets is not None:
            found = loss.derivatives(scores[(..., *at_other)], other.targets)
            own = weights[other.rows] * other.factors
            g[(..., *at_other)], h[(..., *at_other)] = (one * own for one in found)
        return g, h

    def _add(self, scores: Floats, t: int, value: Floats) -> None:
        """Add the values (own, n_leaves, runs) of a tree to scores (C, n, runs)."""
        for column, k in enumerate(self._outputs_of(t)):
            for part in self._parts(scores):
                scores[k, part] += value[column][self.by_tree[t][part]]

    def _parts(self, scores: Floats) -> Iterator[slice]:
        """Yield slices of rows whose scores (C, n, runs) and derivatives stay in the processor's cache."""
        step = max(1, CACHED // (4 * scores.shape[0] * scores.shape[2]))
        for start in range(0, len(self), step):
            yield slice(start, start + step)
