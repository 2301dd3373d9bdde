"""Means, errors and when values have settled."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.exceptions import ConvergenceWarning

from fimoda.games.estimates import RELIABLE, Estimate, RunningMean, settled, with_mean


def test_running_mean_is_the_mean_with_its_error():
    samples = 1e6 + np.random.default_rng(0).normal(size=(50, 3, 4))
    mean = RunningMean()
    for part in (samples[:1], samples[1:20], samples[20:]):
        mean.add(part)
    found = mean.estimate(2)
    assert_allclose(found.mean, samples.mean(0)[:-1])
    assert_allclose(found.total, samples.mean(0)[-1])
    assert_allclose(found.sem, samples.std(0, ddof=1)[:-1] / np.sqrt(50), rtol=1e-6)
    assert found.n_samples == 100


def test_one_sample_has_no_error():
    mean = RunningMean()
    mean.add(np.ones((1, 2, 3)))
    assert np.isnan(mean.estimate().sem).all()


def test_with_mean():
    assert_allclose(with_mean(np.array([[1.0, 3.0]])), [[1, 3, 2]])


def estimate(error: float) -> Estimate:
    total = np.array([-1.0, 0.0, 1.0])
    return Estimate(total[None], total[None], total, np.full(3, error), 1)


def test_reliability_is_one_less_the_error_in_the_variance():
    assert_allclose(estimate(0.5).reliability, 0.75)
    flat = Estimate(np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(3), np.ones(3), 1)
    assert flat.reliability < RELIABLE


def test_auto_doubles_until_values_are_reliable():
    drawn = []

    def take(n):
        drawn.append(n)
        return estimate(1 / np.sqrt(sum(drawn)))

    settled("auto", 4, 1024, take)
    assert drawn == [4, 4, 8, 16]  # an error of 1 / 32
    drawn.clear()
    settled(7, 4, 1024, take)
    assert drawn == [7]
    drawn.clear()
    with pytest.warns(ConvergenceWarning, match="not settled after 8 samples"):
        settled("auto", 4, 8, take)
