"""Linearised further training against plain loops and the other methods, in float64."""

from __future__ import annotations

import copy
from dataclasses import replace

import joblib
import numpy as np
import pytest
import torch
from naive import relative
from problems import tanh_network
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPRegressor
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fimoda import (
    FurtherTraining,
    LinearizedFurtherTraining,
    OnceLinearizedFurtherTraining,
    UnrolledDifferentiation,
    as_final_model,
)
from fimoda._validation import ConvergenceWarning
from fimoda.curvature.kernel import OutputKernel
from fimoda.derivatives import push_outputs
from fimoda.losses import BinaryCrossEntropy, CrossEntropy
from fimoda.measured import Measured
from fimoda.measurements import Output
from fimoda.objective import Objective
from fimoda.row_gradients import RowDifferentiator
from fimoda.rows import Rows
from fimoda.training.linear_steps import LinearSteps
from fimoda.training.recorded import ObservedRun, RecordedRun
from fimoda.walks.block_krylov import block_krylov
from fimoda.walks.output_space import adjoint_in_outputs, largest_curvature
from fimoda.walks.quadratic_removal import QuadraticRemoval
from fimoda.walks.responses import responses

N, D, C, N_TEST = 13, 3, 3, 4
SEED = 5

STEPS = {
    "sgd": LinearSteps(),
    "momentum": LinearSteps(0.9, 1.0, 0.0, 1.0),
    "nesterov": LinearSteps(0.9, 1.0, 1.0, 0.9, coupled_decay=0.1),
    "adamw": LinearSteps(0.9, 0.1, 0.0, 1.0, decoupled_decay=0.2),
}


# Few rows in small batches: the run is far from its expectation, and that is said.
pytestmark = pytest.mark.filterwarnings("ignore:.*LinearizedFurtherTraining.*discrepancy_")


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# ---- Krylov spaces --------------------------------------------------------------------------


def symmetric(values: Tensor) -> Tensor:
    Q = torch.linalg.qr(randn(len(values), len(values)))[0]
    return (Q * values) @ Q.mT


def is_orthonormal(rows: Tensor, tolerance=1e-12) -> bool:
    return bool((rows @ rows.mT - torch.eye(len(rows)).to(rows)).abs().max() < tolerance)


@pytest.mark.parametrize("n_components", [30, 50])
def test_krylov_space_of_everything(n_components):
    H = symmetric(randn(30))
    start = randn(1, 30, seed=1)
    values, vectors = block_krylov(lambda U: U @ H, start, n_components)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(H), rtol=1e-10, atol=1e-12)
    assert is_orthonormal(vectors)
    torch.testing.assert_close(vectors @ H, values[:, None] * vectors)


def test_krylov_space_has_as_many_dimensions_as_asked_for():
    H = symmetric(randn(30))
    for n_components in (1, 7, 12, 29):
        values, vectors = block_krylov(lambda U: U @ H, randn(7, 30, seed=1), n_components)
        assert values.shape == (n_components,)
        assert vectors.shape == (n_components, 30)
        assert is_orthonormal(vectors)
        ritz = torch.linalg.eigvalsh(vectors @ H @ vectors.mT)
        torch.testing.assert_close(values, ritz)


def test_krylov_space_of_a_degenerate_start():
    H = symmetric(randn(30))
    three = randn(3, 30)
    start = torch.cat([three, 1e3 * three, 0 * three])
    values, vectors = block_krylov(lambda U: U @ H, start, 12)
    expected, _ = block_krylov(lambda U: U @ H, three, 12)
    assert len(vectors) == 12
    assert is_orthonormal(vectors)
    torch.testing.assert_close(values, expected)
    # nothing to begin with, and nothing to go on with
    assert block_krylov(lambda U: U @ H, 0 * three, 12)[1].shape == (0, 30)
    values, vectors = block_krylov(lambda U: 0 * U, three, 12)
    assert not values.any()
    assert len(vectors) == 3
    assert is_orthonormal(vectors)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 3e-6)])
def test_leading_eigenvalues(dtype, tolerance):
    """Of a matrix whose eigenvalues span twelve orders of magnitude."""
    exact = torch.logspace(0, -12, 200, dtype=torch.float64)
    H = symmetric(exact).to(dtype)
    values, vectors = block_krylov(lambda U: U @ H, randn(8, 200, seed=1).to(dtype), 80)
    assert is_orthonormal(vectors, 100 * torch.finfo(dtype).eps)
    leading = values.flip(0)[:16]
    assert float(((leading - exact[:16]) / exact[:16]).abs().max()) < tolerance


# ---- runs of a model that is linear in its parameters, the plain way ------------------------


def follow(J, start, gradient, weights, steps, rates, P=1.0, theta=None):
    """Outputs (n, C) and changes of the parameters (p,) after each step, of runs whose rows have
    these weights (R, n): (T + 1, R, ...)."""
    theta = torch.zeros(J.shape[2], dtype=torch.float64) if theta is None else theta
    first, theta = theta, theta.expand(len(weights), -1)
    v, changes = torch.zeros_like(theta), [torch.zeros_like(theta)]
    flat = J.flatten(0, 1)
    for rate, plain in rates.tolist():
        outputs = start + ((theta - first) @ flat.mT).unflatten(1, start.shape)
        g = (weights[:, :, None] * gradient(outputs)).flatten(1) @ flat
        g = g + steps.coupled_decay * theta
        v = steps.momentum * v + steps.intake * g
        move = steps.of_gradient * g + steps.of_velocity * v
        theta = (1 - plain * steps.decoupled_decay) * theta - rate * P * move
        changes.append(theta - first)
    changes = torch.stack(changes)
    return start + (changes @ flat.mT).unflatten(2, start.shape), changes


def removals(run, share: Tensor, exact: bool) -> Tensor:
    """What leaving out each row does to the parameters of the run, (T + 1, n, p)."""
    without = share * (1 - torch.eye(N))
    without = without / without.sum(1, keepdim=True)
    if exact:
        return run(without)[1] - run(share[None])[1]
    more, less = (run(torch.lerp(share.expand(N, N), without, p))[1] for p in (1e-4, -1e-4))
    return (more - less) / 2e-4


def seen(residuals, rates, per_epoch=1) -> ObservedRun:
    knots = list(range(0, len(rates) + 1, per_epoch))
    return ObservedRun({}, knots, residuals, residuals, rates)


def constant_rates(rate: float, n_steps: int) -> Tensor:
    return torch.full((n_steps, 2), rate, dtype=torch.float64)


def linear_problem(n_outputs: int, weighted: bool = False):
    J = randn(N, n_outputs, 7)
    weights = torch.arange(1.0, N + 1).double() if weighted else torch.ones(N).double()
    return J, weights / weights.sum(), randn(N, n_outputs, seed=1), randn(N, n_outputs, seed=2)


@pytest.mark.parametrize("weighted", [False, True], ids=["", "row weights"])
@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("exact", [False, True], ids=["first order", "exact"])
@pytest.mark.parametrize("name", STEPS)
def test_quadratic_removal(name, exact, n_outputs, weighted):
    J, share, start, y = linear_problem(n_outputs, weighted)
    steps = STEPS[name]
    if name == "adamw":
        P = torch.rand(7, generator=torch.Generator().manual_seed(3)).double() + 0.5
        steps = replace(steps, preconditioner=P)
    else:
        P = torch.ones(7).double()
    bend, horizons = 0.7, [1, 4, 40]
    rates = constant_rates(0.05, 40)
    rates[10:, 0] = 0.02

    def run(weights):
        return follow(J, start, lambda f: bend * (f - y), weights, steps, rates, P, randn(7))

    outputs = run(share[None])[0][:, 0]
    K = torch.einsum("ncp,p,mdp->ncmd", J, P, J)
    removal = QuadraticRemoval(K, share, bend, steps, exact)
    found = removal.deviations(seen(bend * (outputs - y), rates), horizons)
    expected = torch.einsum("ncp,hip->hinc", J, removals(run, share, exact)[horizons])
    found_outputs = torch.einsum("hik,nck->hinc", found, removal.rows)
    assert relative(found_outputs, expected) < 1e-8
    assert relative(torch.einsum("nck,mdk->ncmd", removal.rows, removal.rows), K) < 1e-10


@pytest.mark.parametrize("exact", [False, True], ids=["first order", "exact"])
@pytest.mark.parametrize(("per_epoch", "tolerance"), [(1, 1e-5), (4, 1e-3)])
def test_blocks_of_many_steps(per_epoch, tolerance, exact):
    """Forces between their ends are linear in time."""
    J, share, start, y = linear_problem(1)
    rates = constant_rates(0.01, 1000)
    steps = STEPS["momentum"]

    def run(weights):
        return follow(J, start, lambda f: f - y, weights, steps, rates)

    outputs = run(share[None])[0][:, 0]
    removal = QuadraticRemoval(torch.einsum("ncp,mdp->ncmd", J, J), share, 1.0, steps, exact)
    marks = torch.tensor([100, 300, 1000])
    residuals = (outputs - y)[::per_epoch]
    found = removal.deviations(seen(residuals, rates, per_epoch), marks.tolist())
    expected = torch.einsum("ncp,hip->hinc", J, removals(run, share, exact)[marks])
    for one, other in zip(
        torch.einsum("hik,nck->hinc", found, removal.rows), expected, strict=True
    ):
        assert relative(one, other) < tolerance


@pytest.mark.parametrize("weighted", [False, True], ids=["", "row weights"])
@pytest.mark.parametrize(
    "loss", [BinaryCrossEntropy(), CrossEntropy()], ids=["logistic", "softmax"]
)
@pytest.mark.parametrize("name", STEPS)
def test_adjoint_in_outputs(name, loss, weighted):
    n_outputs = 1 if isinstance(loss, BinaryCrossEntropy) else 3
    J, share, start, _ = linear_problem(n_outputs, weighted)
    y = torch.arange(N) % max(2, n_outputs)
    steps, horizons = STEPS[name], [1, 3, 9]
    rates = constant_rates(0.5, 9)

    def run(weights):
        def gradient(f):
            return loss.gradient(f, y.expand(len(f), N))

        return follow(J, start, gradient, weights, steps, rates, 1.0, randn(7))

    outputs = run(share[None])[0][:, 0]
    targets = y.expand(10, N)

    def row_loss(f, t):
        return loss(f[None], t[None])[0]

    curvature = torch.func.vmap(torch.func.vmap(torch.func.hessian(row_loss)))(outputs, targets)
    test = randn(N_TEST, 7, seed=6)
    inner = torch.einsum("mp,ncp->mnc", test, J)
    K = torch.einsum("ncp,mdp->ncmd", J, J)
    found = adjoint_in_outputs(
        K, share, lambda epoch: curvature[epoch], seen(loss.gradient(outputs, targets), rates),
        steps, [inner] * 3, horizons,
    )  # fmt: skip
    expected = removals(run, share, False)[horizons] @ test.mT
    assert relative(found, expected.mT) < 1e-7


@pytest.mark.parametrize("name", STEPS)
def test_responses(name):
    """Of modes, against a loop that follows a force forwards."""
    steps, per_epoch = STEPS[name], 3
    curved = torch.tensor([0.0, 0.3, 2.0, -0.5], dtype=torch.float64)
    rates = torch.stack([torch.linspace(0.3, 0.1, 12), torch.linspace(0.1, 0.3, 12)], 1).double()
    found = responses(steps, curved, rates, [0, 3, 6, 9, 12])
    residuals = randn(5, 2, 1)

    def run(x, v, forces):
        for rate, force in zip(rates.tolist(), forces, strict=True):
            x, v = steps.push(rate, x, v, curved * x + force)
        return torch.stack([x, v])

    zero = torch.zeros(4, dtype=torch.float64)
    torch.testing.assert_close(found.X, run(zero + 1, zero, [zero] * 12))
    torch.testing.assert_close(found.V, run(zero, zero + 1, [zero] * 12))
    for row in range(2):
        r = residuals[:, row, 0]
        forces = [
            zero + (1 - k / per_epoch) * r[epoch] + k / per_epoch * r[epoch + 1]
            for epoch in range(4)
            for k in range(per_epoch)
        ]
        expected = run(zero, zero, forces)
        along = residuals[:, row].expand(5, 4).mT[None]  # each mode has the same force
        assert relative(found.to_modes(along)[:, 0], expected) < 1e-12
        assert relative(found.to_residuals(residuals)[:, row, 0], expected[:, -1]) < 1e-12
    assert relative(found.total, run(zero, zero, [zero + 1] * 12)[0]) < 1e-12


# ---- inner products and derivatives of outputs ----------------------------------------------


def mlp(activation=nn.Tanh, n_outputs=C, width=5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, width), activation(), nn.Linear(width, n_outputs)).double()


@pytest.mark.parametrize("preconditioned", [False, True], ids=["", "preconditioned"])
@pytest.mark.parametrize("memory_budget", [2**29, 1000])
@pytest.mark.parametrize(
    "net", [mlp, lambda: nn.Sequential(mlp(), nn.LayerNorm(C)).double()], ids=["factors", "dense"]
)
def test_kernel_of_outputs(net, memory_budget, preconditioned):
    X = randn(N, D)
    model = as_final_model(net(), X, criterion=nn.MSELoss())
    P = torch.rand(model.n_parameters).double() if preconditioned else None
    rows = Rows(X, X.new_zeros(N))
    kernel = OutputKernel(Objective(model, rows, memory_budget), P)
    J = model.jacobian(X)
    scaled = J if P is None else J * P
    assert relative(kernel(), torch.einsum("ncp,mdp->ncmd", J, scaled)) < 1e-12
    assert relative(kernel(rows[:2]), torch.einsum("ncp,mdp->ncmd", J[:2], scaled)) < 1e-12
    # gradients of a model with other parameters
    other = model.at(2 * model.theta)
    gradients = RowDifferentiator(other, X)(Measured(Rows(X[3:7], X.new_zeros(4)), Output(1)))
    expected = torch.einsum("mp,ncp->mnc", other.jacobian(X[3:7])[:, 1], scaled)
    assert relative(kernel.inner(gradients), expected) < 1e-12


def test_model_at_other_parameters():
    X = randn(N, D)
    net = mlp()
    model = as_final_model(net, X, criterion=nn.MSELoss())
    before, outputs = model.theta.clone(), model.outputs(X)
    other = model.at(before + 1)
    assert torch.equal(other.theta, before + 1)
    assert torch.equal(other.outputs(X), model.outputs(X, before + 1))
    assert torch.equal(model.theta, before)
    assert torch.equal(model.outputs(X), outputs)
    assert torch.equal(net[0].weight.flatten(), before[: net[0].weight.numel()])


@pytest.mark.parametrize("small", [False, True], ids=["", "small blocks"])
def test_pushed_outputs(small, monkeypatch):
    if small:
        monkeypatch.setattr("fimoda.derivatives._TOGETHER", 4)
        monkeypatch.setattr("fimoda.derivatives._NUMBERS", 50)
    X = randn(N, D)
    model = as_final_model(mlp(), X, criterion=nn.MSELoss())
    theta, U = 2 * model.theta, randn(6, model.n_parameters)
    expected = torch.einsum("ncp,kp->nkc", model.at(theta).jacobian(X), U)
    assert relative(push_outputs(model, X, theta, U), expected) < 1e-12


# ---- the method against the others ----------------------------------------------------------

OPTIMIZERS = {
    "sgd": ("SGD", 0.1, {}),
    "momentum": ("SGD", 0.05, {"momentum": 0.9}),
    "nesterov": ("SGD", 0.05, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "weight decay": ("SGD", lambda epoch: 0.2 / (1 + epoch), {"weight_decay": 0.1}),
    "adam": ("Adam", 0.01, {}),
    "adam, weight decay": ("Adam", 0.01, {"weight_decay": 0.1}),
    "adamw": ("AdamW", 0.01, {"weight_decay": 0.1}),
    "rmsprop": ("RMSprop", 0.01, {}),
    "rmsprop, momentum": ("RMSprop", 0.001, {"momentum": 0.9}),
    "adagrad": ("Adagrad", 0.05, {}),
}
SGD = ["sgd", "momentum", "nesterov", "weight decay"]

#: Criterion, outputs and kind of targets.
LOSSES = {
    "squared": (nn.MSELoss(), 1, "numbers"),
    "squared, several": (nn.MSELoss(), C, "vectors"),
    "logistic": (nn.BCEWithLogitsLoss(), 1, "two"),
    "softmax": (nn.CrossEntropyLoss(), C, "classes"),
}


def data(kind="numbers"):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(N + N_TEST, D))
    noisy = X[:, 0] + 0.5 * rng.normal(size=len(X))
    y = {
        "numbers": noisy,
        "vectors": X @ rng.normal(size=(D, C)) + noisy[:, None],
        "two": (noisy > 0).astype(int),
        "classes": rng.integers(C, size=len(X)),
    }[kind]
    return X[:N], y[:N], X[N:], y[N:]


def linear(n_outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(D, n_outputs).double()


def settings(optimizer="sgd", loss="squared", **changes):
    """Full batch."""
    name, lr, params = OPTIMIZERS[optimizer]
    return {
        "n_epochs": [1, 2, 6], "n_seeds": [SEED], "optimizer": name, "lr": lr,
        "optimizer_params": params, "batch_size": N, "criterion": LOSSES[loss][0], **changes,
    }  # fmt: skip


def linear_method(net, n_segments="auto", **changes):
    """One linearisation, or segments."""
    if n_segments == 1:
        return OnceLinearizedFurtherTraining(net, **changes)
    return LinearizedFurtherTraining(net, n_segments=n_segments, **changes)


def both(net, kind, changes, weights=None, **own):
    """Scores at every horizon, linearised and unrolled."""
    X, y, X_test, y_test = data(kind)
    changes = {"kink_smoothing": 100.0, **changes}
    found = linear_method(net, **{**changes, **own}).fit(X, y, weights)
    exact = UnrolledDifferentiation(net, **changes, order="own").fit(X, y, weights)
    return found.transform_horizons(X_test, y_test), exact.transform_horizons(X_test, y_test)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("optimizer", SGD)
def test_one_linearisation_of_a_linear_model(optimizer, loss):
    _, n_outputs, kind = LOSSES[loss]
    found, exact = both(linear(n_outputs), kind, settings(optimizer, loss), n_segments=1)
    assert relative(found, exact) < 1e-9


@pytest.mark.parametrize("loss", ["squared", "squared, several"])
@pytest.mark.parametrize(
    ("optimizer", "n_segments"),
    [("sgd", "auto"), ("momentum", 2), ("nesterov", "auto"), ("weight decay", 2)],
)
def test_segments_of_a_quadratic_objective(n_segments, optimizer, loss):
    """Whose curvature stands still."""
    _, n_outputs, kind = LOSSES[loss]
    changes = settings(optimizer, loss, n_epochs=[3, 12])
    found, exact = both(linear(n_outputs), kind, changes, n_segments=n_segments)
    assert relative(found, exact) < 1e-9


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("optimizer", SGD)
def test_a_segment_for_every_step(optimizer, loss):
    """Is unrolled differentiation, of any network."""
    _, n_outputs, kind = LOSSES[loss]
    changes = settings(optimizer, loss, n_epochs=[1, 2, 3, 4])
    found, exact = both(mlp(nn.ReLU, n_outputs), kind, changes, block_size=3)
    assert relative(found, exact) < 1e-9


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_of_a_linear_model(optimizer, loss):
    """Every optimiser, all of its state, and the minibatches of the run."""
    _, n_outputs, kind = LOSSES[loss]
    changes = settings(optimizer, loss, batch_size=4)
    own = {"n_segments": 1, "solver": "steps"}
    found, exact = both(linear(n_outputs), kind, changes, **own)
    assert relative(found, exact) < 1e-9


def test_steps_of_a_network_are_those_of_its_expansion():
    """With its own residuals, and measured where the real run ends."""
    X, y, X_test, _ = data()
    net = mlp(n_outputs=1)
    changes = settings("momentum", n_epochs=[1, 2], measurement="output", batch_size=4)
    found = linear_method(net, n_segments=1, solver="steps", **changes).fit(X, y)
    scores = found.transform_horizons(X_test)
    walk = found._runs[0].run
    J = walk.model.jacobian(walk.rows.inputs)[:, 0]
    run = RecordedRun(walk, SEED, walk.n_steps(2))
    delta, velocity = torch.zeros(2, N, J.shape[1], dtype=torch.float64)
    for moment in run.forwards():
        rows, w = run.batch(moment)
        r = (
            2
            * (walk.model.outputs(walk.rows.inputs[rows], moment.theta) - walk.rows.targets[rows])[
                :, 0
            ]
        )
        kept = w.expand(N, -1).clone()
        kept[rows, torch.arange(len(rows))] = 0
        kept /= kept.sum(1, keepdim=True).clamp(min=1e-300)  # a row alone leaves nothing
        removed = (kept - w) * r @ J[rows]
        slope = removed + 2 * (delta @ J[rows].mT * w) @ J[rows]
        velocity = 0.9 * velocity + slope
        delta = delta - changes["lr"] * velocity
        if (moment.step + 1) % run.steps_per_epoch == 0:
            epoch = (moment.step + 1) // run.steps_per_epoch
            theta = RecordedRun(walk, SEED, moment.step + 1).last.theta
            gradients = walk.model.at(theta).jacobian(walk.model.encode_X(X_test))[:, 0]
            assert relative(scores[epoch - 1], gradients @ delta.mT) < 1e-9


@pytest.mark.parametrize("n_segments", [1, 3])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_row_weights(loss, n_segments):
    _, n_outputs, kind = LOSSES[loss]
    weights = np.arange(N) + 0.0  # the first has none
    changes = settings("momentum", loss, n_epochs=[1, 2, 3])
    found, exact = both(linear(n_outputs), kind, changes, weights, n_segments=n_segments)
    assert relative(found, exact) < 1e-9
    assert not found[:, :, 0].any()


@pytest.mark.parametrize("n_segments", [1, 3])
def test_one_row_with_all_the_weight(n_segments):
    """Without it there is no gradient."""
    weights = np.eye(N)[4]
    changes = settings("momentum", n_epochs=[1, 2, 3])
    found, exact = both(linear(1), "numbers", changes, weights, n_segments=n_segments)
    assert relative(found, exact) < 1e-9


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
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
def test_penalty(estimator, optimizer):
    """Of the scikit-learn model."""
    X, y, *_ = data()
    changes = settings(optimizer, n_epochs=[1, 2, 3], criterion=None)
    found, exact = both(estimator.fit(X, y), "numbers", changes)
    assert relative(found, exact) < 1e-9


@pytest.mark.parametrize("weighted", [False, True], ids=["", "row weights"])
@pytest.mark.parametrize("loss", ["squared", "squared, several"])
@pytest.mark.parametrize("optimizer", SGD)
def test_exact_removal_is_further_training(optimizer, loss, weighted):
    _, n_outputs, kind = LOSSES[loss]
    X, y, X_test, y_test = data(kind)
    weights = np.arange(1.0, N + 1) if weighted else None
    net = linear(n_outputs)
    measure = "output" if n_outputs == 1 else (lambda outputs, y: outputs[:, 1])  # linear
    changes = settings(optimizer, loss, measurement=measure)
    found = linear_method(net, n_segments=1, removal="exact", **changes)
    scores = found.fit(X, y, weights).transform_horizons(X_test, y_test)
    for n_epochs, each in zip([1, 2, 6], scores, strict=True):
        gold = FurtherTraining(net, **{**changes, "n_epochs": n_epochs}).fit(X, y, weights)
        assert relative(each, gold.transform(X_test, y_test)) < 1e-8
    # to first order it is something else
    first = linear_method(net, n_segments=1, **changes).fit(X, y, weights)
    assert relative(first.transform_horizons(X_test, y_test), scores) > 1e-2


def correlation(a, b) -> float:
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


@pytest.mark.parametrize("n_segments", [1, 6])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_sign_agrees_with_further_training(n_segments):
    """Removing a twin of a test row raises its loss; removing a contradiction lowers it."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 2))
    y = (X[:, 0] > 0).astype(int)
    X_test, y_test = np.array([[1.5, 1.0]]), np.array([1])
    X[0], y[0] = X_test[0], 1
    X[1], y[1] = X_test[0], 0
    final = LogisticRegression(C=np.inf, max_iter=3).fit(X, y)
    changes = {"n_epochs": 30, "n_seeds": [SEED], "optimizer": "SGD", "lr": 0.5, "batch_size": 10}
    found, gold = (
        method.fit(X, y).transform(X_test, y_test)[0]
        for method in (
            linear_method(final, n_segments=n_segments, **changes),
            FurtherTraining(final, **changes),
        )
    )
    assert found[0] > 0 > found[1]
    assert correlation(found, gold) > 0.9


ADAPTIVE = ["adam", "adam, weight decay", "adamw", "rmsprop", "rmsprop, momentum", "adagrad"]


def no_form_in_outputs(optimizer: str, n_segments: int | str) -> bool:
    return optimizer == "adam, weight decay" and n_segments == 1


@pytest.mark.parametrize("n_segments", [1, 3])
@pytest.mark.parametrize("optimizer", ADAPTIVE)
def test_adaptive_optimizers_whose_second_moments_hardly_matter(optimizer, n_segments):
    if no_form_in_outputs(optimizer, n_segments):
        return
    name, lr, params = OPTIMIZERS[optimizer]
    eps = 1e4
    decay = params.get("weight_decay", 0.0) / (eps if name == "AdamW" else 1)
    changes = settings(
        optimizer, n_epochs=[5, 12], lr=10 * lr * eps, measurement="output",
        optimizer_params={**params, "eps": eps, "weight_decay": decay},
    )  # fmt: skip
    found, exact = both(linear(1), "numbers", changes, n_segments=n_segments)
    assert relative(found, exact) < 1e-3


@pytest.mark.parametrize("n_segments", [1, 4])
@pytest.mark.parametrize("optimizer", ["adam", "adam, weight decay", "adamw", "rmsprop", "adagrad"])
def test_adaptive_optimizers(optimizer, n_segments):
    """What a removal does to the second moments is left out: close, but not equal."""
    if no_form_in_outputs(optimizer, n_segments):
        return
    changes = settings(optimizer, n_epochs=[5, 20])
    found, exact = both(linear(1), "numbers", changes, n_segments=n_segments)
    for a, b in zip(found, exact, strict=True):
        assert correlation(a, b) > 0.85


@pytest.mark.parametrize("n_segments", [1, 3])
def test_dampening(n_segments):
    """The first step, which torch does not dampen, is dampened here."""
    changes = settings(
        lr=0.05, n_epochs=[1, 30], optimizer_params={"momentum": 0.5, "dampening": 0.3}
    )
    found, exact = both(linear(1), "numbers", changes, n_segments=n_segments)
    assert relative(found[0], exact[0]) == pytest.approx(0.3)
    assert relative(found[1], exact[1]) < 0.01


def test_agreement_grows_with_the_number_of_segments():
    """With minibatches, and units that switch."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(48, D))
    y = np.sin(2 * X[:, 0]) + X[:, 1] * X[:, 2]
    changes = settings(n_epochs=30, batch_size=24, n_seeds=[1, 2])
    net, test = mlp(nn.ReLU, 1, 20), (X[:9], y[:9])
    exact = (
        UnrolledDifferentiation(net, kink_smoothing=None, **changes, order="own")
        .fit(X, y)
        .transform(*test)
    )
    agreement, discrepancy = [], []
    for n_segments in (1, 2, 15):
        found = linear_method(net, n_segments=n_segments, kink_smoothing=None, **changes).fit(X, y)
        agreement.append(correlation(found.transform(*test), exact))
        discrepancy.append(found.discrepancy_[-1])
    assert agreement[0] + 0.1 < agreement[1] < agreement[2] - 0.02
    assert discrepancy[0] > discrepancy[1] > discrepancy[2]


# ---- horizons, seeds, workers, blocks -------------------------------------------------------


def linearized(net=None, optimizer="momentum", loss="squared", **changes):
    """With minibatches."""
    net = mlp(n_outputs=LOSSES[loss][1]) if net is None else net
    return linear_method(
        net, **settings(optimizer, loss, **{"batch_size": 4, "n_epochs": 3, **changes})
    )


#: One linearisation of a quadratic loss, of any loss, and segments.
WAYS = [("squared", 1), ("softmax", 1), ("softmax", 2)]
each_way = pytest.mark.parametrize(("loss", "n_segments"), WAYS)


@each_way
def test_horizons_at_once_equal_one_at_a_time(loss, n_segments):
    X, y, X_test, y_test = data(LOSSES[loss][2])
    horizons = [1, 2, 5]
    found = linearized(loss=loss, n_epochs=horizons, n_segments=n_segments).fit(X, y)
    together = found.transform_horizons(X_test, y_test)
    assert relative(found.transform(X_test, y_test), together[-1]) < 1e-12
    assert found.horizons_ == horizons
    if n_segments != 1:
        assert found.n_segments_ == 3
    if n_segments == 1:  # others would be cut elsewhere
        for n_epochs, scores in zip(horizons, together, strict=True):
            alone = linearized(loss=loss, n_epochs=n_epochs, n_segments=1).fit(X, y)
            assert relative(scores, alone.transform(X_test, y_test)) < 1e-10


@each_way
def test_average_over_seeds(loss, n_segments):
    X, y, X_test, y_test = data(LOSSES[loss][2])
    seeds = [3, 11, 4]
    found = linearized(loss=loss, n_segments=n_segments, n_seeds=seeds).fit(X, y)
    scores = found.transform(X_test, y_test)
    each = [
        linearized(loss=loss, n_segments=n_segments, n_seeds=[seed])
        .fit(X, y)
        .transform(X_test, y_test)
        for seed in seeds
    ]
    assert relative(scores, np.mean(each, 0)) < 1e-12
    assert relative(found.scores_sem_, np.std(each, 0, ddof=1) / np.sqrt(3)) < 1e-10
    assert found.seeds_ == seeds
    one = linearized(loss=loss, n_segments=n_segments).fit(X, y)
    one.transform(X_test, y_test)
    assert np.isnan(one.scores_sem_).all()


@each_way
def test_same_bits_for_any_number_of_workers(loss, n_segments):
    X, y, X_test, y_test = data(LOSSES[loss][2])
    net = mlp(nn.ReLU, LOSSES[loss][1]).float()

    def scores(**changes):
        found = linearized(net, loss=loss, n_segments=n_segments, n_seeds=[3, 11], **changes)
        return found.fit(X, y).transform(X_test, y_test)

    expected = scores()
    with joblib.parallel_config(backend="threading", n_jobs=2):
        np.testing.assert_array_equal(scores(), expected)
    if loss == "squared":
        np.testing.assert_array_equal(scores(n_jobs=2), expected)


@each_way
def test_rows_do_not_depend_on_their_company(loss, n_segments):
    X, y, X_test, y_test = data(LOSSES[loss][2])
    found = linearized(loss=loss, n_segments=n_segments).fit(X, y)
    scores = found.transform(X_test, y_test)
    for k in range(N_TEST):
        assert relative(found.transform(X_test[[k]], y_test[[k]]), scores[[k]]) < 1e-10


@each_way
def test_float32_fits_float64(loss, n_segments):
    X, y, X_test, y_test = data(LOSSES[loss][2])
    net = mlp(n_outputs=LOSSES[loss][1])
    found, expected = (
        linearized(each, loss=loss, n_segments=n_segments).fit(X, y).transform(X_test, y_test)
        for each in (copy.deepcopy(net).float(), net)
    )
    assert relative(found, expected) < 1e-4


def test_components_fit_the_memory_budget():
    X, y, X_test, y_test = data(LOSSES["softmax"][2])
    whole = linearized(loss="softmax", n_segments=2).fit(X, y)
    assert whole.n_components_ == whole.model_.n_parameters  # fewer than the default
    tight = linearized(loss="softmax", n_segments=2, memory_budget=20_000).fit(X, y)
    assert 1 < tight.n_components_ < whole.n_components_
    given = {"n_segments": 2, "n_components": tight.n_components_}
    same = linearized(loss="softmax", **given).fit(X, y)
    assert relative(*(one.transform(X_test, y_test) for one in (tight, same))) == 0
    given["n_components"] += 1
    with pytest.raises(MemoryError, match="lower n_components"):
        linearized(loss="softmax", **given, memory_budget=20_000).fit(X, y)


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@pytest.mark.parametrize("loss", ["squared", "softmax"])
def test_memory_budget_does_not_matter(loss, optimizer):
    X, y, X_test, y_test = data(LOSSES[loss][2])
    budgets = {"squared": 40_000, "softmax": 60_000}
    whole, parts = (
        linearized(loss=loss, optimizer=optimizer, n_segments=1, memory_budget=budget).fit(X, y)
        for budget in (2**31, budgets[loss])
    )
    assert whole._runs[0]._kernel._chunk >= N > parts._runs[0]._kernel._chunk
    expected = whole.transform(X_test, y_test)
    assert relative(parts.transform(X_test, y_test), expected) < 1e-12


def test_blocks_do_not_matter(monkeypatch):
    X, y, X_test, y_test = data("classes")
    expected = linearized(loss="softmax").fit(X, y).transform(X_test, y_test)
    monkeypatch.setattr("fimoda.walks.segments._ROWS", 5)
    monkeypatch.setattr("fimoda.objective._ROWS", 5)
    monkeypatch.setattr("fimoda.derivatives._TOGETHER", 4)
    monkeypatch.setattr("fimoda.derivatives._NUMBERS", 50)
    assert (
        relative(linearized(loss="softmax").fit(X, y).transform(X_test, y_test), expected) < 1e-10
    )


def test_discrepancy():
    """None for a model linear in its parameters with full batches; some for a network."""
    X, y, *_ = data()
    for own in ({"n_segments": 1}, {"n_segments": 1, "solver": "steps"}, {"n_segments": 4}):
        changes = settings("momentum", n_epochs=[1, 20], **own)
        exact = linear_method(linear(1), **changes).fit(X, y)
        assert exact.discrepancy_.shape == (2,)
        assert exact.discrepancy_.max() < 1e-9
        curved = linear_method(mlp(n_outputs=1), **changes)
        curved.fit(X, y)
        assert curved.discrepancy_[1] > 1e-3
    with pytest.warns(ConvergenceWarning, match=r"misses .* over 6 epochs \(discrepancy_\)"):
        linearized(mlp(nn.ReLU, 1, 20), n_segments=1, n_epochs=6).fit(X, y)


def test_nothing_moves():
    """A model that does not depend on its parameters at the training rows."""
    X, y, X_test, y_test = data()
    net = nn.Linear(D, 1, bias=False).double()
    for n_segments in (1, 2):
        found = linear_method(net, n_segments=n_segments, **settings()).fit(0 * X, y)
        assert not found.transform(X_test, y_test).any()
        assert not found.discrepancy_.any()


# ---- other questions ------------------------------------------------------------------------


def outputs_after(attributor, X_test) -> np.ndarray:
    """Outputs of the first seed's run at the last horizon."""
    model, run = attributor.model_, attributor._runs[0].observed
    return model.outputs(model.encode_X(X_test), run.theta(attributor.horizons_[-1]))[:, 0].numpy()


@pytest.mark.parametrize(
    ("removal", "n_segments"), [("exact", 1), ("first-order", 1), ("first-order", 3)]
)
@pytest.mark.parametrize("optimizer", ["momentum", "weight decay"])
def test_reweighting(optimizer, removal, n_segments):
    X, y, X_test, _ = data()
    net = linear(1)
    before = np.arange(1.0, N + 1)
    factors = np.ones(N)
    factors[[0, 4, 5]], factors[7] = 0, 3
    exact = removal == "exact"
    if not exact:
        factors = 1 + 1e-5 * (factors - 1)
    own = {"removal": removal} if n_segments == 1 else {}
    changes = settings(optimizer, n_segments=n_segments, measurement="output", **own)
    found = linear_method(net, **changes).fit(X, y, before)
    effect = found.reweight(X_test, weights=factors)
    after = linear_method(net, **changes).fit(X, y, before * factors)
    expected = outputs_after(after, X_test) - outputs_after(found, X_test)
    assert relative(effect, expected) < (1e-8 if exact else 1e-4)
    # a row alone
    alone = np.where(np.arange(N) == 2, 0.0, 1.0)
    assert relative(found.reweight(X_test, weights=alone), found.transform(X_test)[:, 2]) < 1e-8


@pytest.mark.parametrize(("n_segments", "solver"), [(1, "kernel"), (1, "steps"), (3, "auto")])
def test_relabelling(n_segments, solver):
    """Exact on a squared error of a linear model."""
    X, y, X_test, _ = data()
    net, rows, targets = linear(1), [6, 2], [3.0, -1.0]
    changes = settings("momentum", n_segments=n_segments, measurement="output")
    changes |= {"solver": solver} if n_segments == 1 else {}
    found = linear_method(net, **changes).fit(X, y)
    effect = found.relabel(X_test, rows=rows, targets=targets)
    for k, row in enumerate(rows):
        other = y.copy()
        other[row] = targets[k]
        after = linear_method(net, **changes).fit(X, other)
        expected = outputs_after(after, X_test) - outputs_after(found, X_test)
        assert relative(effect[:, k], expected) < 1e-8


def test_relabelling_one_row():
    """A number is a row's index, not a number of rows."""
    X, y, X_test, y_test = data()
    found = linearized(n_segments=1).fit(X, y)
    effect = found.relabel(X_test, y_test, rows=5, targets=2.0)
    assert relative(effect, found.relabel(X_test, y_test, rows=[5], targets=[2.0])) == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([1, 1], r"rows must not repeat a row; 1 appears"),
        (N, rf"rows must hold indices in \[0, {N}\).*got {N}"),
        ([], r"rows must name at least one training row"),
        (None, r"rows must be a list of row indices \(integers\), got None"),
    ],
)
def test_rows_to_relabel(rows, message):
    X, y, X_test, y_test = data()
    found = linearized(n_segments=1).fit(X, y)
    with pytest.raises(ValueError, match=message):
        found.relabel(X_test, y_test, rows=rows, targets=[2.0, 1.0])


@pytest.mark.parametrize("n", [6, 150])
@pytest.mark.parametrize("size", [0.0, 1.0])
def test_largest_curvature(n, size):
    """Eigenvalues of the whole matrix, of which the largest two are a hundredth apart."""
    C, generator = 3, torch.Generator().manual_seed(0)
    Q, _ = torch.linalg.qr(torch.randn(n * C, n * C, generator=generator, dtype=torch.float64))
    values = torch.linspace(0, 0.9, n * C, dtype=torch.float64)
    values[-2:] = torch.tensor([0.99, 1.0])
    kernel = (size * (Q * values) @ Q.mT).view(n, C, n, C)
    p = torch.softmax(torch.randn(n, C, generator=generator, dtype=torch.float64), dim=1)
    share = torch.rand(n, generator=generator, dtype=torch.float64) / n
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    W = torch.block_diag(*(share[:, None, None] * curvature))
    expected = torch.linalg.eigvals(kernel.reshape(n * C, n * C) @ W).real.max()
    assert largest_curvature(kernel, share, curvature) == pytest.approx(float(expected), rel=1e-5)
    even = torch.eye(C, dtype=torch.float64).expand(n, C, C)
    found = largest_curvature(kernel, torch.full_like(share, 1 / n), even)
    assert found == pytest.approx(size / n, rel=1e-5)


# ---- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"removal": "exact", "loss": "softmax", "n_segments": 1}, r"removal='exact' needs .* CrossEnt"),
        (
            {"removal": "exact", "n_segments": 1, "solver": "steps"},
            r"removal='exact' needs solver='kernel' .* got solver='steps'",
        ),
        ({"optimizer": "adam, weight decay", "n_segments": 1}, r"cannot follow .* or AdamW"),
    ],
)  # fmt: skip
def test_what_has_no_linear_form(changes, message):
    X, y, *_ = data(LOSSES[changes.get("loss", "squared")][2])
    with pytest.raises(ValueError, match=message):
        linearized(**changes).fit(X, y)


@pytest.mark.parametrize("n_segments", [1, "auto"])
def test_optimizer_without_linear_form(n_segments):
    X, y, *_ = data()
    found = linearized(n_segments=n_segments).set_params(optimizer="NAdam", optimizer_params={})
    with pytest.raises(ValueError, match=r"NAdam with these settings cannot be linearised"):
        found.fit(X, y)


def test_the_kernel_cannot_follow_a_penalty():
    X, y, *_ = data()
    ridge = Ridge(alpha=1.0).fit(X, y)
    changes = settings(n_segments=1, criterion=None)
    with pytest.raises(
        ValueError, match=r"without an L2 penalty .* Use solver='steps', or segments"
    ):
        linear_method(ridge, solver="kernel", **changes).fit(X, y)
    assert linear_method(ridge, **changes).fit(X, y).solver_ == "steps"
    found, exact = both(ridge, "numbers", settings(criterion=None), n_segments=1)
    assert relative(found, exact) < 1e-9


def test_one_segment_is_the_other_method():
    X, y, *_ = data()
    with pytest.raises(
        ValueError, match=r"n_segments must be at least 2.* use OnceLinearized.*solver and removal"
    ):
        LinearizedFurtherTraining(linear(1), **settings(n_segments=1)).fit(X, y)


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"n_segments": 1, "solver": "kernel"}, "solver='steps' or segments"),
        ({"n_segments": 1, "solver": "steps"}, "lower n_epochs"),
        ({"n_segments": 3}, "n_components"),
    ],
)
def test_memory(changes, advice):
    X, y, *_ = data()
    with pytest.raises(MemoryError, match=rf"take .* MiB, more than memory_budget.*{advice}"):
        linearized(memory_budget=1000, **changes).fit(X, y)


def test_steps_where_the_kernel_does_not_fit():
    X, y, X_test, y_test = data()
    given = {"n_segments": 1, "memory_budget": 3000}
    found, steps = (linearized(linear(1), solver=s, **given).fit(X, y) for s in ("auto", "steps"))
    assert found.solver_ == "steps"
    assert relative(found.transform(X_test, y_test), steps.transform(X_test, y_test)) == 0
    assert linearized(n_segments=1).fit(X, y).solver_ == "kernel"


@pytest.mark.parametrize("n_segments", [1, 3])
def test_diverging_run(n_segments):
    X, y, *_ = data()
    with pytest.raises(FloatingPointError, match=r"diverged.*Lower lr"):
        linearized(n_segments=n_segments, lr=1e200).fit(X, y)


@pytest.mark.parametrize(("n_segments", "loss"), [(1, "squared"), (1, "logistic"), (2, "squared")])
def test_unstable_linearisation(n_segments, loss):
    """The logistic run itself saturates."""
    X, y, *_ = data(LOSSES[loss][2])
    found = linearized(linear(1), "sgd", loss, n_segments=n_segments, lr=30.0, n_epochs=6)
    for n_jobs in (1, 2):
        with pytest.raises(FloatingPointError, match=r"linearised run is unstable.*Lower lr"):
            found.set_params(n_jobs=n_jobs).fit(X, y)


class Largest(TorchDispatchMode):
    """Remember the bytes of the largest tensor that an operation returns."""

    n_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, tuple | list) else [found]:
            if isinstance(one, torch.Tensor):
                self.n_bytes = max(self.n_bytes, one.numel() * one.element_size())
        return found


def test_rows_times_outputs_times_modes_are_not_held():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(600, 4, generator=generator, dtype=torch.float64)
    y = torch.arange(600) % 40
    given = {"n_segments": 2, "n_epochs": 2, "batch_size": 100, "random_state": 0, "lr": 0.1}
    net = tanh_network(4, 8, 40)
    method = LinearizedFurtherTraining(
        net, criterion=torch.nn.CrossEntropyLoss(), memory_budget=4 * 10**6, **given
    )
    with Largest() as largest:
        scores = method.fit(X, y).transform(X[:5], y[:5])
    k = method.n_components_
    assert 0 < largest.n_bytes < 600 * 40 * k * 8 / 3
    roomy = LinearizedFurtherTraining(
        net, criterion=torch.nn.CrossEntropyLoss(), n_components=k, **given
    )
    assert relative(scores, roomy.fit(X, y).transform(X[:5], y[:5])) < 1e-9
