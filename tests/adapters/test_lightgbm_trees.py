"""LightGBM's trees against its own predictions and a plain loop over its leaves.

LightGBM adds up in float64, of derivatives, targets and weights in float32: values are compared to 1e-5 of
the largest, scores, which are differences of them, to 1e-4.
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

lgb = pytest.importorskip("lightgbm")

ROUNDS, ETA = 6, 0.3
SMALL = {"num_leaves": 6, "min_data_in_leaf": 4, "num_threads": 1, "verbosity": -1}


def log_mean(w, y):
    return np.log(mean(w, y))


def logs(w, y):
    return np.log([mean(w, y == k) for k in range(3)])


def balance(y):
    return (y == 0).sum() / (y == 1).sum()


# name: parameters, targets, loss, first score of weights and targets, and what leaves have
CASES = {
    "squared": ({}, "real", squared, mean, {}),
    "from zero": ({"boost_from_average": False}, "real", squared, lambda w, y: 0.0, {}),
    "penalties": ({"lambda_l1": 2, "lambda_l2": 0.5}, "real", squared, mean, {"l1": 2, "l2": 0.5}),
    "step": ({"max_delta_step": 0.5}, "real", squared, mean, {"max_step": 0.5}),
    "drawn columns": ({"feature_fraction": 0.5, "extra_trees": True}, "real", squared, mean, {}),
    "logistic": ({"objective": "binary"}, "binary", logistic, lambda w, y: logit(mean(w, y)), {}),
    "positives": (
        {"objective": "binary", "scale_pos_weight": 3},
        "binary",
        logistic,
        lambda w, y: logit(mean(w, y)),
        {"positive": lambda y: 3.0},
    ),
    "balanced": (
        {"objective": "binary", "is_unbalance": True},
        "binary",
        logistic,
        lambda w, y: logit(mean(w, y)),
        {"positive": balance},
    ),
    "softmax": ({"objective": "multiclass", "num_class": 3}, "classes", multiclass(1.5), logs, {}),
    "poisson": ({"objective": "poisson"}, "count", poisson(0.7), log_mean, {}),
    "small poisson": (
        {"objective": "poisson", "poisson_max_delta_step": 0.2},
        "count",
        poisson(0.2),
        log_mean,
        {},
    ),
    "gamma": ({"objective": "gamma"}, "positive", gamma, log_mean, {}),
    "tweedie": (
        {"objective": "tweedie", "tweedie_variance_power": 1.3},
        "count",
        tweedie(1.3),
        log_mean,
        {},
    ),
}


def trained(params, X, y, w, rounds=ROUNDS, callbacks=None, **data):
    given = {"objective": "regression", "learning_rate": ETA, **SMALL, **params}
    rows = lgb.Dataset(X, y, weight=w, free_raw_data=False, **data)
    return lgb.train(given, rows, rounds, callbacks=callbacks)


def case(name):
    params, kind, loss, start, leaves = CASES[name]
    X, y, w = problem(kind)
    model = trained(params, X, y, w)
    own = model.predict(X, pred_leaf=True).reshape(N, -1)
    known = dict(leaves)
    positive = known.pop("positive", lambda y: 1.0)(y)
    factors = np.where(y == 1, positive, 1.0)
    hand = ByHand(
        *(own, own[-N_TEST:], y, w, loss, lambda w: start(w, y), ETA), factors=factors, **known
    )
    return model, X, y, w, hand


def remade(method, X):
    """Return the scores of the view, and those of the run made again on all training rows."""
    leaves = method.model_.leaves(method.model_.encode_X(X))
    return method.model_.ensemble.outputs(leaves), method._members[0].run.without(
        np.eye(len(leaves), 1, dtype=bool), leaves
    )[1]


@pytest.mark.parametrize("name", CASES)
def test_the_view_is_the_model_and_its_leaves_come_from_the_rows(name):
    model, X, y, w, hand = case(name)
    view = as_tree_model(model, X, y, w)
    margins = model.predict(X, raw_score=True).reshape(N, -1)
    assert_close(view.outputs(view.encode_X(X)).numpy(), margins, 1e-6)
    assert_close(hand.run(w)[0][-1], margins, 1e-5)
    np.testing.assert_allclose(view.ensemble.start, hand.run(w)[0][0][0], atol=1e-5)
    assert view.ensemble.start_is_fitted == (name != "from zero")


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


# ---- options --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params", [{"objective": "regression_l1"}, {"objective": "quantile", "alpha": 0.3}]
)
def test_medians_have_a_view_and_no_run(params):
    X, y, w = problem("real")
    model = trained(params, X, y, w)
    view = as_tree_model(model, X, y, w)
    found = view.outputs(view.encode_X(X)).numpy()[:, 0]
    assert_close(found, model.predict(X, raw_score=True), 1e-6)
    with pytest.raises(TypeError, match="second derivative"):
        LeafRefit(model).fit(X, y, sample_weight=w)


@pytest.mark.parametrize("method", ["basic", "intermediate", "advanced"])
def test_values_held_by_constraints_do_not_move(method):
    X, y, w = problem("real")
    y = np.where(np.nan_to_num(X[:, 0]) > 0.8, -1, y)
    params = {"monotone_constraints": (1, 1, 0, 0), "monotone_constraints_method": method}
    model = trained({**params, "num_leaves": 12, "boost_from_average": False}, X, y, w)
    refit = LeafRefit(model, measurement="output").fit(X, y, sample_weight=w)
    view, again = remade(refit, X)
    assert_close(again, view, 1e-5)
    trees = [tree for round_ in refit._members[0].run.backwards() for tree in round_.trees]
    assert 0 < sum((tree.rates == 0).sum() for tree in trees)
    assert sum((tree.rates == 0).sum() for tree in trees) < sum(len(tree.rates) for tree in trees)
    for wrong in ({"y": y[::-1], "sample_weight": w}, {"y": y}):
        with pytest.raises(ValueError, match="must be the rows that the model was trained on"):
            LeafRefit(model).fit(X, **wrong)


@pytest.mark.parametrize(
    ("params", "share"),
    [
        ({"bagging_fraction": 0.7, "bagging_freq": 1}, 0.7),
        ({"data_sample_strategy": "goss", "learning_rate": 0.9}, 1.0),
    ],
)
def test_draws_count_by_their_part(params, share):
    X, y, w = problem("real")
    model = trained(params, X, y, w)
    boosting = as_tree_model(model, X, y, w).ensemble
    assert boosting.draws_rows
    assert boosting.shares == share
    assert np.isfinite(LeafRefit(model).fit(X, y, sample_weight=w).transform(X[:2], y[:2])).all()


def test_a_tree_of_one_leaf_adds_nothing_whatever_its_rows():
    X, y, w = problem("classes")
    y = np.where(np.arange(N) < 4, 2, y.clip(0, 1))
    params = {"objective": "multiclass", "num_class": 3, "min_sum_hessian_in_leaf": 5}
    for given in (params, {**params, "boost_from_average": False}):
        model = trained(given, X, y, w)
        method = LeafRefit(model).fit(X, y, sample_weight=w)
        sizes = {tree.n_leaves for tree in method.model_.ensemble.trees}
        assert 1 in sizes
        assert len(sizes) > 1
        view, again = remade(method, X)
        assert_close(again, view, 1e-5)
        assert_close(view.T, model.predict(X, raw_score=True), 1e-6)


@pytest.mark.filterwarnings("ignore:The argument 'eval_set'")
def test_early_stopping_ends_at_the_best_round():
    X, y, _ = problem("binary")
    model = lgb.LGBMClassifier(n_estimators=40, early_stopping_rounds=3, **SMALL)
    model.fit(X[:40], y[:40], eval_set=[(X[40:], y[40:])])
    for one in (model, model.booster_):
        method = LeafRefit(one).fit(X[:40], y[:40])
        assert method.model_.ensemble.n_rounds == model.best_iteration_ < 40
        own = model.predict(X, raw_score=True)
        assert_close(method.model_.outputs(method.model_.encode_X(X)).numpy()[:, 0], own, 1e-6)


@pytest.mark.parametrize("n_categories", [2, 3, 7])
def test_splits_by_many_categories_have_a_penalty_of_their_own(n_categories):
    X, y, w = problem("real")
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(X, columns=list("abcd"))
    frame["c"] = pd.Categorical(rng.integers(0, n_categories, N).astype(str))
    y = y + 3 * (frame["c"].astype(int).to_numpy() % 5)
    few = {"min_data_per_group": 3, "cat_smooth": 1}
    model = lgb.LGBMRegressor(n_estimators=5, **SMALL, **few).fit(frame, y, sample_weight=w)
    for one in (model, trained(few, frame, y, w)):
        method = LeafRefit(one).fit(frame, y, sample_weight=w)
        view, again = remade(method, frame)
        assert_close(again, view, 1e-5)
        has_penalty = any(np.any(tree.l2) for tree in method.model_.ensemble.trees)
        assert has_penalty == (n_categories == 7)
        with pytest.raises(ValueError, match="Expected 'a' at position 0"):
            LeafRefit(one).fit(frame[list("badc")], y, sample_weight=w)


def test_labels_and_their_weights():
    X, y, w = problem("classes")
    labels = np.array(["low", "mid", "top"])[y.astype(int)]
    for weights in ("balanced", {"low": 2.0, "top": 0.5}):
        model = lgb.LGBMClassifier(n_estimators=4, class_weight=weights, **SMALL)
        method = LeafRefit(model.fit(X, labels, sample_weight=w)).fit(X, labels, sample_weight=w)
        assert list(method.model_.classes) == ["low", "mid", "top"]
        view, again = remade(method, X)
        assert_close(again, view, 1e-5)
        held = any("balanced class weights" in caveat for caveat in method._caveats())
        assert held == (weights == "balanced")


# ---- refusals -------------------------------------------------------------------------------


def test_other_rows_are_found_out():
    X, y, w = problem("real")
    model = trained({}, X, y, w)
    for wrong in ({"y": y[::-1], "sample_weight": w}, {"y": y}):
        with pytest.raises(ValueError, match="must be the rows that the model was trained on"):
            LeafRefit(model).fit(X, **wrong)
    with pytest.raises(ValueError, match="init_score"):
        LeafRefit(trained({}, X, y, w, init_score=np.arange(N) / N)).fit(X, y, sample_weight=w)
    with pytest.raises(ValueError, match="features"):
        LeafRefit(model).fit(X[:, :3], y, sample_weight=w)


def test_a_saved_model_has_its_parameters():
    X, y, w = problem("real")
    model = trained({"lambda_l2": 3}, X, y, w)
    text = model.model_to_string()
    expected = LeafRefit(model).fit(X, y, sample_weight=w).transform(X[:2], y[:2])
    loaded = LeafRefit(lgb.Booster(model_str=text)).fit(X, y, sample_weight=w)
    np.testing.assert_array_equal(loaded.transform(X[:2], y[:2]), expected)
    strategy = "[data_sample_strategy: bagging]\n"
    assert strategy in text
    of_version_3 = lgb.Booster(model_str=text.replace(strategy, ""))
    older = LeafRefit(of_version_3).fit(X, y, sample_weight=w)
    np.testing.assert_array_equal(older.transform(X[:2], y[:2]), expected)
    bare = lgb.Booster(model_str=text[: text.index("\nparameters:")] + "\n")
    with pytest.raises(ValueError, match="must hold the parameters of its training"):
        LeafRefit(bare).fit(X, y, sample_weight=w)


def test_learning_rates_by_round():
    X, y, w = problem("real")

    def schedule():
        return [lgb.reset_parameter(learning_rate=[0.5, 0.4, 0.3, 0.2, 0.1, 0.05])]

    zero = trained({"boost_from_average": False}, X, y, w, callbacks=schedule())
    view, again = remade(LeafRefit(zero).fit(X, y, sample_weight=w), X)
    assert_close(again, view, 1e-5)
    with pytest.raises(ValueError, match="learning rate of its first round"):
        LeafRefit(trained({}, X, y, w, callbacks=schedule())).fit(X, y, sample_weight=w)


@pytest.mark.parametrize(
    ("params", "kind", "match"),
    [
        ({"objective": "huber"}, "real", "objective='huber'"),
        ({"objective": "fair"}, "real", "objective='fair'"),
        ({"objective": "mape"}, "positive", "objective='mape'"),
        ({"objective": "cross_entropy"}, "binary", "objective='cross_entropy'"),
        ({"objective": "multiclassova", "num_class": 3}, "classes", "multiclassova"),
        ({"objective": lambda f, rows: (f, f * 0 + 1)}, "real", "objective='custom'"),
        ({"boosting": "dart"}, "real", "boosting='dart'"),
        ({"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5}, "real", "boosting='rf'"),
        ({"linear_tree": True}, "real", "linear_tree=1"),
        ({"path_smooth": 2.0}, "real", "path_smooth=2"),
        ({"use_quantized_grad": True}, "real", "use_quantized_grad=1"),
        ({"reg_sqrt": True}, "real", "reg_sqrt=1"),
        ({"objective": "binary", "sigmoid": 2.0}, "binary", "sigmoid=2"),
        (
            {"objective": "binary", "bagging_freq": 1, "pos_bagging_fraction": 0.5},
            "binary",
            "pos_bagging_fraction=0.5",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused(params, kind, match):
    X, y, w = problem(kind)
    with pytest.raises(TypeError, match=match):
        LeafRefit(trained(params, X, y, w)).fit(X, y, sample_weight=w)


def many(n=700):
    """Return rows with ties, missing values and numbers that LightGBM takes for zero, and two classes."""
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.standard_normal((n, 3)), rng.integers(-2, 3, (n, 3)) / 2])
    X[rng.random(X.shape) < 0.1] = 0
    y = (np.nan_to_num(X) @ [1, -1, 1, 1, -1, 1] + rng.standard_normal(n) > 0).astype(int)
    X[:, 1:5][rng.random((n, 4)) < 0.1] = np.nan
    return X, y


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"num_leaves": 2},
        {"num_leaves": 64, "min_data_in_leaf": 1, "min_sum_hessian_in_leaf": 0},
        {"num_leaves": 100, "min_data_in_leaf": 1, "min_sum_hessian_in_leaf": 0},
        {"use_missing": False},
        {"zero_as_missing": True},
        {"objective": "multiclass", "num_class": 3},
        {"extra_trees": True},
        {"min_gain_to_split": 20},
    ],
)
def test_leaves_are_those_of_the_library(params, dtype):
    X, y = many()
    X = X.astype(dtype)
    given = {**SMALL, "objective": "binary", "num_leaves": 20, "max_bin": 63, **params}
    model = lgb.train(given, lgb.Dataset(X, y), 30)
    ensemble = as_tree_model(model, X, y).ensemble
    splits = [float(one) for tree in model.dump_model()["tree_info"] for one in thresholds(tree)]
    rows = np.random.default_rng(1).choice(splits, X.shape)
    tiny = np.float64(np.float32(1e-35))
    edges = np.array([0, tiny, -tiny, tiny / 2, -2 * tiny, np.nan, np.inf, -np.inf])
    rows[:100] = np.random.default_rng(2).choice(edges, (100, X.shape[1]))
    with np.errstate(over="ignore"):
        single = rows.astype(dtype)
    for seen in (X, single, np.asfortranarray(rows), rows[:20], pd.DataFrame(rows)):
        np.testing.assert_array_equal(ensemble.leaves_of(seen), model.predict(seen, pred_leaf=True))
    own = ensemble.leaves_of.args[1].args[1]
    assert (own is None) == (params.get("num_leaves") == 100 or "zero_as_missing" in params)


def thresholds(node):
    """Return the thresholds below a node of LightGBM's own dictionary, -1 if there are none."""
    node = node.get("tree_structure", node)
    if "threshold" not in node:
        return [-1.0]
    return [node["threshold"], *thresholds(node["left_child"]), *thresholds(node["right_child"])]


def test_leaves_by_categories_are_those_of_the_library():
    X, y = many()
    X[:, 5] = np.random.default_rng(0).integers(0, 9, len(X))
    y = (y + X[:, 5]) % 3 > 1
    model = lgb.train(
        {**SMALL, "objective": "binary"}, lgb.Dataset(X, y, categorical_feature=[5]), 10
    )
    ensemble = as_tree_model(model, X, y.astype(int)).ensemble
    np.testing.assert_array_equal(ensemble.leaves_of(X), model.predict(X, pred_leaf=True))


def test_many_rows_with_other_columns_are_refused_as_few_are():
    X, y = many()
    model = lgb.train({**SMALL, "objective": "binary"}, lgb.Dataset(X, y), 5)
    ensemble = as_tree_model(model, X, y).ensemble
    for rows in (X, X[:20]):
        with pytest.raises(ValueError, match="X must be rows like those"):
            ensemble.leaves_of(rows[:, 1:])
