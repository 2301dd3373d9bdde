"""The rows that matter most: as a table beside the test row, and as images."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from fimoda import GradDot, TopRowsDisplay, attribute

SCORES = np.array([[0.3, -0.1, 0.0, 0.2], [-0.5, 0.4, 0.1, 0.6]])
TRAIN = pd.DataFrame(
    {"age": [30.0, 40.0, np.nan, 60.0], "site": ["A", "B", "A", None], "ok": [True, False, True, True]},
    index=["p", "q", "r", "s"],
)  # fmt: skip
TEST = pd.DataFrame(
    {"site": ["B", None], "ok": [True, True], "age": [35.0, 50.0]}, index=["t", "u"]
)
ROWS = {"X_train": TRAIN, "y_train": list("abab"), "X_test": TEST, "y_test": np.array(["a", "b"])}


def display(**changes) -> TopRowsDisplay:
    names = dict(enumerate(TRAIN.index))
    return TopRowsDisplay.from_predictions(SCORES, k=2, **{"names": names, **ROWS, **changes})


def test_frame():
    frame = display().to_frame(1)
    kinds = ["test", "helpful", "helpful", "harmful", "harmful"]
    assert list(frame.index) == list(zip(kinds, [0, 1, 2, 1, 2], strict=True))
    assert list(frame["row"]) == ["u", "s", "q", "p", "r"]
    assert_array_equal(frame["score"], [np.nan, 0.6, 0.4, -0.5, 0.1])
    assert list(frame["target"]) == ["b", "b", "b", "a", "a"]
    assert list(frame["value"]) == list(frame["difference"]) == ["age", "site", "ok"]
    assert_array_equal(frame["value", "age"], [50, 60, 40, 30, np.nan])
    assert_array_equal(frame["difference", "age"], [0, 10, -10, -20, np.nan])
    # missing on both sides is no difference
    assert list(frame["difference", "site"]) == [False, False, True, True, True]
    assert list(frame["difference", "ok"]) == [False, False, True, False, False]


def test_frame_of_what_is_known():
    frame = display(errors=SCORES / 10, y_train=None, names=None).to_frame()
    assert list(frame["row"]) == ["t", 0, 3, 1, 2]
    assert_array_equal(frame["error"], [np.nan, 0.03, 0.02, -0.01, 0])
    assert list(frame["target"].isna()) == [False, True, True, True, True]
    assert "target" not in display(y_train=None, y_test=None).to_frame()
    arrays = {"X_train": np.arange(8).reshape(4, 2), "X_test": [[1, 1], [2, 2]]}
    frame = display(**arrays).to_frame()
    assert_array_equal(frame["difference", "x1"], [0, 0, 6, 2, 4])


def test_polars_rows():
    pl = pytest.importorskip("polars")
    columns = ["age", "ok"]
    rows = {
        "X_train": pl.DataFrame(TRAIN[columns].to_dict("list")),
        "X_test": pl.DataFrame(TEST[columns].to_dict("list")),
    }
    frame = display(**rows).to_frame()
    expected = display().to_frame()["difference"]
    for name in columns:
        assert_array_equal(frame["difference", name], expected[name])


def test_style():
    """Differences stand in brackets, and colour what is above, below, and another category."""
    page = display().style(1).to_html()
    cells = re.findall(r'<td id="T_\w+_(row\d+_col\d+)"[^>]*>(.*?)</td>', page)
    shown = dict(cells)
    assert shown["row0_col3"] == "50"
    assert shown["row1_col3"] == "60 (+10)"
    assert shown["row3_col3"] == "30 (-20)"
    assert shown["row1_col1"] == "+0.6"
    assert shown["row0_col1"] == ""
    assert shown["row4_col3"] == shown["row1_col4"] == "missing"
    colour = {
        cell: background
        for cells, background in re.findall(
            r"((?:#T_\w+,?\s*)+)\{\s*background-color: (.*?);", page
        )
        for cell in re.findall(r"row\d+_col\d+", cells)
    }
    unit = TRAIN["age"].std()
    assert colour["row1_col3"] == f"rgba(214,39,40,{0.3 * 10 / unit:.2f})"
    assert colour["row3_col3"] == f"rgba(31,119,180,{0.3 * 20 / unit:.2f})"
    assert colour["row2_col4"].startswith("rgba(255,193,7")
    assert not {"row0_col3", "row4_col3", "row1_col4"} & set(colour)


def test_style_of_a_column_that_does_not_vary():
    constant = TRAIN.assign(age=3.0)
    page = display(X_train=constant, X_test=TEST.assign(age=4.0)).style().to_html()
    assert "3 (-1)" in page
    assert "rgba(31" not in page


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:60] / 16, y[:60], X[60:63] / 16, y[60:63]


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (8, 8, 1)])
def test_images(digits, shape):
    X, y, X_test, y_test = digits
    attributor = GradDot(LogisticRegression(max_iter=200).fit(X, y)).fit(X, y)
    top = attributor.top(X_test, y_test, k=3)
    found = TopRowsDisplay.from_estimator(attributor, X_test, y_test, k=3, X_train=X, y_train=y)
    _, ax = plt.subplots()
    assert found.plot_images(2, ax, image_shape=shape).ax_ is ax
    shown = [one.images[0].get_array() for one in ax.child_axes]
    rows = [*top.helpful[2], *top.harmful[2]]
    assert_allclose(shown, [X_test[2].reshape(8, 8), *X[rows].reshape(-1, 8, 8)])
    titles = [one.get_title() for one in ax.child_axes]
    assert titles[0] == f"test 2: {y_test[2]}"
    assert titles[1] == f"row{rows[0]}: {y[rows[0]]}\n{top.helpful_scores[2, 0]:+.2g}"
    places = np.array([one.get_position().bounds for one in ax.child_axes])
    assert (places[1:4, 1] > places[4:, 1]).all()
    assert_allclose(places[1:4, 0], places[4:, 0])


def test_images_with_colours():
    """Channels first or last, of the rows' own shape, scaled together."""
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 5, 4))
    rows = {"X_train": images[:4], "X_test": images[4:], "y_train": None, "y_test": None}
    first = display(**rows).plot_images(1).ax_.child_axes
    last = {name: None if X is None else np.moveaxis(X, 1, -1) for name, X in rows.items()}
    shown = display(**last).plot_images(1).ax_.child_axes
    low, high = images[[5, 3, 1, 0, 2]].min(), images[[5, 3, 1, 0, 2]].max()
    expected = (np.moveaxis(images[5], 0, -1) - low) / (high - low)
    for one in (first[0], shown[0]):
        assert_allclose(one.images[0].get_array(), expected)
    assert first[1].get_title() == "s\n+0.6"


def test_an_attribution_shows_its_rows(digits):
    X, y, X_test, y_test = digits
    model = LogisticRegression(max_iter=200).fit(X, y)
    found = attribute(model, X, y, X_test, y_test, method=GradDot())
    first = found.top(2).helpful[1, 0]
    ax = found.plot(1, k=2, image_shape=(8, 8)).ax_
    assert_allclose(ax.child_axes[1].images[0].get_array(), X[first].reshape(8, 8))
    assert f"row{first}" in found.table(1, k=2).to_html()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: display(X_train=None).to_frame(), r"X_train and X_test must be given .* got None"),
        (lambda: display(X_test=None).plot_images(), r"X_train and X_test must be given"),
        (lambda: display().to_frame(2), r"row must be the position of a test row, 0 to 1, got 2"),
        (
            lambda: display(X_train=SCORES.T, X_test=SCORES[:, :2]).plot_images(),
            r"image_shape must be \(height, width\).* hold the 2 values of a row; got None",
        ),
        (
            lambda: display(X_train=np.ones((4, 8)), X_test=np.ones((2, 8))).plot_images(
                image_shape=(2, 2, 2)
            ),
            r"image_shape must have 1 or 3 channels, got \(2, 2, 2\)",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
