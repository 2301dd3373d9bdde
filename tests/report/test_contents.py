"""Rows of a report: their cells, their marks, their order, and what is left out."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from cases_of_reports import data_of, found_of, made_found, sentences_found, table
from PIL import Image
from scipy.sparse import coo_matrix, csc_array, csr_array
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from torch import nn

from fimoda import GradDot, attribute
from fimoda.report.cells import Cells, number
from fimoda.report.contents import first_to_look_at, group_effects
from fimoda.report.page import report_page
from fimoda.report.repeats import repeated


def test_cells_of_a_table():
    X = pd.DataFrame({
        "size": [1.25, np.nan, 123456.789],
        "count": [1, 2, 2**40],
        "id": [2**60 + 1, 2**60 + 2, 3],
        "ward": ["north", None, "a\x00b"],
        "note": ["it was a long day", "the night was short", "nothing to tell at all"],
        "flag": [True, False, True],
    })  # fmt: skip
    cells = Cells(X, X[:1], None, 50)
    kinds = {feature["name"]: feature["kind"] for feature in cells.features}
    assert kinds == {
        "size": "number", "count": "number", "id": "category", "ward": "category", "note": "sentence",
        "flag": "category",
    }  # fmt: skip
    assert cells.features[1]["unit"] == pytest.approx(X["count"].std(), rel=1e-5)
    train, test = cells.of(np.arange(3), np.arange(1))
    assert train[0] == [1.25, 1, str(2**60 + 1), "north", "it was a long day", "True"]
    assert train[1][0] is None
    assert train[1][3] is None
    assert train[2][:2] == [123456.789, 2**40]
    assert train[2][3] == "a\N{REPLACEMENT CHARACTER}b"
    assert test == train[:1]


def test_first_features_only():
    X = np.arange(12.0).reshape(3, 4)
    cells = Cells(X, X, None, 3)
    assert [feature["name"] for feature in cells.features] == ["x0", "x1", "x2"]
    assert cells.n_left_out == 1


def test_several_inputs():
    X = {"ids": np.arange(6).reshape(3, 2), "sizes": np.ones((3, 1))}
    cells = Cells(X, X, None, 50)
    assert [feature["name"] for feature in cells.features] == ["ids x0", "ids x1", "sizes x0"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.nan, None),
        (np.inf, None),
        (3.0, 3),
        (1.23456789, 1.23457),
        (-2e-9, -2e-9),
        (1e300, 1e300),
    ],
)
def test_numbers_are_json(value, expected):
    assert number(value) == expected
    json.dumps(number(value), allow_nan=False)


@pytest.mark.parametrize(
    ("shape", "image_shape"),
    [((8, 8), (8, 8)), ((3, 9, 100), None), ((9, 100, 3), None), ((1, 8, 8), None)],
)
def test_images(shape, image_shape):
    rng = np.random.default_rng(0)
    X = rng.random((4, *shape))
    if len(shape) == 2:
        X = X.reshape(4, -1)
    cells = Cells(X, X[2:], image_shape, 50)
    assert [feature["kind"] for feature in cells.features] == ["image"]
    train, test = cells.of(np.arange(4), np.arange(2))
    assert train[2:] == test  # scaled together
    assert train[0][0].startswith("data:image/png;base64,")
    image = Image.open(io.BytesIO(base64.b64decode(train[0][0].split(",")[1])))
    assert image.size == ((8, 8) if 100 not in shape else (64, 6))
    if image_shape:
        pixels = X.reshape(4, 8, 8)
        expected = 255 * (pixels - pixels.min()) / (pixels.max() - pixels.min())
        np.testing.assert_allclose(np.asarray(image), expected[0], atol=0.51)


def test_images_of_another_size():
    X = np.zeros((4, 8))
    with pytest.raises(
        ValueError, match=r"image_shape must be .* hold the 8 values .* got \(3, 3\)"
    ):
        Cells(X, X, (3, 3), 50).of(np.arange(4), np.arange(1))


def test_sentences():
    found = sentences_found()
    data = data_of(report_page(found))
    assert data["features"] == [{"name": "text", "kind": "sentence"}]
    for place, cells in enumerate(data["rows"]["cells"]):
        assert cells == [found.data["X_train"][data["rows"]["position"][place]]]


# ---- repeated rows --------------------------------------------------------------------------


def naive_groups(rows):
    return {
        i: frozenset(j for j, other in enumerate(rows) if other == row)
        for i, row in enumerate(rows)
    }


@pytest.mark.parametrize("as_array", [False, True])
def test_repeated_rows_against_pairs(as_array):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.integers(3, size=(40, 3)).astype(float), columns=list("abc"))
    frame.loc[::7, "b"] = np.nan
    if not as_array:
        frame["c"] = frame["c"].map({0: "x", 1: "y", 2: None})
    X = frame.to_numpy() if as_array else frame
    known = naive_groups([tuple(map(str, row)) for row in frame.itertuples(index=False)])
    rows, groups = repeated(X[:30], X[30:])
    assert list(rows) == [i for i in range(40) if len(known[i]) > 1]
    for i, group in zip(rows, groups, strict=True):
        assert frozenset(rows[groups == group]) == known[i]


def test_nothing_is_repeated():
    rows, groups = repeated(np.arange(12.0).reshape(4, 3), np.arange(12.0, 18).reshape(2, 3))
    assert rows.size == groups.size == 0


@pytest.mark.parametrize("kind", [csr_array, csc_array, coo_matrix])
def test_sparse_rows(kind):
    """Zeros that are written out, and entries in another order, are no difference."""
    dense = np.array([[0, 1, 2], [0, 1, 0], [0, 1, 2], [1, 0, 0], [0, 1, 0]], dtype=float)
    X = kind(dense)
    known = repeated(dense[:4], dense[4:])
    for one, other in zip(repeated(X.tocsr()[:4], X.tocsr()[4:]), known, strict=True):
        np.testing.assert_array_equal(one, other)
    written = csr_array(
        (np.array([2.0, 1, 0, 1]), np.array([2, 1, 0, 1]), np.array([0, 2, 4])), (2, 3)
    )
    assert list(repeated(X, written)[0]) == [0, 1, 2, 4, 5, 6]
    cells = Cells(X, X, None, 2)
    assert cells.n_left_out == 1
    assert cells.of(np.arange(2), np.arange(1))[0] == [[0, 1], [0, 1]]


def test_cells_without_a_hash():
    X = pd.DataFrame({"tokens": [[1, 2], [1, 2], [3]]})
    assert list(repeated(X, X[2:])[0]) == [0, 1, 2, 3]


def test_repeats_with_other_targets_are_marked():
    X, y = table()
    X.iloc[3], X.iloc[7], X.iloc[9] = X.iloc[20], X.iloc[20], X.iloc[21]
    y.iloc[3], y.iloc[20], y.iloc[7] = "ill", "well", "ill"
    y.iloc[9] = y.iloc[21]
    X.iloc[62] = X.iloc[5]  # a test row
    page = report_page(found_of(X, y))
    data = data_of(page)
    position, group = data["rows"]["position"], data["rows"]["group"]
    assert sorted(position[place] for place in data["repeated"]) == [3, 7, 9, 20, 21]
    of = dict(zip(position, group, strict=True))
    assert of[3] == of[7] == of[20] != of[9] == of[21]
    assert data["conflicts"] == [of[3]]
    assert data["counts"]["repeated"] == 5
    assert data["counts"]["known_tests"] == 1
    assert [test["group"] for test in data["tests"]] == [None, None, of[5], None, None, None]
    assert "1 of their groups the targets differ" in page
    assert "1 of 6 test rows have the same features as a training row" in page


# ---- which rows -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("measurement", "expected"),
    [("loss", [1, 3]), ("margin", [2, 0]), ("log_prob", [2, 0]), ("output", []), (len, [])],
)
def test_first_to_look_at(measurement, expected):
    own = np.array([-0.1, 0.9, -0.5, 0.3, np.nan])
    assert list(first_to_look_at(own, measurement, 0.4)) == expected


def test_of_many_rows_those_with_large_scores():
    found = made_found(300, n_test=12)
    options = {"self_influence": False, "max_test_rows": 2, "max_train_rows": 50, "k": 3}
    data = data_of(report_page(found, **options))
    position = data["rows"]["position"]
    assert len(position) == len(set(position)) == 50
    named = {position[place] for test in data["tests"] for place in test["rows"]}
    by_size = [i for i in np.argsort(-np.abs(found.scores.mean(0))) if i not in named]
    assert set(position) == named | set(by_size[: 50 - len(named)])
    assert data["counts"] | {"train": 300, "tests": 12} == data["counts"]
    assert len(data["tests"]) == 2
    mean, extreme = found.scores.mean(0), found.scores[np.abs(found.scores).argmax(0), range(300)]
    np.testing.assert_allclose(data["rows"]["mean"], mean[position], rtol=1e-5)
    np.testing.assert_allclose(data["rows"]["extreme"], extreme[position], rtol=1e-5)


def test_cells_are_bounded(monkeypatch):
    monkeypatch.setattr("fimoda.report.contents.MAX_CELLS", 400)
    data = data_of(report_page(made_found(300), self_influence=False, max_test_rows=1))
    assert len(data["rows"]["position"]) == 300
    assert len(data["rows"]["cells"]) == 50  # of 8 features


def test_few_rows_are_not_named_twice():
    X, y = table(n=6)
    y.iloc[:6] = ["ill", "well"] * 3
    data = data_of(report_page(found_of(X, y), k=10))
    assert all(len(set(test["rows"])) == len(test["rows"]) == 6 for test in data["tests"])


def test_rows_without_a_score():
    found = made_found(40, n_test=3)
    found.scores[:, 5] = np.nan
    found.scores[0, 7] = np.nan
    data = data_of(report_page(found, self_influence=False))
    mean = dict(zip(data["rows"]["position"], data["rows"]["mean"], strict=True))
    assert mean[5] is None
    assert mean[7] == pytest.approx(found.scores[1:, 7].mean(), rel=1e-5)
    assert None not in [score for test in data["tests"] for score in test["scores"]]


def test_what_a_page_has_no_room_for_is_counted():
    X, y = table()
    X.iloc[:50] = X.iloc[[0] * 50]
    page = report_page(found_of(X, y), contamination=0.5, max_train_rows=1, k=1, max_test_rows=1)
    data = data_of(page)
    assert len(data["rows"]["position"]) == 2
    assert data["counts"]["repeated"] == 50
    assert f"(the page shows {len(data['repeated'])}). Removing one of them" in page
    assert f"(the page shows {len(data['suspects'])}):" in page
    assert "2 of 60 rows: those that are named elsewhere" in page


def test_some_rows_left_out():
    """Positions are those of training rows, not of columns."""
    X, y = table()
    X.iloc[61] = X.iloc[3]  # whose row is not scored
    found = found_of(X, y)
    found.attributor.train_indices_ = np.arange(30, 60)
    object.__setattr__(found, "scores", found.scores[:, 30:])
    data = data_of(report_page(found, self_influence=False))
    assert sorted(data["rows"]["position"]) == list(range(30, 60))
    assert data["counts"]["known_tests"] == 1
    for position, name, target in zip(
        *(data["rows"][key] for key in ("position", "name", "target")), strict=True
    ):
        assert (name, target) == (X.index[position], y.iloc[position])


def test_arrays_and_numbers_as_targets():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 2)), rng.integers(2, size=30)
    model = LogisticRegression().fit(X[:25], y[:25])
    found = attribute(model, X[:25], y[:25], X[25:], method=GradDot())
    data = data_of(report_page(found))
    assert data["rows"]["target"] == [int(y[i]) for i in data["rows"]["position"]]
    assert [test["target"] for test in data["tests"]] == [None] * 5
    assert [test["name"] for test in data["tests"]] == ["0", "1", "2", "3", "4"]


class OfTwo(nn.Module):
    """A linear model of words and sizes."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(5, 2)

    def forward(self, words, sizes):
        return self.out(torch.cat([words.float(), sizes], 1))


def several_inputs(rng):
    X = {"words": rng.integers(9, size=(20, 3)), "sizes": rng.random((20, 2), dtype=np.float32)}
    return OfTwo(), X, rng.integers(2, size=20), {"criterion": nn.CrossEntropyLoss()}


def images_in_tensors(rng):
    X = torch.from_numpy(rng.random((20, 3, 4, 4), dtype=np.float32))
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    return net, X, torch.from_numpy(rng.integers(2, size=20)), {"criterion": nn.CrossEntropyLoss()}


def several_outputs(rng):
    X = rng.normal(size=(20, 3))
    y = X[:, :2] + rng.normal(size=(20, 2))
    return Ridge().fit(X, y), X, y, {}


def dicts(rng):
    X = [{"size": float(one), "kind": "abc"[i % 3]} for i, one in enumerate(rng.random(20))]
    y = rng.random(20) > 0.5
    return make_pipeline(DictVectorizer(), LogisticRegression()).fit(X, y), X, y, {}


@pytest.mark.parametrize("rows", [several_inputs, images_in_tensors, several_outputs, dicts])
def test_every_kind_of_rows(rows):
    model, X, y, settings = rows(np.random.default_rng(0))
    found = attribute(model, X, y, X, y, method=GradDot(**settings))
    data = data_of(report_page(found, k=2))
    known = {
        several_inputs: ["words x0", "words x1", "words x2", "sizes x0", "sizes x1"],
        images_in_tensors: ["image"], several_outputs: ["x0", "x1", "x2"], dicts: ["x0"],
    }  # fmt: skip
    assert [feature["name"] for feature in data["features"]] == known[rows]
    assert data["counts"]["known_tests"] == 20
    place = data["rows"]["position"].index(7)
    assert data["tests"][7]["cells"] == data["rows"]["cells"][place]
    assert data["tests"][7]["target"] == data["rows"]["target"][place]
    if rows is several_outputs:
        assert data["tests"][7]["target"] == f"{y[7, 0]}, {y[7, 1]}"


def test_group_effects_are_means_over_test_rows():
    known = group_effects({("a", 1): [1.0, 3.0], "b": -5.0, "c": np.nan})
    assert known["name"][:2] == ["b", "a, 1"]
    assert known["effect"][:2] == [-5, 2]
