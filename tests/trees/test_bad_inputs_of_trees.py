"""The page of bad inputs of tree models: each is refused in a sentence, or gives the right numbers."""

from __future__ import annotations

import importlib.util

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.ensemble import (
    BaggingClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from fimoda import TREX, LeafInfluence, LeafKernel
from fimoda.adapters import as_tree_model
from fimoda.rows import RawRows

lgb = pytest.importorskip("lightgbm")
xgb = pytest.importorskip("xgboost")

rng = np.random.default_rng(0)
N = 60
X = rng.normal(size=(N, 4))
Y = (X[:, 0] + X[:, 1] ** 2 > 0.7).astype(int)
NAMES = np.where(Y, "yes", "no")
NUMBERS = X[:, 0] + 0.1 * rng.normal(size=N)
FRAME = pd.DataFrame(X, columns=list("abcd"))

MODELS = {
    "histogram": HistGradientBoostingClassifier(
        max_iter=3, min_samples_leaf=5, early_stopping=False
    ),
    "exact": GradientBoostingClassifier(n_estimators=3, random_state=0),
    "xgboost": xgb.XGBClassifier(n_estimators=3, n_jobs=1),
    "lightgbm": lgb.LGBMClassifier(n_estimators=3, min_child_samples=5, verbose=-1, n_jobs=1),
    "forest": RandomForestClassifier(5, random_state=0),
    "tree": DecisionTreeClassifier(max_depth=2, random_state=0),
    "bag": BaggingClassifier(DecisionTreeClassifier(), n_estimators=5, random_state=0),
}
FORESTS = {"forest", "tree", "bag"}

if importlib.util.find_spec("catboost"):
    catboost = importlib.import_module("catboost")
    MODELS["catboost"] = catboost.CatBoostClassifier(
        iterations=3, verbose=False, allow_writing_files=False, thread_count=1
    )

each_model = pytest.mark.parametrize("name", MODELS)


def made(name, estimator=None):
    """The method for a model, which is fitted by default."""
    if name not in MODELS:
        pytest.skip(f"{name} is not there")
    estimator = clone(MODELS[name]).fit(X, Y) if estimator is None else estimator
    return (LeafKernel if name in FORESTS else LeafInfluence)(estimator)


def trained(name, *rows, **weights):
    if name not in MODELS:
        pytest.skip(f"{name} is not there")
    return clone(MODELS[name]).fit(*rows, **weights)


# ---- columns ---------------------------------------------------------------------------------


@each_model
def test_other_numbers_of_columns(name):
    method = made(name)
    with pytest.raises(ValueError, match=r"(?i)(X has 3 features|expected: 4, got 3|Feature 3 is)"):
        clone(method).fit(X[:, :3], Y)
    method.fit(X, Y)
    with pytest.raises(ValueError, match=r"X has 3 features, but Leaf\w+ is expecting 4"):
        method.transform(X[:, :3], Y)
    with pytest.raises(ValueError, match=r"X must be rows of 4 features, got one vector"):
        method.transform(X[0], Y[:1])


@each_model
def test_other_names_of_columns(name):
    method = made(name, trained(name, FRAME, Y))
    with pytest.raises(ValueError, match=r"(?i)(feature.names|Expected 'a'|feature with name a)"):
        clone(method).fit(FRAME.rename(columns={"a": "z"}), Y)
    method.fit(FRAME, Y)
    with pytest.raises(ValueError, match="feature names should match"):
        method.transform(FRAME[list("bacd")], Y)


def test_unseen_categories():
    """A library that takes them gives them a leaf, by which rows are scored; an encoder may refuse."""
    town = pd.Categorical(rng.choice(["Bern", "Chur"], N))
    frame, new = FRAME.assign(town=town), FRAME.assign(town=pd.Categorical(["Rome"] * N))
    for name in ("histogram", "lightgbm"):
        fitted = trained(name, frame, Y)
        method = made(name, fitted).fit(frame, Y)
        raw = method.model_.outputs(RawRows(new[:5])).numpy()[:, 0]
        assert_allclose(1 / (1 + np.exp(-raw)), fitted.predict_proba(new[:5])[:, 1], rtol=1e-5)
        assert np.isfinite(method.transform(new[:5], Y[:5])).all()
    model = xgb.XGBClassifier(n_estimators=3, n_jobs=1, enable_categorical=True).fit(frame, Y)
    with pytest.raises(
        ValueError, match=r"X must be rows like those .*Found a category not in the"
    ):
        LeafInfluence(model).fit(frame, Y).transform(new, Y)
    encode = make_column_transformer((OneHotEncoder(), ["town"]), remainder="passthrough")
    method = LeafInfluence(make_pipeline(encode, MODELS["histogram"]).fit(frame, Y)).fit(frame, Y)
    with pytest.raises(ValueError, match=r"unknown categories \['Rome'\]"):
        method.transform(new, Y)


# ---- rows ------------------------------------------------------------------------------------


@each_model
def test_few_rows(name):
    with pytest.raises(ValueError, match="X must have at least 2 rows to leave one out"):
        made(name).fit(X[:1], Y[:1])
    with pytest.raises(ValueError, match=r"X must have at least one row|0 sample"):
        made(name).fit(X, Y).transform(X[:0], Y[:0])
    two = made(name, trained(name, X[:2], [0, 1])).fit(X[:2], [0, 1])
    assert np.isfinite(two.transform(X[:2], [0, 1])).all()


@each_model
def test_rows_of_which_some_are_missing(name):
    with pytest.raises(ValueError, match=r"must (be|have) .*rows"):
        made(name).fit(X[: N // 2], Y[: N // 2])


def test_rows_that_the_values_of_leaves_do_not_tell():
    """Pure leaves have the same values with half of their rows: the trees know how many there were."""
    pure = np.repeat(np.arange(2.0), 30)[:, None]
    y = (pure[:, 0] > 0).astype(int)
    for name in ("histogram", "exact", "lightgbm"):
        model = trained(name, pure, y)
        with pytest.raises(ValueError, match=r"its first tree was grown from 60 of them.* 30 can"):
            LeafInfluence(model).fit(pure[::2], y[::2])
        with pytest.raises(ValueError, match=r"its first tree was grown from 60"):
            TREX(model).fit(pure[::2], y[::2])
    tree = trained("tree", pure, y)
    with pytest.raises(ValueError, match="its leaves would hold others"):
        LeafKernel(tree).fit(pure[::2], y[::2])


@pytest.mark.parametrize("kind", ["XGBClassifier", "XGBRegressor"])
def test_pure_leaves_without_a_penalty(kind):
    """XGBoost tells no number of rows, but the sum of their second derivatives."""
    xgb = pytest.importorskip("xgboost")
    pure = np.repeat(np.arange(2.0), 30)[:, None]
    y = (pure[:, 0] > 0).astype(int)
    settings = {"n_estimators": 3, "reg_lambda": 0, "min_child_weight": 0, "n_jobs": 1}
    model = getattr(xgb, kind)(**settings).fit(pure, y)
    LeafInfluence(model).fit(pure, y)
    size = 60 if kind == "XGBRegressor" else 15
    with pytest.raises(
        ValueError, match=rf"had the sum {size} in its first tree, and have {size / 2:g}"
    ):
        LeafInfluence(model).fit(pure[::2], y[::2])


@pytest.mark.parametrize("kind", [RandomForestClassifier, RandomForestRegressor])
def test_forgotten_weights_of_a_forest(kind):
    X, y = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 2
    weights = np.linspace(0.5, 2, 30)
    model = kind(n_estimators=4, random_state=0).fit(X, y, sample_weight=weights)
    for method in (TREX, LeafKernel):
        method(model).fit(X, y, sample_weight=weights)
        with pytest.raises(
            ValueError, match="row 29 had the weight 2, with that of its class, and has 1"
        ):
            method(model).fit(X, y)
    plain = kind(n_estimators=4, random_state=0).fit(X, y)
    TREX(plain).fit(X, y)
    with pytest.raises(ValueError, match="sample_weight must be those"):
        TREX(plain).fit(X, y, sample_weight=weights)


def test_a_row_of_a_frame_as_a_series():
    frame = pd.DataFrame({"a": np.arange(20.0), "b": np.arange(20.0) % 3})
    y = np.arange(20.0)
    model = RandomForestRegressor(n_estimators=3, random_state=0).fit(frame, y)
    made = TREX(model).fit(frame, y)
    with pytest.raises(ValueError, match=r"one row of it as a Series.*iloc\[\[i\]\]"):
        made.transform(frame.iloc[0], y[:1])
    assert made.transform(frame.iloc[[0]], y[:1]).shape == (1, 20)


@pytest.mark.parametrize("name", ["forest", "bag"])
def test_a_forest_has_its_rows_in_order(name):
    for order in (np.arange(N)[::-1], np.r_[np.flatnonzero(Y), np.flatnonzero(Y == 0)]):
        with pytest.raises(ValueError, match=r"in the order of its fit.* leaves would"):
            made(name).fit(X[order], Y[order])


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("forest", "bag")])
def test_other_models_take_their_rows_in_any_order(name):
    order = rng.permutation(N)
    method = made(name)
    found = clone(method).fit(X[order], Y[order]).transform(X[:4], Y[:4])
    expected = clone(method).fit(X, Y).transform(X[:4], Y[:4])
    assert_allclose(found, expected[:, order], atol=1e-8)


@pytest.mark.parametrize("name", ["exact", "xgboost", "lightgbm", "forest", "tree"])
def test_sparse_rows(name):
    some = np.where(np.abs(X) > 0.5, X, 0)
    model = trained(name, sparse.csr_array(some), Y)
    found = (
        made(name, model)
        .fit(sparse.csr_array(some), Y)
        .transform(sparse.csr_array(some[:4]), Y[:4])
    )
    if name == "xgboost":  # for which zeros of a sparse matrix are missing
        some = np.where(some == 0, np.nan, some)
    assert_allclose(found, made(name, model).fit(some, Y).transform(some[:4], Y[:4]), atol=1e-9)


def test_sparse_rows_that_are_not_taken():
    with pytest.raises(TypeError, match="Sparse data was passed for X, but dense data is required"):
        made("histogram").fit(sparse.csr_array(X), Y)
    with pytest.raises(
        ValueError, match=r"X must be rows like those that CatBoost.* Invalid data type"
    ):
        made("catboost").fit(sparse.csr_array(X), Y)


def test_infinite_rows_of_xgboost_without_a_stack_of_calls():
    with pytest.raises(ValueError, match=r"X must be rows like those.*contains `inf`") as caught:
        made("xgboost").fit(np.where(X > 2, np.inf, X), Y)
    assert "libxgboost" not in str(caught.value)


@pytest.mark.parametrize("name", ["exact", "histogram", "forest", "bag"])
def test_rows_in_lists(name):
    method = made(name)
    found = clone(method).fit(X.tolist(), Y.tolist()).transform(X[:2].tolist(), Y[:2].tolist())
    assert_array_equal(found, clone(method).fit(X, Y).transform(X[:2], Y[:2]))
    view = as_tree_model(method.estimator, X.tolist(), Y)
    assert view.outputs(RawRows(X.tolist())).shape[0] == N


@pytest.mark.filterwarnings("error")
def test_frames_of_exact_trees_bring_no_warnings():
    made("exact", trained("exact", FRAME, Y)).fit(FRAME, Y).transform(FRAME[:2], Y[:2])


@each_model
def test_one_leaf_only(name):
    if name == "catboost":
        pytest.skip("CatBoost does not fit rows without any difference")
    rows = np.zeros((N, 2))
    scores = made(name, trained(name, rows, Y)).fit(rows, Y).transform(rows[:2], Y[:2])
    assert np.isfinite(scores).all()
    same = Y == Y[0]
    if name not in ("forest", "bag"):  # whose rows differ by how often they were drawn
        assert_allclose(scores[0, same], scores[0, same][0])


# ---- targets and weights ---------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in MODELS if name != "xgboost"])
def test_labels_that_are_strings(name):
    named = made(name, trained(name, X, NAMES)).fit(X, NAMES).transform(X[:4], NAMES[:4])
    assert_allclose(named, made(name).fit(X, Y).transform(X[:4], Y[:4]), atol=1e-12)
    other = np.where(np.arange(N) == 3, "maybe", NAMES)
    with pytest.raises(
        ValueError, match=r"labels that the model was not trained on: 'maybe'\. Its"
    ):
        made(name, trained(name, X, NAMES)).fit(X, other)


@each_model
def test_labels_of_another_kind(name):
    with pytest.raises(ValueError, match=r"not trained on: 'no', 'yes'\. Its classes are 0, 1"):
        made(name).fit(X, NAMES)
    with pytest.raises(ValueError, match="not trained on: 7"):
        made(name).fit(X, Y).transform(X[:2], [0, 7])


@each_model
@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_targets_that_are_no_numbers(name, value, word):
    bad = Y.astype(float)
    bad[3] = value
    with pytest.raises(ValueError, match=f"Input y contains {word}"):
        made(name).fit(X, bad)
    with pytest.raises(ValueError, match=f"Input y contains {word}"):
        made(name).fit(X, Y).transform(X, bad)


@each_model
def test_wrong_targets(name):
    with pytest.raises(
        ValueError, match=r"X, y and sample_weight must be the rows .* would differ by"
    ):
        made(name).fit(X, np.where(np.arange(N) == 7, 1 - Y, Y))


@each_model
def test_weights(name):
    if name == "bag":
        pytest.skip("bags are drawn by weights")
    weights = np.ones(N)
    weights[:5] = 0
    model = trained(name, X, Y, sample_weight=weights)
    scores = made(name, model).fit(X, Y, sample_weight=weights).transform(X, Y)
    assert_array_equal(scores[:, :5], 0)
    assert (scores[:, 5:] != 0).any()
    with pytest.raises(ValueError, match=r"at least one non-zero|zero"):
        made(name).fit(X, Y, sample_weight=np.zeros(N))
    with pytest.raises(ValueError, match="Negative values"):
        made(name).fit(X, Y, sample_weight=-np.ones(N))


@pytest.mark.parametrize("name", ["forest", "tree"])
def test_several_labels_a_row(name):
    both = np.stack([Y, 1 - Y], 1)
    with pytest.raises(TypeError, match=r"must be a classifier of one label a row, got 2 labels"):
        made(name, trained(name, X, both)).fit(X, both)
    with pytest.raises(TypeError, match="of several labels, which is not supported"):
        made("xgboost", trained("xgboost", X, both)).fit(X, both)


# ---- the model -------------------------------------------------------------------------------


@each_model
def test_an_unfitted_model_is_cloned_and_fitted(name):
    model = clone(MODELS[name])
    method = made(name, model).fit(X, Y)
    assert method.estimator is model
    assert method.estimator_ is not model
    found = method.transform(X[:4], Y[:4])
    assert_allclose(found, made(name).fit(X, Y).transform(X[:4], Y[:4]), atol=1e-12)


@each_model
def test_a_criterion_is_refused(name):
    method = made(name).set_params(criterion=nn.MSELoss())
    with pytest.raises(
        ValueError, match=r"criterion is for a bare torch.nn.Module; \w+ has its own"
    ):
        method.fit(X, Y)


def test_models_that_are_none():
    with pytest.raises(TypeError, match=r"got the class HistGradientBoostingClassifier\. Pass a"):
        LeafInfluence(HistGradientBoostingClassifier).fit(X, Y)
    with pytest.raises(TypeError, match=r"estimator must be fitted trees: .* got StandardScaler"):
        LeafInfluence(StandardScaler().fit(X)).fit(X, Y)
    with pytest.raises(TypeError, match=r"must be boosted trees .* Use LeafKernel, TREX or"):
        LeafInfluence(trained("forest", X, Y)).fit(X, Y)
    with pytest.raises(
        TypeError, match=r"must be a forest, .* Use LeafRefit, LeafInfluence or TREX"
    ):
        LeafKernel(trained("exact", X, Y)).fit(X, Y)
    search = GridSearchCV(MODELS["exact"], {"max_depth": [1, 2]}, cv=2, refit=False).fit(X, Y)
    with pytest.raises(NotFittedError, match="refit=False, which kept no fitted model"):
        LeafInfluence(search).fit(X, Y)


def test_boosters_without_their_parameters(tmp_path):
    booster = (
        lgb.LGBMRegressor(n_estimators=3, min_child_samples=5, verbose=-1).fit(X, NUMBERS).booster_
    )
    bare = lgb.Booster(model_str=booster.model_to_string().split("parameters:")[0])
    with pytest.raises(ValueError, match=r"must hold the parameters of its training, .* pickle it"):
        LeafInfluence(bare).fit(X, NUMBERS)
    model = xgb.XGBRegressor(n_estimators=3, reg_lambda=4, n_jobs=1).fit(X, NUMBERS)
    model.save_model(tmp_path / "model.json")
    again = xgb.XGBRegressor()
    again.load_model(tmp_path / "model.json")
    with pytest.raises(ValueError, match=r"save_model\(\) forgets .* or pickle the model"):
        LeafInfluence(again).fit(X, NUMBERS)


def test_early_stopping_that_dropped_rows():
    """Rows that were held out have the score 0, if it is known which they were."""
    stops = {"n_iter_no_change": 3, "validation_fraction": 0.3}
    model = HistGradientBoostingRegressor(
        max_iter=9, early_stopping=True, min_samples_leaf=5, random_state=0, **stops
    )
    scores = LeafInfluence(model.fit(X, NUMBERS)).fit(X, NUMBERS).transform(X, NUMBERS)
    assert (scores == 0).all(0).sum() == 18
    exact = GradientBoostingRegressor(n_estimators=9, **stops)
    with pytest.raises(
        ValueError, match=r"must have a whole number as its random_state .* got random"
    ):
        LeafInfluence(exact.fit(X, NUMBERS)).fit(X, NUMBERS)
    apart = lgb.LGBMRegressor(n_estimators=9, min_child_samples=5, verbose=-1, n_jobs=1)
    apart.fit(X[:40], NUMBERS[:40], eval_set=[(X[40:], NUMBERS[40:])])
    with pytest.raises(ValueError, match=r"grown from 40 of them, and of those given 60 can"):
        LeafInfluence(apart).fit(X, NUMBERS)
