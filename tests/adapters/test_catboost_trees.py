"""CatBoost's trees: the view beside raw predictions, the leaves made again, and three methods on them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fimoda import BoostIn, LeafInfluence, LeafRefit
from fimoda.adapters import as_tree_model

catboost = pytest.importorskip("catboost")

QUIET = {"allow_writing_files": False, "thread_count": 1, "verbose": 0, "random_seed": 0}
SMALL = {**QUIET, "iterations": 4, "depth": 2, "learning_rate": 0.4}
METHODS = (LeafInfluence, LeafRefit, BoostIn)

rng = np.random.default_rng(0)
N = 60
X = rng.normal(size=(N, 3))
SCORE = X[:, 0] - X[:, 1] * X[:, 2] + 0.5 * rng.normal(size=N)
WEIGHTS = rng.uniform(0.3, 2, N)
TARGETS = {
    "RMSE": SCORE,
    "Logloss": (SCORE > 0).astype(int),
    "MultiClass": np.digitize(SCORE, [-0.7, 0.7]),
    "Poisson": rng.poisson(np.exp(0.5 * SCORE)).astype(float),
    "Tweedie:variance_power=1.5": np.maximum(SCORE, 0),
    "MAE": SCORE,
    "Quantile:alpha=0.3": SCORE,
}
SMOOTH = tuple(TARGETS)[:5]


def fitted(loss, weights=None, y=None, **params):
    kind = catboost.CatBoostClassifier if _is_class(loss) else catboost.CatBoostRegressor
    model = kind(**{**SMALL, "loss_function": loss, **params})
    return model.fit(X, TARGETS[loss] if y is None else y, sample_weight=weights)


def _is_class(loss):
    return loss in ("Logloss", "MultiClass")


def raw(model, rows):
    found = np.asarray(model.predict(rows, prediction_type="RawFormulaVal"))
    return found.reshape(len(rows), -1)


def error_of_leaves(attributor):
    """Return the largest difference of a leaf's stored value from that of its rows, by the largest value."""
    found = 0.0
    for round_ in attributor._run.backwards():
        for tree in round_.trees:
            size = np.abs(round_.steps[0].trees[0].values).max()
            found = max(found, np.abs(tree.values - tree.asked).max() / size)
    return found


# ---- a plain loop over rounds, steps and leaves ------------------------------------------------


def derivatives(loss, method, scores, y):
    """Return g (n, C) and h (n, C, C) of rows."""
    first = scores[:, 0]
    if loss == "MultiClass":
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        each = np.eye(p.shape[1])
        g, h = p - each[y], p[:, :, None] * (each - p[:, None, :])
        return g, np.broadcast_to(each, h.shape) if method == "Gradient" else h
    if loss == "RMSE":
        g, h = first - y, np.ones(len(y))
    elif loss == "Logloss":
        p = 1 / (1 + np.exp(-first))
        g, h = p - y, p * (1 - p)
    elif loss == "Poisson":
        g, h = np.exp(first) - y, np.exp(first)
    else:
        a, b = np.exp(0.5 * first), y * np.exp(-0.5 * first)
        g, h = a - b, 0.5 * a + 0.5 * b
    return g[:, None], (np.ones(len(y)) if method == "Gradient" else h)[:, None, None]


class Loop:
    """The training of a model made again with its splits, from weights; the penalty's scale is held."""

    def __init__(self, model, loss, y, weights):
        self.params = model.get_all_params()
        self.loss, self.y, self.penalty = loss, y, self.params["l2_leaf_reg"] * weights.mean()
        self.leaves, self.model = model.calc_leaf_indexes(X), model
        self.eta = self.params["learning_rate"]

    def start(self, weights):
        if self.params["boost_from_average"]:
            mean = np.average(self.y, weights=weights)
            return np.array([np.log(mean / (1 - mean)) if self.loss == "Logloss" else mean])
        return np.atleast_1d(self.model.get_scale_and_bias()[1])

    def values(self, t, scores, weights):
        """Return the values of the leaves of a round from the scores before it."""
        leaf, C = self.leaves[:, t], scores.shape[1]
        total, scores = np.zeros((leaf.max() + 1, C)), scores.copy()
        for _ in range(self.params["leaf_estimation_iterations"]):
            g, h = derivatives(self.loss, self.params["leaf_estimation_method"], scores, self.y)
            for number in np.unique(leaf):
                own = leaf == number
                H = (weights[own, None, None] * h[own]).sum(0) + self.penalty * np.eye(C)
                step = -np.linalg.solve(H, (weights[own, None] * g[own]).sum(0))
                scores[own] += step
                total[number] += step
        return self.eta * total

    def scores(self, weights):
        """Return the scores before each round, and after the last."""
        found = [np.tile(self.start(weights), (len(X), 1))]
        for t in range(self.leaves.shape[1]):
            found.append(found[-1] + self.values(t, found[-1], weights)[self.leaves[:, t]])
        return found


def measured(loss, scores, y):
    """Return the loss of rows from raw scores, as "loss" has it."""
    first = scores[:, 0]
    if loss == "MultiClass":
        return np.log(np.exp(scores).sum(1)) - scores[np.arange(len(y)), y]
    if loss == "RMSE":
        return (first - y) ** 2
    if loss == "Logloss":
        return np.log1p(np.exp(first)) - y * first
    if loss == "Poisson":
        return np.exp(first) - y * first
    return 2 * np.exp(0.5 * first) + 2 * y * np.exp(-0.5 * first)


def without(weights, i, by=1.0):
    found = weights.copy()
    found[i] -= by * weights[i]
    return found


WAYS = [
    (loss, method, steps)
    for loss in SMOOTH
    for method in ("Newton", "Gradient")
    for steps in (1, 3)
]


@pytest.fixture(params=WAYS, ids=lambda way: "-".join(map(str, way)))
def trained(request):
    loss, method, steps = request.param
    model = fitted(
        loss,
        WEIGHTS,
        leaf_estimation_method=method,
        leaf_estimation_iterations=steps,
        leaf_estimation_backtracking="No",
    )
    return model, loss, Loop(model, loss, TARGETS[loss], WEIGHTS)


def test_scores_of_the_plain_loop_are_the_raw_predictions(trained):
    model, _, loop = trained
    # The library keeps targets and weights in float32.
    np.testing.assert_allclose(loop.scores(WEIGHTS)[-1], raw(model, X), rtol=1e-6, atol=1e-6)


def test_leaf_refit_is_the_plain_loop_without_the_row(trained):
    model, loss, loop = trained
    y, rows = TARGETS[loss], np.arange(0, N, 7)
    found = LeafRefit(model).fit(X, y, sample_weight=WEIGHTS).transform(X[:8], y[:8])[:, rows]
    before = measured(loss, loop.scores(WEIGHTS)[-1][:8], y[:8])
    after = [measured(loss, loop.scores(without(WEIGHTS, i))[-1][:8], y[:8]) for i in rows]
    expected = (np.stack(after) - before).T
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_leaf_influence_is_the_slope_of_the_plain_loop(trained):
    model, loss, loop = trained
    y, rows, step = TARGETS[loss], np.arange(0, N, 7), 1e-4
    found = LeafInfluence(model).fit(X, y, sample_weight=WEIGHTS).transform(X[:8], y[:8])[:, rows]
    ends = [
        [measured(loss, loop.scores(without(WEIGHTS, i, by))[-1][:8], y[:8]) for i in rows]
        for by in (step, -step)
    ]
    expected = np.subtract(*ends).T / (2 * step)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=3e-6 * np.abs(expected).max())


def test_boost_in_is_the_slope_of_each_round_on_its_own(trained):
    model, loss, loop = trained
    y, rows, step = TARGETS[loss], np.arange(0, N, 7), 1e-4
    found = BoostIn(model).fit(X, y, sample_weight=WEIGHTS).transform(X[:8], y[:8])[:, rows]
    expected, before = np.zeros((8, len(rows))), loop.scores(WEIGHTS)
    for t in range(loop.leaves.shape[1]):
        for column, i in enumerate(rows):
            low, high = (
                loop.values(t, before[t], without(WEIGHTS, i, by))[loop.leaves[:8, t]]
                for by in (-step, step)
            )
            ends = [measured(loss, before[t][:8] + by * (high - low), y[:8]) for by in (0.5, -0.5)]
            expected[:, column] += (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


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
