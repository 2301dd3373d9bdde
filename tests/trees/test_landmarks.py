"""TREX by landmarks: Nystroem's approximation of its kernel beside the whole one."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.ensemble import GradientBoostingClassifier, RandomForestRegressor

from fimoda import TREX

N = 150
X, Y = load_diabetes(return_X_y=True)
FOREST = RandomForestRegressor(20, max_depth=4, random_state=0).fit(X[:N], Y[:N])


def fitted(**settings):
    return TREX(FOREST, random_state=0, **settings).fit(X[:N], Y[:N])


def whole_kernel():
    """The mean over the trees of one over the rows in a shared leaf."""
    leaves = FOREST.apply(X[:N])
    found = np.zeros((N, N))
    for leaf in leaves.T:
        for one in np.unique(leaf):
            inside = leaf == one
            found += np.outer(inside, inside) / inside.sum() / leaves.shape[1]
    return found


def test_all_rows_as_landmarks_are_the_whole_kernel():
    whole, made = fitted(), fitted(n_landmarks=N)
    assert whole.n_landmarks_ is None
    assert whole.kernel_error_ == 0
    assert made.n_landmarks_ == N
    assert made.kernel_error_ < 1e-6
    expected = whole.transform(X[N:], Y[N:])
    found = made.transform(X[N:], Y[N:])
    assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())
    assert_allclose(made.fidelity_, whole.fidelity_, rtol=1e-8)
    assert fitted(n_landmarks=10 * N).n_landmarks_ == N


def test_the_error_is_that_of_the_dense_kernel():
    made = fitted(n_landmarks=40)
    rows = np.sort(np.random.RandomState(0).choice(N, 40, replace=False))
    K, c = whole_kernel(), made._constant
    full = K + c
    near = full[:, rows] @ np.linalg.solve(full[np.ix_(rows, rows)], full[rows])
    assert_allclose(made._features @ made._features.T, near, rtol=1e-6, atol=1e-6 * c)
    assert_allclose(made.kernel_error_, np.trace(full - near) / np.trace(K), rtol=1e-4)
    assert 0 < made.kernel_error_ < 1


def test_more_landmarks_are_nearer():
    expected = fitted().transform(X[N : N + 30], Y[N : N + 30])
    errors, alike = [], []
    for n_landmarks in (10, 50, 120):
        made = fitted(n_landmarks=n_landmarks)
        errors.append(made.kernel_error_)
        found = made.transform(X[N : N + 30], Y[N : N + 30])
        alike.append(np.corrcoef(found.ravel(), expected.ravel())[0, 1])
    assert errors[0] > errors[1] > errors[2]
    assert alike[0] < alike[1] < alike[2]
    assert alike[2] > 0.95


def test_a_small_budget_takes_as_many_as_fit():
    budget = 8 * (2 * N * 60 + 3 * 60**2)
    made = fitted(memory_budget=budget)
    assert made.n_landmarks_ == 60
    assert "60 landmarks leave out" in made._known_error(made.transform(X[N:], Y[N:]))[-1]
    expected = fitted(n_landmarks=60).transform(X[N:], Y[N:])  # in larger blocks
    assert_allclose(made.transform(X[N:], Y[N:]), expected, rtol=1e-6, atol=1e-8)
    with pytest.raises(MemoryError, match="landmarks"):
        fitted(n_landmarks=100, memory_budget=budget)


def test_weights_of_outputs_that_differ():
    X, y = load_breast_cancer(return_X_y=True)
    X, y = X[:N], y[:N] + (X[:N, 0] > 15)
    model = GradientBoostingClassifier(n_estimators=5, max_depth=2, random_state=0).fit(X, y)
    expected = TREX(model).fit(X, y).transform(X[:9], y[:9])
    found = TREX(model, n_landmarks=N).fit(X, y).transform(X[:9], y[:9])
    assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
