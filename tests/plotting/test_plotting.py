"""Displays show the numbers they are given."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import pyplot as plt
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge

from fimoda import (
    GradDot,
    ScoreMapDisplay,
    SeedsNeededDisplay,
    SelfInfluenceDisplay,
    further_training_curve,
)


@pytest.fixture(scope="module")
def fitted():
    X, y = load_diabetes(return_X_y=True)
    return GradDot(Ridge().fit(X[:40], y[:40])).fit(X[:40], y[:40]), X[40:46], y[40:46]


def test_score_map(fitted):
    attributor, X, y = fitted
    scores = attributor.transform(X, y)
    _, ax = plt.subplots()
    display = ScoreMapDisplay.from_estimator(attributor, X, y).plot(ax)
    assert display.ax_ is ax
    assert_array_equal(ax.images[0].get_array(), scores)
    low, high = ax.images[0].get_clim()
    assert high == -low == np.quantile(abs(scores), 0.99)
    order = np.argsort(y)
    ordered = ScoreMapDisplay.from_predictions(scores).plot(test_order=order)
    assert_array_equal(ordered.ax_.images[0].get_array(), scores[order])
    with pytest.raises(ValueError, match=r"finite matrix .* got shape \(3,\)"):
        ScoreMapDisplay.from_predictions([1.0, 2.0, 3.0])


def test_self_influence(fitted):
    attributor, *_ = fitted
    scores = attributor.self_influence()
    marked = scores > np.quantile(scores, 0.9)
    display = SelfInfluenceDisplay.from_estimator(attributor, marked).plot(bins=10)
    counts = [bar.get_height() for bar in display.ax_.containers[1]]
    assert sum(counts) == marked.sum()
    assert display.ax_.get_yscale() == "log"
    plain = SelfInfluenceDisplay.from_predictions(scores).plot()
    assert sum(bar.get_height() for bar in plain.ax_.patches) == len(scores)
    with pytest.raises(ValueError, match=r"marked must have one entry for each score, \(40,\)"):
        SelfInfluenceDisplay.from_estimator(attributor, marked[:3])


def test_seeds_needed(fitted):
    _, X, y = fitted
    train, targets = load_diabetes(return_X_y=True)
    train, targets = train[:40], targets[:40] / 100
    model = Ridge().fit(train, targets)
    curve = further_training_curve(
        model, train, targets, X, y / 100, epochs=[1, 4], n_seeds=6, leave_out=10, lr=0.1,
        batch_size=8, random_state=0,
    )  # fmt: skip
    display = SeedsNeededDisplay.from_curve(curve).plot()
    noise = np.sqrt((curve.sem**2).mean((1, 2)))
    size = np.sqrt((curve.scores**2).mean((1, 2)) - noise**2)
    assert_allclose(display.noise[:, 5], noise / size)
    assert_allclose(display.noise[:, 0] / display.noise[:, 24], 5)
    assert_array_equal(display.ax_.lines[1].get_ydata(), display.noise[1])
    one = further_training_curve(
        model, train, targets, X, y / 100, epochs=1, n_seeds=1, leave_out=2, random_state=0
    )
    with pytest.raises(ValueError, match=r"curve must have 2 seeds or more"):
        SeedsNeededDisplay.from_curve(one)
