"""What a reader sees: names, tables, HTML and figures that hold whatever the user's names hold."""

from __future__ import annotations

import re
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from numpy.testing import assert_array_equal
from sklearn.linear_model import LogisticRegression, Ridge

from fimoda import (
    AgreementCurveDisplay,
    FurtherTraining,
    GradDot,
    LinearDatamodelingScoreDisplay,
    MislabelDetectionDisplay,
    OutcomeDensityDisplay,
    OutcomeSamples,
    ScoreMapDisplay,
    SelfInfluenceDisplay,
    SubsetRemovalCurveDisplay,
    TopRows,
    TopRowsDisplay,
    attribute,
)
from fimoda.evaluation.agreement import AgreementCurve
from fimoda.evaluation.removal import SubsetRemovalCurve

N, N_TEST = 12, 7
SCRIPT = "<script>alert(1)</script>"
FORMULA = r"$\frac{$ price_of $x$"  # raises where it is read as a formula

INDICES = {
    "default": pd.RangeIndex(N),
    "integers": pd.Index(range(100, 100 + N)),
    "text": pd.Index([f"patient {i}" for i in range(N)]),
    "dates": pd.DatetimeIndex(pd.date_range("2020-01-01", periods=N), freq=None),
    "levels": pd.MultiIndex.from_product([["a", "b"], range(N // 2)], names=["site", "visit"]),
    "duplicates": pd.Index([f"patient {i // 2}" for i in range(N)]),
    "missing": pd.Index([None, "x", *"abcdefghij"], dtype=object),
}


def rows(index=INDICES["default"], columns="abc"):
    """A frame of training rows, its targets, and the first rows as test rows."""
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(N, 3)), index=index, columns=list(columns))
    y = pd.Series(X.to_numpy() @ [1.0, -1.0, 0.5] + rng.normal(size=N), index=index)
    return X, y, X[:N_TEST], y[:N_TEST]


def explained(*table, **changes):
    X, y, X_test, y_test = table
    return attribute(Ridge().fit(X, y), X, y, X_test, y_test, method=GradDot(), **changes)


# ---- names of columns -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", INDICES)
def test_names_are_text_and_frames_keep_labels(kind):
    X, y, X_test, y_test = rows(INDICES[kind])
    attributor = GradDot(Ridge().fit(X, y)).set_output(transform="pandas").fit(X, y)
    names = attributor.get_feature_names_out()
    assert names.dtype == object
    assert all(type(name) is str for name in names)
    frame = attributor.transform(X_test, y_test)
    assert list(frame.columns) == list(names)
    assert frame.index.equals(X_test.index)
    assert isinstance(attributor._repr_html_(), str)
    assert attributor._repr_mimebundle_()["text/html"]
    labelled = explained(X, y, X_test, y_test).to_frame()
    pd.testing.assert_index_equal(labelled.columns, X.index)
    pd.testing.assert_index_equal(labelled.index, X_test.index)
    assert_array_equal(labelled, frame)


def test_names_say_the_levels():
    X, y, *_ = rows(INDICES["levels"])
    names = GradDot(Ridge().fit(X, y)).fit(X, y).get_feature_names_out()
    assert list(names[[0, -1]]) == ["a, 0", "b, 5"]


def test_duplicates_stay_but_in_polars():
    X, y, X_test, y_test = rows(INDICES["duplicates"])
    attributor = GradDot(Ridge().fit(X, y)).fit(X, y)
    plain = attributor.transform(X_test, y_test)
    assert list(attributor.get_feature_names_out()) == list(X.index)
    pytest.importorskip("polars")
    framed = attributor.set_output(transform="polars").transform(X_test, y_test)
    assert framed.columns[:4] == [
        "patient 0",
        "patient 0 (row 1)",
        "patient 1",
        "patient 1 (row 3)",
    ]
    assert_array_equal(framed.to_numpy(), plain)


# ---- the table of top rows ------------------------------------------------------------------


def test_printed_table():
    scores = np.array([[0.3, -0.1, 0.02, 0.2], [-0.5, 0.4, 0.1, 0.6]])
    top = TopRows.of(scores, np.arange(4), 2, scores / 10, list("pqrs"), ["t", "u"])
    assert repr(top).splitlines() == [
        "test row  helpful  score  error  harmful  score  error",
        "t         p         +0.3   0.03  q         -0.1  -0.01",
        "          s         +0.2   0.02  r        +0.02  0.002",
        "u         s         +0.6   0.06  p         -0.5  -0.05",
        "          q         +0.4   0.04  r         +0.1   0.01",
    ]
    assert str(top) == repr(top)
    cells = re.findall("<td>(.*?)</td>", top._repr_html_())
    assert cells[:7] == ["t", "p", "+0.3", "0.03", "q", "-0.1", "-0.01"]


def test_frame_of_all_pairs():
    X, y, X_test, y_test = rows(INDICES["levels"])
    model = Ridge().fit(X, y)
    gold = FurtherTraining(model, n_epochs=1, n_seeds=2, lr=0.01, random_state=0).fit(X, y)
    scores, errors = gold.transform(X_test, y_test), gold.scores_sem_
    frame = gold.top(X_test, y_test, k=3).to_frame()
    assert frame.index.names == ["test", "kind", "rank"]
    assert len(frame) == N_TEST * 6
    for z in range(N_TEST):
        for kind, order in (
            ("helpful", np.argsort(scores[z])[::-1]),
            ("harmful", np.argsort(scores[z])),
        ):
            part = frame.iloc[z * 6 :][:6].xs(kind, level="kind")
            assert list(part.index) == [(X_test.index[z], rank) for rank in (1, 2, 3)]
            assert_array_equal(part["position"], order[:3])
            assert list(part["row"]) == [X.index[i] for i in order[:3]]
            assert_array_equal(part["score"], scores[z, order[:3]])
            assert_array_equal(part["error"], errors[z, order[:3]])


def test_long_tables_are_cut():
    found = explained(*rows())
    text = repr(found.top(11))
    assert len(text.splitlines()) == 1 + 5 * 10 + 1
    assert text.endswith("... and 2 more test rows, 1 more rows of each kind: see to_frame()")
    long = TopRows.of(found.scores, np.arange(N), 1, names=[f"row {i}\n" * 50 for i in range(N)])
    assert max(map(len, repr(long).splitlines())) < 130


def test_names_where_they_are_known():
    X, y, X_test, y_test = rows(INDICES["text"])
    found = explained(X, y, X_test, y_test)
    for top in (found.top(2), found.attributor.top(X_test, y_test, k=2)):
        assert list(top.test_names) == list(X_test.index)
        assert top.named(top.helpful[0]) == [f"patient {i}" for i in top.helpful[0]]
    arrays = explained(*(part.to_numpy() for part in (X, y, X_test, y_test)))
    top = arrays.top(1)
    assert top.named(top.harmful[0]) == [f"row{top.harmful[0, 0]}"]
    assert repr(top).splitlines()[1].startswith("0  ")
    # a display takes them over
    display = TopRowsDisplay.from_estimator(found.attributor, X_test, y_test, k=2).plot()
    assert display.ax_.get_yticklabels()[0].get_text().startswith("patient ")


# ---- scores that are NaN --------------------------------------------------------------------


def test_nan_never_ranks():
    """Against a loop over the scores that are numbers."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4, 9))
    scores[:, [2, 5]] = np.nan
    scores[1, 0] = np.nan
    top = TopRows.of(scores, np.arange(10, 19), 4, scores / 10)
    for z, row in enumerate(scores):
        known = sorted((s, i) for i, s in enumerate(row) if not np.isnan(s))
        assert_array_equal(top.harmful[z], [10 + i for _, i in known[:4]])
        assert_array_equal(top.helpful[z], [10 + i for _, i in known[::-1][:4]])
        assert_array_equal(top.helpful_scores[z], row[top.helpful[z] - 10])
        assert_array_equal(top.harmful_sem[z], row[top.harmful[z] - 10] / 10)


def test_fewer_scores_than_asked_for():
    scores = np.array([[0.5, np.nan, -0.5], [np.nan] * 3, [1.0, 2.0, 3.0]])
    with pytest.warns(
        UserWarning, match=r"2 of 3 test rows have fewer than 3 training rows with a"
    ):
        top = TopRows.of(scores, np.arange(3), 3)
    assert_array_equal(top.helpful, [[0, 2, -1], [-1, -1, -1], [2, 1, 0]])
    assert_array_equal(top.harmful, [[2, 0, -1], [-1, -1, -1], [0, 1, 2]])
    assert_array_equal(top.harmful_scores[0], [-0.5, 0.5, np.nan])
    assert repr(top).splitlines()[1:4] == [
        "0         0         +0.5  2         -0.5",
        "          2         -0.5  0         +0.5",
        "1         none",
    ]
    assert len(top.to_frame()) == 4 + 0 + 6
    display = TopRowsDisplay(top, X_train=np.ones((3, 4)), X_test=np.zeros((3, 4)))
    assert [one.get_text() for one in display.plot(0).ax_.get_yticklabels()] == ["0", "2", "0", "2"]
    assert list(display.to_frame(1)["row"]) == [1]
    assert len(display.plot_images(0, image_shape=(2, 2)).ax_.child_axes) == 5
    for draw in (display.plot, display.plot_images):
        draw(
            1, **({"image_shape": (2, 2)} if draw == display.plot_images else {})
        ).figure_.canvas.draw()


# ---- a test row by its name -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "dates", "levels"])
def test_rows_by_name(kind):
    X, y, X_test, y_test = rows(INDICES[kind])
    found = explained(X, y, X_test, y_test)
    by_name, by_position = (found.plot(row).ax_ for row in (X_test.index[4], 4))
    assert_array_equal(*([bar.get_width() for bar in ax.patches] for ax in (by_name, by_position)))
    shown = found.table(X_test.index[4]).data
    pd.testing.assert_frame_equal(shown, found.table(4).data)
    for position, name in enumerate(X_test.index):
        assert found.top(1).position(name) == position


def test_names_that_are_numbers():
    """An integer is a position; the name as text finds the row that is called so."""
    X, y, X_test, y_test = rows(INDICES["integers"])
    top = explained(X, y, X_test, y_test).top(1)
    assert top.position(np.int64(3)) == 3
    assert top.position("103") == 3
    with pytest.raises(
        ValueError, match=r"row must be the position of a test row, 0 to 6, got 103"
    ):
        top.position(103)


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        (
            "text",
            "nobody",
            r"row must be .*, 0 to 6, or its name \('patient 0', .*, \.\.\.\), got 'nobody'",
        ),
        ("duplicates", "patient 1", r"2 are called 'patient 1': give a position, one of 2, 3\."),
        ("text", True, r"row must be the position .* got True"),
        ("text", 1.5, r"row must be the position .* got 1.5"),
        ("text", -1, r"row must be the position of a test row, 0 to 6, got -1"),
    ],
)
def test_rows_that_are_not_there(kind, row, message):
    with pytest.raises(ValueError, match=message):
        explained(*rows(INDICES[kind])).plot(row)


# ---- what a cell may hold -------------------------------------------------------------------


def differences(values):
    X = pd.DataFrame({"v": values})
    scores = -np.arange(len(X), dtype=float)[None]
    display = TopRowsDisplay.from_predictions(scores, k=len(X), X_train=X, X_test=X[:1])
    frame = display.to_frame()
    assert display.style().to_html().count("<tr>") == len(frame) + 3  # and the header
    return list(frame["difference", "v"][1 : len(X) + 1])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([5, 3, 200], dtype=np.uint8), [0, -2, 195]),  # and not 254
        (pd.array([5, 3, None], dtype="Int64"), [0, -2, np.nan]),
        (pd.array([None, 3], dtype="Float64"), [np.nan, np.nan]),
        (pd.arrays.SparseArray([0.0, 0.0, 2.0]), [0, 0, 2]),
        (pd.array([True, None, False], dtype="boolean"), [False, True, True]),
        (pd.array([None, None, "b"], dtype="string"), [False, False, True]),
        (pd.Categorical(["a", None, "a"]), [False, True, False]),
        ([[1, 2], [1, 2], [3]], [False, False, True]),
        (np.array([1j, 2j]), [False, True]),
        (pd.to_datetime(["2020-01-01", "2020-01-01", None]), [False, False, True]),
    ],
)
def test_differences_of_whatever_a_column_holds(values, expected):
    assert_array_equal(differences(values), expected)


def test_rows_of_several_parts():
    rng = np.random.default_rng(0)
    parts = {"x": rng.normal(size=(4, 2)), "codes": rng.integers(0, 9, (4, 1))}
    tests = {name: part[:1] for name, part in parts.items()}
    for train, test in ((parts, tests), (tuple(parts.values()), tuple(tests.values()))):
        display = TopRowsDisplay.from_predictions(np.eye(1, 4), k=1, X_train=train, X_test=test)
        first, second = train if train is parts else (0, 1)
        columns = [f"{first} x0", f"{first} x1", f"{second} x0"]
        assert list(display.to_frame()["value"]) == columns
    sparse = scipy.sparse.csr_array(np.eye(4))
    display = TopRowsDisplay.from_predictions(np.eye(1, 4), k=1, X_train=sparse, X_test=sparse[:1])
    assert_array_equal(display.to_frame()["difference"].iloc[1], np.zeros(4))


def test_maps_and_histograms_with_columns_that_failed():
    scores = np.random.default_rng(0).normal(size=(5, 6))
    scores[:, 2] = np.nan
    drawn = ScoreMapDisplay.from_predictions(scores).plot().ax_.images[0]
    assert_array_equal(np.ma.getmaskarray(drawn.get_array()), np.isnan(scores))
    assert drawn.get_clim()[1] == np.nanquantile(abs(scores), 0.99)
    drawn = SelfInfluenceDisplay.from_predictions(scores[0]).plot(bins=3).ax_
    assert sum(bar.get_height() for bar in drawn.patches) == 5
    scores[0, 0] = np.inf
    with pytest.raises(ValueError, match=r"got shape \(5, 6\) and infinite scores"):
        ScoreMapDisplay.from_predictions(scores)


# ---- HTML -----------------------------------------------------------------------------------


class Marked:
    """An object whose text is HTML."""

    def __str__(self):
        return SCRIPT


@pytest.mark.parametrize("label", [SCRIPT, (SCRIPT, 1), Marked()], ids=["text", "tuple", "object"])
def test_no_html_from_names_and_cells(label):
    """In cells, targets, columns, names of levels, index entries and names of index levels."""
    X, *_ = rows()
    X["kind"] = [SCRIPT if i % 2 else Marked() for i in range(N)]
    X = X.rename(columns={"a": SCRIPT})
    X.columns.name = SCRIPT
    if isinstance(label, tuple):
        X.index = pd.MultiIndex.from_tuples([(SCRIPT, i) for i in range(N)], names=[SCRIPT, "<b>"])
    else:
        X.index = pd.Index([label] * N, name=SCRIPT)
    y = np.array([SCRIPT, "<i>other</i>"])[np.arange(N) % 2]
    scores = np.random.default_rng(0).normal(size=(2, N))
    top = TopRows.of(scores, np.arange(N), 2, names=X.index, test_names=X.index[:2])
    display = TopRowsDisplay(top, X_train=X, y_train=y, X_test=X[:2], y_test=y[:2])
    for page in (display.style(1).to_html(), top._repr_html_()):
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert not re.findall("<(script|i|b)>", page)


def test_no_html_from_levels_of_columns():
    X, *_ = rows()
    X.columns = pd.MultiIndex.from_tuples(
        [(SCRIPT, "<i>"), ("v", "<b>"), ("w", 1)], names=["<i>", SCRIPT]
    )
    display = TopRowsDisplay.from_predictions(np.eye(2, N), k=1, X_train=X, X_test=X[:2])
    page = display.style().to_html()
    assert "alert(1)&lt;/script&gt;, &lt;i&gt;" in page
    assert not re.findall("<(script|i|b)>", page)
    X.columns = ["a", "a", "b"]
    display = TopRowsDisplay.from_predictions(np.eye(2, N), k=1, X_train=X, X_test=X[:2])
    assert list(display.to_frame()["value"]) == ["a (0)", "a (1)", "b (2)"]


def test_no_html_from_an_attributor_or_its_scores():
    X, y, X_test, y_test = rows([f"{SCRIPT}{i}" for i in range(N)], [SCRIPT, "<b>", "c"])
    found = explained(X, y, X_test, y_test)
    pages = [found._repr_html_(), found.attributor._repr_html_(), found.table(0).to_html()]
    assert not [page for page in pages if SCRIPT in page]

    def criterion(outputs, targets):
        return outputs[:, 0]

    criterion.__name__ = SCRIPT
    own = GradDot(measurement=criterion)._repr_html_()
    assert SCRIPT not in own


# ---- figures --------------------------------------------------------------------------------


def texts(ax):
    legend = ax.get_legend()
    return [one.get_text() for one in (legend.get_texts() if legend else ax.get_yticklabels())]


def test_names_are_no_formulas():
    """Drawn letter by letter: the name would raise as a formula."""
    names = [f"{FORMULA} {i}" for i in range(N)]
    X, y, X_test, y_test = rows(names)
    found = explained(X, y, X_test, y_test)
    ax = found.plot(0, k=2).ax_
    ax.figure.canvas.draw()
    assert texts(ax)[0] == names[found.top(1).helpful[0, 0]]
    assert ax.get_title() == f"test row {names[0]}: helpful (blue), harmful (red)"
    labels = np.array([FORMULA, "b"])[np.arange(N) % 2]
    found = attribute(
        LogisticRegression().fit(X, labels), X, labels, X_test, labels[:N_TEST], method=GradDot()
    )
    ax = found.plot(names[0], k=2, image_shape=(3, 1)).ax_
    ax.figure.canvas.draw()
    ax.set_title(FORMULA)
    with pytest.raises(ValueError, match="frac"):
        ax.figure.canvas.draw()


def curves(name):
    """Every display with names of methods."""
    agreement = AgreementCurve([name], np.array([1, 5]), {"cosine": np.full((1, 2, 3), 0.9)})
    yield AgreementCurveDisplay(agreement).plot().ax_
    rng = np.random.default_rng(0)
    subsets = rng.random((20, 9)) < 0.5
    outcomes = SimpleNamespace(subsets=subsets, measured=rng.normal(size=(20, 3, 2)))
    scores = {name: rng.normal(size=(3, 9))}
    lds = LinearDatamodelingScoreDisplay.from_attributors(scores, outcomes, random_state=0)
    yield lds.ax_
    found = {name: [0.9, 0.1, 0.8, 0.2]}
    yield MislabelDetectionDisplay.from_attributors(found, [True, False, False, True]).ax_
    full = rng.normal(size=(50, 1))
    samples = OutcomeSamples(full, 2 * full[..., None], measurement=name)
    yield OutcomeDensityDisplay({name: samples}, row=0).plot().ax_
    effects = rng.normal(size=(2, 3, 4))
    curve = SubsetRemovalCurve(
        [name, "Random"], np.arange(1, 4), np.arange(4), effects, "regression", 9, 0
    )
    yield SubsetRemovalCurveDisplay(curve).plot().ax_


@pytest.mark.parametrize("name", [FORMULA, "_mine", "名前 имя שם", "x" * 500])
def test_names_of_methods(name):
    for ax in curves(name):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # the default font has no Chinese
            ax.figure.canvas.draw()
        shown = [text for text in texts(ax) if name[:15] in text]
        assert len(shown) == 1
        assert len(shown[0]) <= 40
        assert name in shown[0] or len(name) > 40
