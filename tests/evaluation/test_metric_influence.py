"""Influence on metrics: refits by a plain loop, closed forms, sign, groups, runs, bad inputs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from joblib import parallel_config
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import make_classification, make_regression
from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.metrics import f1_score, get_scorer, make_scorer
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn

from fimoda import (
    DataBanzhaf,
    DataOOB,
    DistributionalInfluence,
    EnsembleAttributor,
    ExactInfluence,
    FurtherTraining,
    GradCos,
    GradDot,
    JackknifePlusRegressor,
    KNNShapley,
    LeafInfluence,
    LeastCore,
    LeaveOneOut,
    RepSim,
    attribute,
    metric_influence,
)


def numbers(n_targets=1):
    X, y = make_regression(50, 4, n_targets=n_targets, noise=30.0, random_state=0)
    X = StandardScaler().fit_transform(X)
    return X[:30], X[30:], y[:30] / 50, y[30:] / 50


def classes(n_classes=2):
    X, y = make_classification(
        120, 5, n_informative=4, n_redundant=0, n_classes=n_classes, flip_y=0.3, random_state=1
    )
    X = StandardScaler().fit_transform(X)
    return X[:40], X[40:], y[:40], y[40:]


def groups_of(X):
    return np.where(X[:, 0] > 0, "right", "left")


def by_refits(model, data, metric):
    """Return metric(model, X_test, y_test) without each row, minus with all."""
    X, X_test, y, y_test = data
    full = metric(clone(model).fit(X, y), X_test, y_test)
    each = [np.arange(len(X)) != i for i in range(len(X))]
    return np.array(
        [metric(clone(model).fit(X[k], y[k]), X_test, y_test) - full for k in each]
    ), full


def gap(scorer, by):
    """Return the metric that is the largest less the smallest over groups."""

    def metric(model, X, y):
        rows = [by(X) == g for g in np.unique(by(X))]
        return np.ptp([scorer(model, X[k], y[k]) for k in rows])

    return metric


# ---- against refits -------------------------------------------------------------------------

REFITS = [
    *[(Ridge(), numbers(), name) for name in ["r2", "neg_mean_absolute_error", "neg_max_error"]],
    (Ridge(), numbers(2), "r2"),
    *[(LogisticRegression(), classes(), name) for name in ["accuracy", "roc_auc", "f1"]],
    *[(LogisticRegression(), classes(3), name) for name in ["neg_log_loss", "roc_auc_ovr"]],
    (RandomForestClassifier(5, random_state=0), classes(), "neg_brier_score"),
]


@pytest.mark.parametrize(("model", "data", "name"), REFITS, ids=[case[2] for case in REFITS])
def test_differences_of_real_outputs_are_refits(model, data, name):
    X, X_test, y, y_test = data
    expected, full = by_refits(model, data, get_scorer(name))
    attributor = LeaveOneOut(clone(model).fit(X, y), n_seeds=[0]).fit(X, y)
    found = metric_influence(attributor, X_test, y_test, name)
    np.testing.assert_allclose(found.scores, expected, atol=1e-6)
    np.testing.assert_allclose(found.value, full, rtol=1e-6)
    assert found.of_groups is None
    assert np.isnan(found.sem).all()
    assert (expected != 0).any()


def test_exact_removal_of_least_squares_is_a_refit():
    """An attributor whose outputs are exact gives exact metrics, of any kind."""
    data = numbers()
    X, X_test, y, y_test = data
    influence = ExactInfluence(LinearRegression().fit(X, y), newton_step=True).fit(X, y)
    for name in ("r2", "neg_root_mean_squared_error"):
        expected, _ = by_refits(LinearRegression(), data, get_scorer(name))
        found = metric_influence(influence, X_test, y_test, name)
        np.testing.assert_allclose(found.scores, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["accuracy", "neg_log_loss"])
def test_gaps_are_refits(name):
    data = classes()
    X, X_test, y, y_test = data
    expected, full = by_refits(LogisticRegression(), data, gap(get_scorer(name), groups_of))
    attributor = LeaveOneOut(LogisticRegression().fit(X, y), n_seeds=1).fit(X, y)
    found = metric_influence(attributor, X_test, y_test, name, sensitive=groups_of(X_test))
    np.testing.assert_allclose(found.scores, expected, atol=1e-8)
    np.testing.assert_allclose(found.value, full)
    assert list(found.of_groups) == ["left", "right"]
    assert np.ptp(list(found.of_groups.values())) == found.value


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("selection_rate", lambda y: y >= 0),
        ("true_positive_rate", lambda y: y == 1),
        ("false_positive_rate", lambda y: y == 0),
    ],
)
def test_gaps_of_rates_are_refits(name, rows):
    def rate(model, X, y):
        return model.predict(X[rows(y)]).mean()

    data = classes()
    X, X_test, y, y_test = data
    expected, full = by_refits(LogisticRegression(), data, gap(rate, groups_of))
    attributor = LeaveOneOut(LogisticRegression().fit(X, y), n_seeds=1).fit(X, y)
    found = metric_influence(attributor, X_test, y_test, name, sensitive=groups_of(X_test))
    np.testing.assert_allclose(found.scores, expected, atol=1e-8)
    np.testing.assert_allclose(found.value, full)


def test_a_scorer_is_a_loop_by_hand():
    X, X_test, y, y_test = classes()
    influence = ExactInfluence(LogisticRegression().fit(X, y)).fit(X, y)
    scorer = make_scorer(f1_score, average="macro")
    found = metric_influence(influence, X_test, y_test, scorer)
    logits = influence.model_.outputs(influence._test(X_test, y_test).inputs).numpy()[:, 0]
    change = ExactInfluence(influence.estimator_, measurement="output").fit(X, y)
    outputs = logits[:, None] + change.transform(X_test, y_test)

    def macro(f):
        return f1_score(y_test, f > 0, average="macro")

    expected = np.array([macro(f) - macro(logits) for f in outputs.T])
    np.testing.assert_allclose(found.scores, expected, atol=1e-12)
    assert (expected != 0).any()


# ---- derivatives ----------------------------------------------------------------------------

FIRST_ORDER = [
    (GradDot(n_epochs=3), Ridge()),
    (ExactInfluence(), Ridge()),
    (LeafInfluence(), GradientBoostingRegressor(n_estimators=5, random_state=0)),
]


@pytest.mark.parametrize(("method", "model"), FIRST_ORDER, ids=lambda part: type(part).__name__)
def test_derivative_of_a_mean_squared_error(method, model):
    r"""Equal to the sum of 2 (f - y) / n by the scores of the output."""
    X, X_test, y, y_test = numbers()
    model = model.fit(X, y)
    attributor = clone(method).set_params(estimator=model).fit(X, y)
    scoring = "neg_mean_squared_error"
    found = metric_influence(attributor, X_test, y_test, scoring, how="derivative")
    output = clone(method).set_params(estimator=model, measurement="output").fit(X, y)
    slope = -2 * (model.predict(X_test) - y_test) / len(y_test)
    expected = slope @ output.transform(X_test, y_test)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-4, atol=1e-6)


def test_derivative_of_a_log_loss_is_the_mean_of_the_loss():
    X, X_test, y, y_test = classes(3)
    influence = ExactInfluence(LogisticRegression().fit(X, y)).fit(X, y)
    found = metric_influence(influence, X_test, y_test, "neg_log_loss", how="derivative")
    expected = -influence.transform(X_test, y_test).mean(0)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-4, atol=1e-8)


def test_sign():
    """A row with a wrong label hurts the accuracy: removing it raises the metric."""
    X, X_test, y, _ = classes()
    model = LogisticRegression(C=0.1)
    clean = model.fit(X, y)
    worst = np.flatnonzero(clean.predict(X) == y)[:8]
    noisy = y.copy()
    noisy[worst] = 1 - noisy[worst]
    target = clean.predict(X_test)
    influence = ExactInfluence(clone(model).fit(X, noisy)).fit(X, noisy)
    for how in ("derivative", "difference"):
        found = metric_influence(influence, X_test, target, "neg_log_loss", how=how).scores
        others = np.setdiff1d(np.arange(len(X)), worst)
        assert found[worst].mean() > 0 > found[others].mean()


@pytest.mark.parametrize("how", ["derivative", "difference"])
def test_unit(how):
    """Targets ten times as large: squared errors are a hundred times as large, R2 is the same."""
    X, X_test, y, y_test = numbers()
    found = []
    for size in (1, 10):
        influence = ExactInfluence(LinearRegression().fit(X, size * y)).fit(X, size * y)
        found.append(
            [
                metric_influence(influence, X_test, size * y_test, name, how=how).scores
                for name in ("neg_mean_squared_error", "r2")
            ]
        )
    np.testing.assert_allclose(found[1][0], 100 * found[0][0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=1e-3, atol=1e-6)


def test_derivatives_of_gaps():
    """The slope of the largest group less that of the smallest."""
    X, X_test, y, y_test = numbers()
    influence = ExactInfluence(Ridge().fit(X, y)).fit(X, y)
    by = groups_of(X_test)
    whole = metric_influence(influence, X_test, y_test, "r2", sensitive=by, how="derivative")
    each = {
        g: metric_influence(influence, X_test[by == g], y_test[by == g], "r2", how="derivative")
        for g in ("left", "right")
    }
    assert whole.of_groups == pytest.approx({g: one.value for g, one in each.items()})
    best, worst = sorted(each, key=lambda g: -each[g].value)
    np.testing.assert_allclose(whole.scores, each[best].scores - each[worst].scores, atol=1e-9)


def test_bandwidth():
    """Accuracy: the density of rows at the boundary times the change of their margins."""
    X, X_test, y, y_test = classes()
    influence = ExactInfluence(LogisticRegression().fit(X, y)).fit(X, y)
    f = influence.estimator_.decision_function(X_test)
    change = ExactInfluence(influence.estimator_, measurement="output").fit(X, y)
    S = change.transform(X_test, y_test)
    for b, given in [(0.5, 0.5), (1.84 * f.std() * len(f) ** -0.2, None)]:
        near = (np.abs(f) < b) * np.where(y_test == 1, 1, -1) / (2 * b * len(f))
        settings = {"how": "derivative", "bandwidth": given}
        found = metric_influence(influence, X_test, y_test, **settings)
        np.testing.assert_allclose(found.scores, near @ S, rtol=1e-4, atol=1e-9)
    smooth = [
        metric_influence(influence, X_test, y_test, "neg_log_loss", how="derivative", bandwidth=b)
        for b in (None, 3.0)
    ]
    np.testing.assert_array_equal(smooth[0].scores, smooth[1].scores)


# ---- runs -----------------------------------------------------------------------------------


def network_and_rows():
    X, X_test, y, y_test = (torch.tensor(part).float() for part in numbers())
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
    rows = X.numpy(), X_test.numpy(), y[:, None].numpy(), y_test[:, None].numpy()
    return FurtherTraining(
        net, n_epochs=2, leave_out=[3, 7, 8], optimizer="SGD", lr=0.1, criterion=nn.MSELoss()
    ), rows


@pytest.mark.parametrize("how", ["derivative", "difference"])
def test_runs_are_taken_one_by_one(how):
    """Means and standard errors over seeds are those of the metric, not of its parts."""
    method, (X, X_test, y, y_test) = network_and_rows()
    both = clone(method).set_params(n_seeds=[0, 1, 5]).fit(X, y)
    found = metric_influence(both, X_test, y_test, how=how)
    each = [clone(method).set_params(n_seeds=[seed]).fit(X, y) for seed in (0, 1, 5)]
    alone = np.stack([metric_influence(one, X_test, y_test, how=how).scores for one in each])
    np.testing.assert_allclose(found.scores, alone.mean(0), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(found.sem, alone.std(0, ddof=1) / 3**0.5, rtol=1e-4, atol=1e-9)
    np.testing.assert_array_equal(found.train_indices, [3, 7, 8])


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_ensembles_of_models():
    X, X_test, y, y_test = classes()
    models = [
        MLPClassifier((4,), random_state=seed, max_iter=30, batch_size=20).fit(X, y)
        for seed in (0, 1)
    ]
    both = EnsembleAttributor(attributor=ExactInfluence(), models=models).fit(X, y)
    found = metric_influence(both, X_test, y_test, "neg_log_loss", how="derivative")
    assert np.isfinite(found.sem).all()
    assert found.scores.shape == (40,)


# ---- invariance -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["derivative", "difference"])
def test_workers_and_order_of_rows(how):
    X, X_test, y, y_test = classes(3)
    influence = ExactInfluence(LogisticRegression().fit(X, y)).fit(X, y)
    by = groups_of(X_test)
    X_test, y_test, by = X_test[:20], y_test[:20], by[:20]
    one = metric_influence(influence, X_test, y_test, "f1_macro", sensitive=by, how=how)
    with parallel_config("threading"):
        two = metric_influence(
            influence, X_test, y_test, "f1_macro", sensitive=by, how=how, n_jobs=2
        )
    np.testing.assert_array_equal(one.scores, two.scores)
    mixed = np.random.default_rng(0).permutation(len(y_test))
    turned = metric_influence(
        influence, X_test[mixed], y_test[mixed], "f1_macro", sensitive=by[mixed], how=how
    )
    np.testing.assert_allclose(turned.scores, one.scores, atol=1e-7)


def test_blocks(monkeypatch):
    X, X_test, y, y_test = classes()
    influence = ExactInfluence(LogisticRegression().fit(X, y)).fit(X, y)
    whole = {how: metric_influence(influence, X_test, y_test, "roc_auc", how=how).scores
             for how in ("derivative", "difference")}  # fmt: skip
    monkeypatch.setattr("fimoda.evaluation.metrics.BLOCK", 4096)
    monkeypatch.setattr("fimoda.evaluation.metric_influence._ROWS", 7)
    for how, scores in whole.items():
        parts = metric_influence(influence, X_test, y_test, "roc_auc", how=how).scores
        np.testing.assert_allclose(parts, scores, rtol=1e-5, atol=1e-9)


def test_sensitive_is_a_column_or_values():
    X, X_test, y, y_test = classes()
    frame = pd.DataFrame(X, columns=list("abcde"))
    frame_test = pd.DataFrame(X_test, columns=list("abcde")).assign(
        a=(X_test[:, 0] > 0).astype(float)
    )
    influence = ExactInfluence(LogisticRegression().fit(frame, y)).fit(frame, y)
    values = frame_test["a"]
    found = [
        metric_influence(influence, frame_test, y_test, sensitive=by)
        for by in ("a", values, values.to_numpy(), values.map({0.0: "no", 1.0: "yes"}).to_list())
    ]
    for one in found:
        np.testing.assert_array_equal(one.scores, found[0].scores)
    assert list(found[0].of_groups) == [0.0, 1.0]
    assert list(found[-1].of_groups) == ["no", "yes"]
    plain = ExactInfluence(LogisticRegression().fit(X, y)).fit(X, y)
    by_number = metric_influence(plain, frame_test.to_numpy(), y_test, sensitive=0)
    np.testing.assert_allclose(by_number.scores, found[0].scores, atol=1e-9)


# ---- bad inputs -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    X, _, y, _ = classes()
    return ExactInfluence(LogisticRegression().fit(X, y)).fit(X, y)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"y_test": np.zeros(80, int), "scoring": "roc_auc"}, "not defined"),
        ({"y_test": np.zeros(79, int)}, "y_test must have one entry per row"),
        ({"y_test": None}, "y_test"),
        ({"scoring": "acuracy"}, "scoring must be one of"),
        ({"how": "slope"}, "how"),
        ({"bandwidth": 0.0}, "bandwidth"),
        ({"sensitive": np.zeros(80)}, "two groups or more"),
        ({"sensitive": np.zeros(79)}, "sensitive must have one entry per row"),
        ({"sensitive": np.r_[np.nan, np.zeros(79)]}, "sensitive contains NaN"),
        ({"sensitive": "age"}, "sensitive must be a column"),
        ({"sensitive": 99}, "sensitive must be a column"),
        ({"memory_budget": 100}, None),
    ],
)
def test_bad_inputs(fitted, change, match):
    _, X_test, _, y_test = classes()
    given = {"X_test": X_test, "y_test": y_test, **change}
    with pytest.raises(MemoryError if match is None else ValueError, match=match):
        metric_influence(fitted, **given)


def test_results_are_shown(fitted):
    _, X_test, _, y_test = classes()
    by = np.where(X_test[:, 0] > 0, "above", "below")
    found = metric_influence(fitted, X_test, y_test, "neg_log_loss", sensitive=by)
    lines = str(found).splitlines()
    assert lines[1].split()[:2] == [str(found.scores.argmax()), f"{found.scores.max():+.3g}"]
    assert lines[10].split()[:2] == [str(found.scores.argmin()), f"{found.scores.min():+.3g}"]
    assert f"{found.value:.3g}, the difference between groups" in lines[-1]
    assert f"{found.of_groups['above']:.3g} of above" in lines[-1]
    frame = found.to_frame()
    assert list(frame) == ["row", "score", "sem"]
    assert np.array_equal(frame["score"], found.scores)


def test_a_group_without_a_positive_row(fitted):
    _, X_test, _, y_test = classes()
    by = np.where((y_test == 0) & (X_test[:, 0] > 0), "only negative", "all")
    for scoring in ("true_positive_rate", "recall", "roc_auc"):
        with pytest.raises(ValueError, match="not defined"):
            metric_influence(fitted, X_test, y_test, scoring, sensitive=by)


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_unfitted_and_those_that_only_rank():
    X, X_test, y, y_test = classes()
    model = LogisticRegression().fit(X, y)
    with pytest.raises(ValueError, match="not fitted"):
        metric_influence(ExactInfluence(model), X_test, y_test)
    for cls in (GradCos, RepSim):
        method = cls(MLPClassifier((3,), max_iter=5, random_state=0)).fit(X, y)
        with pytest.raises(ValueError, match="only rank"):
            metric_influence(method, X_test, y_test)
    assert not DistributionalInfluence(distance="variance")._in_unit
    assert not DistributionalInfluence(joint=["output", "loss"])._in_unit


@pytest.mark.parametrize(
    "method",
    [DataBanzhaf(n_samples=30), DataOOB(n_samples=30), KNNShapley(), LeastCore(n_samples=4)],
)
def test_values_of_games_are_no_changes_by_a_removal(method):
    X, X_test, y, y_test = numbers()
    fitted = method.set_params(estimator=Ridge().fit(X, y), random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="share a value among the rows"):
        metric_influence(fitted, X_test, y_test)
    with pytest.raises(ValueError, match="share a value among the rows"):
        JackknifePlusRegressor(Ridge(), attributor=method).fit(X, y)
    found = attribute(fitted.estimator_, X, y, X_test, y_test, method=method)
    assert "alone" not in found.intervention


def test_predictions_of_another_unit_are_refused():
    """A model of logarithms: its outputs are no predictions."""
    X, X_test, y, y_test = numbers()
    model = TransformedTargetRegressor(Ridge(), func=np.sinh, inverse_func=np.arcsinh).fit(X, y)
    influence = ExactInfluence(model).fit(X, y)
    with pytest.raises(ValueError, match="its targets are transformed"):
        metric_influence(influence, X_test, y_test)
