"""Training on subsets against a naive loop, exact refits, and itself run in other ways."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import skorch
import torch
from naive import relative
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeRegressor
from torch import nn

from fimoda import random_subsets, train_on_subsets

N, D, N_TEST = 37, 3, 5
SEEDS = [3, 11]
# 35 and 33 rows are five steps of 8, as 37; 20 and 18 are three; 1 is one
SIZES = [35, 20, 37, 33, 18, 1]

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, 0.1, {}),
    "momentum": (torch.optim.SGD, 0.05, {"momentum": 0.9}),
    "weight decay": (torch.optim.SGD, 0.1, {"weight_decay": 0.05}),
    "adam": (torch.optim.Adam, 0.02, {}),
}


def mlp(*extra: nn.Module) -> nn.Sequential:
    first, second, last = (
        nn.Linear(*shape, dtype=torch.float64) for shape in ((D, 6), (6, 4), (4, 1))
    )
    return nn.Sequential(first, nn.Tanh(), *extra, second, nn.ReLU(), last)


class Residual(nn.Module):
    """Not a chain, with a parameter that belongs to no layer."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(D, D).double(), nn.Linear(D, 1).double()
        self.scale = nn.Parameter(torch.tensor(0.7).double())

    def forward(self, x):
        return self.outer(x + self.scale * torch.tanh(self.inner(x)))


def data(classes: bool = False):
    rng = np.random.default_rng(5)
    X = rng.normal(size=(N + N_TEST, D))
    y = X[:, 0] * X[:, 1] + 0.3 * rng.normal(size=len(X))
    y = np.argmax(X, 1) if classes else y
    return X[:N], y[:N], X[N:], y[N:]


def subsets_of_sizes(sizes=SIZES):
    rng = np.random.default_rng(2)
    return [np.sort(rng.permutation(N)[:size]) for size in sizes]


def naive(fresh, subset, seed, cls, lr, params, n_epochs, batch_size=8):
    """One model, one subset: a plain torch loop. Squared errors of the test rows."""
    X, y, X_test, y_test = (torch.from_numpy(a) for a in data())
    inside = torch.zeros(N, dtype=bool)
    inside[torch.from_numpy(subset)] = True
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = fresh().train()
        torch.manual_seed(seed)  # dropout
        generator = torch.Generator().manual_seed(seed)
        optimizer = cls(module.parameters(), lr=lr, **params)
        for _ in range(n_epochs):
            order = torch.randperm(N, generator=generator)
            for rows in order[inside[order]].split(batch_size):
                optimizer.zero_grad()
                ((module(X[rows])[:, 0] - y[rows]) ** 2).mean().backward()
                optimizer.step()
    with torch.no_grad():
        return ((module.eval()(X_test)[:, 0] - y_test) ** 2).numpy()


def measured(fresh, subsets, optimizer="sgd", n_epochs=3, **changes):
    X, y, X_test, y_test = data()
    cls, lr, params = OPTIMIZERS[optimizer]
    settings = {"n_seeds": SEEDS, "n_epochs": n_epochs, "optimizer": cls, "lr": lr}
    settings |= {"optimizer_params": params, "batch_size": 8, "criterion": nn.MSELoss(), **changes}
    return train_on_subsets(fresh(), X, y, subsets, X_test, y_test, **settings)


def expected(fresh, subsets, optimizer="sgd", n_epochs=3):
    runs = [
        [naive(fresh, s, seed, *OPTIMIZERS[optimizer], n_epochs) for seed in SEEDS] for s in subsets
    ]
    return np.transpose(runs, (0, 2, 1))


# ---- against the naive loop -----------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_equals_naive_loop(optimizer, chunk_size):
    """Subsets of different sizes in one stack; initial parameters by ``reset_parameters``."""
    subsets = subsets_of_sizes()
    outcomes = measured(mlp, subsets, optimizer, chunk_size=chunk_size)
    assert outcomes.measured.shape == (len(SIZES), N_TEST, 2)
    assert relative(outcomes.measured, expected(mlp, subsets, optimizer)) < 1e-8
    assert_array_equal(outcomes.subsets.sum(1), SIZES)
    assert outcomes.seeds == SEEDS
    assert outcomes.failed == []
    assert_allclose(outcomes.mean, outcomes.measured.mean(-1))


def test_dropout_is_drawn_as_for_one_model_alone():
    def fresh():
        return mlp(nn.Dropout(0.4))

    subsets = subsets_of_sizes([35, 33, 35])
    assert relative(measured(fresh, subsets).measured, expected(fresh, subsets)) < 1e-8


def test_init_makes_what_cannot_be_reset():
    subsets = subsets_of_sizes([20, 30])
    outcomes = measured(Residual, subsets, init=Residual)
    assert relative(outcomes.measured, expected(Residual, subsets)) < 1e-8
    with pytest.raises(ValueError, match=r"no reset_parameters draws again \(scale\)"):
        measured(Residual, subsets)
    with pytest.raises(ValueError, match="init must make a module of the estimator's arch"):
        measured(mlp, subsets, init=lambda: nn.Linear(D, 1))


def test_skorch_nets_are_initialised():
    X, y, X_test, y_test = data()
    shuffled = {"iterator_train__shuffle": True}
    net = skorch.NeuralNetRegressor(
        mlp, lr=0.1, batch_size=8, max_epochs=3, train_split=None, verbose=0, **shuffled
    ).fit(X, y[:, None])
    subsets = subsets_of_sizes([20, 30])
    outcomes = train_on_subsets(net, X, y[:, None], subsets, X_test, y_test[:, None], n_seeds=SEEDS)
    assert relative(outcomes.measured, expected(mlp, subsets)) < 1e-8


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("classes", [False, True])
def test_mlps_start_from_their_own_initialisation(classes):
    """One full batch an epoch is scikit-learn's own training, up to the order of sums."""
    X, y, X_test, y_test = data(classes)
    cls = MLPClassifier if classes else MLPRegressor
    model = cls(
        hidden_layer_sizes=(5,),
        solver="sgd",
        batch_size=N,
        learning_rate_init=0.05,
        max_iter=4,
        alpha=0,
    )
    model.set_params(random_state=0, n_iter_no_change=100)
    subset = np.arange(2, N)
    model.fit(X, y)
    alone = clone(model).set_params(random_state=7, batch_size=len(subset))
    alone.fit(X[subset], y[subset])
    outcomes = train_on_subsets(model, X, y, [subset], X_test, y_test, n_seeds=[7])
    if classes:
        loss = -np.log(alone.predict_proba(X_test)[np.arange(N_TEST), y_test])
    else:
        loss = 0.5 * (alone.predict(X_test) - y_test) ** 2
    assert relative(outcomes.measured[0, :, 0], loss) < 1e-8


# ---- estimators that are fitted -------------------------------------------------------------


@pytest.mark.parametrize("refit", ["all", "last"])
def test_ridge_is_refitted_with_weights(refit):
    X, y, X_test, y_test = data()
    weight = np.linspace(0.5, 2, N)
    subsets = subsets_of_sizes([20, 30])
    model = make_pipeline(StandardScaler(), Ridge()).fit(X, y)
    outcomes = train_on_subsets(
        model, X, y, subsets, X_test, y_test, n_seeds=1, sample_weight=weight, refit=refit
    )
    for subset, found in zip(subsets, outcomes.measured[..., 0], strict=True):
        scaler = StandardScaler().fit(X[subset] if refit == "all" else X)
        exact = Ridge().fit(scaler.transform(X[subset]), y[subset], weight[subset])
        assert relative(found, (exact.predict(scaler.transform(X_test)) - y_test) ** 2) < 1e-10


def test_estimators_without_gradients():
    X, y, X_test, _ = data()
    subsets = subsets_of_sizes([20, 30])
    tree = DecisionTreeRegressor(max_depth=3, max_features=1).fit(X, y)
    outcomes = train_on_subsets(tree, X, y, subsets, X_test, n_seeds=SEEDS)  # predictions
    for subset, found in zip(subsets, outcomes.measured, strict=True):
        for seed, values in zip(SEEDS, found.T, strict=True):
            alone = clone(tree).set_params(random_state=seed).fit(X[subset], y[subset])
            assert_allclose(values, alone.predict(X_test))


def test_classifiers_without_gradients():
    X, y, X_test, y_test = data(classes=True)
    y, y_test = np.array(["a", "b", "c"])[y], np.array(["a", "b", "c"])[y_test]
    subsets = [np.flatnonzero(y != y_test[0]), np.arange(30)]
    forest = RandomForestClassifier(5, random_state=0).fit(X, y)
    outcomes = train_on_subsets(forest, X, y, subsets, X_test, y_test, n_seeds=[4])
    alone = clone(forest).set_params(random_state=4).fit(X[:30], y[:30])
    p = alone.predict_proba(X_test)[
        np.arange(len(y_test)), np.searchsorted(["a", "b", "c"], y_test)
    ]
    losses = -np.log((N * p + 1 / 3) / (N + 1))  # counts of rows, smoothed
    assert_allclose(outcomes.measured[1, :, 0], losses, atol=1e-12)
    # a class that was not there has probability 0
    assert_allclose(outcomes.measured[0, 0], -np.log(1 / 3 / (N + 1)), atol=1e-12)
    svc = LinearSVC().fit(X, y)
    hinge = train_on_subsets(svc, X, y, [np.arange(30)], X_test, y_test, n_seeds=1)
    alone = clone(svc).set_params(random_state=hinge.seeds[0]).fit(X[:30], y[:30])
    decisions, own = alone.decision_function(X_test), np.searchsorted(["a", "b", "c"], y_test)
    signs = np.where(np.arange(3) == own[:, None], 1, -1)  # each class against the rest
    losses = np.maximum(0, 1 - signs * decisions).sum(1)
    assert_allclose(hinge.measured[0, :, 0], losses, atol=1e-12)


# ---- failures -------------------------------------------------------------------------------


def test_a_diverging_model_leaves_its_stack_alone():
    X, y, X_test, y_test = data()
    X = X.copy()
    X[4] = 1e80  # whoever trains on this row diverges
    without = np.setdiff1d(np.arange(N), [4])
    subsets = [without, np.arange(N), without[2:]]
    settings = {"n_seeds": SEEDS, "n_epochs": 3, "optimizer": "SGD", "lr": 0.05}
    settings |= {"criterion": nn.MSELoss(), "batch_size": 8}
    net = nn.Linear(D, 1).double()
    outcomes = train_on_subsets(net, X, y, subsets, X_test, y_test, **settings)
    assert [(subset, seed) for subset, seed, _ in outcomes.failed] == [(1, 3), (1, 11)]
    assert all("NaN or infinite after 3 epochs" in reason for *_, reason in outcomes.failed)
    assert np.isnan(outcomes.measured[1]).all()
    assert np.isnan(outcomes.mean[1]).all()
    well = train_on_subsets(net, X, y, [subsets[0], subsets[2]], X_test, y_test, **settings)
    assert relative(outcomes.measured[[0, 2]], well.measured) < 1e-12


def test_a_failing_fit_is_reported():
    X, y, X_test, y_test = data(classes=True)
    model = LogisticRegression().fit(X, y)
    subsets = [np.arange(N), np.flatnonzero(y != 1)]
    outcomes = train_on_subsets(model, X, y, subsets, X_test, y_test, n_seeds=[5])
    assert outcomes.failed == [(1, 5, "its rows have none of class 1")]
    assert np.isfinite(outcomes.measured[0]).all()
    subsets[1] = np.flatnonzero(y == 1)
    outcomes = train_on_subsets(model, X, y, subsets, X_test, y_test, n_seeds=[5])
    assert outcomes.failed == [(1, 5, "its rows are all of class 1")]


@pytest.mark.parametrize(
    ("subsets", "message"),
    [
        ([], "at least one subset"),
        ([[0, 1], []], "subset 1 is empty"),
        (np.zeros((2, N), dtype=bool), "subset 0 is empty"),
        (np.ones((2, N + 1), dtype=bool), rf"must have shape \(n_subsets, {N}\)"),
        ([[0, N]], rf"indices in \[0, {N}\).*subset 0 has {N}"),
        ([[-1]], "subset 0 has -1"),
        ([[1, 1]], "must not repeat a row"),
        ([[0.5]], "array of float64"),
    ],
)
def test_bad_subsets(subsets, message):
    X, y, X_test, y_test = data()
    with pytest.raises(ValueError, match=message):
        train_on_subsets(Ridge().fit(X, y), X, y, subsets, X_test, y_test)


def test_bad_arguments():
    with pytest.raises(ValueError, match="n_epochs must be given for a bare"):
        measured(mlp, [[0, 1]], n_epochs=None)
    with pytest.raises(MemoryError, match="2 subsets x 2 seeds"):
        measured(mlp, [[0, 1], [2]], memory_budget=10)
    X, y, X_test, y_test = data()
    with pytest.raises(ValueError, match="n_epochs, lr must be left alone for Ridge"):
        train_on_subsets(Ridge(), X, y, [[0, 1]], X_test, y_test, n_epochs=3, lr=0.1)
    tree = make_pipeline(StandardScaler(), DecisionTreeRegressor())
    with pytest.raises(ValueError, match="compile must be left alone for Pipeline"):
        train_on_subsets(tree, X, y, [[0, 1]], X_test, y_test, compile=True)
    with pytest.raises(ValueError, match="ratio must leave some"):
        random_subsets(10, 3, 0.01)
    with pytest.raises(ValueError, match="n_subsets must be at least 1"):
        random_subsets(10, 0)


def test_random_subsets():
    many = random_subsets(20, 400, 0.3, random_state=1)
    assert (many.sum(1) == 6).all()
    assert_array_equal(random_subsets(20, 7, 0.3, random_state=1), many[:7])
    assert_allclose(many.mean(0), 0.3, atol=0.1)


# ---- run in other ways ----------------------------------------------------------------------


def test_workers_give_the_same_bits():
    subsets = subsets_of_sizes()
    alone = measured(mlp, subsets, chunk_size=2).measured
    assert_array_equal(measured(mlp, subsets, chunk_size=2, n_jobs=2).measured, alone)
    X, y, X_test, y_test = data()
    tree = DecisionTreeRegressor(max_features=1).fit(X, y)
    runs = [
        train_on_subsets(tree, X, y, subsets, X_test, y_test, n_seeds=SEEDS, n_jobs=k, chunk_size=2)
        for k in (1, 2)
    ]
    assert_array_equal(runs[0].measured, runs[1].measured)


def long_run(directory, n_epochs=150):
    torch.set_num_threads(1)
    subsets = random_subsets(N, 12, 0.5, random_state=0)
    return measured(mlp, subsets, n_epochs=n_epochs, chunk_size=2, checkpoint_dir=directory)


def test_kill_and_resume(tmp_path):
    directory = tmp_path / "run"
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; import test_subsets; "
        f"test_subsets.long_run({str(directory)!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while len(list(directory.glob("*.npy"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL
    finished = {path: path.stat().st_mtime_ns for path in directory.glob("*.npy")}
    assert 2 <= len(finished) < 12
    resumed = long_run(directory)
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    assert_array_equal(resumed.measured, long_run(None).measured)
    with pytest.raises(ValueError, match="belongs to another run"):
        long_run(directory, n_epochs=1)
