"""The frozen view is compared with the model's own predictions, always."""

from __future__ import annotations

import numpy as np
import pytest
import skorch
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import softmax
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    Ridge,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from fimoda import FurtherTraining, GradDot, LeaveOneOut, as_final_model, attribute

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4))
Y = X @ [1.0, -1.0, 0.5, 0.0] + 0.1 * RNG.normal(size=60)
LABELS = (Y > 0).astype(int)
THREE = np.digitize(Y, [-0.5, 0.5])
SMALL = {"hidden_layer_sizes": (4,), "max_iter": 20, "random_state": 0}


class Flattened:
    """Probabilities at another temperature."""

    def predict_proba(self, X):
        found = np.sqrt(super().predict_proba(X))
        return found / found.sum(1, keepdims=True)


class Shifted:
    """Another decision function, which probabilities and classes follow."""

    def decision_function(self, X):
        return super().decision_function(X) + 0.5


class Cautious:
    """Classes by another rule than the likeliest."""

    def predict(self, X):
        return self.classes_[(self.predict_proba(X)[:, -1] > 0.8).astype(int)]


class Clipped:
    """Predictions that never are negative."""

    def predict(self, X):
        return np.maximum(super().predict(X), 0)


def derived(mixin, base):
    """A class of both that can be pickled."""
    name = mixin.__name__ + base.__name__
    return globals().setdefault(name, type(name, (mixin, base), {"__module__": __name__}))


OVERRIDING = {
    "logistic, probabilities": (derived(Flattened, LogisticRegression)(), LABELS, "predict_proba"),
    "three classes": (derived(Flattened, LogisticRegression)(), THREE, "predict_proba"),
    "logistic, decision": (derived(Shifted, LogisticRegression)(), LABELS, "predict_proba"),
    "logistic, classes": (derived(Cautious, LogisticRegression)(), LABELS, "predict"),
    "sgd": (
        derived(Flattened, SGDClassifier)(loss="log_loss", random_state=0),
        LABELS,
        "predict_proba",
    ),
    "mlp": (derived(Flattened, MLPClassifier)(**SMALL), LABELS, "predict_proba"),
    "mlp, classes": (derived(Cautious, MLPClassifier)(**SMALL), LABELS, "predict"),
    "ridge": (derived(Clipped, Ridge)(), Y, "predict"),
    "least squares": (derived(Clipped, LinearRegression)(), Y, "predict"),
    "sgd regressor": (derived(Clipped, SGDRegressor)(random_state=0), Y, "predict"),
    "mlp regressor": (derived(Clipped, MLPRegressor)(**SMALL), Y, "predict"),
}


@pytest.mark.parametrize("name", OVERRIDING)
def test_overridden_predictions_are_refused_or_fitted_again(name):
    model, y, method = OVERRIDING[name]
    model.fit(X, y)
    message = rf"its own {method} gives something else on training rows.*Methods that fit it again"
    for wrapped in (model, make_pipeline(StandardScaler(with_mean=False, with_std=False), model)):
        wrapped.fit(X, y)
        with pytest.raises(TypeError, match=message):
            GradDot(wrapped).fit(X, y)
        with pytest.raises(TypeError, match=message):
            FurtherTraining(wrapped).fit(X, y)
    retrained = LeaveOneOut(model, leave_out=[3], n_seeds=1, random_state=0).fit(X, y)
    assert retrained.transform(X[:5], y[:5]).shape == (5, 1)


def test_retraining_takes_an_overriding_model_as_it_is():
    """The score is the change of its own predictions."""
    model = derived(Clipped, Ridge)().fit(X, Y)
    method = LeaveOneOut(model, leave_out=[3], n_seeds=1, measurement="output").fit(X, Y)
    without = derived(Clipped, Ridge)().fit(np.delete(X, 3, 0), np.delete(Y, 3))
    expected = without.predict(X) - model.predict(X)
    assert (expected == 0).any()
    assert_allclose(method.transform(X, Y)[:, 0], expected, atol=1e-12)


def test_attribute_fits_it_again():
    model = derived(Flattened, LogisticRegression)().fit(X, LABELS)
    found = attribute(model, X[:20], LABELS[:20], X[20:23], LABELS[20:23], random_state=0)
    assert "fitted" in found.reason or "LeaveOneOut" in found.reason
    assert found.scores.shape == (3, 20)


def test_a_pipeline_that_overrides():
    class Doubled(Pipeline):
        def predict(self, X):
            return 2 * super().predict(X)

    model = Doubled([("scale", StandardScaler()), ("ridge", Ridge())]).fit(X, Y)
    with pytest.raises(TypeError, match="Doubled must predict what the Ridge inside predicts"):
        GradDot(model).fit(X, Y)


# ---- what must not be refused ---------------------------------------------------------------


class Named(LogisticRegression):
    """A subclass that changes nothing that matters."""

    def score(self, X, y, sample_weight=None):
        return -super().score(X, y, sample_weight)


BIG = 1e6 * np.abs(RNG.normal(size=(60, 4))) + 1e8

FAITHFUL = {
    "subclass": (Named(), X, LABELS),
    "one class never predicted": (LogisticRegression(C=1e-9), X, np.r_[np.zeros(55), np.ones(5)]),
    "no slope": (LogisticRegression(C=1e-300), X, np.tile([0, 1], 30)),
    "three": (LogisticRegression(), X, THREE),
    "strings": (LogisticRegression(), X, np.array(["a", "b", "c"])[THREE]),
    "float32": (LogisticRegression(), X.astype(np.float32), THREE),
    "one against the rest": (SGDClassifier("log_loss", random_state=0), 1e3 * X, THREE),
    "mlp of float32": (MLPClassifier(**SMALL), X.astype(np.float32), THREE),
    "large columns": (LinearRegression(), BIG, BIG @ [1.0, -1.0, 1.0, -1.0]),
    "large columns of float32": (MLPRegressor(**SMALL), BIG.astype(np.float32), Y),
    "two targets": (Ridge(), X, np.stack([Y, 1e6 * Y], -1)),
    "a column of targets": (Ridge(), X, Y[:, None]),
    "constant": (Ridge(), X, np.zeros(60)),
}  # fmt: skip


@pytest.mark.parametrize("name", FAITHFUL)
def test_rounding_and_ties_are_no_difference(name):
    model, rows, y = FAITHFUL[name]
    model.fit(rows, y)
    as_final_model(model, rows, y)
    as_final_model(model, rows[:1], y[:1])
    GradDot(model).fit(rows, y)


# ---- nets -----------------------------------------------------------------------------------


class NoY(nn.Module):
    """Probabilities, log-odds or numbers, of any shape."""

    def __init__(self, n_outputs=2, flat=False, softmax=False):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, n_outputs))
        self.flat, self.softmax = flat, softmax

    def forward(self, X):
        found = self.layers(X)
        if self.softmax:
            found = found.softmax(-1)
        return found[:, 0] if self.flat else found


def net_of(cls, criterion, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    module = {k: settings.pop(k) for k in ("n_outputs", "flat", "softmax") if k in settings}
    net = cls(
        NoY(**module).to(dtype), criterion=criterion, max_epochs=1, verbose=0, train_split=None,
        **settings,
    )  # fmt: skip
    return net


NETS = {
    "classifier": lambda: net_of(skorch.NeuralNetClassifier, nn.CrossEntropyLoss),
    "probabilities": lambda: net_of(skorch.NeuralNetClassifier, nn.NLLLoss, softmax=True),
    "binary": lambda: net_of(
        skorch.NeuralNetBinaryClassifier, nn.BCEWithLogitsLoss, n_outputs=1, flat=True
    ),
    "threshold": lambda: net_of(
        skorch.NeuralNetBinaryClassifier, nn.BCEWithLogitsLoss, n_outputs=1, flat=True,
        threshold=0.8,
    ),
    "regressor": lambda: net_of(skorch.NeuralNetRegressor, nn.MSELoss, n_outputs=1),
    "net": lambda: net_of(skorch.NeuralNet, nn.CrossEntropyLoss),
    "double": lambda: net_of(skorch.NeuralNetClassifier, nn.CrossEntropyLoss, torch.float64),
    "own nonlinearity": lambda: net_of(
        skorch.NeuralNetClassifier, nn.CrossEntropyLoss, predict_nonlinearity=lambda x: x - 3
    ),
}  # fmt: skip


def target(name):
    if name in ("binary", "threshold"):
        return LABELS.astype(np.float32)
    return Y.astype(np.float32)[:, None] if name == "regressor" else LABELS


@pytest.mark.parametrize("name", NETS)
def test_nets_are_left_as_they_were(name):
    net = NETS[name]()
    rows = X.astype(np.float64 if name == "double" else np.float32)
    net.fit(rows, target(name))
    net.module_.train()
    net.module_.layers[1].eval()
    before = torch.get_rng_state()
    as_final_model(net, rows, target(name))
    assert_array_equal(torch.get_rng_state(), before)
    assert [part.training for part in net.module_.modules()] == [True, True, True, False, True]


@pytest.mark.parametrize(
    ("base", "name"),
    [
        (skorch.NeuralNetClassifier, "classifier"),
        (skorch.NeuralNetRegressor, "regressor"),
        (skorch.NeuralNetBinaryClassifier, "threshold"),
    ],
)
def test_nets_that_override(base, name):
    class Halved(base):
        def predict_proba(self, X):
            return super().predict_proba(X) / 2

    net = NETS[name]()
    net.__class__ = Halved
    net.fit(X.astype(np.float32), target(name))
    with pytest.raises(TypeError, match=r"Halved must predict by.*Pass net.module_ with criterion"):
        as_final_model(net, X.astype(np.float32), target(name))


def test_a_net_that_overrides_its_classes():
    class Cautious(skorch.NeuralNetClassifier):
        def predict(self, X):
            return (self.predict_proba(X)[:, 1] > 0.99).astype(int)

    net = NETS["classifier"]()
    net.__class__ = Cautious
    net.fit(X.astype(np.float32), np.ones(60, dtype=int))
    with pytest.raises(TypeError, match="its predicted classes are not the likeliest"):
        as_final_model(net, X.astype(np.float32), np.ones(60, dtype=int))


def test_the_frozen_view_is_that_of_the_parameters():
    model = LogisticRegression().fit(X, THREE)
    view = as_final_model(model, X, THREE)
    own = softmax(view.outputs(view.encode_X(X)).numpy(), axis=1)
    assert_allclose(own, model.predict_proba(X), rtol=1e-12)
