"""CatBoost's trees: the view beside raw predictions, the leaves made again, and models in other hands."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from catboost_cases import SCORE, SMALL, TARGETS, WEIGHTS, N, X, catboost, fitted, raw
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fimoda import BoostIn, LeafInfluence, LeafRefit
from fimoda.adapters import as_tree_model

METHODS = (LeafInfluence, LeafRefit, BoostIn)


def error_of_leaves(attributor):
    """Return the largest difference of a leaf's stored value from that of its rows, by the largest value."""
    found = 0.0
    for round_ in attributor._run.backwards():
        for tree in round_.trees:
            size = np.abs(round_.steps[0].trees[0].values).max()
            found = max(found, np.abs(tree.values - tree.asked).max() / size)
    return found


# ---- the view -----------------------------------------------------------------------------------

OPTIONS = [
    {},
    {"bootstrap_type": "Bayesian", "bagging_temperature": 2},
    {"bootstrap_type": "Bernoulli", "subsample": 0.5},
    {"bootstrap_type": "MVS", "subsample": 0.5},
    {"boosting_type": "Ordered"},
    {"grow_policy": "Depthwise"},
    {"grow_policy": "Lossguide", "max_leaves": 5},
    {"score_function": "L2", "random_strength": 10, "rsm": 0.7},
    {"l2_leaf_reg": 0},
    {"boost_from_average": True},
    {"boost_from_average": False},
    {"leaf_estimation_iterations": 5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("loss", ["RMSE", "Logloss", "MultiClass"])
def test_view_and_leaves(loss, options):
    if loss == "MultiClass" and (options.get("boost_from_average") or "boosting_type" in options):
        pytest.skip("the library has no such option for this loss")
    model, y = fitted(loss, **options), TARGETS[loss]
    attributor = LeafInfluence(model).fit(X, y)
    own = attributor.model_.outputs(attributor.model_.encode_X(X)).numpy()
    np.testing.assert_allclose(own, raw(model, X), rtol=1e-10, atol=1e-10)
    assert error_of_leaves(attributor) < 1e-6


@pytest.mark.parametrize("loss", ["MAE", "Quantile:alpha=0.3"])
def test_quantiles_have_a_view_and_no_run(loss):
    model, y = fitted(loss), TARGETS[loss]
    view = as_tree_model(model, X, y)
    np.testing.assert_allclose(view.outputs(view.encode_X(X)).numpy(), raw(model, X), rtol=1e-10)
    with pytest.raises(TypeError, match="loss that has a second derivative"):
        LeafInfluence(model).fit(X, y)


@pytest.mark.parametrize(
    "options",
    [
        {"class_weights": [1, 3]},
        {"class_weights": {0: 2, 1: 1}},
        {"scale_pos_weight": 3},
        {"auto_class_weights": "Balanced"},
        {"auto_class_weights": "SqrtBalanced"},
        {"class_names": [1, 0], "class_weights": {0: 2, 1: 1}},
    ],
    ids=str,
)
def test_weights_of_classes(options):
    model, y = fitted("Logloss", WEIGHTS, **options), TARGETS["Logloss"]
    assert error_of_leaves(LeafRefit(model).fit(X, y, sample_weight=WEIGHTS)) < 1e-6


@pytest.mark.parametrize("steps", [1, 3])
def test_monotonic_constraints_hold_some_leaves(steps):
    y = TARGETS["Logloss"]
    model = fitted(
        "Logloss",
        iterations=10,
        monotone_constraints=[-1, 0, 0],
        model_shrink_rate=0,
        leaf_estimation_iterations=steps,
    )
    attributor = LeafInfluence(model).fit(X, y)
    rates = [tree.rates for round_ in attributor._run.backwards() for tree in round_.trees]
    assert any((one == 0).any() for one in rates)
    assert any((one > 0).any() for one in rates)
    refit = LeafRefit(model).fit(X, y).transform(X[:9], y[:9])
    influence = attributor.transform(X[:9], y[:9])
    assert np.corrcoef(refit.ravel(), influence.ravel())[0, 1] > 0.99


def test_early_stopping_keeps_the_best_rounds():
    y = TARGETS["RMSE"]
    model = catboost.CatBoostRegressor(
        **{**SMALL, "iterations": 60}, use_best_model=True, early_stopping_rounds=4
    )
    model.fit(X[:40], y[:40], eval_set=(X[40:], y[40:]))
    assert model.tree_count_ < 60
    attributor = LeafInfluence(model).fit(X[:40], y[:40])
    assert attributor._run.boosting.n_rounds == model.tree_count_
    assert error_of_leaves(attributor) < 1e-6


# ---- categories and missing values ---------------------------------------------------------------


@pytest.fixture
def frame():
    pandas = pytest.importorskip("pandas")
    letters = np.random.default_rng(1).choice(list("abcdefg"), N)
    found = pandas.DataFrame({"x": X[:, 0], "z": X[:, 1], "letter": pandas.Categorical(letters)})
    found.loc[::5, "x"] = np.nan
    return found, SCORE + (letters > "c")


@pytest.mark.parametrize("one_hot", [2, 20])
def test_frame_with_categories_and_missing_values(frame, one_hot):
    rows, y = frame
    model = catboost.CatBoostRegressor(
        **{**SMALL, "iterations": 12}, cat_features=["letter"], one_hot_max_size=one_hot
    ).fit(rows, y)
    view = as_tree_model(model, rows, y)
    np.testing.assert_allclose(
        view.outputs(view.encode_X(rows)).numpy(), raw(model, rows), rtol=1e-10
    )
    if one_hot == 2:
        with pytest.raises(TypeError, match="one_hot_max_size to the number of categories"):
            LeafInfluence(model).fit(rows, y)
        return
    for method in METHODS:
        attributor = method(model).fit(rows, y)
        assert error_of_leaves(attributor) < 1e-6
        assert attributor.transform(rows[:3], y[:3]).shape == (3, N)


# ---- models in other hands -----------------------------------------------------------------------


def test_labels_may_be_strings():
    y = TARGETS["MultiClass"]
    names = np.array(["low", "middle", "up"])
    by_name, by_number = fitted("MultiClass", y=names[y]), fitted("MultiClass")
    for method in METHODS:
        np.testing.assert_allclose(
            method(by_name).fit(X, names[y]).transform(X[:5], names[y[:5]]),
            method(by_number).fit(X, y).transform(X[:5], y[:5]),
        )


@pytest.mark.parametrize("loss", ["RMSE", "Logloss", "MultiClass"])
def test_bare_model_and_model_from_a_file(tmp_path, loss):
    y = TARGETS[loss]
    bare = catboost.CatBoost({**SMALL, "loss_function": loss}).fit(X, y)
    bare.save_model(str(tmp_path / "model.cbm"))
    loaded = catboost.CatBoost().load_model(str(tmp_path / "model.cbm"))
    expected = LeafInfluence(fitted(loss)).fit(X, y).transform(X[:5], y[:5])
    for model in (bare, loaded):
        np.testing.assert_allclose(LeafInfluence(model).fit(X, y).transform(X[:5], y[:5]), expected)


def test_model_in_a_pipeline_a_search_or_frozen():
    y = TARGETS["Logloss"]
    model = catboost.CatBoostClassifier(**SMALL)
    scaled = make_pipeline(StandardScaler(), model)
    search = GridSearchCV(scaled, {"catboostclassifier__depth": [1, 2]}, cv=2)
    for estimator in (scaled, search, model):
        fitted_one = clone(estimator).fit(X, y)
        for held in (fitted_one, FrozenEstimator(fitted_one)):
            assert error_of_leaves(LeafInfluence(held).fit(X, y)) < 1e-6


def test_attributor_fits_clones_and_pickles():
    y = TARGETS["Logloss"]
    attributor = LeafRefit(catboost.CatBoostClassifier(**SMALL))
    scores = attributor.fit(X, y).transform(X[:4], y[:4])
    np.testing.assert_allclose(clone(attributor).fit(X, y).transform(X[:4], y[:4]), scores)
    np.testing.assert_allclose(
        pickle.loads(pickle.dumps(attributor)).transform(X[:4], y[:4]), scores
    )


# ---- refusals ------------------------------------------------------------------------------------


def test_frozen_model_must_be_fitted():
    with pytest.raises(NotFittedError, match="not fitted"):
        LeafInfluence(FrozenEstimator(catboost.CatBoostRegressor())).fit(X, SCORE)


@pytest.mark.parametrize(
    ("loss", "params", "message"),
    [
        ("RMSE", {"langevin": True}, "langevin"),
        ("RMSE", {"posterior_sampling": True}, "langevin"),
        ("RMSE", {"model_shrink_rate": 0.1}, "model_shrink_rate"),
        ("RMSE", {"monotone_constraints": [1, 0, 0]}, "model_shrink_rate"),
        ("RMSE", {"eval_fraction": 0.3}, "eval_fraction"),
        ("Poisson", {"leaf_estimation_iterations": 3}, "leaf_estimation_backtracking='No'"),
    ],
)
def test_trainings_that_cannot_be_followed(loss, params, message):
    model, y = fitted(loss, **params), TARGETS[loss]
    view = as_tree_model(model, X, y)
    np.testing.assert_allclose(view.outputs(view.encode_X(X)).numpy(), raw(model, X), rtol=1e-10)
    with pytest.raises(TypeError, match=message):
        LeafInfluence(model).fit(X, y)


def test_scaled_model_has_a_view_only():
    model, y = fitted("RMSE"), TARGETS["RMSE"]
    model.set_scale_and_bias(2.0, 1.0)
    view = as_tree_model(model, X, y)
    np.testing.assert_allclose(view.outputs(view.encode_X(X)).numpy(), raw(model, X), rtol=1e-10)
    with pytest.raises(TypeError, match="set_scale_and_bias"):
        BoostIn(model).fit(X, y)


def test_loss_without_formulas():
    model = catboost.CatBoostRegressor(**{**SMALL, "loss_function": "Huber:delta=1"}).fit(X, SCORE)
    with pytest.raises(TypeError, match="Huber"):
        LeafInfluence(model).fit(X, SCORE)


def test_sum_of_models_knows_no_parameters():
    model = fitted("RMSE")
    with pytest.raises(ValueError, match="get_all_params"):
        LeafInfluence(catboost.sum_models([model, model])).fit(X, SCORE)


def test_other_rows_are_no_training_rows():
    with pytest.raises(ValueError, match="rows that the model was trained on"):
        LeafInfluence(fitted("RMSE")).fit(X[:40], SCORE[:40])
