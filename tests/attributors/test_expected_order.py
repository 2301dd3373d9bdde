"""Unrolled differentiation in the expected order: plain loops, and the mean over all orders, in float64."""

from __future__ import annotations

import weakref
from functools import reduce
from itertools import combinations, product

import numpy as np
import pytest
import torch
from naive import relative
from numpy.testing import assert_array_equal
from torch import Tensor, nn

from fimoda import FurtherTraining, UnrolledDifferentiation
from fimoda.training.batches import Batch
from fimoda.training.differentiable import StepDerivative
from fimoda.training.run import Run
from fimoda.walks.unrolled import ExpectedOrder

N, D, BATCH, LR = 12, 3, 4, 0.1


def data(n: int = N) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, D))
    return X, X[:, 0] - X[:, 1] ** 2 + 0.3 * rng.normal(size=n)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def unrolled(net: nn.Module | None = None, **changes) -> UnrolledDifferentiation:
    settings = {
        "n_epochs": 2,
        "n_seeds": [0],
        "optimizer": "SGD",
        "lr": LR,
        "batch_size": BATCH,
        "order": "expected",
        "criterion": nn.MSELoss(),
        "kink_smoothing": None,
        "measurement_draws": 1,
    }
    return UnrolledDifferentiation(network() if net is None else net, **settings | changes)


def by_a_loop(
    found: UnrolledDifferentiation,
    X,
    y,
    weights,
    block: int,
    n_batches: int = 1,
    most: float = 1e9,
    others: tuple[int, ...] = (),
) -> np.ndarray:
    """Return the scores (n, n) of all rows for themselves, by dense Hessians, in blocks of steps.

    Losses are differentiated where this run ends, and those of `others`, by their seeds.
    """
    run = found._full_run
    module, sizes = run.model.module, [p.numel() for p in run.model.module.parameters()]
    names = [name for name, _ in module.named_parameters()]
    X, y = torch.as_tensor(X), torch.as_tensor(y)

    def losses(theta: Tensor) -> Tensor:
        parts = [
            t.view(p.shape) for t, p in zip(theta.split(sizes), module.parameters(), strict=True)
        ]
        outputs = torch.func.functional_call(module, dict(zip(names, parts, strict=True)), (X,))
        return (outputs[:, 0] - y) ** 2

    def after(theta: Tensor, batch: Batch) -> Tensor:
        w = torch.zeros(len(X)).double()
        w[batch.rows] = batch.weights[0].double()
        return theta - LR * torch.func.grad(lambda t: w @ losses(t))(theta)

    theta, thetas, hessians = run.model.theta, [], []
    E = run.steps_per_epoch
    batches = list(run.plan(0).batches(2 * E))
    ends = [reduce(after, run.plan(seed).batches(2 * E), theta) for seed in others]
    for step, batch in enumerate(batches):
        v = torch.zeros(len(X)).double()
        for j in range(step, step + n_batches):
            rows = batches[step - step % E + j % E].rows
            v[rows] = torch.as_tensor(weights)[rows]
        thetas.append(theta)
        hessians.append(torch.func.hessian(lambda t, v=v: v @ losses(t) / v.sum())(theta))
        theta = after(theta, batch)
    s = torch.as_tensor(weights / weights.sum())
    adjoints = torch.stack([torch.func.jacrev(losses)(end) for end in [theta, *ends]]).mean(0)
    scores = torch.zeros(len(X), len(X)).double()
    gradients, last = torch.func.jacrev(losses), adjoints.norm(dim=1)
    for step in reversed(range(len(thetas))):
        middle = step - step % block + block // 2
        G = gradients(thetas[middle])
        scores += LR * adjoints @ ((G - s @ G) * (s / (1 - s))[:, None]).mT
        adjoints = adjoints - LR * adjoints @ hessians[step]
        if step % E == 0:
            adjoints *= (most * last / adjoints.norm(dim=1)).clamp(max=1)[:, None]
            last = adjoints.norm(dim=1)
    return scores.numpy()


@pytest.mark.parametrize("blocks", [1, 3])
def test_equals_the_loop(blocks):
    X, y = data()
    weights = np.random.default_rng(1).uniform(0.5, 2, N)
    found = unrolled(blocks_per_epoch=blocks).fit(X, y, weights)
    expected = by_a_loop(found, X, y, weights, block=3 // blocks)
    # a block is in the middle of its steps as they are walked, last to first
    assert relative(found.transform(X, y), expected) < 1e-10


def test_measurements_where_several_runs_end():
    X, y = data()
    weights = np.random.default_rng(1).uniform(0.5, 2, N)
    found = unrolled(measurement_draws=4).fit(X, y, weights)
    others = np.random.SeedSequence(0, spawn_key=(1,)).generate_state(3)
    expected = by_a_loop(found, X, y, weights, block=3, others=tuple(map(int, others)))
    assert relative(found.transform(X, y), expected) < 1e-10
    one = unrolled().fit(X, y, weights)
    assert relative(one.transform(X, y), expected) > 1e-3
    # at each horizon they are where runs are then, in any blocks and combinations of test rows
    both = unrolled(measurement_draws=4, n_epochs=[1, 2], n_test_components=N - 2)
    both = both.fit(X, y, weights).transform_horizons(X, y)
    first = unrolled(measurement_draws=4, n_epochs=1).fit(X, y, weights).transform(X, y)
    assert relative(both[0], first) < 0.2
    assert relative(both[1], expected) < 0.2
    all_rows = unrolled(measurement_draws=4, n_epochs=[1, 2]).fit(X, y, weights)
    assert relative(all_rows.transform_horizons(X, y)[0], first) < 1e-10


def test_number_of_ends():
    X, y = data()
    auto = {"measurement_draws": "auto"}
    assert len(unrolled(**auto).fit(X, y)._ends[0].thetas[6]) == 3
    assert not unrolled(**auto, start=network()).fit(X, y)._ends[0].thetas
    assert not unrolled(**auto, order="own").fit(X, y)._ends[0].thetas
    with pytest.raises(MemoryError, match="walking through 6 steps"):
        unrolled(measurement_draws=100_000, memory_budget=10**6).fit(X, y)


@pytest.mark.parametrize(("n_batches", "most"), [(2, None), (3, 0.7), (9, 0.5)])
def test_curvature_of_several_batches_and_growth(n_batches, most):
    X, y = data()
    weights = np.random.default_rng(1).uniform(0.5, 2, N)
    found = unrolled(curvature_batches=n_batches, max_growth=most).fit(X, y, weights)
    expected = by_a_loop(found, X, y, weights, 3, min(n_batches, 3), most or 1e9)
    assert relative(found.transform(X, y), expected) < 1e-10
    if most is not None:  # which says what vectors would do on their own
        free = unrolled(curvature_batches=n_batches).fit(X, y, weights)
        assert relative(free.transform(X, y), expected) > 1e-3
        assert found.growth_ == pytest.approx(free.growth_, rel=1e-9)


def test_held_growth_is_of_each_horizon_and_row_alone():
    X, y = data()
    for optimizer in ("SGD", "Adam"):
        held = {"max_growth": 0.7, "optimizer": optimizer, "curvature_batches": 2}
        together = unrolled(n_epochs=[1, 5 / 3, 2], **held).fit(X, y).transform_horizons(X, y)
        for epochs, scores in zip([1, 5 / 3, 2], together, strict=True):
            alone = unrolled(n_epochs=epochs, **held).fit(X, y).transform(X[2:3], y[2:3])
            assert relative(scores[2:3], alone) < 1e-10


class Orders:
    """Batches that are given, in place of those of a seed."""

    def __init__(self, batches: tuple[tuple[int, ...], ...]):
        self._batches = batches

    def batches(self, n_steps: int):
        return [
            Batch(
                torch.tensor(rows), torch.full((1, len(rows)), 1 / len(rows), dtype=torch.float64)
            )
            for rows in self._batches[:n_steps]
        ]


def test_is_the_mean_over_all_orders_of_random_batches(monkeypatch):
    """A linear model under squared error, whose batches of two of six rows are drawn independently."""
    X, y = data(6)
    torch.manual_seed(0)
    net = nn.Linear(D, 1).double()
    every = list(product(combinations(range(6), 2), repeat=2))
    assert len(every) == 225
    sums = []
    for order in ("own", "expected"):
        found = unrolled(
            net, order=order, n_epochs=2 / 3, batch_size=2, blocks_per_epoch=3,
            measurement="output", mode="adjoint",
        ).fit(X, y)  # fmt: skip
        total = np.zeros((6, 6))
        for batches in every:
            with monkeypatch.context() as patch:
                patch.setattr(Run, "plan", lambda self, *_, b=batches: Orders(b))
                total += found.transform(X, y)
        sums.append(total)
    assert np.abs(sums[0]).max() > 0
    assert relative(*sums) < 1e-12


class Quadratic(torch.optim.SGD):
    """Steps along the gradient and its square, which are not linear in it."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = p.grad + 3 * p.grad**2
        return super().step(closure)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_step_that_is_not_linear_in_the_gradient(monkeypatch, size):
    """One step of a linear model: what taking a row out of its batch does, over all batches of six rows."""
    X, y = data(6)
    torch.manual_seed(0)
    net = nn.Linear(D, 1).double()
    every = list(combinations(range(6), size))
    found = unrolled(
        net, n_epochs=1 / -(-6 // size), batch_size=size, optimizer=Quadratic, measurement="output"
    ).fit(X, y)  # fmt: skip

    def total() -> np.ndarray:
        sums = np.zeros((6, 6))
        for rows in every:
            with monkeypatch.context() as patch:
                patch.setattr(Run, "plan", lambda self, *_, b=(rows,): Orders(b))
                sums += found.transform(X, y)
        return sums

    inputs = np.column_stack([X, np.ones(6)])
    rows = 2 * inputs * (net(torch.from_numpy(X))[:, 0].detach().numpy() - y)[:, None]
    removed = np.zeros((6, 6))
    for batch in every:
        for i in batch:
            others = [j for j in batch if j != i]
            before, after = rows[list(batch)].mean(0), rows[others].mean(0)
            step = LR * ((before + 3 * before**2) - (after + 3 * after**2))
            removed[:, i] += inputs @ step
    assert relative(total(), removed) < 1e-12
    monkeypatch.setattr(StepDerivative, "is_linear", True)
    assert relative(total(), removed) > 0.01


def test_one_run_is_nearer_to_the_mean_of_seeds_than_one_seed():
    X, y = data(60)
    common = {"n_epochs": 3, "lr": 0.05}
    mean = unrolled(order="own", n_seeds=list(range(1, 41)), **common).fit(X, y).transform(X, y)

    def agreement(order: str) -> float:
        scores = unrolled(order=order, **common).fit(X, y).transform(X, y)
        return float(np.corrcoef(scores.ravel(), mean.ravel())[0, 1])

    assert agreement("expected") > 0.98 > 0.95 > agreement("own")


@pytest.mark.parametrize(
    "layer", [nn.Dropout(0.3), nn.BatchNorm1d(5)], ids=lambda layer: type(layer).__name__
)
def test_dropout_and_frozen_statistics(layer):
    X, y = data(60)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(D, 5), layer, nn.Tanh(), nn.Linear(5, 1)).double().eval()
    common = {"lr": 0.05, "net": net, "mode": "adjoint", "batch_statistics": "frozen"}
    own = unrolled(order="own", n_seeds=list(range(1, 13)), **common).fit(X, y)
    mean = own.transform(X[:8], y[:8])
    one = unrolled(n_seeds=[0, 13], **common).fit(X, y).transform(X[:8], y[:8])
    assert np.corrcoef(one.ravel(), mean.ravel())[0, 1] > 0.9


@pytest.mark.parametrize(
    ("optimizer", "params"), [("SGD", {"momentum": 0.9}), ("Adam", {}), ("AdamW", {})]
)
def test_horizons_and_workers_do_not_matter(optimizer, params):
    X, y = data()
    settings = {"optimizer": optimizer, "optimizer_params": params, "lr": 0.01}
    both = unrolled(n_epochs=[1, 3], n_seeds=[0, 1], **settings).fit(X, y)
    alone = unrolled(n_epochs=3, n_seeds=[0, 1], n_jobs=2, **settings).fit(X, y)
    found = both.transform_horizons(X, y)
    assert relative(found[1], alone.transform(X, y)) < 1e-12
    assert_array_equal(found[1], both.transform(X, y))
    assert both.scores_sem_.shape == (N, N)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_fractions_of_epochs(optimizer, blocks):
    """A horizon within a block changes nothing at another one."""
    X, y = data()
    settings = {"optimizer": optimizer, "lr": 0.02, "batch_size": 2, "blocks_per_epoch": blocks}
    horizons = [1 / 3, 5 / 6, 1, 4 / 3]
    together = unrolled(n_epochs=horizons, **settings).fit(X, y).transform_horizons(X, y)
    for epochs, scores in zip(horizons, together, strict=True):
        alone = unrolled(n_epochs=epochs, **settings).fit(X, y).transform(X, y)
        assert relative(scores, alone) < 1e-12


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_fractions_of_epochs_with_dropout(optimizer):
    """Slopes with a batch's noise are those of a whole epoch, which may end after the run."""
    X, y = data()
    net = nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, 1)).double()
    horizons = [1 / 3, 4 / 3]
    settings = {"optimizer": optimizer, "lr": 0.02}
    together = unrolled(net, n_epochs=horizons, **settings).fit(X, y).transform_horizons(X, y)
    for epochs, scores in zip(horizons, together, strict=True):
        alone = unrolled(net, n_epochs=epochs, **settings).fit(X, y).transform(X, y)
        assert relative(scores, alone) < 1e-12
        assert np.isfinite(alone).all()
        assert np.abs(alone).max() > 0


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_moments_of_a_block_are_not_kept(monkeypatch, optimizer):
    """Of 30 steps no more are alive than the square root, those of a stretch, and the one in the middle."""
    seen, alive = [], []
    push = ExpectedOrder.push

    def watched(self, live, moment, *rest):
        push(self, live, moment, *rest)
        seen.append(weakref.ref(moment))
        alive.append(sum(one() is not None for one in seen))

    monkeypatch.setattr(ExpectedOrder, "push", watched)
    X, y = data(60)
    unrolled(n_epochs=1, batch_size=2, optimizer=optimizer, lr=0.01).fit(X, y).transform(X, y)
    assert len(seen) == 30
    assert max(alive) <= 10


def test_walks_backwards_only():
    with pytest.raises(ValueError, match="mode must be 'auto' or 'adjoint' with order='expected'"):
        unrolled(mode="forward").fit(*data())
    few = unrolled(leave_out=[1]).fit(*data())
    assert few.transform(*data()).shape == (N, 1)


def test_adam_with_a_coordinate_of_two_rows():
    """Its second moments are zero until one of them comes up, where a run's own derivative has no bounds."""
    X, y = data(48)
    X[:, 2] = 0
    X[[7, 20], 2] = 2.0, -1.0
    net, inputs, targets = network(), torch.from_numpy(X), torch.from_numpy(y)[:, None]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(2000):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(inputs), targets).backward()
        optimizer.step()
    common = {"n_epochs": 2, "optimizer": "Adam", "lr": 0.003, "batch_size": 8}
    gold = FurtherTraining(net, n_seeds=list(range(1, 31)), criterion=nn.MSELoss(), **common)
    mean = gold.fit(X, y).transform(X[:12], y[:12])

    def agreement(order: str, seed: int) -> float:
        found = unrolled(net, order=order, n_seeds=[seed], **common).fit(X, y)
        return float(np.corrcoef(found.transform(X[:12], y[:12]).ravel(), mean.ravel())[0, 1])

    expected, own = (
        [agreement(order, seed) for seed in (50, 51, 52)] for order in ("expected", "own")
    )
    assert min(expected) > 0.9
    assert min(expected) > max(own)
