"""Rows with other targets in unrolled differentiation, against runs that are trained anew, in float64."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
import torch
from naive import Naive, relative
from test_expected_order import Orders, Quadratic, data, unrolled
from torch import Tensor, nn

from fimoda import GradDot, OnceLinearizedFurtherTraining, UnrolledDifferentiation
from fimoda.training.run import Run

N, D, BATCH, EPOCHS = 12, 3, 4, 3
ROWS, TARGETS = [7, 2], [1.5, -2.0]
#: Weight that moves from a target to the other, in differences.
STEP = 1e-5


def network(*between: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 5), *between, nn.Tanh(), nn.Linear(5, 1)).double()


def differences(
    net: nn.Module, epochs: int, weights: np.ndarray | None = None, **run
) -> np.ndarray:
    """Return the derivative (5, n_rows) of losses after training, as a row's loss moves to the other."""
    X, y = (torch.as_tensor(part) for part in data(N))
    w = torch.ones(N).double() if weights is None else torch.as_tensor(weights)

    def after(row: int, target: float, part: float) -> np.ndarray:
        def objective(outputs: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
            losses = (outputs[:, 0] - targets) ** 2
            other = (outputs[:, 0] - target) ** 2
            moved = torch.where(rows == row, part, 0.0).double()
            return (w[rows] * ((1 - moved) * losses + moved * other)).sum() / w[rows].sum()

        naive = Naive(
            net, X, y, objective, lambda f, t: (f[:, 0] - t) ** 2, batch_size=BATCH, **run
        )
        *_, module = naive.train(0, None, "mask", epochs)
        return naive.measured(module, X[:5], y[:5])

    with torch.random.fork_rng():
        found = [
            (after(row, target, STEP) - after(row, target, -STEP)) / (2 * STEP)
            for row, target in zip(ROWS, TARGETS, strict=True)
        ]
    return np.stack(found, 1)


RUNS = {
    "sgd": ("SGD", {}, 0.1),
    "momentum": ("SGD", {"momentum": 0.8}, 0.05),
    "adam": ("Adam", {"eps": 1e-3}, 0.02),
}


@pytest.mark.parametrize("name", RUNS)
def test_own_order_is_the_derivative_of_the_run(name):
    optimizer, params, lr = RUNS[name]
    given = {"optimizer": optimizer, "optimizer_params": params, "lr": lr, "order": "own"}
    X, y = data(N)
    found = unrolled(network(), n_epochs=[1, EPOCHS], **given).fit(X, y)
    effect = found.relabel(X[:5], y[:5], rows=ROWS, targets=TARGETS)
    by_hand = {"optimizer": getattr(torch.optim, optimizer), "params": params, "lr": lr}
    assert relative(effect, differences(network(), EPOCHS, **by_hand)) < 1e-7


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(5), nn.Dropout(0.3)], ids=["norm", "dropout"])
def test_noise_and_statistics_are_those_of_the_run(layer):
    X, y = data(N)
    net = network(layer).eval()
    weights = np.random.default_rng(1).uniform(0.5, 2, N)
    found = unrolled(net, n_epochs=2, lr=0.05, order="own", mode="adjoint").fit(X, y, weights)
    effect = found.relabel(X[:5], y[:5], rows=ROWS, targets=TARGETS)
    assert relative(effect, differences(net, 2, weights, lr=0.05)) < 1e-7


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("optimizer", ["SGD", Quadratic])
def test_expected_order_is_the_mean_over_batches(monkeypatch, optimizer, size):
    """One step of a linear model, over all batches of six rows, with the other target in its place."""
    X, y = data(6)
    torch.manual_seed(0)
    net, lr, rows, targets = nn.Linear(D, 1).double(), 0.1, [4, 1], [2.0, -1.0]
    every = list(combinations(range(6), size))
    found = unrolled(
        net, n_epochs=1 / -(-6 // size), batch_size=size, optimizer=optimizer, measurement="output"
    ).fit(X, y)  # fmt: skip
    total = np.zeros((6, 2))
    for batch in every:
        with monkeypatch.context() as patch:
            patch.setattr(Run, "plan", lambda self, *_, b=(batch,): Orders(b))
            total += found.relabel(X, rows=rows, targets=targets)
    inputs = np.column_stack([X, np.ones(6)])
    outputs, square = net(torch.from_numpy(X))[:, 0].detach().numpy(), 3 * (optimizer is Quadratic)

    def step(batch, wanted) -> np.ndarray:
        g = (2 * inputs * (outputs - wanted)[:, None])[list(batch)].mean(0)
        return -lr * (g + square * g**2)

    expected = np.zeros((6, 2))
    for batch in every:
        for k, (row, target) in enumerate(zip(rows, targets, strict=True)):
            other = y.copy()
            other[row] = target
            expected[:, k] += inputs @ (step(batch, other) - step(batch, y))
    assert relative(total, expected) < 1e-12


def test_expected_order_is_the_mean_over_all_orders(monkeypatch):
    """Two steps of a linear model under squared error, whose batches of two of four rows are independent."""
    X, y = data(4)
    torch.manual_seed(0)
    net, sums = nn.Linear(D, 1).double(), []
    every = list(product(combinations(range(4), 2), repeat=2))
    for order in ("own", "expected"):
        found = unrolled(
            net, order=order, n_epochs=1, batch_size=2, blocks_per_epoch=2,
            measurement="output", mode="adjoint",
        ).fit(X, y)  # fmt: skip
        total = np.zeros((4, 2))
        for batches in every:
            with monkeypatch.context() as patch:
                patch.setattr(Run, "plan", lambda self, *_, b=batches: Orders(b))
                total += found.relabel(X, rows=[3, 1], targets=[2.0, -1.0])
        sums.append(total)
    assert relative(*sums) < 1e-12


def test_second_moments_move_with_far_targets():
    """The mean change of outputs by training with Adam, over orders, of targets far from the others."""
    X, y = data(60)
    net, rows, inputs = network(), [0, 10, 20, 30, 40, 50], torch.from_numpy(X)
    targets = y[rows] + [6, -6, 6, -6, 6, -6]

    def after(wanted: np.ndarray, seed: int) -> np.ndarray:
        naive = Naive(
            net, inputs, torch.from_numpy(wanted), lambda f, t, _: ((f[:, 0] - t) ** 2).mean(),
            lambda f, _: f[:, 0], torch.optim.Adam, 0.003, batch_size=8,
        )  # fmt: skip
        *_, module = naive.train(seed, None, "mask", 2)
        return naive.measured(module, inputs, inputs)

    before = [after(y, seed) for seed in range(10)]
    mean = np.empty((60, 6))
    for k, (row, target) in enumerate(zip(rows, targets, strict=True)):
        other = y.copy()
        other[row] = target
        mean[:, k] = np.mean([after(other, s) - before[s] for s in range(10)], 0)
    given = {"optimizer": "Adam", "lr": 0.003, "batch_size": 8, "measurement": "output"}

    def agreement(order: str) -> float:
        found = unrolled(net, order=order, n_seeds=[50], **given).fit(X, y)
        effect = found.relabel(X, rows=rows, targets=targets)
        return float((effect * mean).sum() / np.linalg.norm(effect) / np.linalg.norm(mean))

    assert agreement("expected") > 0.93 > 0.9 > agreement("own")


@pytest.mark.parametrize(
    ("order", "optimizer", "n_jobs"), [("own", "SGD", None), ("expected", "Adam", 2)]
)
def test_workers_and_horizons_do_not_matter(order, optimizer, n_jobs):
    X, y = data(N)
    given = {"order": order, "optimizer": optimizer, "lr": 0.02, "n_seeds": [0, 1]}
    found = unrolled(network(), **given).fit(X, y)
    effect = found.relabel(X[:5], y[:5], rows=ROWS, targets=TARGETS)
    assert np.abs(effect).min() > 0
    swapped = found.relabel(X[:5], y[:5], rows=ROWS[::-1], targets=TARGETS[::-1])
    assert relative(swapped[:, ::-1], effect) < 1e-12
    assert np.abs(found.relabel(X[:5], y[:5], rows=ROWS, targets=y[ROWS])).max() < 1e-14
    other = unrolled(network(), n_epochs=[1, 2], n_jobs=n_jobs, leave_out=[3], **given).fit(X, y)
    assert relative(other.relabel(X[:5], y[:5], rows=ROWS, targets=TARGETS), effect) < 1e-12


def test_combinations_of_test_rows():
    X, y = data(N)
    few, all_but_one = (
        unrolled(network(), lr=0.01, n_test_components=k).fit(X, y) for k in (8, N - 1)
    )
    whole = unrolled(network(), lr=0.01).fit(X, y).relabel(X, y, rows=ROWS, targets=TARGETS)
    assert relative(few.relabel(X, y, rows=ROWS, targets=TARGETS), whole) < 0.3
    assert few.truncation_error_ > 0
    assert relative(all_but_one.relabel(X, y, rows=ROWS, targets=TARGETS), whole) < 1e-12
    assert all_but_one.truncation_error_ == 0


def test_a_run_walked_forwards_relabels_backwards():
    X, y = data(N)
    forward, back = (
        unrolled(network(), order="own", leave_out=[1], mode=mode).fit(X, y)
        for mode in ("forward", "adjoint")
    )
    effects = [one.relabel(X[:5], y[:5], rows=ROWS, targets=TARGETS) for one in (forward, back)]
    assert relative(*effects) < 1e-12


@pytest.mark.parametrize("between", [(), (nn.BatchNorm1d(5),), (nn.Dropout(0.3),)])
def test_orders_are_the_same_where_a_batch_is_all_rows(between):
    X, y = data(N)
    weights = np.random.default_rng(1).uniform(0.5, 2, N)
    given = {"batch_size": N, "n_epochs": 3, "lr": 0.05, "mode": "adjoint", "gradient_draws": 1}
    effects = [
        unrolled(network(*between).eval(), order=order, **given)
        .fit(X, y, weights)
        .relabel(X[:5], y[:5], rows=ROWS, targets=TARGETS)
        for order in ("own", "expected")
    ]
    assert np.abs(effects[0]).min() > 0
    assert relative(*effects) < 1e-10


@pytest.mark.parametrize(
    ("method", "given"),
    [
        (UnrolledDifferentiation, {"order": "own"}),
        (UnrolledDifferentiation, {"order": "expected"}),
        (OnceLinearizedFurtherTraining, {"solver": "kernel"}),
        (OnceLinearizedFurtherTraining, {"solver": "steps"}),
        (GradDot, {}),
    ],
)
def test_a_row_gets_the_weight_of_its_new_class(method, given):
    """One step on all rows."""
    X, y = data(N)
    labels = (y > 0).astype(int)
    net = nn.Sequential(nn.Linear(D, 2)).double()
    heavy = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]).double())
    run = {"n_epochs": 1, "batch_size": N, "lr": 0.1, "measurement": "output", "criterion": heavy}
    found = method(net, **run, **given)
    row = int(np.flatnonzero(labels == 0)[0])
    effect = found.fit(X, labels).relabel(X[:5], labels[:5], rows=[row], targets=[1])[:, 0]
    A, weights = np.column_stack([X, np.ones(N)]), 1.0 + labels
    theta = np.column_stack([net[0].weight.detach(), net[0].bias.detach()])
    p = np.exp(A[row] @ theta.T)
    p /= p.sum()
    moved = 0.1 / weights.sum() * (1 * (p - [1, 0]) - 2 * (p - [0, 1]))
    expected = (A[:5] @ A[row]) * moved[labels[:5]]
    assert relative(effect, expected) < 1e-10
