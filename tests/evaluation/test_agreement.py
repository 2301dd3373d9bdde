"""Agreement with further training: against scipy and a plain loop."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import spearmanr
from sklearn.datasets import make_regression
from sklearn.linear_model import Ridge

from fimoda import (
    AgreementCurve,
    AgreementCurveDisplay,
    FurtherTraining,
    FurtherTrainingCurve,
    GradCos,
    GradDot,
    LinearizedFurtherTraining,
    UnrolledDifferentiation,
    agreement_curve,
    further_training_curve,
)
from fimoda.evaluation.agreement import METRICS
from fimoda.training.outcomes import Outcomes

mpl.use("Agg")

EPOCHS = (1, 3, 10)
N_TEST, N_OUT, N_SEEDS = 4, 6, 3


def curve_of(scores, leave_out=None) -> FurtherTrainingCurve:
    """A curve with given scores (n_epochs, n_test, n_left_out)."""
    scores = np.asarray(scores, dtype=float)
    outcomes = Outcomes(
        left_out=np.repeat(scores[..., None], N_SEEDS, axis=-1),
        full=np.zeros((*scores.shape[:2], N_SEEDS)),
        final=np.zeros(scores.shape[1]),
    )
    if leave_out is None:
        leave_out = np.arange(scores.shape[2])
    epochs = np.array(EPOCHS[: len(scores)])
    return FurtherTrainingCurve(epochs, np.asarray(leave_out), list(range(N_SEEDS)), outcomes)


def random_scores(seed: int = 0, n_epochs: int = 3, n_out: int = N_OUT) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n_epochs, N_TEST, n_out)) + 0.5


def cosine(a, b) -> float:
    return float(sum(x * y for x, y in zip(a, b, strict=True)) / np.sqrt((a @ a) * (b @ b)))


# ---- values ---------------------------------------------------------------------------------


def test_against_scipy_and_a_loop():
    truth, methods = random_scores(0), {"one": random_scores(1)[0], "two": random_scores(2)[0]}
    methods["two"][:, 3] = methods["two"][:, 1]  # ties
    result = agreement_curve(methods, curve_of(truth))
    assert result.methods == ["one", "two"]
    assert_array_equal(result.epochs, EPOCHS)
    for m, scores in enumerate(methods.values()):
        for e in range(len(EPOCHS)):
            for z in range(N_TEST):
                s, t = scores[z], truth[e, z]
                expected = {
                    "cosine": cosine(s, t - t.mean()),
                    "cosine_centred": cosine(s - s.mean(), t - t.mean()),
                    "spearman": spearmanr(s, t).statistic,
                }
                for metric in METRICS:
                    assert_allclose(result.values[metric][m, e, z], expected[metric], rtol=1e-12)
    for metric in METRICS:
        values = result.values[metric]
        assert values.shape == (2, 3, N_TEST)
        assert_allclose(result.mean(metric), values.mean(2))
        assert_allclose(result.sem(metric), values.std(2, ddof=1) / np.sqrt(N_TEST))


@pytest.mark.parametrize("shift", [0.0, 7.0])
def test_a_perfect_method_agrees_one(shift):
    truth = random_scores()
    centred = truth[0] - truth[0].mean(1, keepdims=True)
    result = agreement_curve({"truth": 3 * centred + shift}, curve_of(truth))
    for metric in ("cosine_centred", "spearman"):
        assert_allclose(result.mean(metric)[0, 0], 1, rtol=1e-12)
        assert np.abs(result.mean(metric)[0, 1]) < 1
    if shift == 0:
        assert_allclose(result.mean("cosine")[0, 0], 1, rtol=1e-12)
    else:
        assert result.mean("cosine")[0, 0] < 0.6
    opposite = agreement_curve({"minus": -centred}, curve_of(truth))
    assert_allclose(opposite.mean("spearman")[0, 0], -1, rtol=1e-12)


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.7e5])
@pytest.mark.parametrize("n_out", [3, 6, 7])
def test_equal_scores_agree_zero(constant, n_out):
    """Exactly: centring them must not leave rounding errors that look like scores."""
    truth = random_scores(n_out=n_out)
    scores = random_scores(1, n_out=n_out)[0]
    flat = np.full((N_TEST, n_out), constant)
    result = agreement_curve({"flat": flat}, curve_of(truth))
    for metric in ("cosine_centred", "spearman"):
        assert_array_equal(result.values[metric], 0)
    assert_allclose(result.values["cosine"], 0, atol=1e-15)
    truth[1, 2] = constant
    result = agreement_curve({"scores": scores}, curve_of(truth))
    for metric in METRICS:
        assert result.values[metric][0, 1, 2] == 0
        assert (result.values[metric][0, 0] != 0).all()


# ---- columns --------------------------------------------------------------------------------


def test_score_matrices_of_all_rows_or_of_those_left_out():
    truth, leave_out = random_scores(n_out=4), np.array([7, 0, 9, 2])
    everything = random_scores(1, n_out=12)[0]
    wide = agreement_curve({"all": everything}, curve_of(truth, leave_out))
    narrow = agreement_curve({"some": everything[:, leave_out]}, curve_of(truth, leave_out))
    for metric in METRICS:
        assert_array_equal(wide.values[metric], narrow.values[metric])
    assert_allclose(
        wide.values["spearman"][0, 0, 0],
        spearmanr(everything[0, [7, 0, 9, 2]], truth[0, 0]).statistic,
    )


@pytest.fixture(scope="module")
def trained():
    X, y = make_regression(30, 4, noise=20, random_state=0)
    y = (y - y.mean()) / y.std()
    ridge = Ridge().fit(X[:24], y[:24])
    settings = {"optimizer": "SGD", "lr": 0.01, "compile": False}
    return ridge, X[:24], y[:24], X[24:], y[24:], settings


@pytest.mark.parametrize("leave_out", [None, [17, 3, 8, 20, 1]])
def test_attributors_are_aligned_by_training_row(trained, leave_out):
    ridge, X, y, X_test, y_test, settings = trained
    curve = further_training_curve(
        ridge, X, y, X_test, y_test, epochs=[2, 4], n_seeds=[0, 1], leave_out=leave_out, **settings
    )
    dot = GradDot(ridge).fit(X, y)
    columns = slice(None) if leave_out is None else leave_out
    scores = dot.transform(X_test, y_test)[:, columns]
    # other rows, in another order: columns are found by their training row
    gold_rows = list(range(24)) if leave_out is None else [1, 2, 3, 8, 17, 20]
    gold = FurtherTraining(
        ridge, n_epochs=4, n_seeds=[0, 1], leave_out=gold_rows[::-1], **settings
    ).fit(X, y)
    framed = GradCos(ridge).set_output(transform="pandas").fit(X, y)
    result = agreement_curve({"dot": dot, "gold": gold, "cos": framed}, curve, X_test, y_test)
    by_hand = agreement_curve({"dot": scores}, curve)
    for metric in METRICS:
        assert_allclose(result.values[metric][0], by_hand.values[metric][0])
    for metric in ("cosine_centred", "spearman"):
        assert_allclose(result.mean(metric)[1, 1], 1, rtol=1e-9)
    assert result.mean("cosine_centred")[0, 0] > 0.99


def test_arrays_with_a_matrix_for_each_horizon():
    truth, scores = random_scores(0), random_scores(1)
    result = agreement_curve({"own": scores, "first": scores[0]}, curve_of(truth))
    for e in range(len(EPOCHS)):
        alone = agreement_curve({"one": scores[e]}, curve_of(truth))
        for metric in METRICS:
            assert_array_equal(result.values[metric][0, e], alone.values[metric][0, e])
    perfect = agreement_curve({"truth": truth}, curve_of(truth))
    assert_allclose(perfect.mean("spearman"), 1, rtol=1e-12)


@pytest.mark.parametrize("make", [UnrolledDifferentiation, LinearizedFurtherTraining])
def test_methods_with_horizons_are_compared_with_their_own_scores(trained, make, monkeypatch):
    ridge, X, y, X_test, y_test, settings = trained
    curve = further_training_curve(
        ridge, X, y, X_test, y_test, epochs=[2, 9], n_seeds=[0], leave_out=[17, 3, 8], **settings
    )
    given = {"optimizer": "SGD", "lr": settings["lr"], "n_seeds": [0]}
    method = make(ridge, n_epochs=[1, 2, 5, 9], **given).fit(X, y)
    scores = method.transform_horizons(X_test, y_test)[[1, 3]][:, :, [17, 3, 8]]
    by_hand = agreement_curve({"scores": scores}, curve)
    # a horizon is missing: the scores of the last one, for all
    fewer = make(ridge, n_epochs=[1, 9], **given).fit(X, y)
    last = agreement_curve({"last": fewer.transform(X_test, y_test)}, curve)
    calls = []

    def counted(*args):
        calls.append(args)
        return type(method).transform_horizons(method, *args)

    monkeypatch.setattr(method, "transform_horizons", counted)
    result = agreement_curve({"own": method, "fewer": fewer}, curve, X_test, y_test)
    assert len(calls) == 1
    for metric in METRICS:
        assert_allclose(result.values[metric][0], by_hand.values[metric][0], rtol=1e-12)
        assert_allclose(result.values[metric][1], last.values[metric][0], rtol=1e-12)


def test_without_targets_of_the_test_rows(trained):
    """The measurement is then the prediction, on both sides."""
    ridge, X, y, X_test, _, settings = trained
    curve = further_training_curve(ridge, X, y, X_test, epochs=1, n_seeds=[0], **settings)
    result = agreement_curve({"dot": GradDot(ridge).fit(X, y)}, curve, X_test)
    assert result.mean("cosine")[0, 0] > 0.95


# ---- errors ---------------------------------------------------------------------------------


def test_errors(trained):
    ridge, X, y, X_test, y_test, _ = trained
    curve = curve_of(np.random.default_rng(0).normal(size=(1, 6, 3)), [4, 23, 0])
    dot = GradDot(ridge).fit(X, y)
    with pytest.raises(ValueError, match="methods must name at least one attributor or score"):
        agreement_curve({}, curve)
    with pytest.raises(ValueError, match="X_test must be given to score with attributors"):
        agreement_curve({"dot": dot}, curve)
    with pytest.raises(ValueError, match=r"methods\['dot'\] has 2 test rows, the curve has 6"):
        agreement_curve({"dot": dot}, curve, X_test[:2], y_test[:2])
    fewer = GradDot(ridge).fit(X[:10], y[:10])
    with pytest.raises(ValueError, match=r"methods\['few'\] does not score training rows \[23\]"):
        agreement_curve({"few": fewer}, curve, X_test, y_test)
    with pytest.raises(ValueError, match=r"each of the 3 left-out rows; got 2 columns"):
        agreement_curve({"m": np.ones((6, 2))}, curve)
    with pytest.raises(ValueError, match=r"or one for each horizon, got ndarray of shape"):
        agreement_curve({"m": np.ones(3)}, curve)
    with pytest.raises(ValueError, match=r"methods\['m'\] has 4 test rows, the curve has 6"):
        agreement_curve({"m": np.ones((4, 3))}, curve)
    with pytest.raises(ValueError, match=r"methods\['m'\] has 2 horizons, the curve has 1"):
        agreement_curve({"m": np.ones((2, 6, 3))}, curve)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match=r"methods\['m'\] has scores that are NaN or infinite"):
            agreement_curve({"m": np.full((6, 3), bad)}, curve)
    result = agreement_curve({"m": np.ones((6, 3))}, curve)
    with pytest.raises(ValueError, match=r"metric must be one of 'cosine'.*got 'pearson'"):
        result.mean("pearson")


# ---- results --------------------------------------------------------------------------------


def example() -> AgreementCurve:
    methods = {"Grad-Dot": random_scores(1)[0], "G": random_scores(2)[0]}
    return agreement_curve(methods, curve_of(random_scores(0)))


def test_to_frame():
    result = example()
    frame = result.to_frame()
    assert list(frame.columns) == ["method", "epochs", "metric", "mean", "sem"]
    assert len(frame) == 2 * 3 * 3
    for metric in METRICS:
        table = frame[frame.metric == metric].pivot(index="method", columns="epochs", values="mean")
        assert_array_equal(table.loc[["Grad-Dot", "G"], list(EPOCHS)], result.mean(metric))
        table = frame[frame.metric == metric].pivot(index="method", columns="epochs", values="sem")
        assert_array_equal(table.loc[["Grad-Dot", "G"], list(EPOCHS)], result.sem(metric))
    assert isinstance(frame, pd.DataFrame)


@pytest.mark.parametrize("metric", METRICS)
def test_table(metric):
    result = example()
    header, *rows = result.table(metric).splitlines()
    assert header.split() == ["1", "3", "10"]
    assert len({len(line) for line in (header, *rows)}) == 1
    for row, name, means in zip(rows, result.methods, result.mean(metric), strict=True):
        found = row.split()
        assert found[0] == name
        assert found[1:] == [f"{value:.2f}" for value in means]


def test_one_test_row_has_no_standard_error():
    result = agreement_curve({"m": random_scores(1)[0, :1]}, curve_of(random_scores()[:, :1]))
    assert np.isnan(result.sem()).all()
    assert np.isfinite(result.mean()).all()


# ---- display --------------------------------------------------------------------------------


@pytest.fixture
def pyplot():
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


LABELS = {
    "cosine": "cosine with further training",
    "cosine_centred": "cosine with further training, both centred",
    "spearman": "rank correlation with further training",
}


@pytest.mark.parametrize("metric", METRICS)
def test_display(pyplot, metric):
    result = example()
    figure, (left, right) = pyplot.subplots(1, 2)
    display = AgreementCurveDisplay(result).plot(ax=right, metric=metric)
    assert display.ax_ is right
    assert display.figure_ is figure
    assert not left.lines
    assert right.get_xlabel() == "epochs of further training"
    assert right.get_ylabel() == LABELS[metric]
    assert right.get_xscale() == "log"
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["1", "3", "10"]
    labels = [text.get_text() for text in right.get_legend().get_texts()]
    assert labels == ["Grad-Dot", "G"]
    for name, means in zip(result.methods, result.mean(metric), strict=True):
        (line,) = [line for line in right.lines if line.get_label() == name]
        assert_array_equal(line.get_xdata(), EPOCHS)
        assert_array_equal(line.get_ydata(), means)
    figure.canvas.draw()


def test_display_shows_negative_agreement(pyplot):
    """Also of one test row, which has no standard error."""
    truth = random_scores()[:, :1]
    result = agreement_curve({"minus": -truth[0]}, curve_of(truth))
    ax = AgreementCurveDisplay(result).plot(metric="spearman").ax_
    assert ax.get_ylim()[0] <= result.mean("spearman").min() < 0
    ax.figure.canvas.draw()


def test_display_makes_its_own_axes(pyplot):
    display = AgreementCurveDisplay(example()).plot()
    other = AgreementCurveDisplay(example()).plot()
    assert display.ax_ is not other.ax_


def test_display_from_attributors(pyplot, trained):
    ridge, X, y, X_test, y_test, settings = trained
    curve = further_training_curve(
        ridge,
        X,
        y,
        X_test,
        y_test,
        epochs=[1, 2],
        n_seeds=[0],
        leave_out=5,
        random_state=0,
        **settings,
    )
    _, ax = pyplot.subplots()
    methods = {"Grad-Dot": GradDot(ridge).fit(X, y)}
    display = AgreementCurveDisplay.from_attributors(
        methods, curve, X_test, y_test, ax=ax, metric="spearman"
    )
    assert display.ax_ is ax
    expected = agreement_curve(methods, curve, X_test, y_test).mean("spearman")[0]
    assert_array_equal(ax.lines[0].get_ydata(), expected)
