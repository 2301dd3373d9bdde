"""Linear datamodeling score and noise ceiling: against scipy, plain loops and planted cases."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import spearmanr
from sklearn.datasets import make_regression
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.neural_network import MLPRegressor

from fimoda import (
    ExactInfluence,
    FurtherTraining,
    GradDot,
    LinearDatamodelingScoreDisplay,
    linear_datamodeling_score,
    noise_ceiling,
    random_subsets,
    train_on_subsets,
)
from fimoda.evaluation._correlation import Ranks, weighted_spearman

mpl.use("Agg")

N_TRAIN, N_TEST, N_SUBSETS, N_SEEDS = 12, 4, 30, 3


def outcomes_of(measured, subsets=None, n_train=N_TRAIN, keep=0.5):
    measured = np.asarray(measured, dtype=float)
    if subsets is None:
        subsets = np.random.default_rng(9).random((len(measured), n_train)) < keep
    return SimpleNamespace(subsets=subsets, measured=measured)


def noise(seed: int = 0, n_subsets: int = N_SUBSETS, n_seeds: int = N_SEEDS):
    shape = (n_subsets, N_TEST, n_seeds)
    return outcomes_of(np.random.default_rng(seed).normal(size=shape))


def scores_of(seed: int = 0):
    return np.random.default_rng(seed).normal(size=(N_TEST, N_TRAIN))


def additive(scores, n_subsets: int, sd: float, n_seeds: int, seed: int = 0):
    """Outcomes whose measurement is the sum of the scores of the missing rows, and noise."""
    rng = np.random.default_rng(seed)
    subsets = rng.random((n_subsets, scores.shape[1])) < 0.5
    signal = (~subsets).astype(float) @ scores.T
    measured = signal[..., None] + sd * rng.normal(size=(*signal.shape, n_seeds))
    return outcomes_of(measured, subsets), signal


# ---- ranks with weights ---------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 5, 10**6])
def test_weighted_ranks_are_those_of_repeated_columns(levels):
    rng = np.random.default_rng(levels)
    a, b = rng.integers(levels, size=(2, 3, 20)).astype(float)
    for _ in range(20):
        drawn = rng.integers(20, size=20)
        weights = np.bincount(drawn, minlength=20)
        found = weighted_spearman(Ranks(a), Ranks(b), weights)
        for z in range(3):
            assert_allclose(found[z], spearmanr(a[z, drawn], b[z, drawn]).statistic, rtol=1e-12)


# ---- values ---------------------------------------------------------------------------------


def test_against_scipy_and_a_loop():
    outcomes, methods = noise(), {"one": scores_of(1), "two": scores_of(2).round()}
    outcomes.measured[:, 1] = outcomes.measured[:, 1].round()  # ties
    result = linear_datamodeling_score(methods, outcomes, n_bootstrap=50, random_state=0)
    assert result.methods == ["one", "two"]
    assert result.values.shape == (2, 1, N_TEST)
    assert result.bootstrap.shape == (2, 1, 50)
    draws = np.random.RandomState(0).multinomial(
        N_SUBSETS, np.full(N_SUBSETS, 1 / N_SUBSETS), size=50
    )
    for m, scores in enumerate(methods.values()):
        predicted, measured = np.zeros((2, N_TEST, N_SUBSETS))
        for z in range(N_TEST):
            for s, subset in enumerate(outcomes.subsets):
                predicted[z, s] = sum(scores[z, i] for i in range(N_TRAIN) if not subset[i])
                measured[z, s] = sum(outcomes.measured[s, z]) / N_SEEDS
            # the sums of a loop differ in the last digit, which would break ties
            expected = spearmanr(predicted[z].round(9), measured[z].round(9)).statistic
            assert_allclose(result.values[m, 0, z], expected, atol=1e-9)
        for b, draw in enumerate(draws):
            rows = np.repeat(np.arange(N_SUBSETS), draw)
            one = [
                spearmanr(predicted[z, rows].round(9), measured[z, rows].round(9)).statistic
                for z in range(N_TEST)
            ]
            assert_allclose(result.bootstrap[m, 0, b], np.mean(one), atol=1e-9)
    assert_allclose(result.mean(), result.values.mean(2))
    low, high = np.quantile(result.bootstrap[0, 0], [0.025, 0.975])
    assert_allclose(result.interval()[0, 0], [low, high])


def test_sign_positive_scores_raise_the_measurement():
    scores = scores_of()
    outcomes, _ = additive(scores, 40, 0.0, 1)
    result = linear_datamodeling_score({"s": scores, "-s": -scores}, outcomes)
    assert_allclose(result.mean().ravel(), [1, -1], rtol=1e-12)


def test_shuffled_scores_score_near_zero():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(50, 100))
    outcomes, _ = additive(scores, 100, 0.0, 1)
    shuffled = rng.permuted(scores, axis=1)
    result = linear_datamodeling_score({"shuffled": shuffled}, outcomes, random_state=0)
    assert abs(result.mean()[0, 0]) < 0.05
    low, high = result.interval()[0, 0]
    assert low < 0 < high


@pytest.fixture(scope="module")
def regression():
    X, y = make_regression(120, 5, noise=20, random_state=0)
    y = (y - y.mean()) / y.std()
    return X[:100], y[:100], X[100:], y[100:]


@pytest.mark.parametrize("estimator", [Ridge(), LinearRegression()])
def test_exact_scores_of_linear_regression_on_small_removals(regression, estimator):
    X, y, X_test, y_test = regression
    rng = np.random.default_rng(0)
    subsets = np.ones((60, 100), dtype=bool)
    for subset in subsets:
        subset[rng.choice(100, 3, replace=False)] = False
    fits = [Ridge(1.0) if isinstance(estimator, Ridge) else LinearRegression() for _ in subsets]
    predicted = np.array(
        [m.fit(X[s], y[s]).predict(X_test) for m, s in zip(fits, subsets, strict=True)]
    )
    outcomes = outcomes_of(((predicted - y_test) ** 2)[..., None], subsets)
    estimator.fit(X, y)
    exact = ExactInfluence(estimator, damping=0.0).fit(X, y)
    methods = {"exact": exact, "array": exact.transform(X_test, y_test)}
    result = linear_datamodeling_score(methods, outcomes, X_test, y_test, random_state=0)
    assert result.mean()[0, 0] > 0.99
    assert_array_equal(result.values[0], result.values[1])
    # the removal itself, one refit a row, predicts the sum as well
    base = (estimator.predict(X_test) - y_test) ** 2
    rows = np.arange(100)
    refit = [type(estimator)().fit(X[rows != i], y[rows != i]).predict(X_test) for i in rows]
    truth = ((np.array(refit) - y_test) ** 2 - base).T
    loo = linear_datamodeling_score({"loo": truth}, outcomes)
    assert loo.mean()[0, 0] > 0.99


def test_a_pandas_attributor(regression):
    X, y, X_test, y_test = regression
    outcomes = outcomes_of(np.random.default_rng(0).normal(size=(10, 20, 1)), n_train=100)
    dot = GradDot(Ridge().fit(X, y)).fit(X, y)
    plain = linear_datamodeling_score({"dot": dot}, outcomes, X_test, y_test)
    dot.set_output(transform="pandas")
    framed = linear_datamodeling_score({"dot": dot}, outcomes, X_test, y_test)
    assert_array_equal(plain.values, framed.values)


def test_trained_subsets(regression):
    """The outcomes of train_on_subsets go straight in, failures included."""
    X, y, X_test, y_test = regression
    net = MLPRegressor(
        hidden_layer_sizes=(8,), solver="sgd", learning_rate_init=0.01, max_iter=30, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        net.fit(X, y)
    subsets = random_subsets(100, 80, 0.5, random_state=0)
    outcomes = train_on_subsets(
        net, X, y, subsets, X_test, y_test, n_seeds=6, random_state=0, n_epochs=30, compile=False
    )
    methods = {"influence": ExactInfluence(net).fit(X, y), "none": np.zeros((20, 100))}
    result = linear_datamodeling_score(methods, outcomes, X_test, y_test, random_state=0)
    low, _ = result.interval()[0, 0]
    assert low > 0.1
    assert result.mean()[0, 0] < result.ceiling.mean() <= 1
    assert result.mean()[1, 0] == 0


def test_interval_covers():
    """The score over very many subsets lies in 19 of 20 intervals from 60 of them."""
    scores = scores_of()
    wrong = scores + scores_of(1)
    many, _ = additive(scores, 20_000, 0.5, 1)
    truth = linear_datamodeling_score({"m": wrong}, many, n_bootstrap=1).mean()[0, 0]
    hits = 0
    for seed in range(100):
        few, _ = additive(scores, 60, 0.5, 1, seed=1 + seed)
        result = linear_datamodeling_score({"m": wrong}, few, n_bootstrap=200, random_state=seed)
        low, high = result.interval()[0, 0]
        hits += low <= truth <= high
    assert 87 <= hits <= 99


def test_difference():
    """Methods are judged on the same subsets: two that differ little differ surely."""
    scores = scores_of()
    methods = {"good": scores + 0.3 * scores_of(1), "worse": scores + 0.35 * scores_of(1)}
    outcomes, _ = additive(scores, 60, 0.5, 1)
    result = linear_datamodeling_score(methods, outcomes, random_state=0)
    difference, interval = result.difference("good")
    means, draws = result.mean(), result.bootstrap
    assert_array_equal(difference[0], 0)
    assert_array_equal(interval[0], 0)
    assert_allclose(difference[1], means[0] - means[1])
    assert_allclose(interval[1, 0], np.quantile(draws[0, 0] - draws[1, 0], [0.025, 0.975]))
    assert interval[1, 0, 0] > 0
    (_, high), (low, _) = result.interval()[1, 0], result.interval()[0, 0]
    assert low < high  # which the two intervals alone do not say
    assert_allclose(result.difference("worse")[0][0], -difference[1])
    with pytest.raises(ValueError, match=r"method must be one of \['good', 'worse'\], got 'bad'"):
        result.difference("bad")


def test_confidence_widens_the_interval():
    narrow, wide = (
        linear_datamodeling_score({"m": scores_of()}, noise(), confidence=c, random_state=0)
        for c in (0.5, 0.99)
    )
    assert narrow.interval()[0, 0, 0] > wide.interval()[0, 0, 0]
    assert_array_equal(narrow.bootstrap, wide.bootstrap)


# ---- ratios ---------------------------------------------------------------------------------


def test_a_distance_of_means_is_the_score_of_means():
    outcomes, scores = noise(), {"m": scores_of()}
    reference = np.random.default_rng(9).normal(size=(outcomes.measured.shape[1], 7))
    outcomes.measured[3, :, 0] = np.nan
    usual = linear_datamodeling_score(scores, outcomes, random_state=0)
    found = linear_datamodeling_score(
        scores,
        outcomes,
        distance=lambda sample, everything: sample.mean() - everything.mean(),
        reference=reference,
        random_state=0,
    )
    assert_allclose(found.values, usual.values, atol=1e-12)
    assert_allclose(found.bootstrap, usual.bootstrap, atol=1e-12)
    assert np.isnan(found.ceiling).all()
    assert np.isfinite(usual.ceiling).all()


def test_a_distance_sees_what_the_mean_does_not():
    """Rows that change the spread of the measurement, and not where it is."""
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(2, 12))
    subsets = random_subsets(12, 40, 0.5, random_state=3)
    spread = np.exp(0.3 * (~subsets @ scores.T))  # (n_subsets, n_test)
    standard = rng.normal(size=2000)
    standard = (standard - standard.mean()) / standard.std()
    outcomes = outcomes_of(spread[..., None] * standard, subsets)
    reference = np.tile(standard, (2, 1))

    def further(sample, everything):
        return sample.std() - everything.std()

    found = linear_datamodeling_score(
        {"m": scores}, outcomes, distance=further, reference=reference, random_state=0
    )
    assert_allclose(found.values, 1, atol=1e-12)
    with pytest.raises(ValueError, match="distance and reference must be given together"):
        linear_datamodeling_score({"m": scores}, outcomes, distance=further)
    with pytest.raises(ValueError, match=r"reference must have shape \(2, n_reference\)"):
        linear_datamodeling_score({"m": scores}, outcomes, distance=further, reference=reference[0])
    with pytest.raises(ValueError, match="distance must give one finite number"):
        linear_datamodeling_score(
            {"m": scores}, outcomes, distance=lambda a, b: np.nan, reference=reference
        )


def test_several_ratios():
    first, second = noise(0), noise(1, n_subsets=20)
    second.subsets = np.random.default_rng(3).random((20, N_TRAIN)) < 0.9
    named = linear_datamodeling_score({"m": scores_of()}, {0.5: first, 0.9: second})
    listed = linear_datamodeling_score({"m": scores_of()}, [first, second])
    assert_array_equal(named.ratios, [0.5, 0.9])
    assert_allclose(listed.ratios, [first.subsets.mean(), second.subsets.mean()])
    assert_array_equal(named.n_subsets, [30, 20])
    assert_array_equal(named.values, listed.values)
    assert named.ceiling.shape == (2, N_TEST)
    alone = linear_datamodeling_score({"m": scores_of()}, second)
    assert_array_equal(named.values[:, 1:], alone.values)


# ---- failures, ties, constants --------------------------------------------------------------


def test_failed_trainings_are_left_out():
    outcomes = noise()
    whole = linear_datamodeling_score({"m": scores_of()}, noise(), random_state=0)
    outcomes.measured[3, :, 1] = np.nan
    outcomes.measured[7] = np.nan
    outcomes.measured[8, 2, 0] = np.inf  # of one test row: the training has failed
    result = linear_datamodeling_score({"m": scores_of()}, outcomes, random_state=0)
    assert result.n_subsets == [N_SUBSETS - 1]
    by_hand = outcomes.measured.copy()
    by_hand[8, :, 0] = np.nan
    rows = np.arange(N_SUBSETS) != 7
    other = outcomes_of(np.nanmean(by_hand[rows], 2)[..., None], outcomes.subsets[rows])
    expected = linear_datamodeling_score({"m": scores_of()}, other, random_state=0)
    assert_array_equal(result.values, expected.values)
    assert np.isfinite(result.bootstrap).all()
    assert not np.array_equal(result.values, whole.values)


def test_constant_sides_score_zero():
    outcomes = noise()
    outcomes.measured[:, 2] = 0.1
    methods = {"flat": np.zeros((N_TEST, N_TRAIN)), "m": scores_of()}
    result = linear_datamodeling_score(methods, outcomes)
    assert_array_equal(result.values[0], 0)
    assert_array_equal(result.bootstrap[0], 0)
    assert result.values[1, 0, 2] == 0
    assert (result.values[1, 0, [0, 1, 3]] != 0).all()


@pytest.mark.parametrize("constant", [0.1, -3.7e5])
def test_equal_scores_and_equal_sizes_score_zero(constant):
    """Exactly: rounding errors of the sums must not look like effects."""
    rng = np.random.default_rng(0)
    subsets = rng.permuted(np.tile(np.arange(301) < 150, (40, 1)), axis=1)
    outcomes = outcomes_of(rng.normal(size=(40, 4, 1)), subsets)
    result = linear_datamodeling_score({"flat": np.full((4, 301), constant)}, outcomes)
    assert_array_equal(result.values, 0)


# ---- noise ceiling --------------------------------------------------------------------------


@pytest.mark.parametrize("n_seeds", [2, 5, 8])
@pytest.mark.parametrize("sd", [0.3, 1.0, 3.0])
def test_ceiling_is_the_score_of_the_truth(n_seeds, sd):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(10, 40))
    outcomes, signal = additive(scores, 1500, sd * np.sqrt(10), n_seeds)
    result = linear_datamodeling_score({"truth": scores}, outcomes, n_bootstrap=1, random_state=0)
    reached = result.mean()[0, 0]
    assert_allclose(result.ceiling.mean(), reached, atol=0.03)
    # of normal noise: the correlation with the mean of R repeats
    expected = 1 / np.sqrt(1 + 10 * sd**2 / n_seeds / signal.var(0).mean())
    assert_allclose(result.ceiling.mean(), expected, atol=0.04)


def test_ceiling_of_pure_noise_and_of_none():
    rng = np.random.default_rng(0)
    assert noise_ceiling(rng.normal(size=(2000, 30, 4)), random_state=0).mean() < 0.2
    same = np.repeat(rng.normal(size=(20, 2, 1)), 3, axis=2)
    assert_allclose(noise_ceiling(same), 1)
    assert noise_ceiling(-same).shape == (2,)


def test_ceiling_needs_repeats():
    assert np.isnan(linear_datamodeling_score({"m": scores_of()}, noise(n_seeds=1)).ceiling).all()
    measured = np.random.default_rng(0).normal(size=(5, 2, 2))
    measured[:3, :, 0] = np.nan
    assert np.isnan(noise_ceiling(measured)).all()
    with pytest.raises(ValueError, match=r"measured must have shape .* got shape \(5, 2\)"):
        noise_ceiling(np.ones((5, 2)))
    with pytest.raises(ValueError, match=r"'n_splits' parameter of noise_ceiling must be .* Got 0"):
        noise_ceiling(np.ones((5, 2, 2)), n_splits=0)


# ---- errors ---------------------------------------------------------------------------------


def test_errors(regression):
    X, y, X_test, y_test = regression
    good = {"m": scores_of()}
    with pytest.raises(ValueError, match="methods must name at least one"):
        linear_datamodeling_score({}, noise())
    with pytest.raises(ValueError, match=r"methods must be a dict.*got ndarray"):
        linear_datamodeling_score(scores_of(), noise())
    with pytest.raises(ValueError, match=r"methods\['m'\].*12 training rows.*shape \(4, 11\)"):
        linear_datamodeling_score({"m": np.ones((4, 11))}, noise())
    with pytest.raises(ValueError, match=r"methods\['m'\] has 3 test rows, 4 were measured"):
        linear_datamodeling_score({"m": np.ones((3, 12))}, noise())
    with pytest.raises(ValueError, match=r"methods\['m'\] has scores that are NaN or infinite"):
        linear_datamodeling_score({"m": np.full((4, 12), np.nan)}, noise())
    with pytest.raises(ValueError, match="at least 3 trained subsets, got 2 of 2"):
        linear_datamodeling_score(good, noise(n_subsets=2))
    failed = noise()
    failed.measured[2:] = np.nan
    with pytest.raises(ValueError, match="at least 3 trained subsets, got 2 of 30"):
        linear_datamodeling_score(good, failed)
    with pytest.raises(ValueError, match=r"outcomes.measured must have shape \(30, n_test"):
        linear_datamodeling_score(good, outcomes_of(np.ones((29, 4, 1)), noise().subsets))
    with pytest.raises(ValueError, match=r"outcomes.subsets must be a matrix.*int64"):
        linear_datamodeling_score(good, outcomes_of(np.ones((5, 4, 1)), np.ones((5, 12), int)))
    with pytest.raises(ValueError, match=r"same test and training rows.*\(4, 12\) and \(3, 12\)"):
        linear_datamodeling_score(good, [noise(), outcomes_of(np.ones((5, 3, 1)))])
    with pytest.raises(ValueError, match="outcomes must hold trained subsets, got none"):
        linear_datamodeling_score(good, [])
    with pytest.raises(ValueError, match=r"'n_bootstrap' parameter of .* Got 0"):
        linear_datamodeling_score(good, noise(), n_bootstrap=0)
    with pytest.raises(
        ValueError, match=r"'confidence' parameter of .* range \(0.0, 1.0\). Got 95"
    ):
        linear_datamodeling_score(good, noise(), confidence=95)
    ridge = Ridge().fit(X, y)
    with pytest.raises(ValueError, match="X_test must be given to score with attributors"):
        linear_datamodeling_score({"dot": GradDot(ridge).fit(X, y)}, noise())
    with pytest.raises(
        ValueError, match=r"fitted on the 12 training rows .* got one fitted on 100"
    ):
        linear_datamodeling_score({"d": GradDot(ridge).fit(X, y)}, noise(), X_test[:4], y_test[:4])


def test_an_attributor_of_some_rows(regression):
    X, y, X_test, y_test = regression
    settings = {"n_epochs": 1, "n_seeds": [0], "optimizer": "SGD", "lr": 0.01, "compile": False}
    gold = FurtherTraining(Ridge().fit(X, y), leave_out=[4, 2], **settings).fit(X, y)
    measured = np.random.default_rng(0).normal(size=(4, 20, 1))
    subsets = np.ones((4, 100), dtype=bool)
    subsets[1, 2] = subsets[2, 4] = subsets[3, [2, 4]] = False
    result = linear_datamodeling_score(
        {"gold": gold}, outcomes_of(measured, subsets), X_test, y_test
    )
    scores = gold.transform(X_test, y_test)  # columns 4, 2
    predicted = np.stack([0 * scores[:, 0], scores[:, 1], scores[:, 0], scores.sum(1)], 1)
    for z in range(20):
        expected = spearmanr(predicted[z], measured[:, z, 0]).statistic
        assert_allclose(result.values[0, 0, z], expected, rtol=1e-12)
    subsets[0, 7] = False
    with pytest.raises(ValueError, match=r"methods\['gold'\] does not score training rows \[7\]"):
        linear_datamodeling_score({"gold": gold}, outcomes_of(measured, subsets), X_test, y_test)


# ---- results --------------------------------------------------------------------------------


def example():
    methods = {"Grad-Dot": scores_of(1), "exact": scores_of(2)}
    return linear_datamodeling_score(
        methods, {0.5: noise(0), 0.9: noise(1)}, n_bootstrap=99, random_state=0
    )


def test_to_frame_and_table():
    result = example()
    frame = result.to_frame()
    assert list(frame.columns) == ["method", "ratio", "lds", "low", "high", "ceiling"]
    assert len(frame) == 4
    row = frame[(frame.method == "exact") & (frame.ratio == 0.9)].iloc[0]
    assert row.lds == result.mean()[1, 1]
    assert (row.low, row.high) == tuple(result.interval()[1, 1])
    lines = result.table().splitlines()
    assert lines[0].split() == ["0.5", "0.9"]
    assert [line.split()[0] for line in lines[1:]] == ["Grad-Dot", "exact", "ceiling"]
    low, high = result.interval()[0, 0]
    assert f"{result.mean()[0, 0]:.2f} [{low:5.2f},{high:5.2f}]" in lines[1]


def test_random_state_repeats():
    for name in ("bootstrap", "ceiling"):
        assert_array_equal(getattr(example(), name), getattr(example(), name))


def test_display():
    import matplotlib.pyplot as plt

    result = example()
    figure, (left, right) = plt.subplots(1, 2)
    display = LinearDatamodelingScoreDisplay(result).plot(right)
    assert display.ax_ is right
    assert display.figure_ is figure
    assert not left.patches
    labels = [text.get_text() for text in right.get_legend().get_texts()]
    assert labels == ["Grad-Dot", "exact", "noise ceiling"]
    heights = [bar.get_height() for container in right.containers for bar in container]
    assert_allclose(heights, result.mean().ravel())
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["0.5", "0.9"]
    figure.canvas.draw()
    ax = LinearDatamodelingScoreDisplay.from_attributors(
        {"m": scores_of()}, noise(n_seeds=1), n_bootstrap=5
    ).ax_
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["m"]
    assert ax is not right
    plt.close("all")
