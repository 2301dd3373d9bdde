"""Grad-Dot and Grad-Cos against a plain loop of autograd, one row at a time, in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from naive import close
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import make_classification, make_regression
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

from fimoda import FurtherTraining, GradCos, GradDot, as_final_model
from fimoda.layers import LayerDifferentiator
from fimoda.layers.by_autograd import gradients_by_autograd
from fimoda.measured import Measured
from fimoda.measurements import Output
from fimoda.row_gradients import RowDifferentiator, RowGradients
from fimoda.rows import Rows

N, N_TEST, D = 14, 5, 6


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 2)
        self.head = nn.Linear(6, 3)

    def forward(self, X):
        return self.head(torch.tanh(self.conv(X.reshape(-1, 1, 2, 3))).flatten(1))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, X):
        return self.head(self.norm(self.embedding(X)).mean(1))


class Shared(nn.Module):
    """One layer used twice."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(D, D)
        self.head = nn.Linear(D, 3)

    def forward(self, X):
        return self.head(torch.tanh(self.inner(torch.tanh(self.inner(X)))))


class Tied(nn.Module):
    """A layer whose weight is also used without a call of the layer."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(D, 3)

    def forward(self, X):
        hidden = torch.tanh(self.inner(X))
        return self.inner(X) * 0 + hidden @ (self.inner.weight @ self.inner.weight.T)


class TiedOnce(Tied):
    def forward(self, X):
        return torch.tanh(self.inner(X)) @ (self.inner.weight @ self.inner.weight.T)


class Steps(nn.Module):
    """A layer that sees several vectors of each row."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, X):
        hidden = torch.tanh(self.inner(X.reshape(-1, 2)))
        return self.head(hidden.reshape(len(X), -1, 4).sum(1))


class Auxiliary(nn.Module):
    """A second head that the outputs do not use."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(D, 4)
        self.head = nn.Linear(4, 3)
        self.other = nn.Linear(4, 2)

    def forward(self, X):
        hidden = torch.tanh(self.body(X))
        return self.head(hidden), self.other(hidden)


def frozen_first() -> nn.Module:
    net = nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, 3))
    net[0].requires_grad_(False)
    return net


def batch_norm() -> nn.Module:
    net = nn.Sequential(nn.Linear(D, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    with torch.no_grad():
        net.train()(torch.randn(50, D) * 2 + 1)
    return net.eval()


# name: (network, whether gradients are single products of vectors)
NETWORKS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, 3)), True),
    "linear": (lambda: nn.Linear(D, 3), True),
    "no bias": (
        lambda: nn.Sequential(nn.Linear(D, 5, bias=False), nn.GELU(), nn.Linear(5, 3, bias=False)),
        True,
    ),
    "in place": (
        lambda: nn.Sequential(
            nn.Linear(D, 8),
            nn.ReLU(inplace=True),
            nn.Linear(8, 8),
            nn.ELU(inplace=True),
            nn.Linear(8, 3),
        ),
        True,
    ),
    "dropout": (lambda: nn.Sequential(nn.Linear(D, 5), nn.Dropout(), nn.Linear(5, 3)), True),
    "conv": (Conv, False),
    "tokens": (Tokens, False),
    "shared": (Shared, False),
    "tied": (Tied, True),
    "tied, called once": (TiedOnce, True),
    "steps": (Steps, False),
    "unused head": (Auxiliary, True),
    "frozen first": (frozen_first, True),
    "batch norm": (batch_norm, True),
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name][0]().double()


def rows(name: str, kind: str = "classes"):
    rng = np.random.default_rng(1)
    X = (
        rng.integers(9, size=(N + N_TEST, 7))
        if name == "tokens"
        else rng.normal(size=(N + N_TEST, D))
    )
    y = rng.integers(3, size=N + N_TEST)
    if kind == "numbers":
        y = rng.normal(size=(N + N_TEST, 3))
    return X[:N], y[:N], X[N:], y[N:]


def gradients(module: nn.Module, X, y, measure) -> np.ndarray:
    """Gradient of ``measure(outputs, target)`` of each row, by a plain loop."""
    module = copy.deepcopy(module).eval()
    trainable = [p for p in module.parameters() if p.requires_grad]
    found = []
    for i in range(len(X)):
        outputs = module(torch.from_numpy(X[i : i + 1]))
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        value = measure(outputs[0], torch.as_tensor(y[i]))
        parts = torch.autograd.grad(value, trainable, allow_unused=True, materialize_grads=True)
        found.append(torch.cat([part.reshape(-1) for part in parts]).numpy())
    return np.array(found)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    lengths = np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    return np.divide(a @ b.T, lengths, out=np.zeros(lengths.shape), where=lengths > 0)


# ---- against autograd -----------------------------------------------------------------------

CRITERIA = {
    "classes": (nn.CrossEntropyLoss(), lambda f, y: -f.log_softmax(0)[y]),
    "numbers": (nn.MSELoss(), lambda f, y: ((f - y) ** 2).mean()),
}


@pytest.mark.parametrize("kind", CRITERIA)
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_autograd(name, kind):
    module = network(name)
    X, y, X_test, y_test = rows(name, kind)
    criterion, loss = CRITERIA[kind]
    train, test = gradients(module, X, y, loss), gradients(module, X_test, y_test, loss)
    assert np.linalg.norm(train, axis=1).min() > 0
    dot = GradDot(
        module, criterion=criterion, lr=0.3, batch_size=4, n_epochs=5, reweight_others=False
    ).fit(X, y)
    assert dot._objective.differentiate.factors == NETWORKS[name][1]
    expected = 0.3 * 5 * 4 / N * test @ train.T  # 14 rows are 4 batches of 4
    close(dot.transform(X_test, y_test), expected)
    close(dot.self_influence(), 0.3 * 5 * 4 / N * (train**2).sum(1))
    cos = GradCos(module, criterion=criterion).fit(X, y)
    close(cos.transform(X_test, y_test), cosines(test, train))
    close(cos.self_influence(), np.ones(N))


def own_measurement(outputs, targets):
    return outputs[..., 0] * outputs[..., 2].exp() + targets


MEASUREMENTS = {
    "loss": lambda f, y: -f.log_softmax(0)[y],
    "log_prob": lambda f, y: f.log_softmax(0)[y],
    "margin": lambda f, y: f.log_softmax(0)[y] - torch.log1p(-f.softmax(0)[y]),
    "output": lambda f, y: f[y],
    "index": lambda f, y: f[1],
    "callable": lambda f, y: f[0] * f[2].exp(),
}


@pytest.mark.parametrize("name", ["mlp", "conv"])
@pytest.mark.parametrize("measurement", MEASUREMENTS)
def test_each_measurement_equals_autograd(measurement, name):
    module = network(name)
    X, y, X_test, y_test = rows(name)
    train = gradients(module, X, y, MEASUREMENTS["loss"])
    measure = MEASUREMENTS[measurement]
    test, own = gradients(module, X_test, y_test, measure), gradients(module, X, y, measure)
    given = {"index": Output(1), "callable": own_measurement}.get(measurement, measurement)
    settings = {"criterion": nn.CrossEntropyLoss(), "measurement": given}
    dot = GradDot(module, lr=1.0, reweight_others=False, **settings).fit(X, y)
    close(dot.transform(X_test, y_test), test @ train.T / N)
    close(dot.self_influence(), (own * train).sum(1) / N)
    cos = GradCos(module, **settings).fit(X, y)
    close(cos.transform(X_test, y_test), cosines(test, train))
    close(cos.self_influence(), np.diag(cosines(own, train)))


@pytest.mark.parametrize("name", ["mlp", "shared"])
def test_weights(name):
    """w_i / sum w, from sample weights and class weights."""
    module = network(name)
    X, y, X_test, y_test = rows(name)
    loss = MEASUREMENTS["loss"]
    products = gradients(module, X_test, y_test, loss) @ gradients(module, X, y, loss).T
    weight = np.random.default_rng(0).uniform(size=N)
    weight[3] = 0
    by_class = np.array([1.0, 2.0, 5.0])
    for classed in (False, True):
        given = torch.from_numpy(by_class) if classed else None
        criterion = nn.CrossEntropyLoss(weight=given)
        for sample_weight in (None, weight):
            w = (by_class[y] if classed else np.ones(N)) * (
                1 if sample_weight is None else sample_weight
            )
            dot = GradDot(module, criterion=criterion, lr=1.0, reweight_others=False)
            scores = dot.fit(X, y, sample_weight=sample_weight).transform(X_test, y_test)
            close(scores, products * w / w.sum())
            cos = GradCos(module, criterion=criterion)
            plain = GradCos(module, criterion=nn.CrossEntropyLoss()).fit(X, y)
            assert_array_equal(
                cos.fit(X, y, sample_weight=sample_weight).transform(X_test, y_test),
                plain.transform(X_test, y_test),
            )


def test_factored_and_dense_gradients_agree():
    """The same network by both ways, and the factors written out."""
    X, y, *_ = rows("mlp")
    model = as_final_model(network("mlp"), X, criterion=nn.CrossEntropyLoss())
    rows_, targets = model.encode_X(X), model.encode_y(y, 3)
    measured = Measured(Rows(rows_, targets), model.loss)
    a = RowDifferentiator(model, rows_[:1])(measured)
    b = RowGradients.of(gradients_by_autograd(model, measured))
    assert a.factors is not None
    assert b.factors is None
    expected = gradients(network("mlp"), X, y, MEASUREMENTS["loss"])
    close(b.dense().numpy(), expected)
    assert [f.inputs.shape for f in a.factors] == [(N, 1, D + 1), (N, 1, 6)]
    written_out = [f.signals[:, 0, 0, :, None] * f.inputs[:, 0, None, :] for f in a.factors]
    flat = [[w[:, :, :-1].reshape(N, -1), w[:, :, -1]] for w in written_out]
    close(np.concatenate([p.numpy() for pair in flat for p in pair], axis=1), expected)
    close(a.inner(a).numpy(), b.inner(b).numpy())
    close(a.inner_rowwise(a).numpy(), b.inner_rowwise(b).numpy())
    for found in (a, b):
        close(found.unit().inner_rowwise(found.unit()).numpy(), np.ones(N))


def test_hooks_are_removed():
    module = network("mlp")
    X, y, *_ = rows("mlp")
    dot = GradDot(module, criterion=nn.CrossEntropyLoss()).fit(X, y)
    dot.transform(X, y)

    def fails(outputs, targets):
        if len(outputs) > 2:  # not when it is tried on two rows
            raise ArithmeticError("mine")
        return outputs[:, 0]

    with pytest.raises(ArithmeticError, match="mine"):
        dot.set_params(measurement=fails).fit(X, y).transform(X, y)
    assert not any(part._forward_hooks for part in dot.model_.module.modules())
    assert not any(part._forward_hooks for part in module.modules())


# ---- the unit -------------------------------------------------------------------------------


def problem(**settings):
    """A convex problem: logistic regression."""
    X, y = make_classification(60, 4, n_informative=3, n_redundant=0, flip_y=0.1, random_state=0)
    model = LogisticRegression(tol=1e-12, max_iter=1000, **settings)
    return model.fit(X[:40], y[:40]), X[:40], y[:40], X[40:], y[40:]


@pytest.mark.parametrize("n_epochs", [1, 5])
@pytest.mark.parametrize("measurement", ["loss", "margin"])
def test_the_size_is_that_of_small_steps(n_epochs, measurement):
    """First order: removing row i from T full-batch steps moves m_z by the score, in its unit."""
    model, X, y, X_test, y_test = problem()
    lr = 1e-5
    settings = {"measurement": measurement, "n_epochs": n_epochs, "lr": lr, "batch_size": 40}
    gold = FurtherTraining(model, optimizer="SGD", n_seeds=1, compile=False, **settings)
    truth = gold.fit(X, y).transform(X_test, y_test)
    scores = GradDot(model, **settings).fit(X, y).transform(X_test, y_test)
    # The others' weights rise from 1/n to 1/(n-1): a term common to all columns, beside the factor.
    scale = 40 / 39
    truth = truth - truth.mean(1, keepdims=True)
    scores = scale * (scores - scores.mean(1, keepdims=True))
    assert_allclose(scores, truth, rtol=1e-4, atol=2e-4 * np.abs(truth).max())


def test_the_size_with_weights():
    """The weighted mean loss, its penalty included, has exactly this derivative in a row's weight."""
    model, X, y, X_test, y_test = problem()
    weight = np.random.default_rng(0).uniform(0.5, 3, 40)
    lr = 1e-3
    scores = GradDot(model, lr=lr, batch_size=40).fit(X, y, sample_weight=weight)
    scores = scores.transform(X_test, y_test)
    W = np.append(model.coef_[0], model.intercept_)
    A, A_test = (np.column_stack([a, np.ones(len(a))]) for a in (X, X_test))
    residual = 1 / (1 + np.exp(-A @ W)) - y
    residual_test = 1 / (1 + np.exp(-A_test @ W)) - y_test
    expected = lr * np.outer(residual_test, residual * weight / weight.sum()) * (A_test @ A.T)
    close(scores, expected)


def test_sign_of_exact_leave_one_out():
    """Where the penalty dominates the curvature, refitting without a row moves m_z along Grad-Dot."""
    model, X, y, X_test, y_test = problem(C=1e-3, fit_intercept=False)
    scores = GradDot(model).fit(X, y).transform(X_test, y_test)

    def losses(m):
        return -np.log(m.predict_proba(X_test)[np.arange(len(y_test)), y_test])

    without = [(np.delete(X, i, 0), np.delete(y, i)) for i in range(len(X))]
    refits = [copy.deepcopy(model).fit(*rows_) for rows_ in without]
    truth = np.column_stack([losses(refit) for refit in refits]) - losses(model)[:, None]
    large = np.abs(truth) > 0.05 * np.abs(truth).max()
    assert large.mean() > 0.5
    assert_array_equal(np.sign(scores)[large], np.sign(truth)[large])
    top = GradDot(model).fit(X, y).top(X_test, y_test, k=1)
    each = np.arange(len(X_test))
    assert (truth[each, top.helpful[:, 0]] > 0).all()
    assert (truth[each, top.harmful[:, 0]] < 0).all()


def test_learning_rate_and_batch_size_of_the_model():
    """lr and batch size default to the model's own, momentum counts as 1 / (1 - momentum)."""
    import skorch

    X, y, X_test, y_test = rows("mlp")
    X, X_test = X.astype(np.float32), X_test.astype(np.float32)
    torch.manual_seed(0)
    net = skorch.NeuralNetClassifier(
        nn.Linear(D, 3),
        criterion=nn.CrossEntropyLoss,
        lr=0.07,
        optimizer__momentum=0.75,
        batch_size=5,
        max_epochs=1,
        train_split=None,
        verbose=0,
    ).fit(X, y)
    own = GradDot(net).fit(X, y).transform(X_test, y_test)
    same = GradDot(net, lr=0.28, batch_size=5).fit(X, y).transform(X_test, y_test)
    assert_allclose(own, same, rtol=1e-6)
    plain = GradDot(net, lr=1.0, batch_size=N).fit(X, y).transform(X_test, y_test)
    assert_allclose(own, 0.28 * 3 * plain, rtol=1e-5, atol=1e-8)


# ---- edges ----------------------------------------------------------------------------------


class Plain(nn.Module):
    """A linear layer that meets every row twice."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 1)), nn.Parameter(torch.randn(1))

    def forward(self, X):
        return (X.unsqueeze(1).expand(-1, 2, -1) @ self.weight).mean(1) + self.bias


@pytest.mark.parametrize("dense", [False, True])
def test_zero_gradients_score_zero(dense):
    """Rows that the model fits exactly."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(8, 3))
    module = (Plain() if dense else nn.Linear(3, 1)).double()
    with torch.no_grad():
        y = module(torch.from_numpy(X)).numpy()
    y[4:] += 1
    cos = GradCos(module, criterion=nn.MSELoss()).fit(X, y)
    assert cos._objective.differentiate.factors != dense
    scores = cos.transform(X, y)
    assert (scores[:, :4] == 0).all()
    assert (scores[:4] == 0).all()
    assert_allclose(np.diag(scores)[4:], 1, rtol=1e-12)
    assert_array_equal(cos.self_influence()[:4], 0)
    assert (GradDot(module, criterion=nn.MSELoss()).fit(X, y).transform(X, y)[:4] == 0).all()


@pytest.mark.parametrize("dense", [False, True])
def test_cosine_of_tiny_gradients(dense):
    """Squares of these lengths are zero in float32; the directions are not lost."""
    X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    module = Plain() if dense else nn.Linear(3, 1)

    def tiny(outputs, targets):
        return 1e-25 * outputs[..., 0]

    cos = GradCos(module, criterion=nn.MSELoss(), measurement=tiny).fit(X, X[:, :1])
    large = GradCos(module, criterion=nn.MSELoss(), measurement="output").fit(X, X[:, :1])
    assert_allclose(cos.transform(X), large.transform(X), rtol=1e-5, atol=1e-6)
    assert_allclose(cos.self_influence(), large.self_influence(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cls", [GradDot, GradCos])
@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_memory_budget(cls, name):
    module = network(name)
    X, y, X_test, y_test = rows(name)
    whole = cls(module, criterion=nn.CrossEntropyLoss()).fit(X, y)
    tiny = cls(module, criterion=nn.CrossEntropyLoss(), memory_budget=1).fit(X, y)
    assert tiny._objective.chunk() == 1
    assert whole._objective.chunk() == N
    close(tiny.transform(X_test, y_test), whole.transform(X_test, y_test))
    close(tiny.self_influence(), whole.self_influence())


def test_budget_bounds_what_is_held():
    """Half of the budget holds the gradients of a chunk."""
    X, y = make_regression(3000, 50, random_state=0)
    dot = GradDot(Ridge().fit(X, y), memory_budget=2**20).fit(X, y)
    assert dot._objective.chunk() * dot._objective.differentiate.row_bytes() <= 2**19
    assert dot._objective.chunk() > 1


def test_float32_is_near_float64():
    X, y, X_test, y_test = rows("mlp")
    double = GradDot(network("mlp"), criterion=nn.CrossEntropyLoss()).fit(X, y)
    single = GradDot(network("mlp").float(), criterion=nn.CrossEntropyLoss()).fit(X, y)
    scores = double.transform(X_test, y_test)
    assert_allclose(
        single.transform(X_test, y_test), scores, rtol=1e-4, atol=1e-5 * np.abs(scores).max()
    )


def test_scores_that_are_not_finite():
    X, y, X_test, y_test = rows("mlp")

    def broken(outputs, targets):  # but for the two rows it is tried on
        return outputs[:, 0] * (float("nan") if len(outputs) > 2 else 1.0)

    dot = GradDot(network("mlp"), criterion=nn.CrossEntropyLoss(), measurement=broken)
    with pytest.raises(FloatingPointError, match="GradDot gave scores that are NaN or infinite"):
        dot.fit(X, y).transform(X_test, y_test)


def test_tied_weights_under_a_softmax():
    """The outputs sum to one, so only differently weighted ones show the second use."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, X):
            return torch.softmax(torch.tanh(self.layer(X)) @ self.layer.weight, -1)

    torch.manual_seed(0)
    net = Tied().double()
    X = torch.randn(6, 4, dtype=torch.float64)
    model = as_final_model(net, X.numpy(), criterion=nn.MSELoss())
    y = torch.rand(6, 4, dtype=torch.float64)
    assert LayerDifferentiator(model, X[:2]).complete
    found = RowDifferentiator(model, X[:2])(Measured(Rows(X, y), model.loss))
    close(found.dense(), gradients(net, X.numpy(), y.numpy(), lambda f, t: ((f - t) ** 2).mean()))
