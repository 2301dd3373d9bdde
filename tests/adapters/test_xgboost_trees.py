"""XGBoost's trees against its own predictions and a plain loop over its leaves.

XGBoost has leaves and base_score in float32: values are compared to 1e-5 of the largest, scores, which are
differences of them, to 1e-4.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from boosting_by_hand import (
    N_TEST,
    ByHand,
    N,
    assert_close,
    gamma,
    logistic,
    logit,
    mean,
    multiclass,
    poisson,
    problem,
    squared,
    tweedie,
)

from fimoda import BoostIn, LeafInfluence, LeafRefit
from fimoda.adapters import as_tree_model

xgb = pytest.importorskip("xgboost")

ROUNDS, ETA = 6, 0.3


def centred_logs(w, y):
    logs = np.log([mean(w, y == k) for k in range(3)])
    return logs - logs.mean()


def one_step(w, y):
    return 4 * (mean(w * np.where(y == 1, 3, 1), y) - 0.5)


# name: objective, parameters, targets, loss, first score of weights and targets, and what leaves have
CASES = {
    "squared": ("reg:squarederror", {}, "real", squared, mean, {}),
    "two": ("reg:squarederror", {}, "two", squared, mean, {}),
    "l1": (
        "reg:squarederror",
        {"alpha": 2, "lambda": 0.1},
        "real",
        squared,
        mean,
        {"l1": 2, "l2": 0.1},
    ),
    "exact": ("reg:squarederror", {"tree_method": "exact", "gamma": 1}, "real", squared, mean, {}),
    "given": ("reg:squarederror", {"base_score": 0.7}, "real", squared, lambda w, y: 0.7, {}),
    "step": (
        "reg:squarederror",
        {"max_delta_step": 0.5},
        "real",
        squared,
        mean,
        {"max_step": 0.5},
    ),
    "logistic": ("binary:logistic", {}, "binary", logistic, lambda w, y: logit(mean(w, y)), {}),
    "probability": (
        "binary:logistic",
        {"base_score": 0.3},
        "binary",
        logistic,
        lambda w, y: logit(0.3),
        {},
    ),
    "positives": (
        "binary:logistic",
        {"scale_pos_weight": 3},
        "binary",
        logistic,
        one_step,
        {"positive": 3},
    ),
    "raw": ("binary:logitraw", {}, "binary", logistic, mean, {}),
    "softmax": ("multi:softmax", {"num_class": 3}, "classes", multiclass(2), centred_logs, {}),
    "poisson": (
        "count:poisson",
        {},
        "count",
        poisson(0.7),
        lambda w, y: np.log(mean(w, y)),
        {"max_step": 0.7},
    ),
    "gamma": ("reg:gamma", {}, "positive", gamma, lambda w, y: np.log(mean(w, y)), {}),
    "tweedie": (
        "reg:tweedie",
        {"tweedie_variance_power": 1.3},
        "count",
        tweedie(1.3),
        lambda w, y: np.log(mean(w, y)),
        {},
    ),
}


def trained(objective, params, X, y, w, **matrix):
    given = {
        "objective": objective,
        "max_depth": 3,
        "eta": ETA,
        "lambda": 1,
        "nthread": 1,
        **params,
    }
    return xgb.train(given, xgb.DMatrix(X, y, weight=w, **matrix), ROUNDS)


def case(name):
    objective, params, kind, loss, start, leaves = CASES[name]
    X, y, w = problem(kind)
    model = trained(objective, params, X, y, w)
    own = model.predict(xgb.DMatrix(X), pred_leaf=True).astype(int)
    known = {"l2": 1.0, **leaves}
    factors = np.where(y == 1, known.pop("positive", 1.0), 1.0) if y.ndim == 1 else 1.0
    test = own[-N_TEST:]
    hand = ByHand(own, test, y, w, loss, start, ETA, factors=factors, **known)
    return model, X, y, w, hand


@pytest.mark.parametrize("name", CASES)
def test_the_view_is_the_model_and_its_leaves_come_from_the_rows(name):
    model, X, y, w, hand = case(name)
    view = as_tree_model(model, X, y, w)
    margins = model.predict(xgb.DMatrix(X), output_margin=True).reshape(N, -1)
    assert_close(view.outputs(view.encode_X(X)).numpy(), margins, 1e-6)
    assert_close(hand.run(w)[0][-1], margins, 1e-5)
    starts = hand.run(w)[0][0][0]
    np.testing.assert_allclose(view.ensemble.start, starts, atol=1e-5)
    assert view.ensemble.start_is_fitted == (name not in ("given", "probability"))


@pytest.mark.parametrize("name", CASES)
def test_leaf_refit_is_the_loop_without_the_row(name):
    model, X, y, w, hand = case(name)
    found = LeafRefit(model).fit(X, y, sample_weight=w).transform(X[-N_TEST:], y[-N_TEST:])
    assert_close(found, hand.refits(y[-N_TEST:]), 1e-4)
    assert (found[:, w == 0] == 0).all()


@pytest.mark.parametrize("name", CASES)
def test_leaf_influence_is_the_derivative_of_the_loop(name):
    model, X, y, w, hand = case(name)
    found = LeafInfluence(model).fit(X, y, sample_weight=w).transform(X[-N_TEST:], y[-N_TEST:])
    assert_close(found, hand.slopes(y[-N_TEST:]), 1e-4)


@pytest.mark.parametrize("name", CASES)
def test_boost_in_is_its_formula(name):
    model, X, y, w, hand = case(name)
    found = (
        BoostIn(model, shrunken=False)
        .fit(X, y, sample_weight=w)
        .transform(X[-N_TEST:], y[-N_TEST:])
    )
    assert_close(found, hand.boost_in(y[-N_TEST:]), 1e-4)


@pytest.mark.parametrize("name", CASES)
def test_other_targets_are_those_of_the_loop(name):
    model, X, y, w, hand = case(name)
    rows = [5, 17, 0]
    targets = y[[8, 30, 9]] if y.ndim == 2 or CASES[name][2] in ("real", "positive") else None
    if targets is None:  # the next class, or one more
        most = {"binary": 2, "classes": 3, "count": np.inf}[CASES[name][2]]
        targets = (y[rows] + 1) % most
    test, positive = (X[-N_TEST:], y[-N_TEST:]), CASES[name][-1].get("positive", 1.0)
    expected = hand.relabels(test[1], rows, targets, positive)
    for method, wanted in (
        (LeafRefit(model), "exact"),
        (LeafInfluence(model), "derivative"),
        (BoostIn(model, shrunken=False), "boost_in"),
    ):
        found = method.fit(X, y, sample_weight=w).relabel(*test, rows=rows, targets=targets)
        assert np.abs(expected[wanted]).max() > 0
        assert_close(found, expected[wanted], 1e-4)
        assert (found[:, 2] == 0).all()  # a row without weight


# ---- options --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "params"),
    [("reg:absoluteerror", {}), ("reg:quantileerror", {"quantile_alpha": 0.3})],
)
def test_medians_have_a_view_and_no_run(objective, params):
    X, y, w = problem("real")
    model = trained(objective, params, X, y, w)
    view = as_tree_model(model, X, y, w)
    margins = model.predict(xgb.DMatrix(X), output_margin=True)
    assert_close(view.outputs(view.encode_X(X)).numpy()[:, 0], margins, 1e-6)
    with pytest.raises(TypeError, match="second derivative"):
        LeafRefit(model).fit(X, y, sample_weight=w)


def test_values_held_by_constraints_do_not_move():
    X, y, w = problem("real")
    y = np.where(np.nan_to_num(X[:, 0]) > 0.8, -1, y)
    params = {"monotone_constraints": (1, 1, 0, 0), "base_score": 0.0, "max_depth": 5}
    model = trained("reg:squarederror", params, X, y, w)
    refit = LeafRefit(model, measurement="output").fit(X, y, sample_weight=w)
    first = next(r for r in refit._members[0].run.backwards() if r.number == 0).trees[0]
    assert 0 < (first.rates == 0).sum() < len(first.rates)
    one = model[:1]
    held = (first.rates == 0)[first.leaf]
    alone = LeafRefit(one, measurement="output").fit(X, y, sample_weight=w).transform(X)
    assert (alone[held] == 0).all()
    assert (alone[~held][:, w > 0] != 0).any(1).all()
    for wrong in ({"y": y[::-1], "sample_weight": w}, {"y": y}):
        with pytest.raises(ValueError, match="must be the rows that the model was trained on"):
            LeafRefit(model).fit(X, **wrong)


def test_draws_count_by_their_part():
    X, y, w = problem("real")
    model = trained("reg:squarederror", {"subsample": 0.7}, X, y, w)
    boosting = as_tree_model(model, X, y, w).ensemble
    assert boosting.draws_rows
    assert boosting.shares == pytest.approx(0.7)
    assert np.isfinite(LeafRefit(model).fit(X, y, sample_weight=w).transform(X[:2], y[:2])).all()


def test_trees_without_a_split_add_nothing_where_rows_are_too_few():
    X, y, w = problem("classes")
    y = np.where(np.arange(N) < 4, 2, y.clip(0, 1))
    model = trained("multi:softprob", {"num_class": 3, "min_child_weight": 12}, X, y, w)
    method = LeafRefit(model).fit(X, y, sample_weight=w)
    still = [tree for tree in method.model_.ensemble.trees if tree.outputs == slice(0, 0)]
    assert 0 < len(still) < 3 * ROUNDS
    leaves = method.model_.leaves(method.model_.encode_X(X))
    again = method._members[0].run.without(np.eye(len(leaves), 1, dtype=bool), leaves)[1]
    assert_close(again, method.model_.ensemble.outputs(leaves), 1e-5)


@pytest.mark.parametrize("method", [LeafRefit, LeafInfluence, BoostIn])
def test_without_any_split_rows_move_the_first_score_alone(method):
    X, y, w = problem("real")
    rounded = trained("reg:squarederror", {"gamma": 1e9}, X, y, w)  # leaves of rounding errors
    assert LeafRefit(rounded).fit(X, y, sample_weight=w).transform(X[:2]).shape == (2, N)
    model = trained("reg:squarederror", {"min_child_weight": 1000}, X, y, w)
    found = method(model, measurement="output").fit(X, y, sample_weight=w).transform(X[:2])
    total, first = w.sum(), mean(w, y)
    moved = {
        LeafRefit: w * (first - y) / (total - w),
        LeafInfluence: w * (first - y) / total,
        BoostIn: np.zeros(N),
    }
    np.testing.assert_allclose(found, [moved[method]] * 2, atol=1e-12)


def test_early_stopping_ends_at_the_best_round():
    X, y, _ = problem("binary")
    model = xgb.XGBClassifier(n_estimators=40, early_stopping_rounds=3, max_depth=3, n_jobs=1)
    model.fit(X[:40], y[:40], eval_set=[(X[40:], y[40:])], verbose=False)
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    method = LeafRefit(model).fit(X[:40], y[:40])
    assert method.model_.ensemble.n_rounds == model.best_iteration + 1
    own = model.predict(X, output_margin=True)
    assert_close(method.model_.outputs(method.model_.encode_X(X)).numpy()[:, 0], own, 1e-6)


def test_categories_and_frames():
    X, y, w = problem("real")
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(X, columns=list("abcd"))
    frame["c"] = pd.Categorical(rng.integers(0, 12, N).astype(str))
    y = y + frame["c"].astype(int).to_numpy() % 5
    model = xgb.XGBRegressor(n_estimators=5, enable_categorical=True, n_jobs=1)
    model.fit(frame, y, sample_weight=w)
    bare = trained("reg:squarederror", {"max_depth": 6}, frame, y, w, enable_categorical=True)
    for one in (model, bare):
        method = LeafRefit(one).fit(frame, y, sample_weight=w)
        leaves = method.model_.leaves(method.model_.encode_X(frame))
        again = method._members[0].run.without(np.eye(len(leaves), 1, dtype=bool), leaves)[1]
        assert_close(again, method.model_.ensemble.outputs(leaves), 1e-5)
        with pytest.raises(ValueError, match="feature_names"):
            LeafRefit(one).fit(frame[list("badc")], y, sample_weight=w)


# ---- refusals -------------------------------------------------------------------------------


def test_other_rows_are_found_out():
    X, y, w = problem("real")
    model = trained("reg:squarederror", {}, X, y, w)
    for wrong in ({"y": y[::-1], "sample_weight": w}, {"y": y}):
        with pytest.raises(ValueError, match="must be the rows that the model was trained on"):
            LeafRefit(model).fit(X, **wrong)
    margins = trained("reg:squarederror", {}, X, y, w, base_margin=X[:, 0] * 0 + np.arange(N) / N)
    with pytest.raises(ValueError, match="base_margin"):
        LeafRefit(margins).fit(X, y, sample_weight=w)
    with pytest.raises(ValueError, match="4 features"):
        LeafRefit(model).fit(X[:, :3], y, sample_weight=w)


def test_a_saved_model_needs_its_parameters(tmp_path):
    X, y, w = problem("real")
    trained("reg:squarederror", {"lambda": 3}, X, y, w).save_model(tmp_path / "model.json")
    model = xgb.Booster(model_file=tmp_path / "model.json")
    with pytest.raises(ValueError, match=r"set_param\(\)"):
        LeafRefit(model).fit(X, y, sample_weight=w)
    model.set_param({"reg_lambda": 3, "learning_rate": ETA})
    LeafRefit(model).fit(X, y, sample_weight=w)


@pytest.mark.parametrize(
    ("objective", "params", "kind", "match"),
    [
        ("reg:logistic", {}, "binary", "reg:logistic"),
        ("reg:pseudohubererror", {}, "real", "reg:pseudohubererror"),
        ("survival:cox", {}, "positive", "survival:cox"),
        ("reg:quantileerror", {"quantile_alpha": [0.2, 0.8]}, "real", "several quantile_alpha"),
        ("reg:squarederror", {"booster": "dart"}, "real", "booster='dart'"),
        ("reg:squarederror", {"booster": "gblinear"}, "real", "booster='gblinear'"),
        ("reg:squarederror", {"num_parallel_tree": 3}, "real", "num_parallel_tree=3"),
        ("reg:squarederror", {"multi_strategy": "multi_output_tree"}, "two", "multi_output_tree"),
        ("reg:squarederror", {"scale_pos_weight": 2}, "real", "scale_pos_weight=2"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_followed_is_refused(objective, params, kind, match):
    X, y, w = problem(kind)
    with pytest.raises(TypeError, match=match):
        LeafRefit(trained(objective, params, X, y, w)).fit(X, y, sample_weight=w)
