"""Leaves of all rows at once, against a walk of each row from the root of each tree."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fimoda.trees.splits as bits
from fimoda.trees import Splits

N_FEATURES = 5


def grown(sizes, rng):
    """Return trees of so many leaves, in which leaves drawn at random are split one after another."""
    largest, sides, roots = max(sizes), [], []
    for t, size in enumerate(sizes):
        first = len(sides)
        roots.append(first if size > 1 else -1)
        where = {0: None}  # of each leaf, the side of a split that it is
        for leaf in range(1, size):
            old = int(rng.integers(leaf))
            if where[old] is not None:
                split, side = where[old]
                sides[split][side] = len(sides)
            where[old], where[leaf] = (len(sides), 0), (len(sides), 1)
            sides.append([~(t * largest + old), ~(t * largest + leaf)])
    n = len(sides)
    left, right = np.array(sides, dtype=np.int64).reshape(n, 2).T
    given = rng.integers(0, N_FEATURES, n), rng.integers(-3, 4, n) / 2, rng.random(n) < 0.5
    return Splits(np.array(roots), *given, left, right, largest, N_FEATURES)


def walked(splits, X):
    found = np.zeros((len(X), len(splits.roots)), dtype=int)
    for i, x in enumerate(X):
        for t, split in enumerate(splits.roots):
            while split >= 0:
                value = x[splits.features[split]]
                goes_left = value <= splits.thresholds[split]
                if np.isnan(value):
                    goes_left = splits.missing_left[split]
                split = splits.left[split] if goes_left else splits.right[split]
            found[i, t] = ~split - t * splits.largest if splits.roots[t] >= 0 else 0
    return found


@pytest.mark.parametrize("n", [1, 7, 64, 203])
@pytest.mark.parametrize("sizes", [[1], [2], [1, 3, 1], [5, 2, 17, 1, 33], [64, 40, 64], [256]])
def test_leaves_are_those_of_a_walk(n, sizes, monkeypatch):
    rng = np.random.default_rng(n)
    splits = grown(sizes, rng)
    X = rng.integers(-4, 5, (n, N_FEATURES)) / 2  # many at a threshold
    X[rng.random(X.shape) < 0.1] = np.nan
    X[rng.random(X.shape) < 0.1] = np.inf
    X[rng.random(X.shape) < 0.1] = -np.inf
    found = splits.leaves(X)
    assert found.dtype == np.int32
    assert_array_equal(found, walked(splits, X))
    monkeypatch.setattr(bits, "_BITS", 1)  # blocks of few rows
    assert_array_equal(splits.leaves(X), found)


def test_many_arrays_of_numbers_suit():
    splits = grown([4], np.random.default_rng(0))
    X = np.zeros((bits._FEW, N_FEATURES))
    for one in (X, X.astype(np.float32), np.asfortranarray(X)):
        assert splits.suits(one)
    for other in (X[1:], X[:, 1:], X.astype(int), X.astype(object), X.tolist(), X[0]):
        assert not splits.suits(other)
