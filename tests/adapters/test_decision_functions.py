"""Classifiers without probabilities are measured by the hinge loss of their decision function."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import PassiveAggressiveClassifier, Perceptron, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from fimoda import FurtherTraining, LeaveOneOut

RNG = np.random.default_rng(0)
N, N_TEST = 40, 5
X = RNG.normal(size=(N + N_TEST, 3))
SIGNAL = X[:, 0] + 0.5 * RNG.normal(size=len(X))
LABELS = {
    "two": np.where(SIGNAL > 0, "b", "a"),
    "three": np.array(["a", "b", "c"])[np.digitize(SIGNAL, [-0.5, 0.5])],
}
MODELS = {
    "svm": LinearSVC(random_state=0),
    "kernel": SVC(random_state=0),
    "pipeline": make_pipeline(StandardScaler(), LinearSVC(random_state=0)),
    "sgd": SGDClassifier(random_state=0),
    "perceptron": Perceptron(random_state=0),
}


def hinge(model, rows, labels):
    values, found = model.decision_function(rows), []
    for value, label in zip(values, labels, strict=True):
        if values.ndim == 1:
            sign = 1 if label == model.classes_[1] else -1
            found.append(max(0, 1 - sign * value))
        else:
            signs = np.where(model.classes_ == label, 1, -1)
            found.append(sum(max(0, 1 - s * f) for s, f in zip(signs, value, strict=True)))
    return np.array(found)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("classes", LABELS)
def test_leaving_rows_out(name, classes):
    y = LABELS[classes]
    model = MODELS[name].fit(X[:N], y[:N])
    method = LeaveOneOut(model, n_seeds=[0], leave_out=[3, 7]).fit(X[:N], y[:N])
    found = method.transform(X[N:], y[N:])
    full = hinge(model, X[N:], y[N:])
    for column, row in enumerate([3, 7]):
        kept = np.delete(np.arange(N), row)
        again = MODELS[name].fit(X[:N][kept], y[:N][kept])
        assert_allclose(found[:, column], hinge(again, X[N:], y[N:]) - full, atol=1e-9)
    assert np.abs(found).max() > 0


def test_further_training_moves_by_less_than_a_wrong_prediction():
    y = LABELS["three"]
    model = SGDClassifier(random_state=0).fit(X[:N], y[:N])
    method = FurtherTraining(model, n_epochs=2, n_seeds=2, leave_out=[1, 5, 9], random_state=0)
    found = method.fit(X[:N], y[:N]).transform(X[N:], y[N:])
    assert (found != np.round(found)).any()


def test_the_output_is_that_of_the_target():
    y = LABELS["two"]
    model = LinearSVC(random_state=0).fit(X[:N], y[:N])
    method = LeaveOneOut(model, n_seeds=[0], leave_out=[3], measurement="output")
    found = method.fit(X[:N], y[:N]).transform(X[N:], y[N:])
    kept = np.delete(np.arange(N), 3)
    again = LinearSVC(random_state=0).fit(X[kept], y[kept])
    signs = np.where(y[N:] == "b", 1, -1)
    expected = signs * (again.decision_function(X[N:]) - model.decision_function(X[N:]))
    assert_allclose(found[:, 0], expected, atol=1e-9)
    with pytest.raises(ValueError, match="values of a decision function"):
        LeaveOneOut(model, measurement="margin").fit(X[:N], y[:N])


class Labels(ClassifierMixin, BaseEstimator):
    """Knows labels alone."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        self.most_ = self.classes_[np.argmax([(y == c).sum() for c in self.classes_])]
        return self

    def predict(self, X):
        return np.full(len(X), self.most_)


@pytest.mark.parametrize("model", [SVC(decision_function_shape="ovo"), Labels()])
def test_others_are_right_or_wrong(model):
    """Three classes have three pairs, whose values are none of the classes."""
    y = np.digitize(SIGNAL, [-0.5, 0.5])
    method = LeaveOneOut(model.fit(X[:N], y[:N]), n_seeds=[0], leave_out=[0, 1])
    found = method.fit(X[:N], y[:N]).transform(X[N:], y[N:])
    assert set(np.unique(found)) <= {-1.0, 0.0, 1.0}
    assert method.model_.loss.detail == "1 for a wrong prediction, else 0"


def test_passive_aggressive_goes_on():
    y = LABELS["two"]
    with pytest.warns(FutureWarning):
        model = PassiveAggressiveClassifier(random_state=0).fit(X[:N], y[:N])
    method = LeaveOneOut(model, n_seeds=[0], leave_out=[3])
    assert method.fit(X[:N], y[:N]).model_.loss.detail == "hinge loss"
