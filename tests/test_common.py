"""Every attributor keeps the contract: found by walking the package, registered nowhere."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sklearn
import torch
from cells import find_attributors
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone, is_classifier
from sklearn.compose import ColumnTransformer
from sklearn.datasets import make_classification, make_regression
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks
from sklearn.utils.validation import check_is_fitted, has_fit_parameter
from skorch import NeuralNetClassifier
from torch import nn

import fimoda
from fimoda import BaseAttributor, GradCos, GradDot, KNNShapley, RepSim
from fimoda.attributors.families.trained_again import BaseTrainedAgain
from fimoda.utils.estimator_checks import attributor_checks, check_attributor

# The default MLP of scikit-learn's checks, and small fits here, may stop early.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

# ---- every attributor of the package --------------------------------------------------------

ATTRIBUTORS = find_attributors()

#: Those that take trees alone.
OF_TREES = find_attributors(of_trees=True)

#: What keeps a check short, for attributors that have the parameter.
SMALL = {
    "n_epochs": 1,
    "n_seeds": 2,
    "n_subsets": 20,
    "n_samples": 20,
    "regression": "ridge",
    "n_bootstrap": 2,
    "compile": False,
    "trajectory": "final",
    "method": fimoda.UnrolledDifferentiation(n_epochs=1, n_seeds=2, random_state=0),
    "gold_standard": fimoda.FurtherTraining(n_epochs=1, n_seeds=2, compile=False, random_state=0),
    "random_state": 0,
}


def make(cls: type[BaseAttributor], estimator=None, **params) -> BaseAttributor:
    """An attributor with small parameters."""
    known = set(inspect.signature(cls).parameters)
    if issubclass(cls, BaseTrainedAgain):
        known.discard("n_epochs")  # a model with a fit of its own refuses it
    small = {name: value for name, value in SMALL.items() if name in known}
    if "sampling" in known:  # a permutation is many trainings
        small["n_samples"] = 2
    return cls(estimator, **{**small, **params})


def with_parameter(name: str) -> list[type[BaseAttributor]]:
    return [cls for cls in ATTRIBUTORS if name in inspect.signature(cls).parameters]


each_attributor = pytest.mark.parametrize("cls", ATTRIBUTORS, ids=lambda cls: cls.__name__)


def test_walk_finds_attributors_and_all_are_public():
    assert {"FurtherTraining", "GradCos", "GradDot"} <= {cls.__name__ for cls in ATTRIBUTORS}
    for cls in ATTRIBUTORS + OF_TREES:
        assert getattr(fimoda, cls.__name__) is cls
        assert cls.__name__ in fimoda.__all__


# ---- scikit-learn's checks ------------------------------------------------------------------


def expected_failures(attributor: BaseAttributor) -> dict[str, str]:
    expected = dict.fromkeys(
        [f"check_sample_weight_equivalence_on_{kind}_data" for kind in ("dense", "sparse")],
        "the check compares weight 0 with removal of the row and weight 2 with repetition; the "
        "scores have one column per training row, so that their number changes",
    )
    if attributor.estimator is None and not has_fit_parameter(MLPClassifier(), "sample_weight"):
        for name in ("list", "not_an_array", "not_overwritten", "pandas_series", "shape"):
            expected[f"check_sample_weights_{name}"] = (
                "the default model, an MLP, takes no sample_weight before scikit-learn 1.7"
            )
    return expected


@parametrize_with_checks(
    [make(cls) for cls in ATTRIBUTORS + OF_TREES], expected_failed_checks=expected_failures
)
def test_sklearn(estimator, check):
    check(estimator)


@each_attributor
def test_sklearn_checks_with_a_final_model_of_regression(cls):
    """The same checks where the default is replaced by an unfitted linear model."""
    # rows as the checks draw them, unscaled, need small steps where instability is an error
    steps = {"lr": 1e-5} if cls.__name__.endswith("LinearizedFurtherTraining") else {}
    attributor = make(cls, Ridge(), **steps)
    results = check_estimator(
        attributor, expected_failed_checks=expected_failures(attributor), on_fail=None
    )
    assert not [r for r in results if r["status"] == "failed"]
    assert sum(r["status"] == "passed" for r in results) > 40


@each_attributor
def test_sample_weight_is_repetition(cls):
    """What the failing check of scikit-learn means to test, on scores that can be compared.

    A row of integer weight w scores as w copies of it would together, and a row of weight zero does
    not matter. (Not for further training in small batches: copies fall in different batches.)
    """
    X, y = make_regression(12, 3, random_state=0)
    weight = np.tile([1, 2, 0, 3], 3)
    model = Ridge().fit(X, y, weight)
    steps = "batch_size" in inspect.signature(cls).parameters
    params = {"batch_size": 100} if steps and not issubclass(cls, BaseTrainedAgain) else {}
    weighted = make(cls, model, **params).fit(X, y, sample_weight=weight).transform(X, y)
    copies = np.repeat(np.arange(12), weight)
    repeated = make(cls, model, **params).fit(X[copies], y[copies]).transform(X, y)
    assert np.isfinite(weighted).all()
    if cls is GradDot:
        together = np.zeros_like(weighted)
        np.add.at(together.T, copies, repeated.T)
        assert_allclose(weighted, together, rtol=1e-10)
    elif cls not in [
        *with_parameter("n_subsets"),
        *with_parameter("n_samples"),
        KNNShapley,
        fimoda.RefinedAttributor,
    ]:
        # other rows are other random subsets or are trained without, and distances have no weights
        # rows of weight one are the same in both
        ones = weight == 1
        assert_allclose(weighted[:, ones], repeated[:, weight[copies] == 1], rtol=1e-8, atol=1e-12)


# ---- the contract ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=f"{cls.__name__}-{name}")
        for cls in ATTRIBUTORS + OF_TREES
        for name, check in attributor_checks(make(cls))
    ],
)
def test_contract(check):
    check()


class Broken(GradDot):
    """Keeps what an earlier fit has seen, and returns the wrong type."""

    def _fit(self):
        self.first_ = getattr(self, "first_", self._objective.rows.inputs)
        super()._fit()

    def _scores(self, test):
        scores = super()._scores(test) * (1 + self.first_.sum().item())
        return scores.astype(np.float32)


def test_the_checks_can_fail():
    results = check_attributor(Broken(), on_fail=None)
    failed = {r["check_name"].split()[0] for r in results if r["status"] == "failed"}
    assert {"check_scores", "check_fit_again"} <= failed
    assert "check_clone" not in failed
    with pytest.raises(AssertionError, match="scores must be float64"):
        check_attributor(Broken())


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.Softmax(-1))

    def forward(self, X):
        return self.layers(X)


def classification(n: int = 36):
    X, y = make_classification(n, 4, n_informative=3, n_redundant=0, n_classes=3, random_state=0)
    return X.astype(np.float32), y


def fitted_net() -> NeuralNetClassifier:
    torch.manual_seed(0)
    X, y = classification()
    net = NeuralNetClassifier(
        TwoLayers, max_epochs=3, lr=0.1, batch_size=12, train_split=None, verbose=0
    )
    return net.fit(X, y)


def regression(n: int = 30):
    X, y = make_regression(n, 4, noise=5, random_state=0)
    return X, y


N_TEST = 7
MODELS = ["skorch", "ridge", "pipeline"]


def problem(name: str):
    """A fitted model, its training rows and some test rows."""
    if name == "skorch":
        X, y = classification()
        return fitted_net(), X, y, X[:N_TEST] + np.float32(0.1), y[:N_TEST]
    X, y = regression()
    if name == "ridge":
        return Ridge().fit(X, y), X, y, X[:N_TEST] + 0.1, y[:N_TEST]
    model = make_pipeline(StandardScaler(), Ridge()).fit(X, y)
    return model, X, y, X[:N_TEST] + 0.1, y[:N_TEST]


@each_attributor
@pytest.mark.parametrize("model", MODELS)
def test_shape_dtype_and_columns(cls, model):
    estimator, X, y, X_test, y_test = problem(model)
    attributor = make(cls, estimator)
    assert attributor.fit(X, y) is attributor
    scores = attributor.transform(X_test, y_test)
    assert scores.shape == (N_TEST, len(attributor.train_indices_))
    assert scores.dtype == np.float64
    assert_array_equal(attributor.train_indices_, np.arange(len(X)))
    assert attributor.n_features_in_ == 4
    assert np.abs(scores).max() > 0
    assert attributor.estimator_ is estimator


@pytest.mark.parametrize("cls", with_parameter("leave_out"), ids=lambda cls: cls.__name__)
def test_columns_of_some_rows(cls):
    estimator, X, y, X_test, y_test = problem("ridge")
    frame = pd.DataFrame(X, columns=list("abcd"), index=[f"train{i}" for i in range(len(X))])
    attributor = make(cls, Ridge().fit(frame, y), leave_out=[5, 2])
    attributor.set_output(transform="pandas").fit(frame, y)
    scores = attributor.transform(pd.DataFrame(X_test, columns=list("abcd")), y_test)
    assert_array_equal(attributor.train_indices_, [5, 2])
    assert list(scores.columns) == ["train5", "train2"]
    everything = make(cls, estimator).fit(X, y).transform(X_test, y_test)
    assert_allclose(scores, everything[:, [5, 2]], rtol=1e-5, atol=1e-12)


@each_attributor
def test_transform_without_y_of_a_classifier_is_at_the_predicted_class(cls):
    estimator, X, y, X_test, _ = problem("skorch")
    attributor = make(cls, estimator).fit(X, y)
    assert_array_equal(
        attributor.transform(X_test), attributor.transform(X_test, estimator.predict(X_test))
    )


@each_attributor
@pytest.mark.parametrize("model", ["skorch"])
def test_fit_transform(cls, model):
    estimator, X, y, _, _ = problem(model)
    attributor = make(cls, estimator)
    assert_array_equal(attributor.fit_transform(X, y), make(cls, estimator).fit(X, y).transform(X))


@each_attributor
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("measurement", ["loss", "log_prob"])
def test_self_influence_is_the_diagonal(cls, model, measurement):
    if measurement == "log_prob" and (model != "skorch" or cls is KNNShapley):
        measurement = "output"
    estimator, X, y, _, _ = problem(model)
    attributor = make(cls, estimator, measurement=measurement).fit(X, y)
    diagonal = np.diag(attributor.transform(X, y))
    assert_allclose(
        attributor.self_influence(), diagonal, rtol=1e-5, atol=1e-6 * abs(diagonal).max()
    )


@pytest.mark.parametrize(
    ("cls", "given"),
    [
        pytest.param(cls, given, id=f"{cls.__name__}-{given.get('correction', 'none')}")
        for cls in with_parameter("leave_out")
        for given in (
            [{"correction": c} for c in ("full", "mean", None)]
            if cls in with_parameter("correction")
            else [{}]
        )
    ],
)
def test_self_influence_of_some_rows(cls, given):
    estimator, X, y, _, _ = problem("ridge")
    rows = [9, 3, 4]
    attributor = make(cls, estimator, leave_out=rows, **given).fit(X, y)
    diagonal = np.diag(attributor.transform(X[rows], y[rows]))
    assert_allclose(attributor.self_influence(), diagonal, rtol=1e-5, atol=1e-9)


def unchanged(model, before) -> bool:
    """Whether the parameters, buffers, gradients and mode of a torch module are as before."""
    state, training, gradients, hooks = before
    same = all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    now = [p.grad is None for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    return (
        same
        and modes == training
        and now == gradients
        and [len(m._forward_hooks) for m in model.modules()] == hooks
    )


def snapshot(model: nn.Module):
    return (
        copy.deepcopy(model.state_dict()),
        [m.training for m in model.modules()],
        [p.grad is None for p in model.parameters()],
        [len(m._forward_hooks) for m in model.modules()],
    )


@each_attributor
def test_the_model_is_not_changed(cls):
    net, X, y, X_test, y_test = problem("skorch")
    before = snapshot(net.module_)
    optimizer = copy.deepcopy(net.optimizer_.state_dict())
    attributor = make(cls, net).fit(X, y)
    attributor.transform(X_test, y_test)
    attributor.self_influence()
    with pytest.raises(ValueError, match="labels that the model was not trained on"):
        attributor.transform(X_test, y_test + 10)
    with pytest.raises(ValueError, match="features"):
        attributor.transform(X_test[:, :2], y_test)
    assert unchanged(net.module_, before)
    assert net.optimizer_.state_dict() == optimizer
    ridge, X, y, X_test, y_test = problem("ridge")
    before = copy.deepcopy(ridge.__dict__)
    make(cls, ridge).fit(X, y).transform(X_test, y_test)
    for name, value in before.items():
        assert_array_equal(getattr(ridge, name), value)


@each_attributor
def test_the_model_is_not_changed_when_a_measurement_raises(cls):
    def fails(outputs, targets):
        raise ArithmeticError("mine")

    net, X, y, _, _ = problem("skorch")
    before = snapshot(net.module_)
    with pytest.raises(ArithmeticError, match="mine"):
        make(cls, net, measurement=fails).fit(X, y).transform(X, y)
    assert unchanged(net.module_, before)


# ---- estimators -----------------------------------------------------------------------------


@each_attributor
@pytest.mark.parametrize("model", [*MODELS, "frozen", "module"])
def test_clone_keeps_a_fitted_model(cls, model):
    criterion = None
    if model == "frozen":
        estimator = FrozenEstimator(problem("ridge")[0])
    elif model == "module":
        estimator, criterion = nn.Linear(4, 1), nn.MSELoss()
    else:
        estimator = problem(model)[0]
    attributor = make(cls, estimator, criterion=criterion)
    copied = clone(attributor)
    assert copied is not attributor
    assert copied.estimator is estimator
    assert copied.get_params(deep=False).keys() == attributor.get_params(deep=False).keys()
    inside = clone(Pipeline([("scale", StandardScaler()), ("scores", attributor)]))
    assert inside[-1].estimator is estimator


@each_attributor
def test_clone_is_unfitted_and_keeps_settings(cls):
    estimator, X, y, X_test, y_test = problem("ridge")
    attributor = make(cls, estimator, measurement="output").set_output(transform="pandas")
    attributor.fit(X, y)
    copied = clone(attributor)
    with pytest.raises(NotFittedError):
        check_is_fitted(copied)
    assert copied.measurement == "output"
    assert isinstance(copied.fit(X, y).transform(X_test, y_test), pd.DataFrame)
    assert attributor.estimator is estimator


@each_attributor
def test_an_unfitted_model_is_fitted_with_the_weights(cls):
    X, y = regression()
    weight = np.linspace(0.5, 2, len(y))
    attributor = make(cls, Ridge()).fit(X, y, sample_weight=weight)
    assert_allclose(attributor.estimator_.coef_, Ridge().fit(X, y, weight).coef_)


@each_attributor
def test_an_unfitted_pipeline_and_search_on_a_frame(cls):
    X, y = regression()
    frame = pd.DataFrame(X, columns=list("abcd"))
    pipeline = make_pipeline(ColumnTransformer([("s", StandardScaler(), ["d", "a"])]), Ridge())
    scores = make(cls, pipeline).fit(frame, y).transform(frame, y)
    fitted = clone(pipeline).fit(frame, y)
    assert_array_equal(scores, make(cls, fitted).fit(frame, y).transform(frame, y))
    search = GridSearchCV(pipeline, {"ridge__alpha": [1.0]}, cv=2)
    assert_array_equal(scores, make(cls, search).fit(frame, y).transform(frame, y))


@each_attributor
@pytest.mark.parametrize("target", ["regression", "binary", "multiclass", "strings"])
def test_default_estimator(cls, target):
    X, y = regression()
    if target != "regression":
        y = np.digitize(y, np.quantile(y, [0.5] if target == "binary" else [0.3, 0.6]))
        y = np.array(["no", "perhaps", "yes"])[y] if target == "strings" else y
    attributor = make(cls).fit(X, y)
    assert is_classifier(attributor.estimator_) == (target != "regression")
    assert attributor.transform(X[:3], y[:3]).shape == (3, len(X))
    assert attributor.estimator is None


@each_attributor
@pytest.mark.parametrize("model", ["skorch"])
def test_pickle_and_joblib(cls, model, tmp_path):
    estimator, X, y, X_test, y_test = problem(model)
    attributor = make(cls, estimator).fit(X, y)
    scores = attributor.transform(X_test, y_test)
    loaded = pickle.loads(pickle.dumps(attributor))
    assert_array_equal(loaded.transform(X_test, y_test), scores)
    assert_array_equal(loaded.self_influence(), attributor.self_influence())
    joblib.dump(attributor, tmp_path / "attributor.joblib")
    loaded = joblib.load(tmp_path / "attributor.joblib")
    assert_array_equal(loaded.transform(X_test, y_test), scores)
    unfitted = pickle.loads(pickle.dumps(make(cls, estimator)))
    assert_array_equal(unfitted.fit(X, y).transform(X_test, y_test), scores)


# ---- names ----------------------------------------------------------------------------------


@each_attributor
def test_html_says_what_a_score_means(cls):
    assert cls.process
    attributor = make(cls, measurement="margin")
    for html in (attributor._repr_html_(), attributor._repr_mimebundle_()["text/html"]):
        assert "margin of a test row without a training row, minus with all" in html
        assert f"Without it: {attributor.process.replace(chr(39), '&#x27;')}." in html


@each_attributor
def test_sparse_rows(cls):
    """A linear model takes them, as it stands or fitted again; a network does not."""
    estimator, X, y, X_test, y_test = problem("ridge")
    sparse = make(cls, estimator).fit(scipy.sparse.csr_array(X), y)
    scores = sparse.transform(scipy.sparse.csr_array(X_test), y_test)
    dense = make(cls, estimator).fit(X, y).transform(X_test, y_test)
    rounding = 1e-3 if issubclass(cls, BaseTrainedAgain) else 1e-9  # solvers differ
    assert_allclose(scores, dense, rtol=rounding, atol=rounding * np.abs(dense).max())


@each_attributor
def test_names_from_frames(cls):
    _, X, y, X_test, y_test = problem("ridge")
    columns = list("abcd")
    train = pd.DataFrame(X, columns=columns, index=[f"patient {i}" for i in range(len(X))])
    test = pd.DataFrame(X_test, columns=columns, index=[f"visit {i}" for i in range(N_TEST)])
    ridge = Ridge().fit(train, y)
    attributor = make(cls, ridge).set_output(transform="pandas").fit(train, pd.Series(y))
    frame = attributor.transform(test, pd.Series(y_test, index=test.index))
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns) == list(train.index)
    assert list(frame.index) == list(test.index)
    assert list(attributor.get_feature_names_out()) == list(train.index)
    assert list(attributor.feature_names_in_) == columns
    plain = make(cls, ridge).fit(train, y).transform(test, y_test)
    assert type(plain) is np.ndarray
    assert_array_equal(frame, plain)
    with pytest.raises(ValueError, match="feature names"):
        attributor.transform(test[["b", "a", "c", "d"]], y_test)


@each_attributor
def test_html_after_a_fit_on_a_frame_with_the_default_index(cls):
    _, X, y, *_ = problem("ridge")
    attributor = make(cls, Ridge().fit(X, y)).fit(pd.DataFrame(X), y)
    assert list(attributor.get_feature_names_out()) == [str(i) for i in range(len(X))]
    for html in (attributor._repr_html_(), attributor._repr_mimebundle_()["text/html"]):
        assert cls.__name__ in html


@each_attributor
def test_polars(cls):
    """Frames in and out; the model's own Pipeline takes them too."""
    pl = pytest.importorskip("polars")
    _, X, y, X_test, y_test = problem("ridge")
    train, test = (pl.DataFrame(rows, schema=list("abcd")) for rows in (X, X_test))
    pipeline = make_pipeline(ColumnTransformer([("s", StandardScaler(), ["d", "a"])]), Ridge())
    for model in (Ridge().fit(train, y), pipeline.fit(train, y)):
        attributor = make(cls, model).set_output(transform="polars").fit(train, pl.Series(y))
        frame = attributor.transform(test, pl.Series(y_test))
        assert isinstance(frame, pl.DataFrame)
        assert frame.columns == [f"row{i}" for i in range(len(X))]
        plain = make(cls, model).fit(train, y).transform(test, y_test)
        assert_array_equal(frame.to_numpy(), plain)
        if model is not pipeline:
            with pytest.raises(ValueError, match="feature names"):
                attributor.transform(test[["b", "a", "c", "d"]], y_test)
    framed = make(cls, Ridge()).set_output(transform="polars").fit(pd.DataFrame(X), y)
    assert framed.transform(X_test, y_test).columns == [str(i) for i in range(len(X))]


@each_attributor
@pytest.mark.parametrize("container", [np.asarray, np.ndarray.tolist, torch.from_numpy])
def test_names_without_frames(cls, container):
    estimator, X, y, X_test, y_test = problem("ridge")
    attributor = make(cls, estimator)
    with pytest.raises(NotFittedError):
        attributor.get_feature_names_out()
    attributor.fit(container(X), container(y))
    assert list(attributor.get_feature_names_out()) == [f"row{i}" for i in range(len(X))]
    scores = attributor.transform(container(X_test), container(y_test))
    assert_array_equal(scores, make(cls, estimator).fit(X, y).transform(X_test, y_test))


# ---- top ------------------------------------------------------------------------------------


@each_attributor
def test_top(cls):
    estimator, X, y, X_test, y_test = problem("ridge")
    attributor = make(cls, estimator).fit(X, y)
    scores = attributor.transform(X_test, y_test)
    top = attributor.top(X_test, y_test, k=4)
    for z in range(N_TEST):
        order = np.argsort(scores[z])
        if len(np.unique(scores[z])) == len(X):  # equal ones have no order
            assert_array_equal(top.helpful[z], order[::-1][:4])
            assert_array_equal(top.harmful[z], order[:4])
        assert_array_equal(scores[z, top.helpful[z]], scores[z, order[::-1][:4]])
        assert_array_equal(scores[z, top.harmful[z]], scores[z, order[:4]])
        assert_array_equal(top.helpful_scores[z], scores[z, top.helpful[z]])
        assert_array_equal(top.harmful_scores[z], scores[z, top.harmful[z]])
    assert attributor.top(X_test, k=len(X)).helpful.shape == (N_TEST, len(X))
    for k, least in ((0, "at least 1"), (len(X) + 1, rf"between 1 and .*\({len(X)}\)")):
        with pytest.raises(ValueError, match=rf"k must be {least}, got {k}"):
            attributor.top(X_test, y_test, k=k)


@each_attributor
def test_top_with_pandas_output(cls):
    estimator, X, y, X_test, y_test = problem("ridge")
    plain = make(cls, estimator).fit(X, y).top(X_test, y_test)
    framed = make(cls, estimator).set_output(transform="pandas").fit(X, y).top(X_test, y_test)
    assert_array_equal(plain.helpful, framed.helpful)


@pytest.mark.parametrize("cls", with_parameter("leave_out"), ids=lambda cls: cls.__name__)
def test_top_gives_training_rows(cls):
    estimator, X, y, X_test, y_test = problem("ridge")
    attributor = make(cls, estimator, leave_out=[20, 3, 11]).fit(X, y)
    scores = attributor.transform(X_test, y_test)
    top = attributor.top(X_test, y_test, k=1)
    assert_array_equal(top.helpful[:, 0], np.array([20, 3, 11])[scores.argmax(1)])
    assert_array_equal(top.harmful_scores[:, 0], scores.min(1))


# ---- invariances ----------------------------------------------------------------------------


def close(a, b):
    assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@each_attributor
@pytest.mark.parametrize("model", ["skorch"])
def test_order_of_test_rows(cls, model):
    estimator, X, y, X_test, y_test = problem(model)
    attributor = make(cls, estimator).fit(X, y)
    order = np.random.default_rng(0).permutation(N_TEST)
    scores = attributor.transform(X_test, y_test)
    close(attributor.transform(X_test[order], y_test[order]), scores[order])
    close(attributor.transform(X_test[2:3], y_test[2:3]), scores[2:3])


@pytest.mark.parametrize("cls", with_parameter("chunk_size"), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("model", MODELS)
def test_chunk_size(cls, model):
    estimator, X, y, X_test, y_test = problem(model)
    whole = make(cls, estimator, chunk_size=1000).fit(X, y)
    for chunk_size in (1, 5):
        cut = make(cls, estimator, chunk_size=chunk_size).fit(X, y)
        close(cut.transform(X_test, y_test), whole.transform(X_test, y_test))
        close(cut.self_influence(), whole.self_influence())


@pytest.mark.parametrize("cls", [GradCos, GradDot], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("model", MODELS)
def test_order_of_training_rows(cls, model):
    estimator, X, y, X_test, y_test = problem(model)
    order = np.random.default_rng(0).permutation(len(X))
    scores = make(cls, estimator).fit(X, y).transform(X_test, y_test)
    permuted = make(cls, estimator).fit(X[order], y[order]).transform(X_test, y_test)
    close(permuted, scores[:, order])


# ---- metadata routing -----------------------------------------------------------------------


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


@each_attributor
def test_routing_in_a_pipeline(cls, routing):
    X, y = regression()
    weight = np.linspace(0.5, 2, len(y))
    scaler = StandardScaler().set_fit_request(sample_weight=False)
    scaled = StandardScaler().fit(X)
    ridge = Ridge().fit(scaled.transform(X), y, weight)
    attributor = make(cls, ridge).set_fit_request(sample_weight=True).set_transform_request(y=True)
    pipeline = make_pipeline(scaler, attributor)
    for flow in (pipeline, clone(pipeline)):
        scores = flow.fit(X, y, sample_weight=weight).transform(X[:5], y=y[:5])
        alone = make(cls, ridge).fit(scaled.transform(X), y, sample_weight=weight)
        assert_allclose(scores, alone.transform(scaled.transform(X[:5]), y[:5]), rtol=1e-10)
    unweighted = make(cls, ridge).fit(scaled.transform(X), y)
    different = unweighted.transform(scaled.transform(X[:5]), y[:5])
    if cls not in (GradCos, KNNShapley, RepSim):  # cosines and distances do not see weights
        assert not np.allclose(scores, different, rtol=1e-3)


@each_attributor
def test_routing_must_be_asked_for(cls, routing):
    X, y = regression()
    pipeline = make_pipeline(StandardScaler(), make(cls, Ridge().fit(X, y))).fit(X, y)
    with pytest.raises(sklearn.exceptions.UnsetMetadataPassedError, match="y"):
        pipeline.transform(X, y=y)


@each_attributor
def test_an_attributor_in_a_pipeline_without_routing(cls):
    X, y = classification()
    scaled = StandardScaler().fit_transform(X)
    for model in (
        LogisticRegression().fit(scaled, y),
        MLPClassifier((5,), max_iter=20, solver="lbfgs", random_state=0).fit(scaled, y),
    ):
        scores = make_pipeline(StandardScaler(), make(cls, model)).fit(X, y).transform(X[:3])
        assert_allclose(scores, make(cls, model).fit(scaled, y).transform(scaled[:3]), rtol=1e-10)


# ---- documentation --------------------------------------------------------------------------

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("cls", ATTRIBUTORS + OF_TREES)
def test_has_a_page_of_its_own(cls):
    pages = (page.read_text() for page in DOCS.glob("methods/*.rst"))
    named_first = [re.search(r":class:`(\w+)`", page) for page in pages]
    assert cls.__name__ in [found[1] for found in named_first if found]


def test_api_page_is_complete():
    listed = re.findall(r"^   (\w+)$", (DOCS / "api.rst").read_text(), re.MULTILINE)
    assert not {name for name in fimoda.__all__ if not name.startswith("_")} - set(listed)
