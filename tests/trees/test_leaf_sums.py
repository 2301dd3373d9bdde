"""Sums over trees by sparse products, and walks that remember their rounds."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import HistGradientBoostingClassifier

import fimoda.trees.run as walks
from fimoda import BoostIn, LeafInfluence
from fimoda.trees import LeafSums


@pytest.mark.parametrize("n_trees", [0, 1, 31, 32, 33, 70])
def test_sums_are_those_of_a_plain_loop(n_trees):
    rng = np.random.default_rng(0)
    n, m = 23, 4
    sums, expected = LeafSums(n, m), np.zeros((n, m))
    for t in range(n_trees):
        n_leaves = 1 + t % 5
        leaf = rng.integers(0, n_leaves, n).astype(np.int32)
        a, b = rng.standard_normal(n), rng.standard_normal((n_leaves, m))
        sums.add(leaf, a, b)
        for i in range(n):
            for z in range(m):
                expected[i, z] += a[i] * b[leaf[i], z]
    assert_allclose(sums.total(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [BoostIn, LeafInfluence])
def test_remembered_rounds_change_nothing(method, monkeypatch):
    X, y = load_breast_cancer(return_X_y=True)
    model = HistGradientBoostingClassifier(max_iter=10).fit(X[:100], y[:100])
    made = method(model).fit(X[:100], y[:100])
    found = made.transform(X[100:105], y[100:105])
    assert isinstance(made._members[0].run.backwards(), list)
    monkeypatch.setattr(walks, "_REMEMBERED", 0)
    again = method(model).fit(X[:100], y[:100])
    assert not isinstance(again._members[0].run.backwards(), list)
    assert_array_equal(again.transform(X[100:105], y[100:105]), found)


def test_a_pickled_run_leaves_its_rounds_behind():
    X, y = load_breast_cancer(return_X_y=True)
    model = HistGradientBoostingClassifier(max_iter=30).fit(X[:300], y[:300])
    run = BoostIn(model).fit(X[:300], y[:300])._members[0].run
    assert "_rounds" in vars(run)
    kept = pickle.loads(pickle.dumps(run))
    assert "_rounds" not in vars(kept)
    assert_array_equal(kept.leaves, run.leaves)
