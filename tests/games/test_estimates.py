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


@pytest.mark.parametrize(("error", "needed"), [(0.5, 128), (0.2, 16), (0.05, 16), (2.0, 4096)])
def test_samples_that_are_thought_to_be_needed(error, needed):
    """The first number of 16, 32, 64, ... whose errors, falling as 1 / n, are a twentieth of the whole."""
    found = estimate(error)
    assert found.n_needed(16, 4096) == needed
    true = 1 - error**2  # the variance between rows is one
    if true > 0:
        left = error**2 * 16 / needed
        assert left / (true + left) <= 1 - RELIABLE
        assert needed == 16 or 2 * left / (true + 2 * left) > 1 - RELIABLE


def noisy():
    """Return a function that draws samples with errors of 1 / sqrt(n), and the numbers drawn."""
    drawn = []

    def take(n):
        drawn.append(n)
        return estimate(1 / np.sqrt(sum(drawn)))

    return take, drawn


def test_long_runs_are_announced_once():
    take, drawn = noisy()
    words = (
        r"n_samples='auto': 4 samples took \d+ s, and errors are 25% of the variance between rows\. About "
        r"32 samples are thought to be needed, in \d+ s more\. Set verbose=1"
    )
    with pytest.warns(UserWarning, match=words) as said:
        settled("auto", 4, 1024, take, patience=0.0)
    assert len(said) == 1
    assert drawn == [4, 4, 8, 16]


def test_verbose_runs_tell_after_each_round(capsys):
    settled("auto", 4, 1024, noisy()[0], verbose=1, patience=0.0)
    said = capsys.readouterr().err
    assert [line.split(" samples took ")[0] for line in said.splitlines()] == ["4", "8", "16"]


def test_the_end_of_the_time():
    """The first round is always there, and the next would take as long."""
    take, drawn = noisy()
    with pytest.warns(ConvergenceWarning, match="after 4 samples, when max_seconds=1e-09 were"):
        found = settled("auto", 4, 1024, take, max_seconds=1e-9)
    assert drawn == [4]
    assert found.total_sem[0] == 0.5
