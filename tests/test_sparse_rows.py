"""Sparse rows of linear models: the same scores as of arrays."""

from __future__ import annotations

import numpy as np
import pytest
import skorch
from numpy.testing import assert_allclose
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Ridge,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder
from torch import nn

from fimoda import (
    DataInf,
    EKFACInfluence,
    ExactInfluence,
    FurtherTraining,
    GradCos,
    GradDot,
    LeaveOneOut,
    as_final_model,
    attribute,
    checked_rows,
    compare_methods,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)) * (RNG.random((40, 6)) < 0.3)
Y = X @ RNG.normal(size=6) + 0.1 * RNG.normal(size=40)
LABELS = np.digitize(Y, [-0.3, 0.3])
FORMATS = [sparse.csr_matrix, sparse.csr_array, sparse.csc_array, sparse.coo_array]

MODELS = {
    "logistic": LogisticRegression(),
    "ridge": Ridge(),
    "least squares": LinearRegression(),
    "sgd": SGDClassifier(loss="log_loss", random_state=0),
    "sgd regressor": SGDRegressor(random_state=0),
    "search": GridSearchCV(Ridge(), {"alpha": [0.1, 1.0]}, cv=2),
}


def target(name):
    return LABELS if name in ("logistic", "sgd") else Y


def scores(attributor, rows, y):
    """Scores of the first rows."""
    test = rows.tocsr() if sparse.issparse(rows) else rows
    return attributor.fit(rows, y).transform(test[:5], y[:5])


@pytest.mark.parametrize("make", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_equal_to_dense_rows(name, make):
    y = target(name)
    model = MODELS[name].fit(make(X), y)
    expected = scores(GradDot(model), X, y)
    assert_allclose(scores(GradDot(model), make(X), y), expected, rtol=1e-12, atol=1e-15)
    found = GradDot(model).fit(X, y).transform(make(X[:5]), y[:5])
    assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("method", [GradCos, ExactInfluence, EKFACInfluence, DataInf])
def test_every_gradient_method(method):
    model = LogisticRegression().fit(X, LABELS)
    expected = scores(method(model), X, LABELS)
    assert_allclose(scores(method(model), sparse.csr_array(X), LABELS), expected, rtol=1e-9)


def test_an_unfitted_model_is_fitted_on_sparse_rows():
    expected = scores(GradDot(Ridge().fit(X, Y)), X, Y)
    assert_allclose(scores(GradDot(Ridge()), sparse.csr_array(X), Y), expected, rtol=1e-3)


TEXTS = np.array([" ".join(RNG.choice(list("abcdefgh"), 5)) for _ in range(40)])


def test_texts():
    vectorizer = TfidfVectorizer(token_pattern=r"\w")
    model = make_pipeline(vectorizer, LogisticRegression()).fit(TEXTS, LABELS)
    rows = vectorizer.transform(TEXTS).toarray()
    expected = scores(GradDot(model[-1]), rows, LABELS)
    assert_allclose(scores(GradDot(model), TEXTS, LABELS), expected, rtol=1e-12)
    found = attribute(model, TEXTS, LABELS, TEXTS[:3], LABELS[:3], method=GradDot())
    assert_allclose(found.scores, expected[:3], rtol=1e-12)


def test_attribute_and_comparison():
    model = Ridge().fit(X, Y)
    rows = sparse.csr_array(X)
    auto = attribute(model, rows, Y, rows[:4], Y[:4], random_state=0)
    dense = attribute(model, X, Y, X[:4], Y[:4], random_state=0)
    assert_allclose(auto.scores, dense.scores, rtol=1e-3, atol=1e-6)
    asked = {"methods": {"a": GradDot(model)}, "epochs": [1], "n_seeds": 1, "leave_out": 5}
    found = compare_methods(model, rows, Y, rows[:4], Y[:4], random_state=0, **asked)
    expected = compare_methods(model, X, Y, X[:4], Y[:4], random_state=0, **asked)
    columns = [c for c in found.to_frame() if "second" not in str(c)]
    np.testing.assert_array_equal(found.to_frame()[columns], expected.to_frame()[columns])


def test_frozen_view_of_sparse_rows():
    model = LogisticRegression().fit(X, LABELS)
    rows = sparse.csr_array(X)
    assert as_final_model(model, rows).fingerprint == as_final_model(model, X).fingerprint
    thin = LogisticRegression().fit(X, LABELS).sparsify()
    assert sparse.issparse(thin.coef_)
    assert as_final_model(thin, rows).fingerprint == as_final_model(model, X).fingerprint
    assert sparse.issparse(thin.coef_)


def test_memory_is_asked_for_before(monkeypatch):
    wide = sparse.random_array((30, 10**7), density=1e-6, rng=0, format="csr")
    model = Ridge(solver="sparse_cg", max_iter=1).fit(wide, Y[:30])
    with pytest.raises(MemoryError, match=r"of shape \(30, 10000000\), and would take 2289 MiB as"):
        GradDot(model).fit(wide, Y[:30])
    monkeypatch.setattr(checked_rows, "SPARSE_BUDGET", 100)
    model = Ridge().fit(X, Y)
    with pytest.raises(MemoryError, match=r"of shape \(40, 6\).*min_df of a vectoriser"):
        GradDot(model, memory_budget=100).fit(sparse.csr_array(X), Y)
    scores(ExactInfluence(model, memory_budget=2**20), sparse.csr_array(X), Y)


def test_networks_say_what_to_do():
    mlp = MLPClassifier((3,), max_iter=3, random_state=0)
    with pytest.warns(Warning, match="Maximum iterations"):
        mlp.fit(X, LABELS)
    with pytest.raises(TypeError, match=r"Sparse data was passed.*toarray"):
        GradDot(mlp).fit(sparse.csr_array(X), LABELS)
    names = (X[:, :2] > 0).astype(str)
    encoder = OneHotEncoder().fit(names)
    with pytest.warns(Warning, match="Maximum iterations"):
        model = make_pipeline(encoder, mlp).fit(names, LABELS)
    message = r"X is sparse where it reaches the MLPClassifier.*sparse_output=False"
    for attributor in (GradDot(model), FurtherTraining(model), LeaveOneOut(model, refit="last")):
        with pytest.raises(TypeError, match=message):
            attributor.fit(names, LABELS)
    dense = FunctionTransformer(lambda rows: rows.toarray())
    made = make_pipeline(encoder, dense, mlp)
    assert scores(GradDot(made), names, LABELS).shape == (5, 40)
    net = skorch.NeuralNetRegressor(nn.Linear, module__in_features=4, module__out_features=1)
    with pytest.raises(TypeError, match=message.replace("MLPClassifier", "NeuralNetRegressor")):
        GradDot(make_pipeline(encoder, net.initialize())).fit(names, Y)


def test_nan_in_sparse_rows():
    rows = sparse.csr_array(X)
    rows.data[3] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        GradDot(Ridge().fit(X, Y)).fit(rows, Y)


def test_tags():
    assert GradDot(Ridge()).__sklearn_tags__().input_tags.sparse
    assert not GradDot().__sklearn_tags__().input_tags.sparse
    assert not GradDot(MLPClassifier()).__sklearn_tags__().input_tags.sparse
