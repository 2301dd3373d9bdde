"""Distances of samples against POT, which solves for the optimal plan."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from fimoda.distances import SlicedWasserstein, Wasserstein

ot = pytest.importorskip("ot")


def samples(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, size=shape)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("sizes", [(9, 9), (7, 4), (1, 5)])
def test_wasserstein(p, sizes):
    left_out, full = (samples(n, seed=n + k) for k, n in enumerate(sizes))
    cost = np.abs(left_out[:, None] - full) ** p
    expected = ot.emd2(ot.unif(len(left_out)), ot.unif(len(full)), cost) ** (1 / p)
    assert_allclose(Wasserstein(p)(left_out, full), expected, rtol=1e-10)


@pytest.mark.parametrize("sizes", [(12, 12), (8, 5)])
def test_sliced_wasserstein(sizes):
    """Ours has a factor of the root of the dimension, so that a shift is its length."""
    d, n_directions = 3, 50
    left_out, full = (samples(n, d, seed=n + k) for k, n in enumerate(sizes))
    directions = np.random.RandomState(4).normal(size=(n_directions, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    expected = np.sqrt(d) * ot.sliced_wasserstein_distance(left_out, full, projections=directions.T)
    assert_allclose(
        SlicedWasserstein(n_directions, random_state=4)(left_out, full), expected, rtol=1e-10
    )
