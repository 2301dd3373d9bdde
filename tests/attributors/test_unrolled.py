"""Unrolled differentiation against finite differences of the run, in float64."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, replace
from itertools import chain, pairwise

import joblib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from alive import Alive
from naive import relative
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPRegressor
from torch import Tensor, nn

from fimoda import FurtherTraining, UnrolledDifferentiation, as_final_model, hessians
from fimoda._validation import ConvergenceWarning
from fimoda.objective import Objective
from fimoda.rows import Rows
from fimoda.training import differentiable
from fimoda.training.batches import Batch, Plan
from fimoda.training.differentiable import step_derivative
from fimoda.training.optimizers import OptimizerSpec
from fimoda.training.recorded import RecordedRun
from fimoda.training.run import Run
from fimoda.training.workers import Workers
from fimoda.walks import second_order

N, D, C, N_TEST = 13, 3, 3, 4
BATCH = 4  # the last batch of an epoch holds one row
SEED = 5
HORIZONS = [1, 3]
LEFT_OUT = [6, 0, 3]  # the first is alone in its batch in epoch 1, the last in epoch 2

OPTIMIZERS = {
    "sgd": ("SGD", 0.1, {}),
    "weight decay": ("SGD", 0.1, {"weight_decay": 0.1}),
    "momentum": ("SGD", 0.05, {"momentum": 0.9}),
    "nesterov": ("SGD", 0.05, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "dampening": ("SGD", 0.05, {"momentum": 0.5, "dampening": 0.3}),
    "adam": ("Adam", 0.01, {}),
    "amsgrad": ("Adam", 0.01, {"amsgrad": True, "weight_decay": 0.1}),
    "adamw": ("AdamW", 0.01, {"weight_decay": 0.1}),
    "foreach": ("AdamW", 0.01, {"foreach": True}),
    "rmsprop": ("RMSprop", 0.01, {}),
    "centered": ("RMSprop", 0.001, {"momentum": 0.9, "centered": True}),
    "adagrad": ("Adagrad", 0.05, {"lr_decay": 0.1}),
    "nadam": ("NAdam", 0.01, {}),
    "radam": ("RAdam", 0.01, {}),
    "adamax": ("Adamax", 0.01, {}),
    "adadelta": ("Adadelta", 0.5, {}),
    "asgd": ("ASGD", 0.05, {"lambd": 0.1}),
    "schedule": ("SGD", lambda epoch: 0.1 / (1 + epoch), {"momentum": 0.9}),
}


# ---- models and data ------------------------------------------------------------------------


def mlp(*extra: nn.Module, activation=nn.Tanh, n_outputs=C) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 5), activation(), *extra, nn.Linear(5, n_outputs)).double()


def deep() -> nn.Module:
    torch.manual_seed(1)
    return mlp(nn.Linear(5, 4, bias=False), nn.Sigmoid(), nn.Linear(4, 5))


class FunctionalDropout(nn.Module):
    """Dropout that no layer announces."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(D, 8).double(), nn.Linear(8, C).double()

    def forward(self, x):
        h = torch.tanh(self.inner(x))
        return self.outer(F.dropout(h, 0.4) if self.training else h)


def conv() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 1, D)),
        nn.Conv2d(1, 4, (1, 2)),
        nn.LeakyReLU(0.3),
        nn.MaxPool2d((1, 2)),
        nn.Flatten(),
        nn.Linear(4, C),
    ).double()


def data(kind="classes"):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(N + N_TEST, D))
    y = (
        X[:, 0] + 0.5 * rng.normal(size=len(X))
        if kind == "numbers"
        else rng.integers(C, size=len(X))
    )
    return X[:N], y[:N], X[N:], y[N:]


def unrolled(net=None, optimizer="sgd", **changes):
    name, lr, params = OPTIMIZERS[optimizer]
    settings = {
        "n_epochs": HORIZONS,
        "n_seeds": [SEED],
        "optimizer": name,
        "lr": lr,
        "optimizer_params": params,
        "batch_size": BATCH,
        "criterion": nn.CrossEntropyLoss(),
        "kink_smoothing": None,
    }
    return UnrolledDifferentiation(
        mlp() if net is None else net, **{**settings, **changes}, order="own"
    )


# ---- finite differences ---------------------------------------------------------------------


@dataclass(frozen=True)
class Between:
    """Batches between those of all rows (part 0) and those without a row (part 1)."""

    full: Plan
    without: Plan
    parts: tuple[float, ...]
    seed: int = SEED

    @property
    def n_models(self) -> int:
        return len(self.parts) * self.without.n_models

    @property
    def steps_per_epoch(self) -> int:
        return self.full.steps_per_epoch

    def own_steps(self, step, per_epoch):
        return step

    def batches(self, n_steps):
        for a, b in zip(self.full.batches(n_steps), self.without.batches(n_steps), strict=True):
            weights = torch.cat([torch.lerp(a.weights, b.weights, p) for p in self.parts])
            yield Batch(a.rows, weights)


def finite_differences(found, X_test, y_test, eps=1e-5, left_out=LEFT_OUT):
    """Change of the losses (n_horizons, n_test, n_left_out) of the runs that `found` is about."""
    walk = found._full_run
    model = walk.model
    plan = Between(walk.plan(SEED), walk.plan(SEED, left_out), (eps, -eps))
    x = model.encode_X(X_test)
    y = model.encode_y(y_test, model.outputs(x).shape[1])
    changes = []

    def on_mark(_, thetas: Tensor) -> None:
        outputs = model.stacked_outputs(thetas, x)
        more, less = model.loss(outputs, y.expand(len(thetas), *y.shape)).chunk(2)
        changes.append((more - less).mT / (2 * eps))

    walk.train(plan, [walk.n_steps(one) for one in found.horizons_], on_mark)
    return torch.stack(changes).numpy()


def check(make, arrays=None, sample_weight=None, tolerance=1e-6):
    """Both directions equal finite differences, and each other more closely."""
    X, y, X_test, y_test = data() if arrays is None else arrays
    backwards = make(mode="adjoint").fit(X, y, sample_weight)
    expected = finite_differences(backwards, X_test, y_test)
    scores = backwards.transform_horizons(X_test, y_test)[:, :, LEFT_OUT]
    assert relative(scores, expected) < tolerance
    forwards = make(mode="forward", leave_out=LEFT_OUT).fit(X, y, sample_weight)
    assert relative(forwards.transform_horizons(X_test, y_test), scores) < 1e-10


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer(optimizer):
    check(lambda **changes: unrolled(optimizer=optimizer, **changes))


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_row_weights(optimizer):
    weights = np.arange(1.0, N + 1)
    weights[10] = 0.0  # alone in its batch in epoch 3
    check(lambda **changes: unrolled(optimizer=optimizer, **changes), None, weights)


@pytest.mark.parametrize(
    "net",
    [
        lambda: mlp(activation=nn.ReLU),
        deep,
        conv,
        lambda: mlp(nn.Dropout(0.4)),
        lambda: mlp(nn.LayerNorm(5), nn.Dropout(0.4)),
        FunctionalDropout,
    ],
    ids=["relu", "deep", "conv", "dropout", "dropout, no chain", "functional dropout"],
)
def test_every_network(net):
    check(lambda **changes: unrolled(net(), "momentum", **changes))


@pytest.mark.parametrize(
    "estimator",
    [
        Ridge(alpha=2.0),
        MLPRegressor(
            hidden_layer_sizes=(4,), activation="tanh", alpha=0.5, max_iter=5, random_state=0
        ),
    ],
    ids=["ridge", "mlp"],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_penalty(estimator):
    """Of the scikit-learn model; it stays as it is when a row leaves."""
    X, y, *_ = data("numbers")
    final = estimator.fit(X, y)
    check(lambda **changes: unrolled(final, "momentum", criterion=None, **changes), data("numbers"))
    found = unrolled(final, criterion=None).fit(X, y)
    assert found.model_.l2.any()


@pytest.mark.parametrize("batch_size", [1, N])
def test_batches_of_one_and_of_all(batch_size):
    check(lambda **changes: unrolled(batch_size=batch_size, **changes))


# ---- directions, horizons, seeds, blocks ----------------------------------------------------


def test_smoothed_kinks_in_both_directions():
    X, y, X_test, y_test = data()

    def scores(mode, smoothing, net, optimizer="adam"):
        found = unrolled(net, optimizer, mode=mode, kink_smoothing=smoothing)
        return found.fit(X, y).transform_horizons(X_test, y_test)

    for net in (mlp(activation=nn.ReLU), conv()):
        found = scores("adjoint", 100.0, net)
        assert relative(scores("forward", 100.0, net), found) < 1e-10
        without = scores("adjoint", None, net)
        assert relative(without, found) > 1e-3
        # "auto" is for SGD only
        np.testing.assert_array_equal(scores("adjoint", "auto", net), without)
        sgd = scores("adjoint", "auto", net, "momentum")
        np.testing.assert_array_equal(scores("adjoint", 400.0, net, "momentum"), sgd)


@pytest.mark.parametrize("mode", ["adjoint", "forward"])
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_horizons_at_once_equal_one_at_a_time(optimizer, mode):
    X, y, X_test, y_test = data()
    horizons = [1, 2, 5]
    found = unrolled(optimizer=optimizer, n_epochs=horizons, mode=mode).fit(X, y)
    together = found.transform_horizons(X_test, y_test)
    for n_epochs, scores in zip(horizons, together, strict=True):
        alone = unrolled(optimizer=optimizer, n_epochs=n_epochs, mode=mode).fit(X, y)
        assert relative(scores, alone.transform(X_test, y_test)) < 1e-12
    assert relative(found.transform(X_test, y_test), together[-1]) < 1e-12
    assert found.horizons_ == horizons


@pytest.mark.parametrize("mode", ["adjoint", "forward"])
def test_average_over_seeds(mode):
    X, y, X_test, y_test = data()
    seeds = [3, 11, 4]
    found = unrolled(n_seeds=seeds, mode=mode).fit(X, y)
    scores = found.transform(X_test, y_test)
    each = [unrolled(n_seeds=[s]).fit(X, y).transform(X_test, y_test) for s in seeds]
    assert relative(scores, np.mean(each, 0)) < 1e-12
    assert relative(found.scores_sem_, np.std(each, 0, ddof=1) / np.sqrt(3)) < 1e-10
    assert found.seeds_ == seeds
    one = unrolled().fit(X, y)
    one.transform(X_test, y_test)
    assert np.isnan(one.scores_sem_).all()


def test_same_bits_for_any_number_of_workers():
    X, y, X_test, y_test = data()
    net = mlp(nn.Dropout(0.5), activation=nn.ReLU).float()

    def scores(mode="adjoint", **changes):
        found = unrolled(net, n_seeds=[3, 11], kink_smoothing="auto", mode=mode, **changes)
        return found.fit(X, y).transform(X_test, y_test)

    expected = scores()
    np.testing.assert_array_equal(scores(n_jobs=2), expected)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        np.testing.assert_array_equal(scores(), expected)
        forwards = scores("forward")
    np.testing.assert_array_equal(scores("forward"), forwards)


def test_generators_are_left_alone():
    X, y, X_test, y_test = data()
    net = mlp(nn.Dropout(0.5)).float()
    before = torch.get_rng_state()
    for mode in ("adjoint", "forward"):
        unrolled(net, mode=mode).fit(X, y).transform(X_test, y_test)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("mode", ["adjoint", "forward"])
@pytest.mark.parametrize("optimizer", ["nesterov", "adam"])
def test_float32_fits_float64(optimizer, mode):
    X, y, X_test, y_test = data()
    net = mlp(nn.Linear(5, 5), nn.ReLU(), nn.Dropout(0.5))
    found, expected = (
        unrolled(each, optimizer, mode=mode).fit(X, y).transform(X_test, y_test)
        for each in (copy.deepcopy(net).float(), net)
    )
    assert relative(found, expected) < 1e-3


def test_blocks_of_test_rows_do_not_matter(monkeypatch):
    X, y, X_test, y_test = data()
    whole = unrolled(n_epochs=1).fit(X, y)
    parts = unrolled(n_epochs=1, memory_budget=sum(whole._bytes_back(1))).fit(X, y)
    jobs = []
    monkeypatch.setattr(Workers, "shown", lambda self, tasks: jobs.append(len(tasks)) or tasks)
    found, expected = (each.transform(X_test, y_test) for each in (parts, whole))
    assert jobs == [N_TEST, 1]
    assert relative(found, expected) < 1e-12


def test_auto_walks_forwards_for_few_rows_if_they_fit():
    X, y, *_ = data()
    scores = unrolled(mode="adjoint").fit(X, y).transform(X, y)
    few = unrolled(leave_out=[6, 1, 3, 0]).fit(X, y)
    needed = few._bytes_forward()
    tight = unrolled(leave_out=[6, 1, 3, 0], memory_budget=needed - 1).fit(X, y)
    many = unrolled().fit(X, y)
    for found, forwards in ((few, True), (tight, False), (many, False)):
        expected = scores[:, found.train_indices_]
        assert relative(found.transform(X, y), expected) < 1e-10
        assert bool(found._forward) == forwards
    assert list(few.train_indices_) == [6, 1, 3, 0]


# ---- where the run starts -------------------------------------------------------------------


def test_start():
    X, y, X_test, y_test = data()
    net, other = mlp(), mlp()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.3 * torch.randn_like(p))
    check(lambda **changes: unrolled(net, "adam", start=other, **changes))
    given = [
        unrolled(estimator, start=start).fit(X, y).transform(X_test, y_test)
        for estimator, start in ((net, other), (net, other.state_dict()), (other, None))
    ]
    np.testing.assert_array_equal(given[0], given[1])
    np.testing.assert_array_equal(given[0], given[2])
    assert relative(unrolled(net).fit(X, y).transform(X_test, y_test), given[0]) > 0.1


@pytest.mark.parametrize(
    ("start", "got"),
    [(nn.Sequential(nn.Linear(D, 6)), r"\(6, 3\)"), ({}, "None"), ({"0.weight": 3}, "3")],
)
def test_start_of_another_shape(start, got):
    X, y, *_ = data()
    with pytest.raises(
        ValueError, match=rf"start .*'0.weight' must have shape \(5, 3\), got {got}"
    ):
        unrolled(start=start).fit(X, y)


# ---- against further training ---------------------------------------------------------------


def test_removing_a_light_row_is_the_derivative():
    X, y, X_test, y_test = data("numbers")
    weights = np.ones(N)
    light = [2, 0, 12]  # and never alone in a batch
    weights[light] = 1e-6
    settings = {
        "n_epochs": 3, "n_seeds": [SEED], "lr": 0.05, "batch_size": BATCH, "leave_out": light,
        "optimizer": "SGD", "optimizer_params": {"momentum": 0.9}, "criterion": nn.MSELoss(),
    }  # fmt: skip
    net = nn.Linear(D, 1).double()
    found, gold = (
        cls(net, **settings, **own).fit(X, y, weights).transform(X_test, y_test)
        for cls, own in ((UnrolledDifferentiation, {"order": "own"}), (FurtherTraining, {}))
    )
    assert relative(found, gold) < 1e-5


def test_sign_agrees_with_further_training():
    """Removing a twin of a test row raises its loss; removing a contradiction lowers it."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 2))
    y = (X[:, 0] > 0).astype(int)
    X_test, y_test = np.array([[1.5, 1.0]]), np.array([1])
    X[0], y[0] = X_test[0], 1
    X[1], y[1] = X_test[0], 0
    final = LogisticRegression(C=1.0).fit(X, y)
    settings = {"n_epochs": 30, "n_seeds": [SEED], "optimizer": "SGD", "lr": 0.5, "batch_size": 10}
    found, gold = (
        cls(final, **settings).fit(X, y).transform(X_test, y_test)[0]
        for cls in (UnrolledDifferentiation, FurtherTraining)
    )
    assert found[0] > 0 > found[1]
    assert np.corrcoef(found, gold)[0, 1] > 0.98
    clear = np.abs(gold) > 0.1 * np.abs(gold).max()
    assert clear.sum() > 5
    np.testing.assert_array_equal(np.sign(found[clear]), np.sign(gold[clear]))


# ---- growth and errors ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["adjoint", "forward"])
@pytest.mark.parametrize("factor", [0.5, -1.5])
def test_growth(factor, mode):
    """With one parameter every step multiplies a small change by 1 - lr times the curvature."""
    X, y, X_test, y_test = data("numbers")
    X, X_test = X[:, :1], X_test[:, :1]
    lr = (1 - factor) / (2 * float((X**2).mean()))
    found = unrolled(
        nn.Linear(1, 1, bias=False).double(), n_epochs=[1, 12], batch_size=N, mode=mode,
        criterion=nn.MSELoss(), lr=lr, max_growth=None,
    )  # fmt: skip
    found.fit(X, y)
    if factor == -1.5:
        with pytest.warns(ConvergenceWarning, match=r"grows 130-fold .* Lower n_epochs"):
            found.transform_horizons(X_test, y_test)
        assert found.growth_ == pytest.approx(1.5**12)
    else:
        found.transform_horizons(X_test, y_test)
        assert found.growth_ == pytest.approx(0.5)  # looked at once an epoch


def test_errors():
    X, y, X_test, y_test = data()
    with pytest.raises(FloatingPointError, match=r"diverged.*Lower lr"):
        unrolled(conv(), lr=1e200).fit(X, y)
    for mode in ("auto", "forward"):
        with pytest.raises(MemoryError, match=r"takes .* MiB.*Raise memory_budget"):
            unrolled(memory_budget=100, mode=mode).fit(X, y)
    one = unrolled()
    one.fit(X, y)
    budget = sum(one._bytes_back(len(one._steps)))
    unrolled(memory_budget=budget).fit(X, y).transform(X_test, y_test)
    with pytest.raises(MemoryError, match="set mode='adjoint'"):
        unrolled(memory_budget=budget, mode="forward").fit(X, y)


class Plain(torch.optim.Optimizer):
    """An optimiser that updates every coordinate on its own, and cannot be differentiated."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.grad


def test_optimizer_without_derivative():
    X, y, *_ = data()
    with pytest.raises(ValueError, match=r"Plain cannot be differentiated: .*Use one of"):
        unrolled().set_params(optimizer=Plain).fit(X, y)
    with pytest.raises(ValueError, match=r"Rprop cannot be differentiated: .* signs"):
        unrolled().set_params(optimizer="Rprop").fit(X, y)


def test_no_optimizer_is_forgotten():
    known = {name for name, *_ in OPTIMIZERS.values()} | {"Rprop"}
    for name, cls in vars(torch.optim).items():
        if inspect.isclass(cls) and "differentiable" in inspect.signature(cls).parameters:
            assert name in known


# ---- the derivative of a step ---------------------------------------------------------------


def plain_step(spec, theta, buffers, gradient):
    """The state after a step of the optimiser itself, as what it keeps by name."""
    theta = theta.clone().requires_grad_()
    optimizer = spec.build([theta])
    if buffers:
        optimizer.state[theta] = copy.deepcopy(buffers)
    theta.grad = gradient.clone()
    optimizer.step()
    return {"theta": theta.detach(), **copy.deepcopy(dict(optimizer.state[theta]))}


def as_spec(name):
    cls, lr, params = OPTIMIZERS[name]
    return OptimizerSpec(getattr(torch.optim, cls), lr, params)


@pytest.mark.parametrize("n_before", [0, 1, 7], ids="after {} steps".format)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_derivative_of_a_step(name, n_before):
    """In every part of the state and in the gradient, coordinate by coordinate."""
    generator = torch.Generator().manual_seed(0)
    theta, *gradients = torch.randn(n_before + 2, 6, generator=generator, dtype=torch.float64)
    spec, buffers = as_spec(name), {}
    for gradient in gradients[:-1]:
        after = plain_step(spec, theta, buffers, gradient)
        theta = after.pop("theta")
        buffers = after
    g = gradients[-1]
    found = step_derivative(spec, 0, theta, buffers, g)

    def parts(values):
        return [k for k, v in values.items() if isinstance(v, Tensor) and v.shape == (6,)]

    before = {"theta": theta, **buffers, "gradient": g}
    columns = parts(before)
    rows = parts(plain_step(spec, theta, buffers, g))
    slopes = found.slopes
    assert [len(row) for row in slopes] == [len(columns)] * len(rows)
    for b, column in enumerate(columns):
        moved = []
        eps = 1e-4 * before[column]
        for sign in (1, -1):
            state = {**before, column: before[column] + sign * eps}
            moved.append(plain_step(spec, state.pop("theta"), state, state.pop("gradient")))
        for a, row in enumerate(rows):
            expected = (moved[0][row] - moved[1][row]) / (2 * eps)
            slope = torch.zeros(6).double() if slopes[a][b] is None else slopes[a][b]
            torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_without_gradient(name):
    """Where Adam and its like divide by the root of zero, the derivative is zero."""
    zero = torch.zeros(4, dtype=torch.float64)
    found = step_derivative(as_spec(name), 0, zero + 1, {}, zero)
    slopes = [s for s in chain(*found.slopes) if s is not None]
    assert all(bool(torch.isfinite(s).all()) for s in slopes)
    if name in ("adam", "adamw", "foreach", "rmsprop", "centered", "adagrad", "nadam"):
        assert not found.slopes[0][-1].any()
        assert found.slopes[0][0].all()


def test_derivatives_of_many_vectors():
    """Adjoints and tangents are transposes of each other."""
    spec = as_spec("nesterov")
    theta, buffer, g, *rest = torch.randn(9, 6, dtype=torch.float64)
    found = step_derivative(spec, 0, theta, {"momentum_buffer": buffer}, g)
    tangent, adjoint = [rest[0][None], rest[1][None]], [rest[2][None], rest[3][None]]
    pushed = found.push(tangent, rest[4][None])
    of_gradient = torch.empty(1, 6).double()
    pulled = found.pull([part.clone() for part in adjoint], of_gradient)
    left = sum((a * b).sum() for a, b in zip(adjoint, pushed, strict=True))
    right = sum((a * b).sum() for a, b in zip(pulled, tangent, strict=True))
    assert float(left) == pytest.approx(float(right + (of_gradient * rest[4]).sum()), rel=1e-12)


# ---- the recorded run -----------------------------------------------------------------------


def described(net, optimizer, weights=None, start=None):
    X, y, *_ = data()
    model = as_final_model(net, X, y, criterion=nn.CrossEntropyLoss())
    name, lr, params = OPTIMIZERS[optimizer]
    spec = OptimizerSpec(getattr(torch.optim, name), lr, params)
    objective = Objective(model, Rows(model.encode_X(X), model.encode_y(y, C), weights))
    return Run(objective, spec, BATCH, start)


@pytest.mark.parametrize("net", [mlp, lambda: mlp(nn.Dropout(0.4)), FunctionalDropout])
@pytest.mark.parametrize("optimizer", ["adam", "schedule"])
def test_recorded_run_is_the_run_of_the_stack(optimizer, net):
    stack = described(net(), optimizer, torch.arange(1.0, N + 1).double())
    for theta in (None, 2 * stack.model.theta):
        stack, reached = replace(stack, start=theta), []
        stack.train(stack.plan(SEED), range(4, 21, 4), lambda _, t, to=reached: to.append(t[0]))
        run = RecordedRun(stack, SEED, 20)
        forwards = list(run.forwards())
        assert [m.step for m in forwards] == list(range(20))
        seen = [*(forwards[step].theta for step in (4, 8, 12, 16)), run.last.theta]
        assert relative(torch.stack(seen), torch.stack(reached)) < 1e-12
        for a, b in zip(forwards, reversed(list(run.backwards())), strict=True):
            assert a.step == b.step
            assert torch.equal(a.theta, b.theta)
            assert torch.equal(a.noise, b.noise)
            assert a.buffers.keys() == b.buffers.keys()
            assert all(torch.equal(a.buffers[k], b.buffers[k]) for k in run.names(a))
        assert len(run._kept) == 4  # of stretches of five steps


def test_noise_is_that_of_the_step():
    """Rows and dropout of each moment give the gradient that the run has taken."""
    run = RecordedRun(described(mlp(nn.Dropout(0.4)), "sgd"), SEED, 8)
    moments = [*run.forwards(), run.last]
    for before, after in pairwise(moments):
        taken = (before.theta - after.theta) / 0.1
        gradient = run._gradient(before.theta, run._batches[before.step], before.noise)
        assert relative(gradient, taken) < 1e-10


# ---- memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_bytes_of_a_vector_on_its_way_are_counted(optimizer, monkeypatch):
    """With vectors much larger than a batch, of which few are worked on at a time."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    net = nn.Sequential(nn.Linear(4000, 5), nn.Hardswish(), nn.Linear(5, C)).double()
    X, y = rng.normal(size=(24, 4000)), rng.integers(C, size=24)
    method = unrolled(net, optimizer, n_epochs=[1, 2], batch_size=6).set_params(order="expected")
    method.fit(X, y)
    p = method.model_.n_parameters
    monkeypatch.setattr(hessians, "_ACTIVATIONS", 20 * 8 * p)
    monkeypatch.setattr(differentiable, "_TOGETHER", p)
    monkeypatch.setattr(second_order, "_NUMBERS", p)
    _, each = method._bytes_back(2)
    peaks = []
    for n_test in (10, 10, 20):  # the first looks at the network, too
        with Alive() as seen:
            method.transform_horizons(X[:n_test], y[:n_test])
        peaks.append(seen.peak)
    assert 0.7 * each < (peaks[2] - peaks[1]) / 10 < 1.05 * each
