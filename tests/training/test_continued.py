"""Estimators that go on by themselves, against loops written with each library's own functions."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from sklearn.base import clone, is_classifier
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.ensemble._hist_gradient_boosting import gradient_boosting
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Perceptron, SGDClassifier, SGDRegressor
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder, StandardScaler

from fimoda import (
    FurtherTraining,
    LeaveOneOut,
    OutcomeSamples,
    agreement_curve,
    compare_methods,
    further_training_curve,
    significant_scores,
)
from fimoda.adapters.continuing import OwnRows
from fimoda.adapters.going_on import how_to_continue
from fimoda.rows import RawRows

N, N_TEST, D = 40, 5, 4
SEEDS = [3, 11]
LEFT_OUT = [7, 0, 39]
EPOCHS = [1, 3]


def data(kind: str = "binary"):
    rng = np.random.default_rng(5)
    X = rng.normal(size=(N + N_TEST, D))
    y = X[:, 0] * X[:, 1] + X[:, 2] + 0.5 * rng.normal(size=len(X))
    if kind != "number":
        y = np.digitize(y, [0] if kind == "binary" else [-0.7, 0.7])
    return X[:N], y[:N], X[N:], y[N:]


# ---- how each library goes on ---------------------------------------------------------------


def by_warm_start(model, X, y, weights, seed, n_more):
    n_rounds = model.n_estimators_ + n_more
    again = copy.deepcopy(model).set_params(warm_start=True, n_estimators=n_rounds)
    again._rng = np.random.RandomState(seed)
    return again.fit(X, y, sample_weight=weights)


class KnownBins:
    """Bins of a fitted model in place of others."""

    def __init__(self, bins):
        self.bins = bins

    def __call__(self, **settings):
        return self

    def fit_transform(self, X, *args, **kwargs):
        return self.bins.transform(X)

    def __getattr__(self, name):
        return getattr(vars(self)["bins"], name)


def by_histograms(model, X, y, weights, seed, n_more):
    again = copy.deepcopy(model).set_params(warm_start=True, max_iter=model.n_iter_ + n_more)
    again._feature_subsample_rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient_boosting, "_BinMapper", KnownBins(model._bin_mapper))
        return again.set_params(early_stopping=False).fit(X, y, sample_weight=weights)


def by_xgboost(model, X, y, weights, seed, n_more):
    again = clone(model).set_params(n_estimators=n_more, random_state=seed)
    return again.fit(X, y, sample_weight=weights, xgb_model=model.get_booster())


def by_lightgbm(model, X, y, weights, seed, n_more):
    again = clone(model).set_params(n_estimators=n_more, random_state=seed)
    return again.fit(X, y, sample_weight=weights, init_model=model.booster_)


def by_catboost(model, X, y, weights, seed, n_more):
    given = {**model.get_params(), "iterations": n_more, "random_seed": seed}
    given["learning_rate"] = model.get_all_params()["learning_rate"]
    again = type(model)(**given)
    return again.fit(X, y, sample_weight=weights, init_model=model.copy())


#: Kind of targets, model, its loop, whether a row of weight zero stays in its place, and weights.
BOOSTING = {
    "gradient boosting": ("binary", GradientBoostingClassifier, {"subsample": 0.7}, by_warm_start, True),
    "all rows": ("number", GradientBoostingRegressor, {}, by_warm_start, False),
    "three classes": ("three", GradientBoostingClassifier, {}, by_warm_start, False),
    "histograms": ("binary", HistGradientBoostingClassifier, {}, by_histograms, False),
    "histograms, three": ("three", HistGradientBoostingClassifier, {}, by_histograms, False),
    "histograms, columns": (
        "number", HistGradientBoostingRegressor, {"max_features": 0.5}, by_histograms, False
    ),
    "xgboost": ("binary", "XGBClassifier", {}, by_xgboost, False),
    "xgboost, three": ("three", "XGBClassifier", {"subsample": 0.7}, by_xgboost, True),
    "xgboost, columns": ("number", "XGBRegressor", {"colsample_bytree": 0.5}, by_xgboost, False),
    "lightgbm": ("binary", "LGBMClassifier", {}, by_lightgbm, False),
    "lightgbm, three": (
        "three", "LGBMClassifier", {"subsample": 0.7, "subsample_freq": 1}, by_lightgbm, True
    ),
    "lightgbm, numbers": ("number", "LGBMRegressor", {}, by_lightgbm, False),
    "catboost": ("binary", "CatBoostClassifier", {}, by_catboost, True),
    "catboost, numbers": ("number", "CatBoostRegressor", {}, by_catboost, True),
}  # fmt: skip

#: XGBoost adds in float32, and its probabilities are rounded once more than its raw scores.
ROUNDING = 2e-6

#: Parameters of small models, by the beginning of the name of the class.
SMALL = {
    "Hist": {"max_iter": 3, "min_samples_leaf": 5},
    "Grad": {"n_estimators": 4},
    "XGB": {"n_estimators": 4, "max_depth": 2, "n_jobs": 1},
    "LGBM": {"n_estimators": 4, "min_child_samples": 4, "verbose": -1, "n_jobs": 1},
    "Cat": {
        "iterations": 4, "depth": 2, "verbose": False, "allow_writing_files": False, "thread_count": 1
    },
}  # fmt: skip


def small(cls, **params):
    """Return an unfitted model of a class, or of one of a library's by its name."""
    name = cls if isinstance(cls, str) else cls.__name__
    start = next(start for start in SMALL if name.startswith(start))
    if isinstance(cls, str):
        library = {"XGB": "xgboost", "LGBM": "lightgbm", "Cat": "catboost"}[start]
        cls = getattr(pytest.importorskip(library), cls)
    return cls(**{**SMALL[start], **params})


def case(name):
    """Return a fitted model, its rows, its loop, and whether left-out rows stay with weight zero."""
    kind, cls, params, go_on, stays = BOOSTING[name]
    rows = data(kind)
    return small(cls, **params).fit(*rows[:2]), rows, go_on, stays


def losses(model, X, y):
    if not is_classifier(model):
        return (model.predict(X) - y) ** 2
    return -np.log(model.predict_proba(X)[np.arange(len(y)), y].astype(float))


def by_a_loop(model, rows, go_on, stays, weights=None, epochs=EPOCHS):
    """Return scores (n_epochs, n_test, n_left_out, n_seeds), with one fit for each of them."""
    X, y, X_test, y_test = rows
    given = np.ones(N) if weights is None else weights
    scores = np.empty((len(epochs), N_TEST, len(LEFT_OUT), len(SEEDS)))
    for s, seed in enumerate(SEEDS):
        for e, n_more in enumerate(epochs):
            full = go_on(model, X, y, given if stays else weights, seed, n_more)
            for k, row in enumerate(LEFT_OUT):
                if stays:
                    zero = np.where(np.arange(N) == row, 0, given)
                    one = go_on(model, X, y, zero, seed, n_more)
                else:
                    rest = np.delete(np.arange(N), row)
                    some = None if weights is None else weights[rest]
                    one = go_on(model, X[rest], y[rest], some, seed, n_more)
                scores[e, :, k, s] = losses(one, X_test, y_test) - losses(full, X_test, y_test)
    return scores


def curve_of(model, rows, epochs=EPOCHS, **settings):
    settings = {"n_seeds": SEEDS, "leave_out": LEFT_OUT, **settings}
    return further_training_curve(model, *rows, epochs=epochs, **settings)


@pytest.mark.parametrize("name", BOOSTING)
def test_boosting_is_that_of_a_loop(name):
    model, rows, go_on, stays = case(name)
    before = pickle.dumps(model)
    found = curve_of(model, rows).per_seed
    expected = by_a_loop(model, rows, go_on, stays)
    assert np.abs(found - expected).max() < ROUNDING
    assert np.abs(expected).max() > 1e-3
    assert pickle.dumps(model) == before


@pytest.mark.parametrize("name", ["gradient boosting", "xgboost, three"])
def test_a_dropped_row_is_taken_away(name):
    model, rows, go_on, _ = case(name)
    found = curve_of(model, rows, leave_out_mode="drop").per_seed
    assert np.abs(found - by_a_loop(model, rows, go_on, stays=False)).max() < ROUNDING


@pytest.mark.parametrize("name", ["histograms", "xgboost", "lightgbm", "gradient boosting"])
def test_weights_of_rows_are_kept(name):
    model, rows, go_on, stays = case(name)
    weights = np.random.default_rng(0).uniform(0.5, 2, N)
    model.fit(*rows[:2], sample_weight=weights)
    found = curve_of(model, rows, sample_weight=weights).per_seed
    assert np.abs(found - by_a_loop(model, rows, go_on, stays, weights)).max() < ROUNDING


# ---- epochs of partial_fit ------------------------------------------------------------------

STEPS = {
    "hinge": ("three", SGDClassifier(random_state=0)),
    "in order": ("binary", SGDClassifier(loss="modified_huber", shuffle=False, random_state=0)),
    "absolute": ("number", SGDRegressor(loss="epsilon_insensitive", random_state=0)),
    "perceptron": ("binary", Perceptron(random_state=0)),
}


@pytest.mark.parametrize("mode", ["mask", "drop"])
@pytest.mark.parametrize("name", STEPS)
def test_partial_fit_is_that_of_a_loop(name, mode):
    kind, model = STEPS[name]
    X, y, X_test, y_test = data(kind)
    model = clone(model).fit(X, y)
    found = curve_of(model, (X, y, X_test, y_test), leave_out_mode=mode)

    def after(row, seed, n_epochs):
        again = copy.deepcopy(model).set_params(shuffle=False)
        classes = {"classes": model.classes_} if is_classifier(model) else {}
        rng = np.random.RandomState(seed)
        for _ in range(n_epochs):
            order = rng.permutation(N) if model.shuffle else np.arange(N)
            weights = np.ones(N)
            if mode == "mask":
                weights[order == row] = 0
            else:
                order = order[order != row]
            again.partial_fit(X[order], y[order], sample_weight=weights[: len(order)], **classes)
        if not is_classifier(model):
            return (again.predict(X_test) - y_test) ** 2
        if hasattr(again, "predict_proba"):
            return again.predict_proba(X_test)[np.arange(N_TEST), y_test]
        values = again.decision_function(X_test)
        own = np.where(np.asarray(y_test)[:, None] == again.classes_, 1, -1)
        if values.ndim == 1:  # of the second class
            return np.maximum(0, 1 - own[:, 1] * values)
        return np.maximum(0, 1 - own * values).sum(1)

    expected = [
        [[after(row, seed, n) - after(None, seed, n) for seed in SEEDS] for row in LEFT_OUT]
        for n in EPOCHS
    ]
    expected = np.moveaxis(expected, -1, 1)
    if name == "in order":  # of which the loss is infinite at a probability of 0
        found = curve_of(model, (X, y, X_test, y_test), measurement=of_target, leave_out_mode=mode)
    assert np.abs(found.per_seed - expected).max() < 1e-10
    if name == "absolute":
        assert np.abs(expected).max() > 1e-3


def of_target(outputs, targets):
    return outputs.gather(1, targets.long()[:, None])[:, 0]


def test_smooth_losses_take_steps_of_an_optimiser():
    X, y, *_ = data()
    found = FurtherTraining(SGDClassifier(loss="log_loss").fit(X, y), n_epochs=1, leave_out=2)
    assert "epochs of SGD" in found.fit(X, y)._process()


# ---- estimators around a model --------------------------------------------------------------


def mixed_frame():
    X, y, X_test, y_test = data()
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(np.concatenate([X, X_test]), columns=list("abcd"))
    frame.iloc[::6, 0] = np.nan
    frame["town"] = rng.choice(["Oslo", "Rome", "Wien"], len(frame))
    names = np.array(["no", "yes"])
    return frame[:N], names[y], frame[N:], names[y_test]


def test_pipeline_with_a_frame_with_missing_values():
    X, y, X_test, y_test = mixed_frame()
    encoder = make_column_transformer((OrdinalEncoder(), ["town"]), remainder="passthrough")
    boosting = HistGradientBoostingClassifier(
        max_iter=3, min_samples_leaf=4, categorical_features=[0]
    )
    pipeline = make_pipeline(encoder, boosting).fit(X, y)
    seen = [encoder.transform(X), (y == "yes").astype(int)]
    seen += [encoder.transform(X_test), (y_test == "yes").astype(int)]
    own = copy.deepcopy(boosting).fit(*seen[:2])
    expected = by_a_loop(own, seen, by_histograms, False, epochs=[2])[0].mean(-1)
    grid = GridSearchCV(pipeline, {"histgradientboostingclassifier__max_depth": [None]}, cv=2)
    for model in (pipeline, FrozenEstimator(pipeline), grid, grid.fit(X, y)):
        method = FurtherTraining(model, n_epochs=2, n_seeds=SEEDS, leave_out=LEFT_OUT).fit(X, y)
        found = method.set_output(transform="pandas").transform(X_test, y_test)
        assert list(found.index) == list(X_test.index)
        assert np.abs(found.to_numpy() - expected).max() < 1e-10


def test_targets_are_transformed():
    X, y, X_test, y_test = data("number")
    inner = HistGradientBoostingRegressor(max_iter=3, min_samples_leaf=5)
    around = TransformedTargetRegressor(inner, transformer=StandardScaler()).fit(X, y)
    scaled = [around.transformer_.transform(one[:, None])[:, 0] for one in (y, y_test)]
    found = curve_of(around, (X, y, X_test, y_test)).scores
    rows = (X, scaled[0], X_test, scaled[1])
    assert np.abs(found - curve_of(clone(inner).fit(X, scaled[0]), rows).scores).max() < 1e-10


@pytest.mark.parametrize("column", [None, "town"])
def test_the_only_row_of_its_kind_stays_with_weight_zero(column):
    X, y, X_test, y_test = data("binary")
    model = HistGradientBoostingClassifier(max_iter=3, min_samples_leaf=3)
    if column is None:
        y[7] = 2
        X = pd.DataFrame(X)
    else:
        X, _, X_test, _ = mixed_frame()
        X.loc[7, "town"] = "Athens"  # the first of all codes
        X, X_test = X.astype({"town": "category"}), X_test.astype({"town": "category"})
        model.set_params(categorical_features="from_dtype")
    model.fit(X, y)
    method = FurtherTraining(model, n_epochs=2, n_seeds=1, leave_out=[7]).fit(X, y)
    zero, one = np.where(np.arange(N) == 7, 0.0, 1.0), np.ones(N)
    after = [losses(by_histograms(model, X, y, w, 0, 2), X_test, y_test) for w in (zero, one)]
    assert np.abs(method.transform(X_test, y_test)[:, 0] - after[0] + after[1]).max() < 1e-10
    assert "1 rows that are the only ones" in " ".join(method._caveats())


@pytest.mark.parametrize("name", ["three classes", "xgboost, three", "lightgbm, three"])
def test_the_only_row_of_its_class(name):
    _, cls, params, go_on, _ = BOOSTING[name]
    X, y, X_test, y_test = data("binary")
    y[7] = 2
    model = small(cls, **params).fit(X, y)
    found = curve_of(model, (X, y, X_test, y_test), epochs=[2], leave_out=[7]).outcomes
    zero = np.where(np.arange(N) == 7, 0.0, 1.0)
    expected = [losses(go_on(model, X, y, zero, seed, 2), X_test, y_test) for seed in SEEDS]
    assert np.abs(found.left_out[0, :, 0] - np.transpose(expected)).max() < ROUNDING


# ---- early stopping -------------------------------------------------------------------------


def test_early_stopping_is_off_and_says_what_was_held_out():
    X, y, X_test, y_test = data("number")
    for model, go_on in (
        (HistGradientBoostingRegressor(early_stopping=True, random_state=0), by_histograms),
        (GradientBoostingRegressor(n_iter_no_change=1, random_state=0), by_warm_start),
    ):
        model.fit(X, y)
        with pytest.warns(UserWarning, match="has held 10% of its rows out of its training"):
            found = curve_of(model, (X, y, X_test, y_test))
        if go_on is by_warm_start:
            model.set_params(n_iter_no_change=None)
        expected = by_a_loop(model, (X, y, X_test, y_test), go_on, False)
        assert np.abs(found.per_seed - expected).max() < 1e-10


def test_models_go_on_from_their_best_round():
    X, y, X_test, y_test = rows = data()
    flipped = [(X_test, 1 - y_test)]
    for cls, best in (("XGBClassifier", 1), ("LGBMClassifier", 0)):
        stopped = small(cls, n_estimators=50, learning_rate=0.5, early_stopping_rounds=3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # another name of eval_set is planned
            stopped.fit(X, y, eval_set=flipped)
        n_best = stopped.best_iteration + 1 if best else stopped.best_iteration_
        plain = small(cls, n_estimators=n_best, learning_rate=0.5).fit(X, y)
        found, expected = curve_of(stopped, rows).outcomes, curve_of(plain, rows).outcomes
        assert n_best < 40
        assert np.abs(found.left_out - expected.left_out).max() < 1e-10


# ---- seeds, workers, directories ------------------------------------------------------------


def test_seeds_matter_where_something_is_drawn():
    rows = data()
    still = HistGradientBoostingClassifier(max_iter=3, min_samples_leaf=5).fit(*rows[:2])
    drawn = GradientBoostingClassifier(n_estimators=3, subsample=0.6).fit(*rows[:2])
    one, many = curve_of(still, rows, n_seeds=1), curve_of(still, rows, n_seeds=4)
    assert np.isnan(one.sem).all()
    assert many.per_seed.shape[-1] == 4
    assert np.array_equal(one.scores, many.per_seed[..., 2])
    assert many.sem.max() < 1e-15
    assert curve_of(drawn, rows).sem.max() > 0
    auto = {"n_seeds": "auto", "max_seeds": 10, "random_state": 0}
    assert len(curve_of(drawn, rows, sem_tol=1e-6, **auto).seeds) == 10
    assert len(curve_of(drawn, rows, sem_tol=1e6, **auto).seeds) == 5
    assert len(curve_of(still, rows, sem_tol=1e-6, **auto).seeds) == 5


@pytest.mark.parametrize("correction", ["full", "mean", None])
def test_estimator_and_curve_are_the_same(correction, tmp_path):
    X, y, X_test, y_test = rows = data("three")
    model = GradientBoostingClassifier(n_estimators=3, subsample=0.6).fit(X, y)
    curve = curve_of(model, rows, correction=correction)
    settings = {"n_epochs": 3, "n_seeds": SEEDS, "leave_out": LEFT_OUT, "correction": correction}
    for directory in (None, tmp_path):
        method = FurtherTraining(model, checkpoint_dir=directory, **settings).fit(X, y)
        assert np.array_equal(method.transform(X_test, y_test), curve.scores[-1])
        assert np.array_equal(method.scores_sem_, curve.sem[-1])
        own = method.transform(X[LEFT_OUT], y[LEFT_OUT]).diagonal()
        assert np.abs(method.self_influence() - own).max() < 1e-12
    assert method.engine_ == "own"


@pytest.mark.parametrize("name", ["gradient boosting", "xgboost, three", "lightgbm", "catboost"])
def test_workers_do_not_matter(name):
    model, rows, *_ = case(name)
    alone = curve_of(model, rows, chunk_size=2).per_seed
    assert np.array_equal(alone, curve_of(model, rows, n_jobs=2, chunk_size=1).per_seed)


def test_a_directory_is_resumed(tmp_path):
    rows = data()
    model = GradientBoostingClassifier(n_estimators=3, subsample=0.6).fit(*rows[:2])
    settings = {"checkpoint_dir": tmp_path, "chunk_size": 1}
    first = curve_of(model, rows, **settings).per_seed
    files = sorted(tmp_path.glob("seed-*.npy"))
    assert len(files) == len(SEEDS) * (len(LEFT_OUT) + 1)
    files[0].unlink()
    kept = {path: path.stat().st_mtime_ns for path in files[1:]}
    assert np.array_equal(curve_of(model, rows, **settings).per_seed, first)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert files[0].exists()
    other = GradientBoostingClassifier(n_estimators=4, subsample=0.6).fit(*rows[:2])
    with pytest.raises(ValueError, match="belongs to another run \\(estimator"):
        curve_of(other, rows, **settings)
    with pytest.raises(ValueError, match="leave_out_mode"):
        curve_of(model, rows, leave_out_mode="drop", **settings)


@pytest.mark.parametrize("name", ["all rows", "histograms", "xgboost", "lightgbm", "catboost"])
def test_models_of_all_libraries_have_an_identity(name, tmp_path):
    model, rows, *_ = case(name)
    first = curve_of(model, rows, checkpoint_dir=tmp_path).per_seed
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(curve_of(again, rows, checkpoint_dir=tmp_path).per_seed, first)


def test_time_that_is_over(tmp_path):
    X, y, X_test, y_test = data()
    model = GradientBoostingClassifier(n_estimators=3, subsample=0.6).fit(X, y)
    for directory in (None, tmp_path):
        settings = {"n_epochs": 1, "leave_out": 2, "max_seconds": 1e-9, "checkpoint_dir": directory}
        method = FurtherTraining(model, random_state=0, **settings).fit(X, y)
        assert len(method.seeds_) == 1
        assert "after 1 of 10 seeds" in " ".join(method._caveats())
        assert method.transform(X_test, y_test).shape == (N_TEST, 2)


# ---- what takes the curves ------------------------------------------------------------------


def test_tools_take_curves_and_methods():
    X, y, X_test, y_test = rows = data()
    model = HistGradientBoostingClassifier(max_iter=3, min_samples_leaf=5).fit(X, y)
    curve = further_training_curve(
        model, *rows, steps=[1, 4], n_seeds=2, leave_out=6, random_state=0
    )
    assert curve.steps.tolist() == curve.epochs.tolist() == [1, 4]
    method = FurtherTraining(model, n_epochs=4, n_seeds=2).fit(X, y)
    agreement = agreement_curve({"itself": method}, curve, X_test, y_test)
    own = method.transform(X_test, y_test)[:, curve.leave_out]
    assert np.abs(own).max() > 0
    assert np.allclose(own, curve.scores[1])
    assert agreement.mean("cosine")[0, 1] > 0.5  # rows that nothing moves count as 0
    assert "further boosting of the final model: 4 rounds of boosting" in method._process()
    assert len(method.top(X_test, y_test, k=2).helpful[0]) == 2
    settings = {"epochs": 2, "n_seeds": 2, "leave_out": 5, "random_state": 0}
    methods = {
        "left out": LeaveOneOut(model, n_seeds=1),
        "same": FurtherTraining(model, n_epochs=2, n_seeds=1),
    }
    compared = compare_methods(model, *rows, methods=methods, **settings)
    assert compared.recommended == "same"
    assert OutcomeSamples.from_further_training(curve).distance("mean").shape == (N_TEST, 6)
    drawn = GradientBoostingClassifier(n_estimators=3, subsample=0.6).fit(X, y)
    scored = FurtherTraining(drawn, n_epochs=2, n_seeds=4, leave_out=9, random_state=0).fit(X, y)
    assert significant_scores(scored, X_test, y_test) is not None


# ---- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "error"),
    [
        (RandomForestClassifier(2), "is a forest, whose further trees do not change those"),
        (BaggingRegressor(n_estimators=2), "is a forest, whose further trees"),
        (GaussianNB(), "counts rows: its partial_fit would count them a second time"),
        (KNeighborsClassifier(2), r"Methods that train again \(LeaveOneOut"),
        (AdaBoostClassifier(n_estimators=2), "Methods that train again"),
    ],
)
def test_models_that_cannot_go_on(model, error):
    X, y, *_ = data()
    with pytest.raises(TypeError, match=f"{type(model).__name__}.*{error}"):
        FurtherTraining(model.fit(X, y)).fit(X, y)


@pytest.mark.parametrize(
    ("cls", "params", "error"),
    [
        ("XGBClassifier", {"booster": "dart"}, "changes the trees .* Train with 'gbtree'"),
        ("XGBClassifier", {"booster": "gblinear"}, "has no trees"),
        ("XGBRFClassifier", {}, "is a forest"),
        ("LGBMClassifier", {"boosting_type": "dart"}, "Train with 'gbdt'"),
        ("CatBoostClassifier", {"model_shrink_rate": 0.1}, "changes the trees that there are"),
    ],
)
def test_boosting_whose_trees_change(cls, params, error):
    X, y, *_ = data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parameters that are not used
        model = small(cls, **params).fit(X, y)
    with pytest.raises(TypeError, match=error):
        FurtherTraining(model).fit(X, y)


@pytest.mark.parametrize(
    ("params", "error"),
    [
        (
            {"n_epochs": 1.5},
            "n_epochs must be whole numbers of rounds of boosting .* got \\[1.5\\]",
        ),
        (
            {"lr": 0.1, "optimizer": "SGD"},
            "optimizer, lr must be left alone for HistGradientBoosting",
        ),
        ({"batch_size": 5}, "batch_size must be left alone"),
        ({"engine": "loop", "compile": True}, "compile, engine must be left alone"),
        ({"batch_statistics": "frozen"}, "batch_statistics must be left alone"),
        ({"leave_out_mode": "expected"}, "'expected' is for networks.* Use 'mask' or 'drop'"),
    ],
)
def test_parameters_of_networks(params, error):
    X, y, *_ = data()
    model = HistGradientBoostingClassifier(max_iter=2).fit(X, y)
    with pytest.raises(ValueError, match=error):
        FurtherTraining(model, **params).fit(X, y)


def test_rows_that_are_not_those_of_the_model():
    X, y, X_test, y_test = rows = data("three")
    model = HistGradientBoostingClassifier(max_iter=2, min_samples_leaf=4).fit(X, y)
    with pytest.raises(ValueError, match=r"y must have rows of all classes .* none of class 2"):
        FurtherTraining(model).fit(X[y < 2], y[y < 2])
    with pytest.raises(ValueError, match="epochs must be whole numbers of rounds"):
        curve_of(model, rows, epochs=[0.5, 1])
    with pytest.raises(ValueError, match="4 features"):
        FurtherTraining(model, n_epochs=1, leave_out=2).fit(X, y).transform(X_test[:, :3], y_test)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logistic = LogisticRegression().fit(X, y)
        assert FurtherTraining(logistic, n_epochs=1.5, leave_out=2).fit(X, y).engine_ != "own"


def test_further_rounds_on_histograms_go_on_from_what_the_model_predicts():
    """Other rows or weights make other bins, in which scikit-learn's warm start misreads earlier trees."""
    X, y, *_ = data("number")
    model = small(HistGradientBoostingRegressor).fit(X, y)
    weights = np.where(np.arange(N) % 3 == 0, 0.0, 1.0)
    for rows in (OwnRows(RawRows(X), y, weights), OwnRows(RawRows(X[5:]), y[5:])):
        (grown,) = how_to_continue(model).after(rows, None, False, 0, [1])
        predictor = grown._predictors[-1][0].nodes
        residuals = rows.y - model.predict(rows.X.values)
        leaf = grown.predict(rows.X.values) - model.predict(rows.X.values)
        assert len(np.unique(leaf.round(9))) == predictor["is_leaf"].sum() > 1
        for value in np.unique(leaf.round(9)):
            own = np.isclose(leaf, value, atol=1e-8)
            mean = np.average(residuals[own], weights=rows.weights[own])
            assert_allclose(value, 0.1 * mean, rtol=1e-5, atol=1e-7)
