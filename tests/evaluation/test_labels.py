"""Mislabel detection, label noise and class detection: against plain loops."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression

from fimoda import (
    ExactInfluence,
    FurtherTraining,
    GradDot,
    MislabelDetectionDisplay,
    class_detection,
    flip_labels,
    mislabel_detection,
)

mpl.use("Agg")


def random_case(n=40, seed=0, levels=None):
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.3
    scores = rng.normal(size=n) + truth
    return (scores if levels is None else (scores * levels).round() / levels), truth


# ---- mislabel_detection ---------------------------------------------------------------------


@pytest.mark.parametrize("levels", [None, 2])
def test_against_a_loop(levels):
    scores, truth = random_case(levels=levels)
    result = mislabel_detection(scores, truth)
    pairs = [(a > b) + (a == b) / 2 for a in scores[truth] for b in scores[~truth]]
    assert_allclose(result.roc_auc, np.mean(pairs))
    precision, recall_before = 0.0, 0.0
    inspected, found = [0.0], [0.0]
    for threshold in sorted(set(scores), reverse=True):
        chosen = scores >= threshold
        recall = truth[chosen].sum() / truth.sum()
        precision += (recall - recall_before) * truth[chosen].mean()
        recall_before = recall
        inspected.append(chosen.mean())
        found.append(recall)
    assert_allclose(result.average_precision, precision)
    assert_allclose(result.inspected, inspected)
    assert_allclose(result.found, found)
    assert result.share == truth.mean()
    assert_allclose(result.found_after(1.0), 1)
    assert result.found_after(0.0) == 0


def test_perfect_reversed_and_constant_scores():
    _, truth = random_case()
    perfect = mislabel_detection(truth.astype(float), truth)
    assert (perfect.roc_auc, perfect.average_precision) == (1.0, 1.0)
    assert_allclose(perfect.found_after(truth.mean()), 1)
    assert mislabel_detection(-truth.astype(float), truth).roc_auc == 0
    flat = mislabel_detection(np.zeros(40), truth)
    assert flat.roc_auc == 0.5
    assert_allclose(flat.average_precision, truth.mean())
    assert_allclose(flat.found_after(0.25), 0.25)


@pytest.fixture(scope="module")
def noisy():
    X, y = make_classification(200, 6, n_redundant=0, class_sep=2.0, flip_y=0, random_state=0)
    y_noisy, wrong = flip_labels(y, 0.1, random_state=0)
    return LogisticRegression().fit(X, y_noisy), X, y_noisy, wrong


@pytest.mark.parametrize("make", [GradDot, ExactInfluence])
def test_self_influence_finds_planted_noise(noisy, make):
    model, X, y, wrong = noisy
    attributor = make(model).fit(X, y)
    result = mislabel_detection(attributor, wrong)
    assert result.roc_auc > 0.9
    assert result.found_after(0.2) > 0.8
    by_hand = mislabel_detection(attributor.self_influence(), wrong)
    assert by_hand.roc_auc == result.roc_auc


def test_an_attributor_of_some_rows(noisy):
    model, X, y, wrong = noisy
    rows = np.r_[np.flatnonzero(wrong)[:3], np.flatnonzero(~wrong)[:5]][::-1]
    settings = {"n_epochs": 1, "n_seeds": [0], "optimizer": "SGD", "lr": 0.1, "compile": False}
    gold = FurtherTraining(model, leave_out=rows, **settings).fit(X, y)
    result = mislabel_detection(gold, wrong)
    assert result.share == 3 / 8
    by_hand = mislabel_detection(gold.self_influence(), wrong[gold.train_indices_])
    assert by_hand.roc_auc == result.roc_auc
    with pytest.raises(ValueError, match="scores must be fitted on the 4 training rows"):
        mislabel_detection(gold, wrong[:4])


def test_errors():
    scores, truth = random_case()
    with pytest.raises(ValueError, match=r"True or False for each training row.*int64"):
        mislabel_detection(scores, truth.astype(np.int64))
    with pytest.raises(ValueError, match=r"one entry for each of the 40.*shape \(40, 40\)"):
        mislabel_detection(np.ones((40, 40)), truth)
    with pytest.raises(ValueError, match="one entry for each of the 40 training rows"):
        mislabel_detection(scores[:-1], truth)
    with pytest.raises(ValueError, match="scores must be finite"):
        mislabel_detection(np.full(40, np.nan), truth)
    for value in (True, False):
        with pytest.raises(ValueError, match=f"both True and False, got only {value} for 40"):
            mislabel_detection(scores, np.full(40, value))


# ---- flip_labels ----------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [[0, 1], ["a", "b", "c"], [-1.0, 4.0, 7.0, 9.0]])
def test_flip_labels(labels):
    y = np.array(labels * 300)
    before = y.copy()
    noisy, wrong = flip_labels(y, 0.25, random_state=0)
    assert_array_equal(y, before)
    assert noisy.dtype == y.dtype
    assert wrong.sum() == round(0.25 * len(y))
    assert_array_equal(noisy != y, wrong)
    assert set(noisy) == set(labels)
    again, _ = flip_labels(y, 0.25, random_state=0)
    assert_array_equal(noisy, again)
    # wrong labels are drawn evenly from the other classes
    _, counts = np.unique(noisy[wrong & (y == y[0])], return_counts=True)
    assert len(counts) == len(labels) - 1
    assert counts.max() < 2 * counts.min()


def test_flip_labels_bounds_and_errors():
    y = np.array([0, 1, 1])
    assert not flip_labels(y, 0.0)[1].any()
    assert flip_labels(y, 1.0)[1].all()
    with pytest.raises(ValueError, match=r"'fraction' parameter of flip_labels .* Got 20"):
        flip_labels(y, 20)
    with pytest.raises(ValueError, match="y must have at least two classes, got 1"):
        flip_labels([1, 1], 0.5)
    with pytest.raises(ValueError, match=r"y must be one label a row, got shape \(1, 3\)"):
        flip_labels(y[None], 0.5)


# ---- class_detection ------------------------------------------------------------------------


def test_class_detection_against_a_loop():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(5, 20))
    y_train, y_test = rng.integers(3, size=20), rng.integers(3, size=5)
    found = class_detection(scores, y_train, y_test, k=4)
    for z in range(5):
        top = sorted(range(20), key=lambda i: -scores[z, i])[:4]
        assert found[z] == np.mean([y_train[i] == y_test[z] for i in top])
    same = np.where(y_train == y_test[:, None], 1.0, 0.0)
    assert_array_equal(class_detection(same, y_train, y_test, k=2), 1)


def test_class_detection_of_attributors(noisy):
    model, X, y, _ = noisy
    dot = GradDot(model).fit(X, y)
    found = class_detection(dot, y, y[:9], X[:9], k=5)
    assert_array_equal(found, class_detection(dot.transform(X[:9], y[:9]), y, y[:9], k=5))
    settings = {"n_epochs": 1, "n_seeds": [0], "optimizer": "SGD", "lr": 0.1, "compile": False}
    gold = FurtherTraining(model, leave_out=[3, 8, 5], **settings).fit(X, y)
    expected = (y[[3, 8, 5]] == y[:9, None]).mean(1)
    assert_allclose(class_detection(gold, y, y[:9], X[:9], k=3), expected)
    with pytest.raises(ValueError, match=r"k must be at most 3, .*got 4"):
        class_detection(gold, y, y[:9], X[:9], k=4)
    with pytest.raises(ValueError, match="scores must be a fitted attributor or a matrix"):
        class_detection(np.ones((9, 3)), y, y[:9])


# ---- display --------------------------------------------------------------------------------


def test_display():
    import matplotlib.pyplot as plt

    scores, truth = random_case()
    methods = {"one": scores, "two": -scores}
    figure, ax = plt.subplots()
    display = MislabelDetectionDisplay.from_attributors(methods, truth, ax=ax)
    assert display.ax_ is ax
    assert display.figure_ is figure
    for name, one in display.detections.items():
        (line,) = [line for line in ax.lines if line.get_label().startswith(name)]
        assert_array_equal(line.get_xdata(), one.inspected)
        assert_array_equal(line.get_ydata(), one.found)
        assert f"{one.roc_auc:.2f}" in line.get_label()
    figure.canvas.draw()
    assert MislabelDetectionDisplay(display.detections).plot().ax_ is not ax
    plt.close("all")
