"""SOURCE against closed forms, dense matrix functions and the exact derivative of the run."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from naive import relative
from numpy.testing import assert_allclose
from problems import row_gradients
from scipy.linalg import expm
from sklearn.linear_model import LinearRegression
from skorch import NeuralNetRegressor
from skorch.callbacks import GradientNormClipping
from torch import nn

from fimoda import (
    SOURCE,
    ExactInfluence,
    GradDot,
    Stage,
    TracIn,
    Trajectory,
    TrajectoryRecorder,
    UnrolledDifferentiation,
    as_final_model,
    train_ensemble,
)
from fimoda.curvature.ekfac import EKFAC
from fimoda.curvature.second_moments import batch_second_moment
from fimoda.curvature.segmentation import contiguous_groups, cut_run
from fimoda.curvature.stationary import Dynamics
from fimoda.objective import Objective
from fimoda.rows import Rows
from fimoda.trajectory import model_at

N, P = 24, 4
EXACT = {"curvature": "exact", "criterion": nn.MSELoss()}


def gradients(model, X, y):
    return row_gradients(model, model.encode_X(X), model.encode_y(y, y.shape[-1]))


def rows(seed: int = 0, n: int = N, n_outputs: int = 1):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, P))
    return X, X @ rng.normal(size=(P, n_outputs)) + rng.normal(size=(n, n_outputs))


def linear(seed: int = 0, bias: bool = False) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(P, 1, bias=bias).double()


def descend(net: nn.Module, X, y, lr: float, n_steps: int, keep: list[int], **params):
    """Full-batch gradient descent by torch; the trained copy and the kept states."""
    net = copy.deepcopy(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, **params)
    inputs, targets = torch.from_numpy(X), torch.from_numpy(y)
    states = {0: copy.deepcopy(net.state_dict())}
    for step in range(1, n_steps + 1):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(inputs), targets).backward()
        optimizer.step()
        states[step] = copy.deepcopy(net.state_dict())
    return net, [states[k] for k in keep]


def gauss_newton(X) -> np.ndarray:
    """Curvature of the mean squared error of a linear model without bias."""
    return 2 * X.T @ X / len(X)


# ---- what SOURCE tends to ---------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_equals_unrolled_differentiation_as_the_step_size_shrinks(momentum):
    """On a quadratic, with the same length of training; segments by the gradients that it sees."""
    X, y = rows()
    X_test, y_test = rows(1, 5)
    errors = []
    for n_steps in (12, 36, 108):
        lr, every = 1.0 / n_steps, n_steps // 12
        steps = list(range(every, n_steps + 1, every))
        steps = sorted({s - every // 2 for s in steps} | {n_steps}) if every > 1 else steps
        net, states = descend(linear(), X, y, lr, n_steps, [0, *steps], momentum=momentum)
        params = {"momentum": momentum}
        run = Trajectory.from_checkpoints(states[1:], steps, lr, optimizer_params=params)
        ends = list(range(every, n_steps + 1, every))
        source = SOURCE(net, trajectory=run, segments=ends, **EXACT).fit(X, y)
        unrolled = UnrolledDifferentiation(
            net,
            start=states[0],
            n_epochs=n_steps,
            n_seeds=[0],
            batch_size=N,
            lr=lr,
            optimizer="SGD",
            optimizer_params=params,
            criterion=nn.MSELoss(),
            order="own",
        ).fit(X, y)
        # leaving out gives the others the row's weight: the derivative is centred, times n / (n - 1)
        scores = source.transform(X_test, y_test)
        scores = (scores - scores.mean(1, keepdims=True)) * N / (N - 1)
        errors.append(relative(scores, unrolled.transform(X_test, y_test)))
    assert errors[2] < errors[1] / 2 < errors[0] / 4
    assert errors[2] < 0.02


def test_many_steps_tend_to_the_influence_function():
    X, y = rows()
    model = LinearRegression(fit_intercept=False).fit(X, y)
    influence = ExactInfluence(model, damping=0.0).fit(X, y)
    source = SOURCE(
        model, trajectory="final", n_epochs=100_000, lr=0.1, batch_size=N, curvature="exact"
    ).fit(X, y)
    assert_allclose(source.transform(X[:5], y[:5]), influence.transform(X[:5], y[:5]), rtol=1e-8)
    assert source.segments_ == [(0, 100_000, 1)]


@pytest.mark.parametrize("curvature", ["exact", "ekfac"])
def test_few_steps_tend_to_grad_dot(curvature):
    X, y = rows()
    net = linear(bias=True)
    params = {"n_epochs": 3, "lr": 1e-8, "batch_size": 6, "criterion": nn.MSELoss()}
    source = SOURCE(net, trajectory="final", curvature=curvature, **params).fit(X, y)
    grad_dot = GradDot(net, reweight_others=False, **params).fit(
        X, y
    )  # eta K / n times the product: K = 3 * 4
    assert_allclose(source.transform(X[:5], y[:5]), grad_dot.transform(X[:5], y[:5]), rtol=1e-4)
    assert_allclose(source.self_influence(), grad_dot.self_influence(), rtol=1e-4)


def test_one_segment_is_a_damped_influence_function():
    """F(sigma) = (1 - exp(-h sigma)) / sigma, as the paper's equation 21."""
    dynamics = Dynamics(horizon=3.0)
    sigma = torch.tensor([0.0, 1e-14, 1e-6, 0.5, 40.0], dtype=torch.float64)
    expected = [3.0, 3.0, 3.0 - 4.5e-6, (1 - np.exp(-1.5)) / 0.5, 1 / 40]
    assert_allclose(dynamics.gathered(sigma), expected, rtol=1e-10)
    assert_allclose(dynamics.carried(sigma), np.exp(-3.0 * sigma.numpy()), rtol=1e-12)


# ---- two segments, by hand ------------------------------------------------------------------


def two_segments(decay: float = 0.0, momentum: float = 0.0):
    """A run of 30 steps with different rates; its states at 5, 10, 20 and 30."""
    X, y = rows()
    rates = np.r_[np.full(10, 0.05), np.full(20, 0.02)]
    params = {"momentum": momentum, "weight_decay": decay}
    net = linear()
    inputs, targets = torch.from_numpy(X), torch.from_numpy(y)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0, **params)
    states = {}
    for step, rate in enumerate(rates, start=1):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        nn.functional.mse_loss(net(inputs), targets).backward()
        optimizer.step()
        states[step] = copy.deepcopy(net.state_dict())
    keep = [5, 10, 20, 30]
    run = Trajectory.from_checkpoints(
        [states[k] for k in keep], keep, rates, optimizer_params=params
    )
    return X, y, net, run


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("curvature", ["exact", "ekfac"])
def test_two_segments_are_the_hand_calculation(decay, momentum, curvature):
    X, y, net, run = two_segments(decay, momentum)
    source = SOURCE(net, trajectory=run, segments=2, **{**EXACT, "curvature": curvature}).fit(X, y)
    assert source.segments_ == [(0, 10, 2), (10, 30, 2)]
    final = as_final_model(net, X, criterion=nn.MSELoss())
    G = [gradients(model_at(run, k, final), X, y) for k in range(4)]
    H = gauss_newton(X) + decay * np.eye(P)
    first, second = (G[0] + G[1]) / 2, (G[2] + G[3]) / 2
    h1, h2 = 10 * 0.05 / (1 - momentum), 20 * 0.02 / (1 - momentum)
    R1, R2 = ((np.eye(P) - expm(-h * H)) @ np.linalg.inv(H) / N for h in (h1, h2))
    expected = gradients(final, X, y) @ (expm(-h2 * H) @ R1 @ first.T + R2 @ second.T)
    assert_allclose(source.transform(X, y), expected, rtol=1e-8, atol=1e-12)
    assert_allclose(source.self_influence(), np.diag(expected), rtol=1e-8, atol=1e-12)


def test_cut_at_given_steps():
    X, y, net, run = two_segments()
    at_ten = SOURCE(net, trajectory=run, segments=[10], **EXACT).fit(X, y)
    in_two = SOURCE(net, trajectory=run, segments=2, **EXACT).fit(X, y)
    assert at_ten.segments_ == in_two.segments_
    assert_allclose(at_ten.transform(X, y), in_two.transform(X, y), rtol=1e-12)
    thrice = SOURCE(net, trajectory=run, segments=[5, 20], **EXACT).fit(X, y)
    assert thrice.segments_ == [(0, 5, 1), (5, 20, 2), (20, 30, 1)]


def test_averaging_parameters():
    """The gradient of a linear model is linear in its parameters, its curvature constant."""
    X, y, net, run = two_segments()
    slow = SOURCE(net, trajectory=run, segments=2, **EXACT).fit(X, y)
    fast = SOURCE(net, trajectory=run, segments=2, averaging="parameters", **EXACT).fit(X, y)
    assert [len(s.objectives) for s in fast._walk.segments] == [1, 1]
    assert_allclose(fast.transform(X, y), slow.transform(X, y), rtol=1e-10)


def test_weights_are_shares_of_the_mean():
    X, y, net, run = two_segments()
    weight = np.linspace(0.5, 2, N)
    scores = SOURCE(net, trajectory=run, segments=1, **EXACT).fit(X, y, weight).transform(X, y)
    share = weight / weight.sum()
    H = 2 * X.T @ (share[:, None] * X)
    final = as_final_model(net, X, criterion=nn.MSELoss())
    mean = np.mean([gradients(model_at(run, k, final), X, y) for k in range(4)], axis=0)
    R = (np.eye(P) - expm(-0.9 * H)) @ np.linalg.inv(H)
    assert_allclose(scores, gradients(final, X, y) @ R @ mean.T * share, rtol=1e-8)


# ---- preconditioned -------------------------------------------------------------------------


class Tanh(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(P, 3), nn.Tanh(), nn.Linear(3, 1))

    def forward(self, X):
        return self.layers(X)


def adaptive(optimizer: str, **params):
    """A small network trained by an adaptive optimiser, and its run."""
    X, y = rows()
    torch.manual_seed(0)
    ensemble = train_ensemble(
        Tanh().double(),
        X,
        y,
        n_seeds=[0],
        checkpoints=4,
        n_epochs=6,
        optimizer=optimizer,
        lr=0.01,
        batch_size=8,
        optimizer_params=params,
        criterion=nn.MSELoss(),
    )
    return X, y, ensemble.models[0], ensemble.trajectories[0]


def preconditioner(run: Trajectory, k: int, model) -> np.ndarray:
    """P of checkpoint k from what torch's optimiser keeps, written out."""
    known = run.optimizer_state(k)
    parts = []
    for name in model.shapes:
        state = known[name]
        if run.optimizer == "RMSprop":
            square = state["square_avg"]
        else:
            square = state["exp_avg_sq"] / (1 - 0.999 ** float(state["step"]))
        parts.append((1 / (square.sqrt() + 1e-8)).reshape(-1))
    return torch.cat(parts).numpy()


@pytest.mark.parametrize(
    ("optimizer", "params"),
    [("AdamW", {"weight_decay": 0.1}), ("Adam", {"weight_decay": 0.1}), ("RMSprop", {})],
)
def test_preconditioned_segments_are_the_dense_matrix_functions(optimizer, params):
    X, y, model, run = adaptive(optimizer, **params)
    source = SOURCE(model, trajectory=run, segments=2, curvature="exact").fit(X, y)
    p = model.n_parameters
    assert p == 19
    total, carried = np.zeros((N, N)), np.eye(p)
    for start, stop, ks in ((9, 18, [2, 3]), (0, 9, [0, 1])):  # the last segment first
        H, G, D = np.zeros((p, p)), np.zeros((N, p)), np.zeros(p)
        for k in ks:
            at = model_at(run, k, model)
            J = at.jacobian(at.encode_X(X)).numpy()[:, 0]
            H += 2 * J.T @ J / N / 2
            G += gradients(at, X, y) / 2
            D += preconditioner(run, k, model) / 2
        decoupled = 0.1 if optimizer == "AdamW" else 0.0
        H += (0.1 if optimizer == "Adam" else 0.0) * np.eye(p)
        root = np.sqrt(D)
        M = root[:, None] * H * root + decoupled * np.eye(p)
        horizon = 0.01 * (stop - start)
        gathered = np.linalg.solve(M, np.eye(p) - expm(-horizon * M))
        R = root[:, None] * gathered * root / N
        total += gradients(model, X, y) @ carried @ R @ G.T
        carried = carried @ (root[:, None] * expm(-horizon * M) / root)
    assert_allclose(source.transform(X, y), total, rtol=1e-6, atol=1e-6 * np.abs(total).max())
    assert_allclose(source.self_influence(), np.diag(total), rtol=1e-6)


def test_preconditioner_in_the_eigenbasis():
    """A preconditioner that is the same everywhere is a learning rate, with EK-FAC as exactly."""
    X, y, net, run = two_segments()
    plain = SOURCE(net, trajectory=run, segments=2, criterion=nn.MSELoss()).fit(X, y)
    states = [run.state(k) for k in range(4)]
    buffers = [
        {
            "state": {0: {"square_avg": torch.full((1, P), 4.0 - 1e-8), "step": 1}},
            "param_groups": [{"params": [0]}],
        }
        for _ in range(4)
    ]
    rms = Trajectory.from_checkpoints(
        states,
        run.steps,
        run.learning_rates * 2,
        optimizer="RMSprop",
        optimizer_params={"eps": 0.0},
        optimizer_states=buffers,
    )
    scaled = SOURCE(net, trajectory=rms, segments=2, criterion=nn.MSELoss()).fit(X, y)
    assert_allclose(scaled.transform(X, y), plain.transform(X, y), rtol=1e-6)


def test_second_moments_are_estimated_where_they_were_not_recorded():
    X, y, model, run = adaptive("AdamW")
    encoded = model.encode_X(X), model.encode_y(y, 1)
    G = gradients(model, X, y)
    found = batch_second_moment(Objective(model, Rows(*encoded)), batch_size=8, chunk_size=5)
    assert_allclose(found, G.mean(0) ** 2 + G.var(0) / 8, rtol=1e-6)
    states = [run.state(k) for k in range(4)]
    bare = Trajectory.from_checkpoints(states, run.steps, 0.01, optimizer="AdamW")
    source = SOURCE(model, trajectory=bare, segments=1, curvature="exact", batch_size=8).fit(X, y)
    expected = [
        1
        / (
            batch_second_moment(Objective(model_at(run, k, model), Rows(*encoded)), 8, N).sqrt()
            + 1e-8
        )
        for k in range(4)
    ]
    used = source._walk.segments[0].dynamics.preconditioner
    assert_allclose(used, torch.stack(expected).mean(0), rtol=1e-6)


# ---- EK-FAC over checkpoints ----------------------------------------------------------------


def network_run(n_outputs: int = 3, n_epochs: int = 4):
    """A classifier and its run of two segments' worth of checkpoints."""
    X, _ = rows(0, 40)
    y = np.minimum((X[:, 0] > 0).astype(int) + (X[:, 1] > 0), n_outputs - 1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(P, 6), nn.ReLU(), nn.Linear(6, n_outputs)).double()
    ensemble = train_ensemble(
        net,
        X,
        y,
        n_seeds=[0, 1],
        checkpoints=4,
        n_epochs=n_epochs,
        lr=0.1,
        batch_size=10,
        optimizer_params={"momentum": 0.5},
        criterion=nn.CrossEntropyLoss(),
    )
    return X, y, ensemble


def test_factors_and_eigenvalues_are_averaged_over_checkpoints():
    X, y, ensemble = network_run()
    run, model = ensemble.trajectories[0], ensemble.models[0]
    models = [model_at(run, k, model) for k in range(3)]
    x, target, weights = model.encode_X(X), model.encode_y(y, 3), torch.ones(len(X))
    together = EKFAC(Objective(models[0], Rows(x, target, weights)), others=models[1:])
    apart = [EKFAC(Objective(one, Rows(x, target, weights))) for one in models]
    pairs = [one._covariances(weights.double() / len(X)) for one in apart]
    for layer, block in enumerate(together.blocks):
        for side, basis in enumerate((block.input_basis, block.signal_basis)):
            mean = sum(pair[layer][side] for pair in pairs) / 3
            rotated = basis.mT @ mean @ basis
            off = rotated - torch.diag(rotated.diagonal())
            assert float(off.abs().max()) < 1e-12 * float(rotated.abs().max()) + 1e-15
        squares = torch.zeros_like(block.eigenvalues)
        for one in models:  # mean over classes as the model predicts them, row by row
            probability = one.outputs(x).softmax(1)
            for c in range(3):
                g = torch.from_numpy(gradients(one, X, np.full((len(X), 1), c)[:, 0]))
                inside = block.signal_basis.mT @ block.place.matrices(g) @ block.input_basis
                squares += (probability[:, c, None, None] * inside**2).mean(0) / 3
        assert_allclose(block.eigenvalues, squares, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("scale", [1.0, 2.5, "matched"])
def test_ekfac_segments_are_products_with_the_dense_matrix(scale):
    X, y, ensemble = network_run()
    run, model = ensemble.trajectories[0], ensemble.models[0]
    params = {"trajectory": run, "segments": 2, "chunk_size": 7, "curvature_scale": scale}
    source = SOURCE(model, **params).fit(X, y)
    x, target = model.encode_X(X), model.encode_y(y, 3)
    p = model.n_parameters
    expected, carried = 0, np.eye(p)
    for ks, steps in (([2, 3], 8), ([0, 1], 8)):
        models = [model_at(run, k, model) for k in ks]
        ekfac = EKFAC(Objective(models[0], Rows(x, target)), others=models[1:], scale=scale)
        inverse = ekfac.solve(torch.eye(p, dtype=torch.float64), 0.1).numpy()
        H = np.linalg.inv(inverse) - 0.1 * np.eye(p)
        h = 0.1 * steps / 0.5
        S = expm(-h * H)
        values, vectors = np.linalg.eigh((H + H.T) / 2)
        F = (
            vectors
            * np.where(values > 1e-9, -np.expm1(-h * values) / np.maximum(values, 1e-9), h)
            @ vectors.T
        )
        mean = np.mean([gradients(one, X, y) for one in models], axis=0)
        expected = expected + gradients(model, X, y) @ carried @ F @ mean.T / len(X)
        carried = carried @ S
    assert_allclose(source.transform(X, y), expected, rtol=1e-5, atol=1e-8)
    assert_allclose(source.self_influence(), np.diag(expected), rtol=1e-5, atol=1e-8)


def test_ekfac_memory_does_not_matter():
    X, y, ensemble = network_run()
    params = {"trajectory": ensemble.trajectories[0], "segments": 2}
    whole = SOURCE(ensemble.models[0], **params).fit(X, y)
    tiny = SOURCE(ensemble.models[0], memory_budget=20_000, **params).fit(X, y)
    assert_allclose(tiny.transform(X, y), whole.transform(X, y), rtol=1e-8, atol=1e-12)
    assert_allclose(tiny.self_influence(), whole.self_influence(), rtol=1e-8, atol=1e-12)


# ---- projected ------------------------------------------------------------------------------


def test_projected_without_projection_is_exact_for_regression():
    X, y, net, run = two_segments(0.1, 0.5)
    params = {"trajectory": run, "segments": 2, "criterion": nn.MSELoss()}
    exact = SOURCE(net, curvature="exact", **params).fit(X, y)
    whole = SOURCE(net, curvature="projected", n_components=P, **params).fit(X, y)
    assert_allclose(whole.transform(X, y), exact.transform(X, y), rtol=1e-8)
    assert_allclose(whole.self_influence(), exact.self_influence(), rtol=1e-8)
    X, y, model, run = adaptive("AdamW")
    params = {"trajectory": run, "segments": 1}
    exact = SOURCE(model, curvature="exact", **params).fit(X, y)
    whole = SOURCE(model, curvature="projected", n_components=19, **params).fit(X, y)
    assert_allclose(whole.transform(X, y), exact.transform(X, y), rtol=1e-6, atol=1e-9)


def test_projected_is_exact_for_two_classes():
    """The loss is a function of the margin, so that its curvature is all that there is."""
    X, y, ensemble = network_run(n_outputs=2)
    model = ensemble.models[0]
    params = {"trajectory": ensemble.trajectories[0], "segments": 2}
    exact = SOURCE(model, curvature="exact", **params).fit(X, y)
    whole = SOURCE(model, curvature="projected", n_components=model.n_parameters, **params)
    scores = exact.transform(X, y)
    assert_allclose(whole.fit(X, y).transform(X, y), scores, rtol=1e-6, atol=1e-10)
    few = SOURCE(model, curvature="projected", n_components=24, random_state=0, **params)
    found = few.fit(X, y).transform(X, y)
    assert 0.5 < np.corrcoef(found.ravel(), scores.ravel())[0, 1] < 0.9999


# ---- segments and stages --------------------------------------------------------------------


def test_groups_are_the_best_of_all_partitions():
    points = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [9.0]])
    assert contiguous_groups(points, 0.99) == [[0, 1, 2], [3, 4], [5]]
    assert contiguous_groups(points, 0.8) == [[0, 1, 2], [3, 4, 5]]
    assert contiguous_groups(np.ones((4, 2)), 0.9) == [[0, 1, 2, 3]]
    assert contiguous_groups(points, 1.0) == [[k] for k in range(6)]


def test_segments_auto_cut_where_gradients_change():
    X, y = rows()
    net = linear()
    states = [copy.deepcopy(net.state_dict()) for _ in range(6)]
    for state in states[4:]:
        state["weight"] += 3.0
    run = Trajectory.from_checkpoints(states, range(10, 70, 10), 0.01)
    net.load_state_dict(states[-1])
    source = SOURCE(net, trajectory=run, segments="auto", **EXACT).fit(X, y)
    assert source.segments_ == [(0, 40, 4), (40, 60, 2)]


def test_a_stage_of_other_rows():
    """Rows of stage 1 reach the end through the curvature of stage 2's rows."""
    X, y, net, run = two_segments()
    first, second = np.arange(0, 16), np.arange(8, 24)  # they share rows 8 to 15
    stages = [Stage("one", 0, 10, rows=first), Stage("two", 10, 30, rows=second)]
    staged = Trajectory.from_checkpoints(
        [run.state(k) for k in range(4)], run.steps, run.learning_rates, stages=stages
    )
    H1, H2 = gauss_newton(X[first]), gauss_newton(X[second])
    final = as_final_model(net, X, criterion=nn.MSELoss())
    G = [gradients(model_at(run, k, final), X, y) for k in range(4)]
    test = gradients(final, X, y)
    R1 = (np.eye(P) - expm(-0.5 * H1)) @ np.linalg.inv(H1) / 16
    R2 = (np.eye(P) - expm(-0.4 * H2)) @ np.linalg.inv(H2) / 16
    of_first = test @ expm(-0.4 * H2) @ R1 @ (G[0] + G[1]).T / 2
    of_second = test @ R2 @ (G[2] + G[3]).T / 2
    one = SOURCE(net, trajectory=staged, segments=2, stage="one", **EXACT).fit(X, y)
    assert list(one.train_indices_) == list(first)
    assert_allclose(one.transform(X, y), of_first[:, first], rtol=1e-8)
    two = SOURCE(net, trajectory=staged, segments=2, stage=1, **EXACT).fit(X, y)
    assert_allclose(two.transform(X, y), of_second[:, second], rtol=1e-8)
    assert two.segments_ == [(10, 30, 2)]  # what was before has no part in it
    both = SOURCE(net, trajectory=staged, segments=2, **EXACT).fit(X, y)
    expected = np.zeros((N, N))
    expected[:, first] += of_first[:, first]
    expected[:, second] += of_second[:, second]
    assert_allclose(both.transform(X, y), expected, rtol=1e-8, atol=1e-12)
    assert_allclose(both.self_influence(), np.diag(expected), rtol=1e-8, atol=1e-12)


def test_segments_are_shared_out_among_stages():
    states = [linear().state_dict()] * 6
    stages = [Stage("a", 0, 40), Stage("b", 40, 60)]
    run = Trajectory.from_checkpoints(states, range(10, 70, 10), 0.1, stages=stages)
    cuts = cut_run(run, 3)
    assert [(c.start, c.stop, c.checkpoints, c.stage) for c in cuts] == [
        (0, 20, [0, 1], 0),
        (20, 40, [2, 3], 0),
        (40, 60, [4, 5], 1),
    ]
    assert [(c.start, c.stop) for c in cut_run(run, [20])] == [(0, 20), (20, 40), (40, 60)]


# ---- sign -----------------------------------------------------------------------------------


def test_agrees_with_training_with_less_of_the_row():
    """Sign and size, where training stopped early: the row's weight is lowered, by training again."""
    X, y = rows(0, 12)
    keep = list(range(2, 42, 2))
    net, states = descend(linear(), X, y, 0.01, 40, keep)
    run = Trajectory.from_checkpoints(states, keep, 0.01)
    scores = SOURCE(net, trajectory=run, segments=20, **EXACT).fit(X, y).transform(X, y)
    inputs, targets = torch.from_numpy(X), torch.from_numpy(y)
    less, truth = 0.01, np.empty((12, 12))
    for i in range(12):
        again = linear()
        optimizer = torch.optim.SGD(again.parameters(), lr=0.01)
        weights = torch.ones(12, 1).double()
        weights[i] -= less
        for _ in range(40):
            optimizer.zero_grad()
            (weights * (again(inputs) - targets) ** 2).sum().div(12).backward()
            optimizer.step()
        change = (again(inputs) - targets) ** 2 - (net(inputs) - targets) ** 2
        truth[:, i] = change[:, 0].detach() / less
    assert relative(scores, truth) < 0.05


# ---- errors ---------------------------------------------------------------------------------


def test_errors():
    X, y, net, run = two_segments()

    def fit(estimator=net, **params):
        return SOURCE(estimator, **{**EXACT, **params}).fit(X, y)

    with pytest.raises(ValueError, match=r"needs checkpoints.*TrajectoryRecorder.*'final'"):
        fit()
    with pytest.raises(ValueError, match="trajectory must be a Trajectory, 'final' or None"):
        fit(trajectory="last")
    with pytest.raises(ValueError, match="trajectory must hold checkpoints and steps"):
        fit(trajectory=Trajectory())
    one = Trajectory.from_checkpoints([run.state(3)], [30], 0.05)
    with pytest.raises(ValueError, match=r"that of checkpoints \(1\), got 3.*set segments=1"):
        fit(trajectory=one)
    assert fit(trajectory=one, segments=1).segments_ == [(0, 30, 1)]
    with pytest.raises(ValueError, match="segment of steps 5 to 7 has no checkpoint"):
        fit(trajectory=run, segments=[5, 7])
    with pytest.raises(ValueError, match="numbers of steps between 1 and 30"):
        fit(trajectory=run, segments=[5, 70])
    with pytest.raises(ValueError, match=r"another architecture.*'weight' must have shape"):
        fit(nn.Linear(P, 1, bias=False).double(), trajectory=adaptive("SGD")[3])
    states = [run.state(k) for k in range(4)]
    for name in ("Lion", "NAdam"):
        unknown = Trajectory.from_checkpoints(states, run.steps, 0.1, optimizer=name)
        with pytest.raises(ValueError, match=r"optimizer.*SGD"):
            fit(trajectory=unknown)
    stages = [Stage("a", 0, 2, n_rows=5), Stage("b", 2, 30, n_rows=5)]
    bad = Trajectory.from_checkpoints(states, run.steps, 0.1, stages=stages)
    with pytest.raises(ValueError, match=r"trained on \[5, 5\] rows, X has 24"):
        fit(trajectory=bad)
    stages = [Stage("a", 0, 2), Stage("b", 2, 30)]
    bad = Trajectory.from_checkpoints(states, run.steps, 0.1, stages=stages)
    with pytest.raises(ValueError, match=r"'a' \(steps 0 to 2\) has no checkpoint"):
        fit(trajectory=bad)
    with pytest.raises(ValueError, match="stage must be the name or the number"):
        fit(trajectory=run, stage="c")
    with pytest.raises(ValueError, match="n_epochs must be given"):
        fit(trajectory="final")
    with pytest.raises(MemoryError, match="set curvature='ekfac'"):
        fit(trajectory=run, memory_budget=100)


def test_clipped_gradients_are_warned_of():
    X, y = rows()
    net = NeuralNetRegressor(
        nn.Linear(P, 1).double(),
        max_epochs=2,
        train_split=None,
        verbose=0,
        callbacks=[TrajectoryRecorder(2), GradientNormClipping(1.0)],
    ).fit(X, y)
    with pytest.warns(UserWarning, match=r"does not see all of this training: .*clipped"):
        SOURCE(net, segments=1).fit(X, y)


def test_final_alone_is_one_checkpoint_for_trac_in_too():
    X, y = rows()
    net = linear(bias=True)
    params = {"n_epochs": 3, "lr": 0.1, "batch_size": 6, "criterion": nn.MSELoss()}
    grad_dot = GradDot(net, reweight_others=False, **params).fit(X, y).transform(X, y)
    tracin = TracIn(net, trajectory="final", **params).fit(X, y)
    assert_allclose(tracin.transform(X, y), grad_dot, rtol=1e-10)
