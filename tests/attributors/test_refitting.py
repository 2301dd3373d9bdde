"""Estimators that are fitted again as a whole, on rows as they are, against fitting by hand."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from imblearn.over_sampling import RandomOverSampler
from imblearn.pipeline import make_pipeline as make_imblearn_pipeline
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier, SGDRegressor
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.naive_bayes import MultinomialNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    Normalizer,
    OneHotEncoder,
    StandardScaler,
    TargetEncoder,
)
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from fimoda import (
    Datamodel,
    DistributionalInfluence,
    Downsampling,
    LeaveOneOut,
    attribute,
    train_on_subsets,
)
from fimoda.rows import RawRows

N, N_TEST = 40, 5
EVERYTHING = np.arange(N)
LEFT_OUT = [0, 7, 31]
SEED = 3


def numbers(classes: int = 0):
    """Rows of five numbers, with a target or a class."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N + N_TEST, 5))
    y = X @ [1.0, -2.0, 0.5, 0.0, 1.0] + 0.5 * rng.normal(size=len(X))
    if classes:
        y = np.searchsorted(np.quantile(y, np.linspace(0, 1, classes + 1)[1:-1]), y)
    return X[:N], y[:N], X[N:], y[N:]


def mixed(classes: int = 2):
    """A frame of numbers with gaps, text, a category and nullable numbers, with a named index."""
    X, y, X_test, y_test = numbers(classes)
    values = np.concatenate([X, X_test])
    frame = pd.DataFrame(
        {
            "size": values[:, 0],
            "count": pd.array((values[:, 1] * 3).round().astype(int), dtype="Int64"),
            "colour": np.array(["red", "green", "blue"])[np.digitize(values[:, 2], [-0.5, 0.5])],
            "kind": pd.Categorical(np.array(list("ab"))[(values[:, 3] > 0).astype(int)]),
            "rest": values[:, 4],
        },
        index=[f"row {i}" for i in range(len(values))],
    )
    frame.loc[frame.index[::6], "size"] = np.nan
    frame.loc[frame.index[::9], "count"] = pd.NA
    return frame[:N], y, frame[N:], y_test


def measured(model, rows, X, y, X_test, y_test, seed: int = SEED, weight=None) -> np.ndarray:
    """Losses of test rows after fitting a clone by hand on some rows."""
    new = clone(model)
    new.set_params(
        **{
            k: seed
            for k, v in new.get_params().items()
            if k.endswith("random_state") and v != "deprecated"
        }
    )
    take = (
        X.iloc[rows]
        if hasattr(X, "iloc")
        else [X[i] for i in rows]
        if isinstance(X, list)
        else X[rows]
    )
    np.random.seed(seed)  # noqa: NPY002 (for what draws from the global generator)
    new.fit(take, y[rows])
    if hasattr(new, "predict_proba"):
        p = new.predict_proba(X_test)
        return np.array(
            [log_loss([t], [row], labels=new.classes_) for t, row in zip(y_test, p, strict=True)]
        )
    loss = (new.predict(X_test) - y_test) ** 2
    return loss.sum(1) if loss.ndim == 2 else loss


def by_hand(model, X, y, X_test, y_test, left_out=LEFT_OUT) -> np.ndarray:
    full = measured(model, EVERYTHING, X, y, X_test, y_test)
    changes = [
        measured(model, np.delete(EVERYTHING, i), X, y, X_test, y_test) - full for i in left_out
    ]
    return np.transpose(changes)


def scores(model, X, y, X_test, y_test, left_out=LEFT_OUT, **params) -> np.ndarray:
    method = LeaveOneOut(model, leave_out=left_out, n_seeds=[SEED], **params)
    return np.asarray(method.fit(X, y).transform(X_test, y_test))


def check(model, data, rtol=1e-6, **params):
    """Scores equal those by hand, and there is something to score."""
    expected = by_hand(model, *data)
    assert np.abs(expected).max() > 1e-6
    found = scores(clone(model).fit(*data[:2]), *data, **params)
    assert_allclose(found, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


# ---- all kinds of rows ----------------------------------------------------------------------


@pytest.mark.parametrize("classes", [0, 2, 3])
def test_boosting_with_gaps_and_categories(classes):
    X, y, X_test, y_test = mixed(classes)
    X, X_test = (frame.astype({"colour": "category"}) for frame in (X, X_test))
    model = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
    data = X, y, X_test, y_test
    check(model(max_iter=5, min_samples_leaf=3, categorical_features="from_dtype"), data)


def test_attribute_takes_gaps_and_categories():
    X, y, X_test, y_test = mixed()
    X, X_test = (frame.drop(columns=["colour", "kind"]) for frame in (X, X_test))
    model = DecisionTreeRegressor(max_depth=3, random_state=SEED).fit(X, y)
    found = attribute(model, X, y, X_test, y_test, budget=20, random_state=0)
    assert found.scores.shape == (N_TEST, N)
    assert "with the splits of the trees held" in found.process


TEXTS = [
    " ".join(np.random.default_rng(i).choice(["fast", "slow", "good", "bad", "odd", "red"], 4))
    for i in range(N + N_TEST)
]


@pytest.mark.parametrize("as_array", [list, np.array, pd.Series])
@pytest.mark.parametrize("last", [LogisticRegression(), MultinomialNB(), Ridge()])
def test_texts(as_array, last):
    y = np.array([text.count("good") - text.count("bad") > 0 for text in TEXTS]).astype(int)
    data = as_array(TEXTS[:N]), y[:N], as_array(TEXTS[N:]), y[N:]
    check(make_pipeline(TfidfVectorizer(), last), data)


@pytest.mark.parametrize("container", [sparse.csr_array, sparse.csc_matrix, sparse.coo_array])
@pytest.mark.parametrize(
    "model",
    [Ridge(solver="lsqr", tol=1e-12), MultinomialNB(), DecisionTreeClassifier(max_depth=2)],
)
def test_sparse_rows(container, model):
    X, y, X_test, y_test = numbers(3)
    X, X_test = (np.maximum(part, 0).round(1) for part in (X, X_test))
    dense = scores(clone(model).fit(X, y), X, y, X_test, y_test)
    found = scores(clone(model).fit(container(X), y), container(X), y, container(X_test), y_test)
    assert_allclose(found, dense, rtol=1e-4, atol=1e-4 * np.abs(dense).max())


def test_targets_of_any_type():
    X, y, X_test, y_test = numbers(2)
    model = DecisionTreeClassifier(max_depth=3, random_state=SEED)
    expected = scores(clone(model).fit(X, y), X, y, X_test, y_test)
    names = np.array(["no", "yes"])
    for kind in (names, names.astype(object), pd.array(names), pd.array([0, 1], dtype="Int64")):
        labels, test = pd.Series(kind[y]), pd.Series(kind[y_test])
        found = scores(clone(model).fit(X, labels), X, labels, X_test, test)
        assert_allclose(found, expected, atol=1e-12)


def test_errors_are_those_of_the_estimator():
    X, y, X_test, y_test = numbers()
    bad = X.copy()
    bad[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"Input X contains NaN\.\nRidge does not accept"):
        LeaveOneOut(Ridge().fit(X, y)).fit(bad, y)
    method = LeaveOneOut(Ridge().fit(X, y), n_seeds=1).fit(X, y)
    with pytest.raises(ValueError, match=r"Input X contains NaN\.\nRidge does not accept"):
        method.transform(bad, y)
    with pytest.raises(ValueError, match="Found array with dim 3"):
        method.transform(X_test[:, None], y_test)
    with pytest.raises(ValueError, match="X has 4 features, but Ridge is expecting 5"):
        method.transform(X_test[:, :4], y_test)
    with pytest.raises(ValueError, match="could not convert string to float"):
        LeaveOneOut(Ridge()).fit(np.full((N, 5), "red"), y)
    with pytest.raises(TypeError, match=r"X must be an array.*got a dict.*pandas\.DataFrame\(X\)"):
        LeaveOneOut(Ridge()).fit({"a": X[:, 0]}, y)


def test_names_of_columns():
    X, y, X_test, y_test = numbers()
    frame, test = (pd.DataFrame(part, columns=list("abcde")) for part in (X, X_test))
    method = LeaveOneOut(DecisionTreeRegressor().fit(frame, y), n_seeds=1).fit(frame, y)
    with pytest.raises(ValueError, match="feature names should match those that were passed"):
        method.transform(test[list("bacde")], y_test)
    with pytest.raises(ValueError, match="feature names should match those that were passed"):
        LeaveOneOut(method.estimator_, n_seeds=1).fit(frame[list("bacde")], y)


def test_rows():
    X = np.arange(12.0).reshape(6, 2)
    for rows in (X, X.tolist(), pd.DataFrame(X), sparse.csr_array(X), sparse.coo_matrix(X)):
        raw = RawRows(rows)
        assert len(raw) == 6
        for key in (slice(1, 3), [1, 2], np.arange(6) // 2 == 1, torch.tensor([1, 2])):
            expected = X[2:4] if isinstance(key, np.ndarray) else X[1:3]
            assert_array_equal(np.asarray(raw[key].dense()), expected)
        assert [len(part) for part in raw.split(4)] == [4, 2]


# ---- what is fitted again -------------------------------------------------------------------

PICK = make_column_transformer(
    (OneHotEncoder(handle_unknown="ignore"), ["colour", "kind"]), ("passthrough", ["rest"])
)
BEHIND = make_pipeline(PICK, LogisticRegression())


@pytest.mark.parametrize(
    "model",
    [
        BEHIND,
        VotingClassifier(
            [("a", BEHIND), ("b", make_pipeline(PICK, MultinomialNB()))], voting="soft"
        ),
        CalibratedClassifierCV(BEHIND, cv=2),
        CalibratedClassifierCV(make_pipeline(PICK, LinearSVC()), cv=2),
        make_imblearn_pipeline(PICK, RandomOverSampler(random_state=0), LogisticRegression()),
        make_imblearn_pipeline(
            PICK, RandomOverSampler(random_state=0), StandardScaler(with_mean=False), BEHIND[-1]
        ),
    ],
    ids=[
        "pipeline",
        "voting",
        "calibrated",
        "calibrated svc",
        "imblearn",
        "imblearn in the middle",
    ],
)
def test_classifiers_around_a_picker_of_columns(model):
    X, y, X_test, y_test = mixed()
    X, X_test = (part.assign(rest=part["rest"].abs()) for part in (X, X_test))
    check(model, (X, y, X_test, y_test), rtol=1e-5)


def test_a_target_transform_around_a_picker_of_columns():
    X, y, X_test, y_test = mixed(0)
    inner = make_pipeline(PICK, Ridge())
    data = X, y, X_test, y_test
    check(TransformedTargetRegressor(inner, transformer=StandardScaler()), data)
    check(TransformedTargetRegressor(inner, func=np.arcsinh, inverse_func=np.sinh), data)


def test_searches():
    """The parameters that were chosen are kept, unless the search is asked for."""
    X, y, X_test, y_test = numbers()
    search = GridSearchCV(
        make_pipeline(StandardScaler(), PCA(), Ridge()),
        {"pca__n_components": [3, 4], "ridge__alpha": np.geomspace(0.1, 30, 12)},
        cv=2,
    ).fit(X, y)
    data = X, y, X_test, y_test
    chosen = by_hand(search.best_estimator_, *data)
    assert_allclose(scores(search, *data), chosen, rtol=1e-6, atol=1e-12)
    again = by_hand(search, *data)
    assert_allclose(scores(search, *data, refit="search"), again, rtol=1e-6, atol=1e-12)
    assert np.abs(again - chosen).max() > 0.01 * np.abs(chosen).max()
    frozen = FrozenEstimator(search)
    assert_allclose(scores(frozen, *data), chosen, rtol=1e-6, atol=1e-12)
    with pytest.raises(
        ValueError, match=r"refit='search' is for a search such as GridSearchCV, got"
    ):
        LeaveOneOut(search.best_estimator_, refit="search").fit(X, y)


def test_a_search_as_the_last_step():
    X, y, X_test, y_test = numbers()
    search = GridSearchCV(Ridge(), {"alpha": [0.1, 100.0]}, cv=2)
    model = make_pipeline(StandardScaler(), search).fit(X, y)
    chosen = make_pipeline(StandardScaler(), search.estimator.set_params(**model[-1].best_params_))
    data = X, y, X_test, y_test
    assert_allclose(scores(model, *data), by_hand(chosen, *data), rtol=1e-6)
    assert_allclose(scores(model, *data, refit="search"), by_hand(model, *data), rtol=1e-6)
    assert model[-1] is search or hasattr(model[-1], "best_estimator_")  # it is not changed


@pytest.mark.parametrize(
    "step",
    [
        StandardScaler(),
        PCA(3, svd_solver="full"),
        KBinsDiscretizer(4, strategy="quantile", quantile_method="averaged_inverted_cdf")
        if "quantile_method" in KBinsDiscretizer().get_params()
        else KBinsDiscretizer(4),
        make_pipeline(
            KBinsDiscretizer(4, encode="ordinal", strategy="uniform"), TargetEncoder(cv=3)
        ),
    ],
    ids=["scaler", "pca", "bins", "target encoder"],
)
@pytest.mark.parametrize("container", [np.asarray, pd.DataFrame])
def test_pipelines_are_fitted_as_a_whole(step, container):
    X, y, X_test, y_test = numbers()
    data = container(X), y, container(X_test), y_test
    model = make_pipeline(step, Ridge())
    check(model, data)
    fitted = clone(model).fit(*data[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the encoder's fit_transform is no transform
        last = scores(fitted, *data, refit="last")
    seen = [fitted[:-1].transform(part) for part in (data[0], data[2])]
    assert_allclose(last, by_hand(Ridge(), seen[0], y, seen[1], y_test), rtol=1e-5, atol=1e-9)


def test_process_says_what_is_fitted_again():
    X, y, *_ = numbers()
    plain, pipeline = Ridge().fit(X, y), make_pipeline(StandardScaler(), Ridge()).fit(X, y)
    search = GridSearchCV(pipeline, {"ridge__alpha": [1.0, 2.0]}, cv=2).fit(X, y)
    assert LeaveOneOut(plain).process == LeaveOneOut().process == "training anew"
    assert Downsampling(pipeline).process == "training anew: the whole Pipeline"
    assert Datamodel(pipeline, refit="last").process == "training anew: its last step, Ridge"
    assert LeaveOneOut(search).process == "training anew: the whole Pipeline"
    assert LeaveOneOut(search, refit="search").process.endswith(", with its search")
    target = TransformedTargetRegressor(pipeline).fit(X, y)
    assert LeaveOneOut(target).process == "training anew: the whole TransformedTargetRegressor"


def test_a_network_behind_steps_that_learn():
    X, y, X_test, y_test = numbers()
    net = MLPRegressor(hidden_layer_sizes=(3,), max_iter=5, random_state=0)
    model = make_pipeline(StandardScaler(), net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = clone(model).fit(X, y)
        found = scores(fitted, X, y, X_test, y_test)
        expected = by_hand(model, X, y, X_test, y_test)
        # the loss of an MLPRegressor is half the squared error
        assert_allclose(found, expected / 2, rtol=1e-4, atol=1e-6)
        with pytest.raises(
            ValueError, match=r"n_epochs, lr must be left alone for Pipeline.*'last'"
        ):
            LeaveOneOut(fitted, n_epochs=3, lr=0.1).fit(X, y)
        last = LeaveOneOut(fitted, refit="last", n_epochs=3, lr=0.1, n_seeds=[1], leave_out=[0])
        stacked = last.fit(X, y).transform(X_test, y_test)
        scaled = [fitted[0].transform(part) for part in (X, X_test)]
        alone = LeaveOneOut(fitted[-1], n_epochs=3, lr=0.1, n_seeds=[1], leave_out=[0])
        assert_allclose(stacked, alone.fit(scaled[0], y).transform(scaled[1], y_test), rtol=1e-6)
        # steps that do not learn leave nothing to fit but the network
        plain = make_pipeline(Normalizer(), FunctionTransformer(), net).fit(X, y)
        whole = LeaveOneOut(plain, n_epochs=2, n_seeds=[1], leave_out=[0]).fit(X, y)
        part = LeaveOneOut(plain, refit="last", n_epochs=2, n_seeds=[1], leave_out=[0]).fit(X, y)
        assert whole.process == "training anew"
        assert_array_equal(whole.transform(X_test, y_test), part.transform(X_test, y_test))


def test_weights_reach_the_last_step():
    X, y, X_test, y_test = numbers()
    weight = np.linspace(0.2, 3, N)
    pipeline = make_pipeline(StandardScaler(), make_pipeline(PCA(3), Ridge()))
    for model, name in (
        (pipeline, "pipeline__ridge__sample_weight"),
        (TransformedTargetRegressor(pipeline), "pipeline__ridge__sample_weight"),
        (MultiOutputRegressor(Ridge()), "sample_weight"),
    ):
        targets = np.c_[y, y**2] if name == "sample_weight" else y
        wanted = np.c_[y_test, y_test**2] if name == "sample_weight" else y_test

        def losses(rows, model=model, name=name, targets=targets, wanted=wanted):
            new = clone(model).fit(X[rows], targets[rows], **{name: weight[rows]})
            loss = (new.predict(X_test) - wanted) ** 2
            return loss.sum(1) if loss.ndim == 2 else loss

        method = LeaveOneOut(model, leave_out=[4], n_seeds=1).fit(X, targets, weight)
        expected = losses(np.delete(EVERYTHING, 4)) - losses(EVERYTHING)
        assert_allclose(method.transform(X_test, wanted)[:, 0], expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"sample_weight was given, but KNeighborsClassifier\.fit"):
        LeaveOneOut(KNeighborsClassifier()).fit(X, y > 0, weight)


class UsesGlobalGenerators(RegressorMixin, BaseEstimator):
    """Draws from numpy's and torch's generators, as careless estimators do."""

    def fit(self, X, y):
        self.constant_ = np.random.rand() + torch.rand(1).item() + np.mean(y)  # noqa: NPY002
        return self

    def predict(self, X):
        return np.full(len(X), self.constant_)


def test_global_generators_are_seeded_and_put_back():
    X, y, X_test, y_test = numbers()
    model = UsesGlobalGenerators().fit(X, y)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    runs = [
        LeaveOneOut(model, leave_out=[1, 2], n_seeds=[5, 6], chunk_size=k).fit(X, y) for k in (1, 3)
    ]
    found = [run.transform(X_test, y_test) for run in runs]
    assert_array_equal(*found)
    assert np.abs(runs[0].scores_sem_).max() < 1e-12 + np.abs(found[0]).max()
    assert_array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


class Capped(Ridge):
    """Predicts no more than 1."""

    def predict(self, X):
        return np.minimum(super().predict(X), 1.0)


class CappedPipeline(Pipeline):
    """Predicts no more than 1."""

    def predict(self, X):
        return np.minimum(super().predict(X), 1.0)


@pytest.mark.parametrize(
    "model",
    [Capped(), make_pipeline(StandardScaler(), Capped()), CappedPipeline([("last", Ridge())])],
    ids=["alone", "behind a step", "pipeline"],
)
def test_what_is_overridden_counts(model):
    check(model, numbers())


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_functions_without_a_name(n_jobs, tmp_path):
    model = make_pipeline(FunctionTransformer(lambda X: X**2), StandardScaler(), Ridge())
    check(model, numbers(), n_jobs=n_jobs, chunk_size=1)
    check(model, numbers(), n_jobs=n_jobs, chunk_size=1, checkpoint_dir=tmp_path)


# ---- directories ----------------------------------------------------------------------------


def tree_run(directory, n_test=N_TEST):
    X, y, X_test, y_test = numbers()
    tree = DecisionTreeRegressor(max_features=2).fit(X, y)
    method = LeaveOneOut(tree, n_seeds=[1, 2], leave_out=range(8), checkpoint_dir=directory)
    return method.fit(X, y), X_test[:n_test], y_test[:n_test]


def test_directories_hold_measurements_only(tmp_path):
    method, X_test, y_test = tree_run(tmp_path)
    alone, *_ = tree_run(None)
    assert_array_equal(method.transform(X_test, y_test), alone.transform(X_test, y_test))
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")}
    for path in files:
        assert np.load(path, allow_pickle=False)["measured"].shape[1] == N_TEST
    again, *_ = tree_run(tmp_path)
    again.transform(X_test, y_test)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")} == files
    other = again.transform(X_test[:2], y_test[:2])  # other test rows in the same directory
    assert_array_equal(other, alone.transform(X_test[:2], y_test[:2]))
    assert_array_equal(method.self_influence(), alone.self_influence())
    assert_array_equal(method.transform(X_test), alone.transform(X_test))


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_planted_files_do_not_run(tmp_path):
    method, X_test, y_test = tree_run(tmp_path / "run")
    expected = method.transform(X_test, y_test)
    trap = pickle.dumps([Planted(str(tmp_path / "ran"))])
    for path in (tmp_path / "run").glob("*.npy"):
        np.save(path, np.frombuffer(trap, np.uint8))
    again, *_ = tree_run(tmp_path / "run")
    try:
        assert_array_equal(again.transform(X_test, y_test), expected)
    except (ValueError, IndexError):
        pass
    assert not (tmp_path / "ran").exists()


def slow_run(directory):
    X, y, X_test, y_test = numbers()
    model = Slow().fit(X, y)
    params = {"n_seeds": [1], "leave_out": range(12), "chunk_size": 1}
    method = LeaveOneOut(model, checkpoint_dir=directory, **params)
    return method.fit(X, y).transform(X_test, y_test)


class Slow(Ridge):
    """Takes its time."""

    def fit(self, X, y, sample_weight=None):
        time.sleep(0.05)
        return super().fit(X, y, sample_weight)


def test_kill_and_resume(tmp_path):
    directory = tmp_path / "run"
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; import test_refitting; "
        f"test_refitting.slow_run({str(directory)!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while len(list(directory.glob("*.npy"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in directory.glob("*.npy")}
    assert 5 <= len(kept) < 13
    resumed = slow_run(directory)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert_array_equal(resumed, slow_run(None))


# ---- failures -------------------------------------------------------------------------------


class Fails(RegressorMixin, BaseEstimator):
    """A mean that raises when row 0, the largest, is not there."""

    def __init__(self, error=None, always=False):
        self.error = error
        self.always = always

    def fit(self, X, y):
        if self.error is not None and (self.always or X.max() < 100):
            raise self.error
        self.mean_ = np.mean(y)
        return self

    def predict(self, X):
        return np.full(len(X), self.mean_)


def failing(error, always=False, **params):
    X, y, X_test, y_test = numbers()
    X = X.copy()
    X[0, 0] = 100
    model = Fails().fit(X, y).set_params(error=error, always=always)
    return LeaveOneOut(model, n_seeds=1, leave_out=[0, 1], **params).fit(X, y), X_test, y_test


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        np.linalg.LinAlgError("no"),
        OverflowError("no"),
        KeyError("no"),
        RuntimeError("no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_fitting_raises_is_counted(error):
    method, X_test, y_test = failing(error)
    with pytest.warns(
        UserWarning, match=rf"without row 0 \({type(error).__name__}: .*no.*leave_out"
    ):
        found = method.transform(X_test, y_test)
    assert np.isnan(found[:, 0]).all()
    assert np.isfinite(found[:, 1]).all()
    assert [(subset, seed) for subset, seed, _ in method.failed_] == [(1, method.seeds_[0])]
    method, X_test, y_test = failing(error, always=True)
    with pytest.raises(
        FloatingPointError, match=rf"^{type(error).__name__}: .*all 3 trainings failed"
    ):
        method.transform(X_test, y_test)


@pytest.mark.parametrize(
    "error", [TimeoutError("time is up"), KeyboardInterrupt(), MemoryError(), ZeroDivisionError]
)
def test_interrupts_go_through(error):
    if error is ZeroDivisionError:  # counted
        assert failing(ZeroDivisionError("no"))[0].subsets_.shape == (3, N)
        return
    with pytest.raises(type(error)):
        failing(error)


def test_an_alarm_ends_training():
    X, y, *_ = numbers()

    def ring(*_):
        raise TimeoutError("time is up")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(TimeoutError, match="time is up"):
            LeaveOneOut(Slow().fit(X, y), n_seeds=2).fit(X, y)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_one_row_of_a_class(n_classes):
    X, y, X_test, y_test = numbers(n_classes)
    keep = np.r_[np.flatnonzero(y > 0), np.flatnonzero(y == 0)[:1]]
    X, y = X[keep], y[keep]
    X_test, y_test = X_test[y_test > 0], y_test[y_test > 0]
    last = len(y) - 1
    method = LeaveOneOut(LogisticRegression().fit(X, y), n_seeds=2).fit(X, y)
    with pytest.warns(UserWarning, match=rf"without row {last} \(its rows .* class .*leave_out"):
        found = method.transform(X_test, y_test)
    assert np.isnan(found[:, last]).all()
    others = LeaveOneOut(method.estimator_, n_seeds=2, leave_out=range(last)).fit(X, y)
    assert_array_equal(found[:, :last], others.transform(X_test, y_test))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        top = method.top(X_test, y_test, k=3)
        own = method.self_influence()
    with pytest.raises(FloatingPointError, match=rf"train on all rows but row {last} \(its rows"):
        DistributionalInfluence(
            method.estimator_, method=LeaveOneOut(n_seeds=2, leave_out=[0, last])
        ).fit(X, y).transform(X_test, y_test)
    assert last not in top.helpful
    assert last not in top.harmful
    assert np.flatnonzero(np.isnan(own)).tolist() == [last]


# ---- units ----------------------------------------------------------------------------------


def test_several_outputs_are_summed():
    X, y, X_test, y_test = numbers()
    Y, Y_test = np.c_[y, y**2], np.c_[y_test, y_test**2]
    ridge = scores(Ridge().fit(X, Y), X, Y, X_test, Y_test)
    for model in (MultiOutputRegressor(Ridge()), DecisionTreeRegressor(max_depth=2)):
        check(model, (X, Y, X_test, Y_test))
    wrapped = scores(MultiOutputRegressor(Ridge()).fit(X, Y), X, Y, X_test, Y_test)
    assert_allclose(wrapped, ridge, rtol=1e-6, atol=1e-10)
    labels = np.c_[y > 0, y > 1].astype(int)
    for model in (MultiOutputClassifier(LogisticRegression()), DecisionTreeClassifier()):
        with pytest.raises(ValueError, match="must be a classifier of one label a row"):
            LeaveOneOut(model).fit(X, labels)


@pytest.mark.parametrize(
    "model", [RandomForestClassifier(10), KNeighborsClassifier(3), DecisionTreeClassifier()]
)
def test_probabilities_that_are_counts_are_smoothed(model):
    X, y, X_test, y_test = numbers(3)
    fitted = clone(model).fit(X, y)
    seeds = {"random_state": SEED} if "random_state" in model.get_params() else {}

    def probability(rows):
        p = clone(model).set_params(**seeds).fit(X[rows], y[rows]).predict_proba(X_test)
        return (N * p[np.arange(N_TEST), y_test] + 1 / 3) / (N + 1)

    p, without = probability(EVERYTHING), probability(EVERYTHING[1:])
    expected = {
        "loss": np.log(p) - np.log(without),
        "log_prob": np.log(without) - np.log(p),
        "margin": np.log(without / (1 - without)) - np.log(p / (1 - p)),
    }
    for measurement, change in expected.items():
        found = scores(fitted, X, y, X_test, y_test, [0], measurement=measurement)
        assert_allclose(found[:, 0], change, atol=1e-10)
    raw = scores(fitted, X, y, X_test, y_test, [0], measurement="output")
    assert_allclose(raw[:, 0], (without - p) * (N + 1) / N, atol=1e-12)


def test_probabilities_that_are_no_counts_are_left_alone():
    X, y, X_test, y_test = numbers(2)
    check(HistGradientBoostingClassifier(max_iter=3, min_samples_leaf=4), (X, y, X_test, y_test))


def test_a_measurement_that_needs_probabilities_fails_before_training():
    X, y, *_ = numbers(2)
    votes = VotingClassifier([("a", LinearSVC()), ("b", RidgeClassifier())], voting="hard")
    for model, message in (
        (LinearSVC(), "needs a classifier with class probabilities; .* a decision function"),
        (votes, r"'margin' is not finite .* VotingClassifier gives\. Use .*'loss'"),
    ):
        with pytest.raises(ValueError, match=message):
            LeaveOneOut(model.fit(X, y), measurement="margin").fit(X, y)


def test_forgotten_weights_and_other_rows_are_told():
    X, y, X_test, y_test = numbers()
    weight = np.linspace(0.1, 4, N)
    message = "Ridge predicts otherwise than it does when it is fitted again on all rows"
    for given, n_seeds in ((Ridge().fit(X, y, weight), 1), (Ridge().fit(X[5:], y[5:]), 2)):
        method = LeaveOneOut(given, n_seeds=n_seeds, leave_out=[0]).fit(X, y)
        with pytest.warns(UserWarning, match=message):
            method.transform(X_test, y_test)
    right = LeaveOneOut(Ridge().fit(X, y, weight), n_seeds=1, leave_out=[0]).fit(X, y, weight)
    random = SGDRegressor(random_state=0, max_iter=5, tol=None).fit(X, y)
    random = LeaveOneOut(random, n_seeds=1, leave_out=[0]).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        right.transform(X_test, y_test)
        random.transform(X_test, y_test)


def test_subsets_that_all_fail():
    X, y, X_test, y_test = numbers(2)
    with pytest.raises(FloatingPointError, match=r"^its rows are all of class 1: all 2 trainings"):
        train_on_subsets(
            LogisticRegression().fit(X, y),
            X,
            y,
            [np.flatnonzero(y == 1)],
            X_test,
            y_test,
            n_seeds=2,
        )
