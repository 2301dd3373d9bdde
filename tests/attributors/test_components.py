"""Combinations of test rows in place of all of them: the projection of the scores, and its error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from naive import relative
from numpy.testing import assert_array_equal
from torch import nn

from fimoda import GradDot, UnrolledDifferentiation

N, M, D = 30, 12, 3


def data(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, D))
    return X, X[:, 0] - X[:, 1] ** 2 + 0.3 * rng.normal(size=n)


TRAIN, TEST = data(N, 0), data(M, 1)


def unrolled(dtype: torch.dtype = torch.float64, **changes) -> UnrolledDifferentiation:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, 1)).to(dtype)
    settings = {"optimizer": "SGD", "lr": 0.05, "batch_size": 8, "criterion": nn.MSELoss()}
    settings |= {"n_epochs": [1, 3], "n_seeds": [0, 1], "mode": "adjoint"}
    return UnrolledDifferentiation(net, **settings | changes).fit(*TRAIN)


@pytest.mark.parametrize("order", ["expected", "own"])
@pytest.mark.parametrize("n_test_components", [2, 5])
def test_scores_are_projected(order, n_test_components):
    given = {"order": order, "max_growth": None}  # of combinations other vectors would be held
    whole = unrolled(**given).transform_horizons(*TEST)
    some = unrolled(**given, n_test_components=n_test_components)
    found = some.transform_horizons(*TEST)
    grad_dot = GradDot(some.estimator_, criterion=nn.MSELoss(), reweight_others=False)
    first = grad_dot.fit(*TRAIN).transform(*TEST)
    D = np.diag(np.linalg.norm(first, axis=1))
    U = np.linalg.svd(np.linalg.inv(D) @ first)[0][:, :n_test_components]
    for ours, all_of_it in zip(found, whole, strict=True):
        assert relative(ours, D @ U @ U.T @ np.linalg.inv(D) @ all_of_it) < 1e-9
    missing = np.linalg.inv(D) @ (found[-1] - whole[-1])
    error = np.linalg.norm(missing) / np.linalg.norm(np.linalg.inv(D) @ whole[-1])
    assert error / 3 < some.truncation_error_ < 3 * error


def test_rows_that_repeat_are_no_more_work():
    X, y = TEST[0][[0, 1, 2] * 4], TEST[1][[0, 1, 2] * 4]
    some = unrolled(n_test_components=3)
    assert relative(some.transform(X, y), unrolled().transform(X, y)) < 1e-9
    assert some.truncation_error_ < 1e-6


def test_rows_without_a_gradient():
    """Their scores are zero, and the others' are what they are."""

    def measure(outputs, targets):
        return torch.where(targets < 100, outputs**2, 0.0 * outputs).sum(-1)

    X, y = TEST[0], np.where(np.arange(M) < 2, 1000.0, TEST[1])
    found = unrolled(torch.float32, n_test_components=4, measurement=measure).transform(X, y)
    assert np.isfinite(found).all()
    assert np.abs(found[:2]).max() < 1e-9 * np.abs(found).max()


def test_part_of_the_squares():
    few, many = unrolled(n_test_components=0.9), unrolled(n_test_components=0.999)
    ranks = [np.linalg.matrix_rank(one.transform(*TEST), tol=1e-9) for one in (few, many)]
    assert ranks[0] < ranks[1] < M
    assert few.truncation_error_ > many.truncation_error_


def test_all_of_them():
    some, whole = unrolled(n_test_components=M), unrolled()
    assert_array_equal(some.transform(*TEST), whole.transform(*TEST))
    assert some.truncation_error_ == 0


def test_blocks_within_the_budget():
    whole = unrolled(n_test_components=5)
    fixed, each = whole._bytes_back(2)
    tight = unrolled(n_test_components=5, memory_budget=fixed + 3 * each)
    assert relative(tight.transform(*TEST), whole.transform(*TEST)) < 1e-9
    assert tight.truncation_error_ == pytest.approx(whole.truncation_error_, rel=1e-6)


@pytest.mark.parametrize("value", [0, 1.5, -1, "few"])
def test_refuses_other_numbers(value):
    with pytest.raises(ValueError, match="n_test_components"):
        unrolled(n_test_components=value)
