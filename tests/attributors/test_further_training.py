"""Further training against a naive loop, exact refits, and itself run in other ways."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import warnings

import joblib
import numpy as np
import pytest
import skorch
import torch
import torch.nn.functional as F
from naive import Naive, refits, relative
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from torch import nn

from fimoda import FurtherTraining, further_training_curve

N, D, N_TEST = 40, 3, 6
SEEDS = [3, 11]
LEFT_OUT = [7, 0, 39, 21]

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, 0.1, {}),
    "nesterov": (
        torch.optim.SGD,
        0.03,
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.02},
    ),
    "adam": (torch.optim.Adam, 0.02, {}),
    "adamw": (torch.optim.AdamW, 0.02, {"weight_decay": 0.1}),
    "rmsprop": (torch.optim.RMSprop, 0.01, {}),
}


class Vector(nn.Sequential):
    """One output, returned with shape (n,)."""

    def forward(self, x):
        return super().forward(x).squeeze(-1)


class Residual(nn.Module):
    """Not a chain, with a parameter that belongs to no layer."""

    def __init__(self, n_outputs: int = 1):
        super().__init__()
        self.inner = nn.Linear(D, D)
        self.outer = nn.Linear(D, n_outputs)
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return self.outer(x + self.scale * F.silu(self.inner(x)))


class FunctionalDropout(nn.Module):
    """Dropout that no layer announces."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(D, 12)
        self.outer = nn.Linear(12, 1)

    def forward(self, x):
        h = F.relu(self.inner(x))
        if self.training:
            h = F.dropout(h, 0.4)
        return self.outer(h)


class Probabilities(nn.Module):
    """What skorch's NeuralNetClassifier is given by default: a softmax at the end."""

    def __init__(self):
        super().__init__()
        self.net = mlp(3).append(nn.Softmax(-1))

    def forward(self, x):
        return self.net(x)


def mlp(n_outputs: int = 1, activation=nn.Tanh, *extra: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(D, 6), activation(), *extra, nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, n_outputs)
    ).double()


def data(kind: str, n: int = N):
    """Rows and targets for training and test: float64 numpy arrays, or integers for classes."""
    rng = np.random.default_rng(5)
    X = rng.normal(size=(n + N_TEST, D))
    if kind == "classes":
        y = np.argmax(X + rng.normal(size=X.shape), 1)
    elif kind == "binary":
        y = (X[:, 0] + 0.5 * rng.normal(size=len(X)) > 0).astype(np.int64)
    else:
        y = np.stack([X[:, 0] * X[:, 1] + 0.3 * rng.normal(size=len(X)), np.sin(X[:, 2])], 1)
        y = y[:, 0] if kind == "one" else y
    return X[:n], y[:n], X[n:], y[n:]


def mean_of(rows):
    """The objective that averages a loss per row."""
    return lambda outputs, targets, _: rows(outputs, targets).mean()


def column(y):
    return torch.as_tensor(y).unsqueeze(-1).double()


def squared(outputs, targets):
    return F.mse_loss(outputs, targets, reduction="none").mean(-1)


def logistic(outputs, targets):
    rows = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    return rows.reshape(len(outputs))


def cross_entropy(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


def nll(outputs, targets):
    eps = torch.finfo(outputs.dtype).eps
    return F.nll_loss((outputs + eps).log(), targets, reduction="none")


def case(loss: str):
    """Estimator, keywords, data, the module inside, encoder of targets and loss per row."""
    torch.manual_seed(1)
    if loss == "mse1":
        return mlp(), nn.MSELoss(), data("one"), column, squared
    if loss == "mse2":
        return mlp(2), nn.MSELoss(), data("two"), torch.as_tensor, squared
    if loss == "ce":
        return mlp(3), nn.CrossEntropyLoss(), data("classes"), torch.as_tensor, cross_entropy
    if loss == "bce":
        return mlp(), nn.BCEWithLogitsLoss(), data("binary"), column, logistic
    if loss == "bce_vector":
        vector = Vector(*mlp())

        def as_double(y):
            return torch.as_tensor(y).double()

        return vector, nn.BCEWithLogitsLoss(), data("binary"), as_double, logistic
    arrays = data("classes")
    net = skorch.NeuralNetClassifier(
        Probabilities, max_epochs=1, train_split=None, verbose=0, lr=0.05, batch_size=16
    )
    return net.fit(arrays[0], arrays[1]), None, arrays, torch.as_tensor, nll


def compare(
    estimator,
    criterion,
    arrays,
    encode,
    rows,
    *,
    optimizer="sgd",
    mode="mask",
    objective=None,
    leave_out=LEFT_OUT,
    sample_weight=None,
    lr=None,
    chunk_size=3,
    batch_size=16,
    l2=None,
    batch_statistics="update",
    row_weights=None,
):
    """Assert that class and function equal the naive loop, at every correction and horizon."""
    X, y, X_test, y_test = arrays
    cls, rate, params = OPTIMIZERS[optimizer]
    rate = lr or rate
    naive = Naive(
        getattr(estimator, "module_", estimator),
        torch.from_numpy(X),
        encode(y),
        objective or mean_of(rows),
        rows,
        cls,
        rate,
        params,
        batch_size,
        l2,
        batch_statistics,
        row_weights=row_weights,
    )
    run = {"seeds": SEEDS, "leave_out": leave_out, "mode": mode}
    left_out, full, final = naive.run(torch.from_numpy(X_test), encode(y_test), marks=[1, 3], **run)
    settings = {
        "n_seeds": SEEDS,
        "leave_out": leave_out,
        "leave_out_mode": mode,
        "optimizer": cls,
        "optimizer_params": params,
        "lr": rate,
        "batch_size": batch_size,
        "criterion": criterion,
        "chunk_size": chunk_size,
        "batch_statistics": batch_statistics,
    }
    curve = further_training_curve(
        estimator, X, y, X_test, y_test, epochs=[1, 3], sample_weight=sample_weight, **settings
    )
    expected = {
        "full": left_out - full[:, :, None],
        "mean": (left_out - full[:, :, None])
        - (left_out - full[:, :, None]).mean(2, keepdims=True),
        None: left_out - final[None, :, None, None],
    }
    for correction, scores in expected.items():
        assert relative(curve.corrected(correction).per_seed, scores) < 1e-8
    gold = FurtherTraining(estimator, n_epochs=3, **settings).fit(X, y, sample_weight)
    assert relative(gold.transform(X_test, y_test), expected["full"][-1].mean(-1)) < 1e-8


MODES = ["mask", "drop", "expected"]

# ---- against the naive loop -----------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", ["mse1", "mse2", "ce", "bce", "bce_vector", "nll"])
def test_equals_naive_loop(loss, optimizer, mode):
    compare(*case(loss), optimizer=optimizer, mode=mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", ["nesterov", "adam"])
def test_last_batch_may_hold_the_left_out_row_alone(optimizer, mode):
    torch.manual_seed(1)
    arrays = data("one", n=17)
    compare(
        *(mlp(), nn.MSELoss(), arrays, column, squared),
        optimizer=optimizer,
        mode=mode,
        leave_out=list(range(17)),
        chunk_size=18,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss", ["ce", "nll"])
def test_class_weights(loss, mode):
    weights = torch.tensor([1.0, 3.0, 0.4], dtype=torch.float64)
    estimator, criterion, arrays, encode, rows = case(loss)
    if loss == "ce":
        criterion = nn.CrossEntropyLoss(weight=weights)

        def objective(outputs, y, _):
            return F.cross_entropy(outputs, y, weights)

    else:
        estimator.set_params(criterion__weight=weights)
        estimator.fit(*arrays[:2])
        eps = torch.finfo(torch.float64).eps

        def objective(outputs, y, _):
            return F.nll_loss((outputs + eps).log(), y, weights)

    of_rows = weights[torch.from_numpy(arrays[1])]
    compare(
        *(estimator, criterion, arrays, encode, rows),
        objective=objective,
        mode=mode,
        row_weights=of_rows,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss", ["mse1", "ce"])
def test_sample_weight(loss, mode):
    estimator, criterion, arrays, encode, rows = case(loss)
    sample_weight = np.random.default_rng(0).uniform(0.1, 3, N)
    sample_weight[5] = 0
    by_row = torch.from_numpy(sample_weight)

    def objective(outputs, targets, indices):
        return (by_row[indices] * rows(outputs, targets)).sum() / by_row[indices].sum()

    compare(
        *(estimator, criterion, arrays, encode, rows),
        objective=objective,
        sample_weight=sample_weight,
        mode=mode,
        optimizer="adam",
        row_weights=by_row,
    )


def test_class_weight_times_sample_weight():
    _, _, arrays, encode, rows = case("ce")
    by_class = torch.tensor([1.0, 3.0, 0.4], dtype=torch.float64)
    by_row = torch.from_numpy(np.random.default_rng(0).uniform(0.1, 3, N))

    def objective(outputs, targets, indices):
        weights = by_class[targets] * by_row[indices]
        return (weights * rows(outputs, targets)).sum() / weights.sum()

    compare(
        *(mlp(3), nn.CrossEntropyLoss(weight=by_class), arrays, encode, rows),
        objective=objective,
        sample_weight=by_row.numpy(),
    )


@pytest.mark.parametrize("mode", ["mask", "drop"])
@pytest.mark.parametrize(
    "module",
    [
        mlp(1, nn.Tanh, nn.Dropout(0.5)),
        mlp(1, nn.SiLU, nn.Dropout(0.5)),  # SiLU is no link of a chain
        FunctionalDropout().double(),
    ],
    ids=["chain", "autograd", "functional"],
)
def test_dropout(module, mode):
    """The stack draws what each model would draw alone, whatever the cut into stacks."""
    compare(module, nn.MSELoss(), data("one"), column, squared, mode=mode, chunk_size=2)


@pytest.mark.parametrize("mode", ["mask", "drop"])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("statistics", ["update", "frozen"])
def test_batch_norm_keeps_its_statistics_or_trains_them(statistics, momentum, mode):
    torch.manual_seed(1)
    module = mlp(1, nn.Tanh, nn.BatchNorm1d(6, momentum=momentum))
    for _ in range(3):
        module(torch.randn(32, D, dtype=torch.float64) * 2 + 1)
    settings = {"optimizer": "adam", "mode": mode, "batch_statistics": statistics}
    compare(module.eval(), nn.MSELoss(), data("one"), column, squared, **settings)


@pytest.mark.parametrize("mode", ["mask", "drop"])
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_module_that_is_no_chain(n_outputs, mode):
    torch.manual_seed(1)
    module = Residual(n_outputs).double()
    if n_outputs == 1:
        compare(module, nn.MSELoss(), data("one"), column, squared, mode=mode)
    else:
        arrays = data("classes")
        criterion = nn.CrossEntropyLoss()
        compare(module, criterion, arrays, torch.as_tensor, cross_entropy, mode=mode)


def test_frozen_layer():
    torch.manual_seed(1)
    module = mlp()
    module[0].requires_grad_(False)
    compare(module, nn.MSELoss(), data("one"), column, squared, optimizer="nesterov")


def test_schedule():
    """A learning rate per epoch; the state of the optimiser goes on."""
    compare(*case("mse1"), optimizer="nesterov", lr=lambda epoch: 0.05 / (1 + epoch))


def test_schedule_matters():
    estimator, criterion, (X, y, X_test, y_test), *_ = case("mse1")
    settings = {
        "epochs": 2,
        "n_seeds": [0],
        "leave_out": [1],
        "criterion": criterion,
        "optimizer": "SGD",
    }
    arrays = (X, y, X_test, y_test)
    steady = further_training_curve(estimator, *arrays, lr=0.1, **settings)
    changed = further_training_curve(estimator, *arrays, lr=lambda e: [0.1, 0.01][e], **settings)
    assert relative(changed.scores, steady.scores) > 1e-3


def test_settings_default_to_the_net_s_own():
    X, y, X_test, y_test = data("one")
    own = {"optimizer": torch.optim.SGD, "lr": 0.02, "batch_size": 11}
    net = skorch.NeuralNetRegressor(
        mlp(), max_epochs=1, train_split=None, verbose=0, optimizer__momentum=0.8, **own
    )
    net.fit(X, y[:, None])
    run = {"epochs": 2, "n_seeds": SEEDS, "leave_out": LEFT_OUT}
    curve = further_training_curve(net, X, y, X_test, y_test, **run)
    naive = Naive(
        *(net.module_, torch.from_numpy(X), column(y), mean_of(squared), squared),
        torch.optim.SGD,
        0.02,
        {"momentum": 0.8},
        11,
    )
    left_out, full, _ = naive.run(
        torch.from_numpy(X_test), column(y_test), marks=[2], seeds=SEEDS, leave_out=LEFT_OUT
    )
    assert relative(curve.per_seed, left_out - full[:, :, None]) < 1e-8


# ---- exact refits ---------------------------------------------------------------------------


def least_squares_data():
    rng = np.random.default_rng(2)
    X = rng.normal(size=(30, D))
    y = X @ [1.0, -2.0, 0.5] + 0.4 + 0.5 * rng.normal(size=30)
    return X[:25], y[:25], X[25:], y[25:]


def converged(model, arrays, correction):
    X, y, X_test, y_test = arrays
    gold = FurtherTraining(
        model,
        n_epochs=600,
        n_seeds=1,
        optimizer="SGD",
        lr=0.2,
        batch_size=len(X),
        correction=correction,
        random_state=0,
    )
    return gold.fit(X, y).transform(X_test, y_test)


@pytest.mark.parametrize("correction", ["full", None])
def test_linear_regression_converges_to_leave_one_out(correction):
    """At the optimum the two corrections are one, and the scores are scikit-learn's refits."""
    arrays = X, y, X_test, y_test = least_squares_data()
    fitted = LinearRegression().fit(X, y)
    expected = refits(fitted, X, y, lambda model: (model.predict(X_test) - y_test) ** 2)
    assert relative(converged(fitted, arrays, correction), expected) < 1e-8


def test_ridge_converges_to_leave_one_out():
    """The objective is mean loss plus a penalty that stays as it is when a row leaves.

    Ridge minimises ``sum_j r_j^2 + alpha |w|^2``; divided by n that is ``mean r^2 + alpha/n |w|^2``.
    Without row i, ``mean`` is over n - 1 rows and ``alpha/n`` stays: times n - 1, a Ridge with
    ``alpha (n - 1) / n``.
    """
    arrays = X, y, X_test, y_test = least_squares_data()
    n, alpha = len(X), 5.0
    fitted = Ridge(alpha=alpha, tol=1e-12).fit(X, y)

    def refit(i):
        """The optimum from its normal equations; the intercept is not penalised."""
        A = np.column_stack([X, np.ones(n)])[np.arange(n) != i]
        penalty = np.diag([alpha / n] * D + [0])
        w = np.linalg.solve(A.T @ A / (n - 1) + penalty, A.T @ np.delete(y, i) / (n - 1))
        by_sklearn = Ridge(alpha=alpha * (n - 1) / n).fit(np.delete(X, i, 0), np.delete(y, i))
        predictions = X_test @ w[:-1] + w[-1]
        np.testing.assert_allclose(predictions, by_sklearn.predict(X_test), rtol=1e-10)
        return (predictions - y_test) ** 2

    exact = np.stack([refit(i) for i in range(n)], 1)
    expected = exact - ((fitted.predict(X_test) - y_test) ** 2)[:, None]
    assert relative(converged(fitted, arrays, "full"), expected) < 1e-8


def test_sign_agrees_with_leave_one_out():
    """Removing a twin of a test row raises its loss; removing a contradiction lowers it."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 2))
    y = (X[:, 0] > 0).astype(int)
    X_test, y_test = np.array([[1.5, 1.0]]), np.array([1])
    X[0], y[0] = X_test[0], 1
    X[1], y[1] = X_test[0], 0
    fitted = LogisticRegression(C=1.0, tol=1e-8).fit(X, y)
    gold = FurtherTraining(
        fitted, n_epochs=200, n_seeds=1, optimizer="SGD", lr=0.5, batch_size=30, random_state=0
    )
    scores = gold.fit(X, y).transform(X_test, y_test)[0]

    def loss(model):
        return -model.predict_log_proba(X_test)[0, 1]

    n = len(X)
    exact = (
        np.array(
            [
                loss(
                    LogisticRegression(C=n / (n - 1), tol=1e-8).fit(
                        np.delete(X, i, 0), np.delete(y, i)
                    )
                )
                for i in range(n)
            ]
        )
        + loss(fitted) * -1.0
    )
    assert scores[0] > 0 > scores[1]
    assert exact[0] > 0 > exact[1]
    clear = np.abs(exact) > 1e-4
    assert clear.sum() > 20
    np.testing.assert_array_equal(np.sign(scores[clear]), np.sign(exact[clear]))


# ---- what is made of the runs ---------------------------------------------------------------


def small(**changes):
    """A small run: the estimator, its arrays, and settings shared by class and function."""
    torch.manual_seed(1)
    settings = {
        "n_seeds": 3,
        "leave_out": LEFT_OUT,
        "optimizer": "SGD",
        "lr": 0.1,
        "batch_size": 16,
        "criterion": nn.MSELoss(),
        "random_state": 0,
    }
    return mlp(), data("one"), {**settings, **changes}


def fitted(n_epochs=2, **changes):
    module, (X, y, X_test, y_test), settings = small(**changes)
    gold = FurtherTraining(module, n_epochs=n_epochs, **settings).fit(X, y)
    return gold, X_test, y_test


def test_corrections():
    module, arrays, settings = small()
    curve = further_training_curve(module, *arrays, epochs=[1, 2], **settings)
    full, mean, none = (curve.corrected(c).scores for c in ("full", "mean", None))
    np.testing.assert_allclose(mean, full - full.mean(-1, keepdims=True), atol=1e-14)
    np.testing.assert_allclose(mean, none - none.mean(-1, keepdims=True), atol=1e-14)
    drift = none - full  # the full-data run against the final model: one number per test row
    np.testing.assert_allclose(drift, drift[..., :1] + 0 * drift, atol=1e-14)
    assert np.abs(drift).max() > np.abs(full).max()
    for correction in ("full", "mean", None):
        again = further_training_curve(
            module, *arrays, epochs=[1, 2], **{**settings, "correction": correction}
        )
        np.testing.assert_array_equal(again.scores, curve.corrected(correction).scores)
    with pytest.raises(ValueError, match="correction must be"):
        curve.corrected("half")


@pytest.mark.parametrize("correction", ["full", "mean", None])
def test_curve_at_its_last_horizon_is_further_training(correction):
    module, (X, y, X_test, y_test), settings = small(correction=correction)
    curve = further_training_curve(module, X, y, X_test, y_test, epochs=[1, 3], **settings)
    gold = FurtherTraining(module, n_epochs=3, **settings).fit(X, y)
    assert relative(gold.transform(X_test, y_test), curve.scores[-1]) < 1e-10
    assert relative(gold.scores_sem_, curve.sem[-1]) < 1e-10
    assert gold.seeds_ == curve.seeds
    assert list(curve.epochs) == [1, 3]


def test_standard_errors():
    module, arrays, settings = small(n_seeds=4)
    curve = further_training_curve(module, *arrays, epochs=[1, 2], **settings)
    n = curve.per_seed.shape[-1]
    spread = ((curve.per_seed - curve.scores[..., None]) ** 2).sum(-1)
    np.testing.assert_allclose(curve.sem, np.sqrt(spread / (n - 1) / n), rtol=1e-12)
    one = further_training_curve(module, *arrays, epochs=1, **{**settings, "n_seeds": 1})
    assert np.isnan(one.sem).all()


@pytest.mark.parametrize("correction", ["full", "mean", None])
def test_self_influence_is_the_diagonal(correction):
    gold, X_test, y_test = fitted(correction=correction, chunk_size=2)
    gold.transform(X_test, y_test)
    sem = gold.scores_sem_
    X, y, *_ = data("one")
    own = gold.self_influence()
    np.testing.assert_array_equal(gold.scores_sem_, sem)  # still that of transform
    diagonal = np.diag(gold.transform(X[LEFT_OUT], y[LEFT_OUT]))
    assert relative(own, diagonal) < 1e-10


def test_standard_errors_come_with_transform():
    gold, *_ = fitted()
    with pytest.raises(AttributeError, match="call transform first"):
        _ = gold.scores_sem_


@pytest.mark.parametrize(
    "leave_out",
    [[7, 0, 39, 21], np.array([21, 7]), range(0, 40, 9)],
    ids=["list", "array", "range"],
)
def test_columns_are_the_left_out_rows_in_the_order_given(leave_out):
    everything, X_test, y_test = fitted(leave_out=None)
    full = everything.transform(X_test, y_test)
    assert full.shape == (N_TEST, N)
    np.testing.assert_array_equal(everything.train_indices_, np.arange(N))
    some, *_ = fitted(leave_out=leave_out)
    np.testing.assert_array_equal(some.train_indices_, list(leave_out))
    assert relative(some.transform(X_test, y_test), full[:, list(leave_out)]) < 1e-8
    module, arrays, settings = small(leave_out=leave_out)
    curve = further_training_curve(module, *arrays, epochs=2, **settings)
    np.testing.assert_array_equal(curve.leave_out, list(leave_out))
    assert relative(curve.scores[0], full[:, list(leave_out)]) < 1e-8


def test_a_number_of_rows_is_drawn():
    some, X_test, y_test = fitted(leave_out=5, n_seeds=SEEDS)
    rows = some.train_indices_
    assert len(set(rows)) == 5
    same, *_ = fitted(leave_out=5, n_seeds=SEEDS)
    np.testing.assert_array_equal(rows, same.train_indices_)
    other, *_ = fitted(leave_out=5, n_seeds=SEEDS, random_state=1)
    assert set(rows) != set(other.train_indices_)
    named, *_ = fitted(leave_out=list(rows), n_seeds=SEEDS)
    np.testing.assert_array_equal(named.transform(X_test, y_test), some.transform(X_test, y_test))


def test_first_seeds_of_more_are_the_same():
    module, arrays, settings = small()
    few, more = (
        further_training_curve(module, *arrays, epochs=1, **{**settings, "n_seeds": n})
        for n in (2, 5)
    )
    assert few.seeds == more.seeds[:2]
    np.testing.assert_array_equal(few.per_seed, more.per_seed[..., :2])
    named = further_training_curve(
        module, *arrays, epochs=1, **{**settings, "n_seeds": more.seeds[3:]}
    )
    np.testing.assert_array_equal(named.per_seed, more.per_seed[..., 3:])


def test_number_of_seeds_found():
    module, arrays, settings = small(n_seeds="auto")
    loose, tight, capped = (
        further_training_curve(module, *arrays, epochs=2, **settings, **more)
        for more in ({"sem_tol": 10.0}, {"sem_tol": 0.1}, {"sem_tol": 1e-9, "max_seeds": 7})
    )

    def error(curve):
        scores, sem = curve.scores[-1], curve.sem[-1]
        return np.sqrt((sem**2).mean() / (scores**2).mean())

    assert len(loose.seeds) == 5
    assert len(capped.seeds) == 7
    assert error(capped) > 1e-9
    assert 5 < len(tight.seeds) < 100
    assert error(tight) <= 0.1
    before = further_training_curve(
        module, *arrays, epochs=2, **{**settings, "n_seeds": tight.seeds[:-5]}
    )
    assert error(before) > 0.1
    gold, *_ = fitted(n_seeds="auto", max_seeds=6, sem_tol=1e-9)
    assert gold.seeds_ == capped.seeds[:6]


# ---- the same whatever the way --------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mask", "drop"])
def test_chunk_size_does_not_matter(mode):
    """In float32, where it could."""
    module, arrays, settings = small(leave_out=None, leave_out_mode=mode)
    module = module.float()
    chunks = (1, 2, 7, 41, 64, None)
    scores = [
        further_training_curve(module, *arrays, epochs=3, chunk_size=c, **settings).scores
        for c in chunks
    ]
    for other in scores[1:]:
        assert relative(other, scores[0]) < 1e-5


def parallel_run(n_jobs=None, module=None):
    """Dropout, several stacks and seeds: whatever could depend on the worker."""
    torch.manual_seed(1)
    if module is None:
        module = mlp(1, nn.Tanh, nn.Dropout(0.5)).float()
    _, arrays, settings = small(chunk_size=2, n_jobs=n_jobs)
    curve = further_training_curve(module, *arrays, epochs=[1, 6], **settings)
    gold = FurtherTraining(module, n_epochs=2, **settings).fit(*arrays[:2])
    return curve.per_seed, gold.transform(*arrays[2:])


def assert_same_bits(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_same_bits_for_any_number_of_workers():
    assert_same_bits(parallel_run(n_jobs=2), parallel_run(n_jobs=1))


def process_state():
    """What belongs to the process and must be as it was."""
    matmul = torch.backends.mkldnn.matmul
    return torch.get_num_threads(), matmul.fp32_precision, torch.random.get_rng_state().tolist()


def test_same_bits_under_threads():
    """Threads share torch's generator, thread count and switches: they must not disturb."""
    expected = parallel_run()
    torch.manual_seed(1)
    module = mlp(1, nn.Tanh, nn.Dropout(0.5)).float()
    torch.set_num_threads(2)
    before = process_state()
    with joblib.parallel_config(backend="threading", n_jobs=4):
        found = parallel_run(module=module)
    assert process_state()[:2] == before[:2]
    assert_same_bits(found, expected)


def test_same_bits_under_dask():
    import distributed

    expected = parallel_run()
    cluster = distributed.LocalCluster(
        n_workers=2, processes=True, threads_per_worker=1, dashboard_address=None
    )
    with cluster, distributed.Client(cluster), joblib.parallel_config(backend="dask"):
        assert joblib.effective_n_jobs(-1) == 2
        assert_same_bits(parallel_run(n_jobs=-1), expected)


def compiled(compile):
    module, arrays, settings = small(n_seeds=1, chunk_size=5)
    module = mlp(1, nn.Tanh, nn.Dropout(0.5)).float()
    return further_training_curve(
        module, *arrays, epochs=2, compile=compile, **{**settings, "batch_size": 20}
    ).scores


COMPILER_MISSING = """
import warnings
from test_further_training import compiled, relative
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    found = compiled(True)
ours = [w for w in caught if issubclass(w.category, RuntimeWarning)]
assert len(ours) == 1, [str(w.message) for w in caught]
assert "training goes on uncompiled" in str(ours[0].message), ours[0].message
assert relative(found, compiled(False)) == 0
print("fell back")
"""


def test_compile(monkeypatch, tmp_path):
    """Dropout included: compiled code draws the same units."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # the fallback would warn
        try:
            found = compiled(True)
        except RuntimeWarning as error:
            pytest.skip(f"no working compiler here: {error}")
    expected = compiled(False)
    assert relative(found, expected) < 1e-5
    assert list(tmp_path.rglob("*.so")), "nothing was compiled"


def test_without_compiler(tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "CXX": "/nonexistent/c++",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPILER_MISSING],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "fell back"


# ---- the user's model -----------------------------------------------------------------------


def numpy_state():
    """The legacy generator: the one that others may rely on."""
    return np.random.get_state()[1].tolist()  # noqa: NPY002


def snapshot(module):
    return (
        {k: v.clone() for k, v in module.state_dict().items()},
        [part.training for part in module.modules()],
        [None if p.grad is None else p.grad.clone() for p in module.parameters()],
        [p.requires_grad for p in module.parameters()],
    )


def assert_unchanged(module, before):
    state, training, grads, requires = snapshot(module)
    assert all(torch.equal(state[k], v) for k, v in before[0].items())
    assert training == before[1]
    for now, then in zip(grads, before[2], strict=True):
        assert (now is None) == (then is None)
        assert now is None or torch.equal(now, then)
    assert requires == before[3]


@pytest.mark.parametrize(
    "module",
    [
        mlp(1, nn.Tanh, nn.Dropout(0.5)),
        FunctionalDropout().double(),
        mlp(1, nn.Tanh, nn.BatchNorm1d(6)),
    ],
    ids=["dropout", "functional", "batchnorm"],
)
@pytest.mark.parametrize("diverges", [False, True])
def test_model_and_generators_are_left_alone(module, diverges):
    module = copy.deepcopy(module).train()
    if any(isinstance(part, nn.BatchNorm1d) for part in module.modules()):
        module.eval()
    X, y, X_test, y_test = data("one")
    module(torch.from_numpy(X)).sum().backward()
    before, numpy_before = snapshot(module), numpy_state()
    torch.set_num_threads(2)
    torch_state = process_state()
    settings = {"n_seeds": 2, "leave_out": [0, 5], "optimizer": "SGD", "random_state": 0}
    settings["criterion"] = nn.MSELoss()
    gold = FurtherTraining(module, lr=1e12 if diverges else 0.1, n_epochs=20, **settings)
    if diverges:
        with pytest.raises(FloatingPointError, match=r"diverged.*Lower lr"):
            gold.fit(X, y)
    else:
        gold.fit(X, y).transform(X_test, y_test)
        gold.self_influence()
    assert_unchanged(module, before)
    assert process_state() == torch_state
    assert numpy_state() == numpy_before


def test_skorch_net_is_left_alone():
    net, _, (X, y, X_test, y_test), *_ = case("nll")
    net.module_.train()
    before = snapshot(net.module_)
    momenta = copy.deepcopy(net.optimizer_.state_dict())
    history = len(net.history)
    gold = FurtherTraining(net, n_epochs=1, n_seeds=1, leave_out=[0])
    gold.fit(X, y).transform(X_test, y_test)
    assert gold.estimator_ is net
    assert_unchanged(net.module_, before)
    assert str(net.optimizer_.state_dict()) == str(momenta)
    assert len(net.history) == history


# ---- in expectation -------------------------------------------------------------------------


def test_a_seed_in_expectation_is_worth_several():
    """It agrees with the mean over seeds of what masking does, and is of the same size."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    y = X[:, 0] - X[:, 1] ** 2 + 0.3 * rng.normal(size=60)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()

    def scores(mode: str, seeds: list[int]) -> np.ndarray:
        gold = FurtherTraining(
            net, n_epochs=3, lr=0.05, batch_size=4, optimizer="SGD", n_seeds=seeds,
            leave_out=list(range(0, 60, 3)), leave_out_mode=mode, criterion=nn.MSELoss(),
        )  # fmt: skip
        return gold.fit(X, y).transform(X, y).ravel()

    mean = scores("mask", list(range(1, 41)))
    for seed in (50, 51):
        expected, masked = (scores(mode, [seed]) for mode in ("expected", "mask"))
        assert np.corrcoef(expected, mean)[0, 1] > 0.95 > 0.9 > np.corrcoef(masked, mean)[0, 1]
        assert expected @ mean / (mean @ mean) == pytest.approx(1, abs=0.15)


def test_expectation_and_batch_statistics():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).eval()
    X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    settings = {"n_epochs": 1, "n_seeds": 1, "lr": 0.01, "batch_size": 4, "criterion": nn.MSELoss()}
    settings["leave_out_mode"] = "expected"
    with pytest.raises(ValueError, match=r"leave_out_mode='expected'.*Use 'mask', or batch_stat"):
        FurtherTraining(net, **settings).fit(X, X[:, 0])
    frozen = FurtherTraining(net, batch_statistics="frozen", **settings).fit(X, X[:, 0])
    assert np.isfinite(frozen.transform(X, X[:, 0])).all()
