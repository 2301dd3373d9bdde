"""Every source of a final model: the same predictions, losses and objective, or a clear error."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pandas as pd
import pytest
import skorch
import torch
from numpy.testing import assert_allclose, assert_array_equal
from problems import tanh_network
from scipy.special import expit, softmax
from sklearn.base import is_classifier
from sklearn.compose import ColumnTransformer
from sklearn.datasets import make_classification, make_regression
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Ridge,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.validation import has_fit_parameter
from torch import nn

from fimoda import FurtherTraining, GradDot, as_final_model
from fimoda.adapters import is_fitted, transform_rows

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

LABELS = np.array(["apple", "pear", "quince"])


def classes(n_classes: int = 3, n: int = 60, strings: bool = False):
    X, y = make_classification(
        n,
        5,
        n_informative=4,
        n_redundant=0,
        n_classes=n_classes,
        weights=[0.6, 0.25, 0.15] if n_classes == 3 else [0.7],
        flip_y=0.1,
        random_state=0,
    )
    return X, LABELS[y] if strings else y


def numbers(n_targets: int = 1, n: int = 60):
    X, y = make_regression(n, 5, n_targets=n_targets, noise=10, random_state=0)
    return X, (y - y.mean(0)) / y.std(0)


def freeze(estimator, X, y, **options):
    """The final model, its encoded rows and targets, in float64."""
    model = as_final_model(estimator, X, y, **options).double
    rows = model.encode_X(X)
    return model, rows, model.encode_y(y, model.outputs(rows[:1]).shape[1])


def probabilities(model, outputs: torch.Tensor) -> np.ndarray:
    """Probability of each class, from outputs of any kind."""
    f = outputs.numpy()
    kind = model.loss.outputs_are
    if kind.startswith("binary"):
        second = expit(f) if kind == "binary logit" else f
        return np.hstack([1 - second, second])
    if kind == "probabilities":
        return f
    if kind == "one vs rest logits":
        return expit(f) / expit(f).sum(1, keepdims=True)
    return softmax(f, axis=1)


def gradient(model, X, y, sample_weight=None) -> np.ndarray:
    """Gradient of the training objective in the parameters, at the final model."""
    weight = None if sample_weight is None else torch.from_numpy(sample_weight)
    weights = model.row_weights(y, weight)
    theta = model.theta.clone().requires_grad_()
    objective = (weights * model.loss(model.forward(theta, X), y)).sum() / weights.sum()
    if model.l2 is not None:
        objective = objective + 0.5 * (model.l2 * theta**2).sum()
    return torch.autograd.grad(objective, theta)[0].numpy()


# ---- scikit-learn: predictions --------------------------------------------------------------

ACTIVATIONS = ["identity", "logistic", "tanh", "relu"]
BALANCED = {"class_weight": "balanced"}

CLASSIFIERS = {
    **{
        f"mlp-{a}": (MLPClassifier(hidden_layer_sizes=(6, 4), activation=a, random_state=0), 3)
        for a in ACTIVATIONS
    },
    "mlp-binary": (MLPClassifier(hidden_layer_sizes=(6,), random_state=0), 2),
    "logistic": (LogisticRegression(), 3),
    "logistic-binary": (LogisticRegression(), 2),
    "logistic-no-intercept": (LogisticRegression(fit_intercept=False), 3),
    "logistic-liblinear": (LogisticRegression(solver="liblinear", fit_intercept=False), 2),
    "logistic-balanced": (LogisticRegression(**BALANCED), 3),
    "sgd": (SGDClassifier(loss="log_loss", random_state=0), 3),
    "sgd-binary": (SGDClassifier(loss="log_loss", alpha=0.1, random_state=0), 2),
    "sgd-average": (SGDClassifier(loss="log_loss", average=True, random_state=0), 3),
    "sgd-binary-balanced": (
        SGDClassifier(loss="log_loss", alpha=0.1, random_state=0, **BALANCED),
        2,
    ),
}
REGRESSORS = {
    **{
        f"mlp-{a}": (MLPRegressor(hidden_layer_sizes=(6, 4), activation=a, random_state=0), 1)
        for a in ACTIVATIONS
    },
    "mlp-2": (MLPRegressor(hidden_layer_sizes=(6,), random_state=0), 2),
    "linear": (LinearRegression(), 1),
    "linear-2": (LinearRegression(), 2),
    "linear-no-intercept": (LinearRegression(fit_intercept=False), 1),
    "ridge": (Ridge(), 1),
    "ridge-2": (Ridge(alpha=np.array([1.0, 20.0])), 2),
    "sgd": (SGDRegressor(random_state=0), 1),
    "sgd-huber": (SGDRegressor(loss="huber", epsilon=0.3, random_state=0), 1),
}


@pytest.mark.parametrize("strings", [False, True])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_predict_the_same(name, strings):
    estimator, n_classes = CLASSIFIERS[name]
    X, y = classes(n_classes, strings=strings)
    estimator = copy.deepcopy(estimator).fit(X, y)
    model, rows, encoded = freeze(estimator, X, y)
    outputs = model.outputs(rows)
    assert_allclose(probabilities(model, outputs), estimator.predict_proba(X), rtol=1e-10)
    predicted = model.classes[model.predicted_targets(outputs).numpy()]
    assert_array_equal(predicted, estimator.predict(X))
    assert_array_equal(model.classes[encoded.numpy()], y)
    if model.loss.outputs_are != "one vs rest logits":
        p = estimator.predict_proba(X)[np.arange(len(y)), encoded.numpy()]
        assert_allclose(model.losses(rows, encoded), -np.log(p), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", REGRESSORS)
def test_regressors_predict_the_same(name):
    estimator, n_targets = REGRESSORS[name]
    X, y = numbers(n_targets)
    estimator = copy.deepcopy(estimator).fit(X, y)
    model, rows, encoded = freeze(estimator, X, y)
    predicted = estimator.predict(X).reshape(len(X), -1)
    assert_allclose(model.outputs(rows), predicted, rtol=1e-10, atol=1e-12)
    squares = (predicted - y.reshape(len(X), -1)) ** 2
    if name == "sgd-huber":
        r = np.sqrt(squares[:, 0])
        expected = np.where(r <= 0.3, 0.5 * r**2, 0.3 * (r - 0.15))
    elif name.startswith(("mlp", "sgd")):
        expected = 0.5 * squares.sum(1)
    else:
        expected = squares.sum(1)
    assert_allclose(model.losses(rows, encoded), expected, rtol=1e-9, atol=1e-12)


def test_ridge_with_a_target_column():
    X, y = numbers()
    estimator = Ridge().fit(X, y[:, None])
    model, rows, encoded = freeze(estimator, X, y[:, None])
    assert_allclose(model.outputs(rows), estimator.predict(X).reshape(-1, 1), rtol=1e-12)
    assert encoded.shape == (len(y), 1)


@pytest.mark.parametrize(
    "estimator", [LogisticRegression(), MLPClassifier(hidden_layer_sizes=(5,)), Ridge()]
)
def test_models_keep_their_dtype(estimator):
    """float32, but for solvers of old scikit-learn that went on to float64."""
    X, y = classes(2)
    estimator = copy.deepcopy(estimator).fit(X.astype(np.float32), y)
    model = as_final_model(estimator, X, y)
    expected = getattr(estimator, "coef_", None)
    expected = estimator.coefs_[0] if expected is None else expected
    assert model.theta.numpy().dtype == expected.dtype


# ---- scikit-learn: the objective ------------------------------------------------------------

WEIGHT = np.random.default_rng(0).uniform(0.2, 3, 60)
TIGHT = {"tol": 1e-10, "max_iter": 5000}

STATIONARY = {
    "logistic-binary": (LogisticRegression(C=0.5, **TIGHT), 2),
    "logistic": (LogisticRegression(C=0.5, **TIGHT), 3),
    "logistic-newton": (LogisticRegression(C=2.0, solver="newton-cholesky", **TIGHT), 3),
    "logistic-liblinear": (
        LogisticRegression(C=0.5, solver="liblinear", fit_intercept=False, **TIGHT),
        2,
    ),
    "logistic-balanced": (LogisticRegression(C=0.5, **BALANCED, **TIGHT), 3),
    "logistic-binary-weights": (LogisticRegression(class_weight={0: 1, 1: 4}, **TIGHT), 2),
    "mlp-binary": (
        MLPClassifier(
            hidden_layer_sizes=(4,), activation="tanh", solver="lbfgs", alpha=1.0, random_state=0
        ),
        2,
    ),
    "mlp": (
        MLPClassifier(
            hidden_layer_sizes=(4,), activation="tanh", solver="lbfgs", alpha=1.0, random_state=0
        ),
        3,
    ),
}
STATIONARY_REGRESSION = {
    "linear": (LinearRegression(), 1),
    "linear-2": (LinearRegression(), 2),
    "ridge": (Ridge(alpha=5.0), 1),
    "ridge-no-intercept": (Ridge(alpha=5.0, fit_intercept=False), 1),
    "ridge-2": (Ridge(alpha=5.0), 2),
    "ridge-array": (Ridge(alpha=np.array([5.0, 30.0])), 2),
    "mlp": (
        MLPRegressor(
            hidden_layer_sizes=(4,), activation="tanh", solver="lbfgs", alpha=1.0, random_state=0
        ),
        1,
    ),
    # lbfgs cannot converge here: scikit-learn's loss averages over targets, its gradient sums
    "mlp-2": (
        MLPRegressor(
            hidden_layer_sizes=(4,),
            activation="tanh",
            alpha=1.0,
            batch_size=60,
            learning_rate_init=3e-3,
            max_iter=8000,
            n_iter_no_change=8000,
            random_state=0,
        ),
        2,
    ),
}


def check_stationary(estimator, X, y, sample_weight, monkeypatch):
    """The gradient of our objective vanishes where the model was fitted."""
    estimator = copy.deepcopy(estimator)
    if sample_weight is not None and not has_fit_parameter(estimator, "sample_weight"):
        pytest.skip("the MLP of scikit-learn 1.6 takes no sample_weight")
    if isinstance(estimator, MLPClassifier | MLPRegressor):
        # scikit-learn passes `tol` on as gtol only; scipy would stop at its own ftol
        from sklearn.neural_network import _multilayer_perceptron as module

        minimize = module.scipy.optimize.minimize

        def tight(*args, **kwargs):
            kwargs["options"] = {"maxiter": 20000, "maxfun": 10**6, "gtol": 1e-9, "ftol": 0}
            return minimize(*args, **kwargs)

        monkeypatch.setattr(module.scipy.optimize, "minimize", tight)
    given = {} if sample_weight is None else {"sample_weight": sample_weight}
    estimator.fit(X, y, **given)
    model, rows, encoded = freeze(estimator, X, y, **given)
    found = gradient(model, rows, encoded, sample_weight)
    if model.l2 is None or not model.l2.any():
        assert_allclose(found, 0, atol=1e-10)
        return
    penalty = (model.l2 * model.theta).numpy()
    assert np.abs(found).max() < 1e-4 * np.abs(penalty).max()  # so that 1% less would show


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", STATIONARY)
def test_classifiers_are_stationary(name, weighted, monkeypatch):
    estimator, n_classes = STATIONARY[name]
    X, y = classes(n_classes)
    check_stationary(estimator, X, y, WEIGHT if weighted else None, monkeypatch)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", STATIONARY_REGRESSION)
def test_regressors_are_stationary(name, weighted, monkeypatch):
    estimator, n_targets = STATIONARY_REGRESSION[name]
    X, y = numbers(n_targets)
    check_stationary(estimator, X, y, WEIGHT if weighted else None, monkeypatch)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_sgd_classifier_is_nearly_stationary(n_classes):
    """Averaged SGD comes near the minimum of the same objective, not of one without penalty."""
    X, y = classes(n_classes)
    weight = np.where(np.arange(60) % 3, 1.0, 2.0)
    estimator = SGDClassifier(
        "log_loss",
        alpha=0.1,
        average=True,
        max_iter=4000,
        tol=None,
        learning_rate="invscaling",
        eta0=0.5,
        random_state=0,
    ).fit(X, y, sample_weight=weight)
    model, rows, encoded = freeze(estimator, X, y, sample_weight=weight)
    penalty = np.abs((model.l2 * model.theta).numpy()).max()
    assert np.abs(gradient(model, rows, encoded, weight)).max() < 0.02 * penalty


@pytest.mark.parametrize(("loss", "epsilon"), [("squared_error", 0.1), ("huber", 0.3)])
def test_sgd_regressor_is_nearly_stationary(loss, epsilon):
    X, y = numbers()
    estimator = SGDRegressor(
        loss,
        alpha=0.1,
        epsilon=epsilon,
        average=120_000,  # from the middle of training
        max_iter=4000,
        tol=None,
        eta0=0.1,
        random_state=0,
    ).fit(X, y)
    model, rows, encoded = freeze(estimator, X, y)
    penalty = np.abs((model.l2 * model.theta).numpy()).max()
    assert np.abs(gradient(model, rows, encoded)).max() < 0.02 * penalty


def test_row_weights():
    X, y = classes()
    estimator = LogisticRegression(class_weight={0: 1, 1: 2, 2: 5}).fit(X, y)
    model, _, encoded = freeze(estimator, X, y)
    expected = np.array([1, 2, 5])[y]
    assert_array_equal(model.row_weights(encoded), expected)
    assert_allclose(model.row_weights(encoded, torch.from_numpy(WEIGHT)), WEIGHT * expected)
    balanced = SGDClassifier("log_loss", class_weight="balanced").fit(X[y < 2], y[y < 2])
    model, _, encoded = freeze(balanced, X[y < 2], y[y < 2])
    expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=y[y < 2])[y[y < 2]]
    assert_allclose(model.row_weights(encoded), expected)


# ---- recipes --------------------------------------------------------------------------------


def test_recipe_of_mlps():
    X, y = classes()
    settings = {"max_iter": 2, "random_state": 0}
    adam = MLPClassifier(
        learning_rate_init=0.02, beta_1=0.8, beta_2=0.9, epsilon=1e-6, batch_size=16, **settings
    ).fit(X, y)
    recipe = as_final_model(adam, X, y).recipe
    assert (recipe.optimizer, recipe.lr, recipe.batch_size) == ("Adam", 0.02, 16)
    assert recipe.params == {"betas": (0.8, 0.9), "eps": 1e-6}
    sgd = MLPRegressor(solver="sgd", learning_rate_init=0.03, momentum=0.7, **settings).fit(X, y)
    recipe = as_final_model(sgd, X, y).recipe
    assert (recipe.optimizer, recipe.lr, recipe.batch_size) == ("SGD", 0.03, 60)
    assert recipe.params == {"momentum": 0.7, "nesterov": True}
    with pytest.warns(UserWarning, match="clipped"):
        plain = MLPRegressor(solver="sgd", momentum=0.0, batch_size=1000, **settings).fit(X, y)
    recipe = as_final_model(plain, X, y).recipe
    assert recipe.params == {"momentum": 0.0, "nesterov": False}
    assert recipe.batch_size == 60
    lbfgs = MLPRegressor(solver="lbfgs", **settings).fit(X, y)
    recipe = as_final_model(lbfgs, X, y).recipe
    assert recipe.optimizer is None
    assert recipe.lr is None


def net_of(cls=skorch.NeuralNetRegressor, module=None, **settings):
    torch.manual_seed(0)
    module = module or tanh_network(5, 4, 1).float()
    defaults = {"max_epochs": 2, "lr": 0.05, "train_split": None, "verbose": 0, "batch_size": 20}
    return cls(module, **{**defaults, **settings})


def test_recipe_of_skorch():
    X, y = (a.astype(np.float32) for a in numbers())
    net = net_of(
        optimizer=torch.optim.SGD, optimizer__momentum=0.9, optimizer__weight_decay=0.01
    ).fit(X, y[:, None])
    recipe = as_final_model(net, X).recipe
    assert recipe.optimizer is torch.optim.SGD
    assert (recipe.lr, recipe.batch_size) == (0.05, 20)
    assert recipe.params == {"momentum": 0.9, "weight_decay": 0.01}
    assert recipe.obstacle is None


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"batch_size": -1}, {"batch_size": 60}),
        ({"iterator_train__batch_size": 7}, {"batch_size": 7}),
        ({"optimizer__lr": 0.3}, {"lr": 0.3}),
        ({"optimizer": torch.optim.AdamW}, {"optimizer": torch.optim.AdamW}),
        (
            {"optimizer__param_groups": [("*weight", {"lr": 0.1})]},
            {"beside": {"param_groups": [("*weight", {"lr": 0.1})]}, "obstacle": None},
        ),
        (
            {"optimizer__param_groups": [("*weight", {"momentum": 0.1})]},
            {"obstacle": "other settings than lr"},
        ),
        (
            {"callbacks": [skorch.callbacks.GradientNormClipping(1.0)]},
            {"beside": {"max_grad_norm": 1.0}, "obstacle": None},
        ),
        (
            {"callbacks": [skorch.callbacks.GradientNormClipping()]},
            {"beside": {}, "obstacle": None},
        ),
        (
            {"callbacks": [skorch.callbacks.GradientNormClipping(1.0, "inf")]},
            {"obstacle": "by another norm than L2"},
        ),
    ],
)
def test_recipe_of_skorch_settings(settings, expected):
    X, y = (a.astype(np.float32) for a in numbers())
    recipe = as_final_model(net_of(**settings).fit(X, y[:, None]), X).recipe
    for name, value in expected.items():
        found = getattr(recipe, name)
        assert value in found if name == "obstacle" and value else found == value


# ---- torch ----------------------------------------------------------------------------------


class Flat(nn.Module):
    """Returns shape (n,)."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 1)

    def forward(self, X):
        return self.inner(X).squeeze(-1)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("cls", [skorch.NeuralNet, skorch.NeuralNetRegressor])
def test_skorch_regressor(cls, flat):
    X, y = (a.astype(np.float32) for a in numbers())
    target = y if flat else y[:, None]
    settings = {"criterion": nn.MSELoss} if cls is skorch.NeuralNet else {}
    net = net_of(cls, Flat() if flat else None, **settings).fit(X, target)
    model, rows, encoded = freeze(net, X, target)
    predicted = net.predict(X).reshape(-1, 1)
    assert_allclose(model.outputs(rows), predicted, rtol=1e-5, atol=1e-6)
    assert encoded.shape == (60, 1)
    loss = net.get_loss(net.forward(X), torch.from_numpy(target)).item()
    assert_allclose(model.losses(rows, encoded).mean(), loss, rtol=1e-6)
    again = model.encode_y(y, 1)  # either shape of y means the same
    assert torch.equal(again, encoded)


def test_skorch_regressor_with_two_targets():
    X, y = (a.astype(np.float32) for a in numbers(2))
    net = net_of(module=nn.Linear(5, 2)).fit(X, y)
    model, rows, encoded = freeze(net, X, y)
    loss = net.get_loss(net.forward(X), torch.from_numpy(y)).item()
    assert_allclose(model.losses(rows, encoded).mean(), loss, rtol=1e-6)


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2.0, 3.0])])
@pytest.mark.parametrize("criterion", [nn.NLLLoss, nn.CrossEntropyLoss])
def test_skorch_classifier(criterion, weight):
    X, y = classes()
    X = X.astype(np.float32)
    last = [nn.Softmax(-1)] if criterion is nn.NLLLoss else []
    module = nn.Sequential(nn.Linear(5, 3), *last)
    settings = {} if weight is None else {"criterion__weight": weight}
    net = net_of(skorch.NeuralNetClassifier, module, criterion=criterion, **settings).fit(X, y)
    model, rows, encoded = freeze(net, X, y)
    assert model.loss.outputs_are == ("probabilities" if last else "logits")
    assert_allclose(
        probabilities(model, model.outputs(rows)), net.predict_proba(X), rtol=1e-5, atol=1e-7
    )
    assert_array_equal(model.predicted_targets(model.outputs(rows)), net.predict(X))
    weights = model.row_weights(encoded)
    objective = (weights * model.losses(rows, encoded)).sum() / weights.sum()
    loss = net.get_loss(net.forward(X), torch.from_numpy(y)).item()
    assert_allclose(objective, loss, rtol=1e-6)


@pytest.mark.parametrize("pos_weight", [None, torch.tensor(3.0)])
@pytest.mark.parametrize("flat", [False, True])
def test_skorch_binary_classifier(flat, pos_weight):
    X, y = classes(2)
    X = X.astype(np.float32)
    settings = {} if pos_weight is None else {"criterion__pos_weight": pos_weight}
    net = net_of(skorch.NeuralNetBinaryClassifier, Flat() if flat else None, **settings)
    net.fit(X, y.astype(np.float32))
    model, rows, encoded = freeze(net, X, y)
    assert_allclose(probabilities(model, model.outputs(rows)), net.predict_proba(X), rtol=1e-5)
    assert_array_equal(model.predicted_targets(model.outputs(rows)), net.predict(X))
    loss = net.get_loss(net.forward(X).squeeze(-1), torch.from_numpy(y).float()).item()
    assert_allclose(model.losses(rows, encoded).mean(), loss, rtol=1e-6)


@pytest.mark.parametrize("criterion", [nn.BCEWithLogitsLoss, nn.BCELoss])
def test_skorch_threshold(criterion):
    """Scores without y are those at the classes the net itself predicts."""
    X, y = classes(2)
    X = X.astype(np.float32)
    last = [nn.Sigmoid()] if criterion is nn.BCELoss else []
    module = nn.Sequential(nn.Linear(5, 1), *last, nn.Flatten(0))
    net = net_of(skorch.NeuralNetBinaryClassifier, module, criterion=criterion)
    net.fit(X, y.astype(np.float32))
    usual = net.predict(X)
    net.set_params(threshold=float(np.quantile(net.predict_proba(X)[:, 1], 0.2)))
    predicted = net.predict(X)
    assert 5 < (predicted != usual).sum()
    model, rows, _ = freeze(net, X, y)
    assert_array_equal(model.predicted_targets(model.outputs(rows)), predicted)
    dots = GradDot(net).fit(X, y)
    assert_array_equal(dots.transform(X), dots.transform(X, predicted))


def test_skorch_net_that_is_initialized_only():
    """As with pretrained weights: a net with parameters is a final model."""
    X, _ = (a.astype(np.float32) for a in numbers())
    net = net_of()
    assert not is_fitted(net)
    net.initialize()
    assert is_fitted(net)
    model = as_final_model(net, X)
    assert_allclose(model.outputs(model.encode_X(X)), net.predict(X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "criterion", "target"),
    [
        (nn.Linear(5, 1), nn.MSELoss(), "one"),
        (Flat(), nn.MSELoss(), "one"),
        (nn.Linear(5, 2), nn.HuberLoss(), "two"),
        (nn.Linear(5, 3), nn.CrossEntropyLoss(), "classes"),
        (nn.Sequential(nn.Linear(5, 3), nn.LogSoftmax(-1)), nn.NLLLoss(), "classes"),
        (nn.Linear(5, 1), nn.BCEWithLogitsLoss(), "binary"),
        (Flat(), nn.BCEWithLogitsLoss(), "binary"),
        (nn.Sequential(nn.Linear(5, 1), nn.Sigmoid()), nn.BCELoss(), "binary"),
    ],
)
def test_bare_module(module, criterion, target):
    X, y = {
        "one": numbers,
        "two": lambda: numbers(2),
        "classes": classes,
        "binary": lambda: classes(2),
    }[target]()
    model, rows, encoded = freeze(module, X, y, criterion=criterion)
    with torch.no_grad():
        raw = copy.deepcopy(module).double()(torch.from_numpy(X))
    assert_allclose(model.outputs(rows), raw.reshape(len(X), -1), rtol=1e-12)
    wanted = torch.from_numpy(y)
    if target not in ("classes", "two"):
        wanted = wanted.double().reshape(raw.shape)
    assert_allclose(model.losses(rows, encoded).mean(), criterion(raw, wanted), rtol=1e-12)
    single = as_final_model(module, X, criterion=criterion)
    assert single.theta.dtype == torch.float32
    assert single.theta.data_ptr() not in [p.data_ptr() for p in module.parameters()]


def test_module_with_frozen_and_shared_parameters():
    module = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 1))
    module[0].bias.requires_grad_(False)
    model = as_final_model(module, np.zeros((2, 5)), criterion=nn.MSELoss())
    assert list(model.shapes) == ["0.weight", "2.weight", "2.bias"]
    assert model.n_parameters == 31
    shared = nn.Linear(5, 5)
    model = as_final_model(
        nn.Sequential(shared, nn.Tanh(), shared), np.zeros((2, 5)), criterion=nn.MSELoss()
    )
    assert model.n_parameters == 30
    X = torch.randn(4, 5)
    move = torch.randn(30)
    with torch.no_grad():
        before = model.forward(model.theta, X)
        after = model.forward(model.theta + move, X)
        shared.weight += move[:25].reshape(5, 5)
        shared.bias += move[25:]
        assert_allclose(after, shared(torch.tanh(shared(X))), rtol=1e-4, atol=1e-5)
        assert_allclose(before, model.outputs(X))


def test_batch_norm_and_dropout():
    """Outputs are those in evaluation mode; in training, dropout is active, statistics are not."""
    module = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
    with torch.no_grad():
        module.train()(torch.randn(100, 5) * 3 + 1)
    module.eval()
    X = torch.randn(6, 5)
    model = as_final_model(module, X.numpy(), criterion=nn.MSELoss())
    with torch.no_grad():
        assert_allclose(model.outputs(X), module(X))
    assert model.is_stochastic
    statistics = model.training_module[1].running_mean.clone()
    with torch.no_grad():
        first, second = (model.forward(model.theta, X, training=True) for _ in range(2))
        module[2].train()
        torch.manual_seed(0)
        expected = module(X)
        torch.manual_seed(0)
        assert_allclose(model.forward(model.theta, X, training=True), expected)
    assert not torch.equal(first, second)
    assert torch.equal(model.training_module[1].running_mean, statistics)


def test_module_that_returns_a_tuple():
    class Pair(Flat):
        def forward(self, X):
            return self.inner(X), X

    module = Pair()
    model = as_final_model(module, np.zeros((2, 5)), criterion=nn.MSELoss())
    X = torch.randn(3, 5)
    with torch.no_grad():
        assert_allclose(model.outputs(X), module(X)[0])


# ---- wrappers -------------------------------------------------------------------------------


SOURCES = {
    "mlp": MLPClassifier(hidden_layer_sizes=(4,), max_iter=20, random_state=0),
    "logistic": LogisticRegression(),
    "sgd": SGDClassifier(loss="log_loss", random_state=0),
    "skorch": net_of(skorch.NeuralNetClassifier, nn.Sequential(nn.Linear(5, 3), nn.Softmax(-1))),
    "mlp-regressor": MLPRegressor(hidden_layer_sizes=(4,), max_iter=20, random_state=0),
    "linear": LinearRegression(),
    "ridge": Ridge(),
    "sgd-regressor": SGDRegressor(random_state=0),
}


@functools.cache
def source(name: str):
    """A fitted model of each kind, with its rows."""
    estimator = copy.deepcopy(SOURCES[name])
    X, y = classes() if is_classifier(estimator) else numbers()
    X = X.astype(np.float32) if name == "skorch" else X
    return estimator.fit(X, y), X, y


@pytest.mark.parametrize("name", SOURCES)
def test_wrapped_models_are_the_same(name):
    estimator, X, y = source(name)
    plain = as_final_model(estimator, X, y)
    keep = FunctionTransformer()
    for wrapped in (
        FrozenEstimator(estimator),
        FrozenEstimator(FrozenEstimator(estimator)),
        Pipeline([("only", estimator)]),
        make_pipeline(keep, FrozenEstimator(estimator)),
        FrozenEstimator(make_pipeline(keep, make_pipeline(keep, estimator))),
    ):
        assert is_fitted(wrapped)
        rows = transform_rows(wrapped, X)
        model = as_final_model(wrapped, rows, y)
        assert model.fingerprint == plain.fingerprint
        assert (model.recipe.lr, model.recipe.params) == (plain.recipe.lr, plain.recipe.params)


@pytest.mark.parametrize("name", SOURCES)
def test_pipeline_transforms_before_attribution(name):
    estimator, X, y = source(name)
    scaler = StandardScaler().fit(X + 3)
    scaled = scaler.transform(X)
    expected = GradDot(estimator).fit(scaled, y).transform(scaled[:4], y[:4])
    for pipeline in (
        make_pipeline(scaler, estimator),
        make_pipeline("passthrough", make_pipeline(scaler, estimator)),
        make_pipeline(scaler, make_pipeline(None, FrozenEstimator(estimator))),
        FrozenEstimator(make_pipeline(scaler, estimator)),
    ):
        scores = GradDot(pipeline).fit(X, y).transform(X[:4], y[:4])
        assert_allclose(scores, expected, rtol=1e-6)
    assert not np.allclose(GradDot(estimator).fit(X, y).transform(X[:4], y[:4]), expected)


def frame():
    X, y = numbers()
    colours = pd.Categorical(LABELS[(X[:, 0] > 0).astype(int)])
    return pd.DataFrame({"size": X[:, 1], "colour": colours, "weight": X[:, 2]}), y


def column_pipeline() -> Pipeline:
    columns = [("one_hot", OneHotEncoder(sparse_output=False), ["colour"])]
    columns += [("scale", StandardScaler(), ["weight", "size"])]
    return make_pipeline(ColumnTransformer(columns), Ridge())


def test_data_frame_with_column_transformer():
    X, y = frame()
    pipeline = column_pipeline().fit(X, y)
    inner = pipeline[:-1].transform(X)
    expected = GradDot(pipeline[-1]).fit(inner, y).transform(inner[:4], y[:4])
    attributor = GradDot(pipeline).set_output(transform="pandas").fit(X, y)
    assert_allclose(attributor.transform(X[:4], y[:4]), expected)
    assert list(attributor.feature_names_in_) == ["size", "colour", "weight"]


def test_finished_search():
    X, y = frame()
    search = GridSearchCV(column_pipeline(), {"ridge__alpha": [0.1, 10.0]}, cv=3).fit(X, y)
    expected = GradDot(search.best_estimator_).fit(X, y).transform(X[:4], y[:4])
    assert_array_equal(GradDot(search).fit(X, y).transform(X[:4], y[:4]), expected)
    assert_array_equal(GradDot(FrozenEstimator(search)).fit(X, y).transform(X[:4], y[:4]), expected)
    attributor = GradDot(search).fit(X, y)
    assert attributor.estimator_ is search


def test_is_fitted_of_pipelines():
    X, y = numbers()
    fitted, scaler = Ridge().fit(X, y), StandardScaler().fit(X)
    assert not is_fitted(make_pipeline(StandardScaler(), Ridge()))
    assert not is_fitted(make_pipeline(scaler, Ridge()))
    assert is_fitted(make_pipeline(scaler, fitted))
    assert is_fitted(make_pipeline(FunctionTransformer(), "passthrough", fitted))
    with pytest.raises(
        NotFittedError, match=r"last step is fitted but whose step 'standardscaler'"
    ):
        transform_rows(make_pipeline(StandardScaler(), fitted), X)
    with pytest.raises(NotFittedError, match="whose step 'standardscaler' is not"):
        transform_rows(make_pipeline(scaler, make_pipeline(StandardScaler(), fitted)), X)


# ---- the user's model -----------------------------------------------------------------------


def state(module: nn.Module):
    return (
        copy.deepcopy(module.state_dict()),
        [part.training for part in module.modules()],
        [(p.requires_grad, p.grad is None, p.dtype, p.data_ptr()) for p in module.parameters()],
        [len(part._forward_hooks) for part in module.modules()],
    )


def same_state(a, b) -> bool:
    tensors = all(torch.equal(a[0][k], b[0][k]) for k in a[0])
    return tensors and a[0].keys() == b[0].keys() and a[1:] == b[1:]


@pytest.mark.parametrize("criterion", [nn.MSELoss(), nn.MSELoss(reduction="sum"), None])
@pytest.mark.parametrize("n_features", [5, 3])
def test_a_module_is_not_changed_by_freezing(criterion, n_features):
    """Neither when it works nor when it raises."""
    module = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.1), nn.Linear(4, 1)).train()
    module[0].bias.requires_grad_(False)
    before = state(module)
    if criterion is not None and criterion.reduction == "mean" and n_features == 5:
        model = as_final_model(module, np.zeros((3, 5)), criterion=criterion)
        model.outputs(torch.zeros(3, 5))
        model.double.outputs(torch.zeros(3, 5, dtype=torch.float64))
        model.theta.add_(1)
    else:
        with pytest.raises(ValueError, match=r"estimator could not be run|criterion"):
            as_final_model(module, np.zeros((3, n_features)), criterion=criterion)
    assert same_state(before, state(module))


@pytest.mark.parametrize("name", SOURCES)
def test_a_model_of_scikit_learn_shares_no_memory(name):
    estimator, X, y = source(name)
    before = estimator.predict(X)
    model = as_final_model(estimator, X, y)
    with torch.no_grad():
        for p in model.module.parameters():
            p.add_(1)
    assert_array_equal(estimator.predict(X), before)


def test_rows_are_not_shared():
    X, y = (a.astype(np.float32) for a in numbers())
    before = X.copy()
    model = as_final_model(net_of().fit(X, y[:, None]), X)
    model.encode_X(X).add_(1)
    model.encode_y(y, 1).add_(1)
    assert_array_equal(X, before)


# ---- what cannot be supported ---------------------------------------------------------------


class OwnLoss(skorch.NeuralNetRegressor):
    def get_loss(self, y_pred, y_true, *args, **kwargs):
        return super().get_loss(y_pred, y_true, *args, **kwargs) + y_pred.abs().mean()


class ThreeAxes(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 4)

    def forward(self, X):
        return self.inner(X).reshape(len(X), 2, 2)


class Scalar(ThreeAxes):
    def forward(self, X):
        return self.inner(X).sum()


class Dictionary(ThreeAxes):
    def forward(self, X):
        return {"a": self.inner(X), "b": self.inner(X)}


X3, Y3 = classes()
X2, Y2 = classes(2)
XR, YR = numbers()
L1 = "has an L1 penalty, which is not smooth"
# up to scikit-learn 1.7 `penalty` has to say that l1_ratio counts
ELASTIC = {} if LogisticRegression().penalty == "deprecated" else {"penalty": "elasticnet"}

UNSUPPORTED = {
    "l1": (LogisticRegression(l1_ratio=1.0, solver="saga", **ELASTIC), X3, Y3, ValueError, L1),
    "elastic net": (
        LogisticRegression(l1_ratio=0.5, solver="saga", **ELASTIC),
        X3,
        Y3,
        ValueError,
        L1,
    ),
    "sgd l1": (SGDClassifier("log_loss", penalty="l1"), X3, Y3, ValueError, L1),
    "sgd elastic net": (SGDRegressor(penalty="elasticnet"), XR, YR, ValueError, L1),
    "hinge": (SGDClassifier(), X3, Y3, ValueError, "must have loss='log_loss', got 'hinge'"),
    "epsilon-insensitive": (
        SGDRegressor("epsilon_insensitive"),
        XR,
        YR,
        ValueError,
        "must have loss='squared_error' or 'huber'",
    ),
    "sgd class weights": (
        SGDClassifier("log_loss", class_weight="balanced"),
        X3,
        Y3,
        ValueError,
        "weighs a row differently in the problem of each class. Use LogisticRegression",
    ),
    "liblinear intercept": (
        LogisticRegression(solver="liblinear"),
        X2,
        Y2,
        ValueError,
        "penalises its intercept; use another solver",
    ),
    "multilabel": (
        MLPClassifier(hidden_layer_sizes=(3,), max_iter=2),
        X3,
        np.eye(3, dtype=int)[Y3],
        ValueError,
        "multilabel MLPClassifier is not supported; train one per label",
    ),
    "positive": (Ridge(positive=True), XR, YR, ValueError, "constrains its coefficients"),
    "positive least squares": (
        LinearRegression(positive=True),
        XR,
        YR,
        ValueError,
        "constrains its coefficients",
    ),
    "forest": (
        RandomForestClassifier(2),
        X3,
        Y3,
        TypeError,
        "estimator must be a fitted skorch net.*got RandomForestClassifier",
    ),
    "cross-validated": (
        LogisticRegressionCV(Cs=2, cv=2),
        X2,
        Y2,
        TypeError,
        "estimator must be .*got LogisticRegressionCV",
    ),
    "one vs rest": (
        OneVsRestClassifier(LogisticRegression()),
        X3,
        Y3,
        TypeError,
        "estimator must be .*got OneVsRestClassifier",
    ),
}
if "loss" in MLPRegressor().get_params():  # from scikit-learn 1.7
    UNSUPPORTED["poisson"] = (
        MLPRegressor(hidden_layer_sizes=(3,), loss="poisson", max_iter=2),
        XR,
        np.abs(YR),
        ValueError,
        "must have loss='squared_error', got 'poisson'",
    )


@pytest.mark.filterwarnings("ignore::FutureWarning:sklearn")
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_scikit_learn_models(name):
    estimator, X, y, error, message = UNSUPPORTED[name]
    estimator = copy.deepcopy(estimator).fit(X, y)
    with pytest.raises(error, match=message):
        as_final_model(estimator, X, y)


def test_overridden_loss_of_skorch():
    X, y = (a.astype(np.float32) for a in numbers())
    net = net_of(OwnLoss).fit(X, y[:, None])
    message = r"OwnLoss overrides get_loss.*Pass net.module_ with criterion=\.\.\. instead"
    with pytest.raises(TypeError, match=message):
        as_final_model(net, X)
    model = as_final_model(net.module_, X, criterion=nn.MSELoss())
    assert model.n_parameters == 29


def test_clipping_by_another_norm_needs_an_optimizer():
    X, y = (a.astype(np.float32) for a in numbers())
    net = net_of(callbacks=[skorch.callbacks.GradientNormClipping(1.0, 1)]).fit(X, y[:, None])
    settings = {"n_epochs": 1, "n_seeds": 1, "leave_out": [0], "compile": False}
    with pytest.raises(
        ValueError, match=r"optimizer must be given for this model: .*by another norm"
    ):
        FurtherTraining(net, **settings).fit(X, y[:, None])
    FurtherTraining(net, optimizer="SGD", **settings).fit(X, y[:, None])


def broken(value: float) -> nn.Module:
    module = nn.Linear(5, 1)
    with torch.no_grad():
        module.weight[0, 2] = value
    return module


def frozen_everywhere() -> nn.Module:
    return nn.Linear(5, 1).requires_grad_(False)


def mixed() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 1).double())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1)), "uninitialised .lazy. parameters"),
        (nn.ReLU(), "no parameter that requires a gradient"),
        (frozen_everywhere(), "no parameter that requires a gradient"),
        (broken(np.nan), "parameters that are NaN or infinite"),
        (broken(np.inf), "parameters that are NaN or infinite"),
        (mixed(), "on one device and in one dtype"),
        (Scalar(), r"one tensor of shape.*for one row it returned \(\)"),
        (Dictionary(), r"as a tensor with one row.*returned dict with 'a' \(shape \(1, 4\)\), 'b'"),
        (nn.Linear(4, 1), r"could not be run on a row of X of shape \(5,\)"),
        (nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)), r"BatchNorm layer \(1\) in training"),
        (nn.BatchNorm1d(5), r"BatchNorm layer \(itself\) in training mode.*eval\(\) first"),
    ],
)
def test_unsupported_modules(module, message):
    with pytest.raises(ValueError, match=message):
        as_final_model(module, np.zeros((4, 5), np.float32), criterion=nn.MSELoss())


def test_criterion_belongs_to_bare_modules():
    X, y = numbers()
    with pytest.raises(ValueError, match=r"criterion must be given with a bare torch.nn.Module"):
        as_final_model(nn.Linear(5, 1), X)
    with pytest.raises(ValueError, match=r"criterion is for a bare torch.nn.Module; Ridge has its"):
        as_final_model(Ridge().fit(X, y), X, criterion=nn.MSELoss())


def test_balanced_class_weights_need_y():
    X, y = classes()
    with pytest.raises(ValueError, match="y must be given for a model with class_weight"):
        as_final_model(LogisticRegression(class_weight="balanced").fit(X, y), X)


def test_not_fitted():
    with pytest.raises(NotFittedError, match=r"Ridge is not fitted.*call fit on it first"):
        as_final_model(Ridge(), XR, YR)
    with pytest.raises(TypeError, match=r"estimator must be a fitted skorch net.*got str"):
        as_final_model("net", XR, YR)
    with pytest.raises(NotFittedError, match="NeuralNetRegressor is not fitted"):
        as_final_model(net_of(), XR, YR)
