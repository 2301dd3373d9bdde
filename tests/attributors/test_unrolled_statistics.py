"""Unrolled differentiation through batch normalisation that is trained, against plain loops in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from naive import relative
from torch import Tensor, nn

from fimoda import FurtherTraining, UnrolledDifferentiation, hessians
from fimoda.training.recorded import RecordedRun

N, D, C, N_TEST = 11, 4, 3, 4
BATCH, SEED = 5, 3  # the last batch of an epoch holds one row
STEPS = 6

OPTIMIZERS = {
    "sgd": ("SGD", 0.1, {}),
    "momentum": ("SGD", 0.05, {"momentum": 0.9, "weight_decay": 0.1}),
    "adam": ("Adam", 0.01, {"eps": 1e-3}),
}

LAYERS = {
    "numbers": lambda: [nn.Linear(D, 5), nn.BatchNorm1d(5, momentum=0.3), nn.Tanh(), nn.Linear(5, C)],
    "images": lambda: [
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1), nn.BatchNorm2d(3), nn.Softplus(),
        nn.Flatten(), nn.Linear(27, C),
    ],
    "cumulative": lambda: [nn.Linear(D, 5), nn.BatchNorm1d(5, momentum=None), nn.Tanh(), nn.Linear(5, C)],
    "no weights": lambda: [nn.BatchNorm1d(D, affine=False), nn.Linear(D, C)],
}  # fmt: skip


def data(n: int = N):
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(n + N_TEST, D)), rng.integers(C, size=n + N_TEST)
    return X[:n], y[:n], X[n:], y[n:]


def network(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(*LAYERS[kind]()).double()
    net(torch.from_numpy(data()[0]))  # statistics of a batch
    return net.eval()


def unrolled(net: nn.Module, optimizer: str = "sgd", **changes) -> UnrolledDifferentiation:
    name, lr, params = OPTIMIZERS[optimizer]
    settings = {
        "criterion": nn.CrossEntropyLoss(), "optimizer": name, "lr": lr, "optimizer_params": params,
        "batch_size": BATCH, "n_epochs": STEPS / 3, "n_seeds": [SEED], "order": "own",
    }  # fmt: skip
    return UnrolledDifferentiation(net, **{**settings, **changes})


# ---- a plain loop ---------------------------------------------------------------------------


def passed(net: nn.Sequential, x: Tensor, q: Tensor, alone: float | None) -> Tensor:
    """Pass rows with presence q forward as in training, and bring the statistics up to date.

    A row that is alone in its batch is there to the part `alone`.
    """
    for layer in net:
        if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
            x = layer(x)
            continue
        if x.numel() == x.shape[1]:
            x = F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias)
            continue
        shape = (-1, *[1] * (x.dim() - 1))
        axes, positions = [0, *range(2, x.dim())], x[0, 0].numel()
        count = q.sum() * positions
        mean = (x * q.view(shape)).sum(axes, keepdim=True) / count
        var = ((x - mean).square() * q.view(shape)).sum(axes, keepdim=True) / count
        x = (x - mean) / (var + layer.eps).sqrt()
        if layer.affine:
            channels = (1, -1, *[1] * (x.dim() - 2))
            x = x * layer.weight.view(channels) + layer.bias.view(channels)
        layer.num_batches_tracked += 1
        factor = 1 / layer.num_batches_tracked if layer.momentum is None else layer.momentum
        factor = factor if alone is None else factor * alone
        with torch.no_grad():
            layer.running_mean.lerp_(mean.flatten(), float(factor))
            layer.running_var.lerp_((var * count / (count - 1)).flatten(), float(factor))
    return x


def trained(method: UnrolledDifferentiation, kind: str, optimizer: str, row: int, change: float):
    """Return the losses of the test rows after training where a row counts 1 - change.

    In its batch of B rows by B / (B - 1) times that, since the others take its place.
    """
    X, y, X_test, y_test = (torch.from_numpy(part) for part in data())
    recorded = RecordedRun(method._full_run, SEED, STEPS)
    net = copy.deepcopy(network(kind))
    name, lr, params = OPTIMIZERS[optimizer]
    taker = getattr(torch.optim, name)(net.parameters(), lr=lr, **params)
    for step in range(STEPS):
        rows = recorded._batches[step].rows
        B, q = len(rows), torch.ones(len(rows), dtype=torch.float64)
        alone = None
        if row in rows and B > 1:
            q[rows == row] -= change * B / (B - 1)
        elif row in rows:
            alone = 1 - change
        losses = F.cross_entropy(passed(net, X[rows], q, alone), y[rows], reduction="none")
        taker.zero_grad()
        ((q * losses).sum() / q.sum() * (1 if alone is None else alone)).backward()
        taker.step()
    return F.cross_entropy(net.eval()(X_test), y_test, reduction="none").detach().numpy()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", LAYERS)
def test_own_order_is_the_derivative_of_a_plain_loop(kind, optimizer):
    X, y, X_test, y_test = data()
    found = unrolled(network(kind), optimizer).fit(X, y)
    small = 1e-6
    expected = np.stack(
        [
            (
                trained(found, kind, optimizer, row, small)
                - trained(found, kind, optimizer, row, -small)
            )
            / (2 * small)
            for row in range(N)
        ],
        axis=1,
    )
    # torch has the number of Adam's steps, and their powers, in single precision
    allowed = 1e-5 if optimizer == "adam" else 1e-6
    assert relative(found.transform(X_test, y_test), expected) < allowed


def test_run_reaches_the_statistics_of_further_training():
    X, y, X_test, y_test = data()
    net = network("images")
    found = unrolled(net).fit(X, y)
    further = FurtherTraining(
        net, criterion=nn.CrossEntropyLoss(), optimizer="SGD", lr=0.1, batch_size=BATCH, n_epochs=2,
        n_seeds=[SEED], leave_out=[0],
    ).fit(X, y)  # fmt: skip
    states, outcomes = (each._coupled(each._test(X_test, y_test)) for each in (found, further))
    np.testing.assert_allclose(states[0][0], outcomes[0][0], rtol=1e-10)


# ---- the expected order ---------------------------------------------------------------------


@pytest.mark.parametrize("between", [nn.BatchNorm1d(5), nn.Dropout(0.4)])
def test_gradients_of_several_draws(between):
    """Steps so small that the parameters stay leave chance to batches and noise alone."""
    X, y, X_test, y_test = data(12)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(D, 5), between, nn.Tanh(), nn.Linear(5, C)).double()
    net(torch.from_numpy(X))

    def scores(order: str, seeds: list[int], draws: int = 1) -> np.ndarray:
        given = {
            "order": order,
            "n_seeds": seeds,
            "gradient_draws": draws,
            "lr": 1e-6,
            "n_epochs": 1,
        }
        return unrolled(net.eval(), batch_size=4, **given).fit(X, y).transform(X_test, y_test)

    truth = scores("own", list(range(400)))
    one, few, many = (relative(scores("expected", [500], k), truth) for k in (1, 10, 100))
    assert many < few < one
    assert many < one / 4


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_expected_order_is_nearer_to_the_mean_over_seeds_than_a_seed(optimizer):
    X, y, X_test, y_test = data(60)

    def scores(order: str, seeds: list[int]) -> np.ndarray:
        settings = {"batch_size": 20, "n_epochs": 2, "n_seeds": seeds, "order": order}
        method = unrolled(network("images"), optimizer, **settings).fit(X, y)
        return method.transform(X_test, y_test)

    mean = scores("own", list(range(40)))
    own, expected = (
        [np.corrcoef(scores(order, [seed]).ravel(), mean.ravel())[0, 1] for seed in (50, 51, 52)]
        for order in ("own", "expected")
    )
    assert np.mean(expected) > 0.97 > np.mean(own)
    assert np.linalg.norm(scores("expected", [50, 51, 52])) == pytest.approx(
        np.linalg.norm(mean), rel=0.1
    )


def test_scores_are_those_of_further_training():
    """With rows left out by masking, by the same seeds."""
    X, y, X_test, y_test = data(60)
    settings = {"batch_size": 20, "n_epochs": 2, "n_seeds": list(range(8))}
    found = unrolled(network("numbers"), **settings).fit(X, y).transform(X_test, y_test)
    settings |= {"optimizer": "SGD", "lr": 0.1, "criterion": nn.CrossEntropyLoss()}
    further = FurtherTraining(network("numbers"), **settings).fit(X, y).transform(X_test, y_test)
    assert np.corrcoef(found.ravel(), further.ravel())[0, 1] > 0.99
    frozen = unrolled(network("numbers"), batch_statistics="frozen", batch_size=20, n_epochs=2)
    frozen.set_params(n_seeds=list(range(8))).fit(X, y)
    assert np.corrcoef(frozen.transform(X_test, y_test).ravel(), further.ravel())[0, 1] < 0.9


# ---- what else goes with it -----------------------------------------------------------------


def test_combinations_and_horizons():
    X, y, X_test, y_test = data(60)
    common = {"order": "expected", "n_epochs": [0.5, 1, 2], "batch_size": 20}
    whole = unrolled(network("images"), **common).fit(X, y).transform_horizons(X_test, y_test)
    for epochs, scores in zip(common["n_epochs"], whole, strict=True):
        alone = unrolled(network("images"), **{**common, "n_epochs": epochs}).fit(X, y)
        assert relative(alone.transform(X_test, y_test), scores) < 1e-10
    twice = np.concatenate([X_test, X_test]), np.concatenate([y_test, y_test])
    some = unrolled(network("images"), n_test_components=N_TEST, **common).fit(X, y)
    assert relative(some.transform_horizons(*twice)[:, :N_TEST], whole) < 1e-9


def test_start_has_its_own_statistics():
    X, y, X_test, y_test = data()
    other = network("numbers")
    other.train()(torch.from_numpy(3 * X))
    other.eval()
    begun = unrolled(network("numbers"), start=other).fit(X, y)
    there = unrolled(other).fit(X, y)
    assert relative(begun.transform(X_test, y_test), there.transform(X_test, y_test)) < 1e-10


@pytest.mark.parametrize("order", ["own", "expected"])
def test_vectors_may_share_one_graph(order, monkeypatch):
    """As they do where few have room: the same scores in reverse mode."""
    X, y, X_test, y_test = data()
    together = unrolled(network("images"), order=order).fit(X, y).transform(X_test, y_test)
    monkeypatch.setattr(hessians, "_ACTIVATIONS", 1)
    apart = unrolled(network("images"), order=order).fit(X, y).transform(X_test, y_test)
    assert relative(apart, together) < 1e-10


def test_walks_backwards_only():
    X, y, X_test, y_test = data()
    with pytest.raises(ValueError, match="batch_statistics='frozen' to walk forwards"):
        unrolled(network("images"), mode="forward").fit(X, y)
    few = unrolled(network("images"), leave_out=[2]).fit(X, y)
    every = unrolled(network("images")).fit(X, y)
    assert relative(few.transform(X_test, y_test), every.transform(X_test, y_test)[:, [2]]) < 1e-12


def test_kinks_are_left_out_unless_they_are_asked_for():
    X, y, X_test, y_test = data()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(D, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, C)).double()
    net(torch.from_numpy(X))
    found = [
        unrolled(net.eval(), kink_smoothing=kinks).fit(X, y).transform(X_test, y_test)
        for kinks in ("auto", None, 10.0)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    assert relative(found[2], found[0]) > 1e-3
