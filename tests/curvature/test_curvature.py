"""Curvature operators against dense matrices from plain loops of autograd, in float64."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from naive import close
from numpy.testing import assert_allclose, assert_array_equal
from problems import LOSSES, NETWORKS, N, Problem, problem
from torch import Tensor, nn

from fimoda import FinalModel, as_final_model
from fimoda.curvature.cg import conjugate_gradients
from fimoda.curvature.exact import DualGaussNewton, PrimalSolver
from fimoda.curvature.jacobian import factored_jacobian
from fimoda.curvature.kernel import OutputKernel
from fimoda.curvature.krylov import shifted_solutions
from fimoda.curvature.lanczos import TopEigenpairs, extreme_eigenvalues
from fimoda.curvature.lissa import automatic_scale, batch_series, full_series
from fimoda.curvature.operators import (
    CURVATURES,
    EmpiricalFisher,
    GaussNewton,
    Hessian,
    activation_bytes,
    sampled_fisher,
)
from fimoda.curvature.preconditioner import EKFACPreconditioner
from fimoda.curvature.rowwise_gauss_newton import RowwiseGaussNewton
from fimoda.losses import SquaredError
from fimoda.losses.classification import SmoothedCrossEntropy
from fimoda.measured import Measured
from fimoda.measurements import Output
from fimoda.objective import Objective
from fimoda.row_gradients import RowDifferentiator
from fimoda.rows import Rows

# ---- operators ------------------------------------------------------------------------------

EXACT = ["gauss-newton", "hessian", "empirical-fisher"]


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("network", NETWORKS)
def test_equals_the_loop(network, loss, name):
    case = problem(network, loss)
    curvature, expected = case.curvature(name), case.reference(name)
    assert curvature.shape == expected.shape
    V = torch.from_numpy(np.random.default_rng(2).normal(size=(5, len(expected))))
    close(curvature.matmat(V), V.numpy() @ expected)
    close(curvature.dense(), expected)
    operator = curvature.linear_operator()
    close(operator @ V.numpy().T, expected @ V.numpy().T)
    close(operator.matvec(V[0].numpy()), expected @ V[0].numpy())
    eye = torch.eye(len(expected), dtype=torch.float64)
    product = curvature.matmat(eye)
    close(product, product.T)


@pytest.mark.parametrize("name", CURVATURES)
def test_memory_budget_does_not_matter(name):
    case = problem("conv")
    V = torch.from_numpy(np.random.default_rng(2).normal(size=(3, case.model.n_parameters)))
    whole, cut = case.curvature(name), case.curvature(name, memory_budget=1)
    assert whole._chunk_size(3) == N
    assert cut._chunk_size(3) == 1
    close(cut.matmat(V), whole.matmat(V), 1e-12)


@pytest.mark.parametrize("name", CURVATURES)
def test_penalty(name):
    case = problem()
    l2 = torch.linspace(0, 1, case.model.n_parameters, dtype=torch.float64)
    plain = case.curvature(name, penalty=True).dense()
    close(plain, case.curvature(name).dense())
    object.__setattr__(case.model, "l2", l2)
    close(case.curvature(name, penalty=True).dense(), plain + torch.diag(l2))
    close(case.curvature(name).dense(), plain)


@pytest.mark.parametrize("name", CURVATURES)
def test_double_precision_of_a_float32_model(name):
    case = problem()
    single = case.model.to(torch.float32)
    curvature = CURVATURES[name](
        Objective(single, Rows(case.X.float(), case.y, case.weights.float()))
    )
    curvature.matmat(
        torch.ones(1, single.n_parameters)
    )  # a cached differentiator is not taken over
    assert curvature.double.dense().dtype == torch.float64
    assert curvature.dense().dtype == torch.float32
    close(curvature.dense(), curvature.double.dense(), 1e-5)
    exact = CURVATURES[name](
        Objective(single.double, Rows(case.X.float().double(), case.y, case.weights))
    )
    close(curvature.double.dense(), exact.dense(), 1e-6)


@pytest.mark.parametrize("name", EXACT)
def test_restricted_to_rows_is_unbiased(name):
    case = problem()
    object.__setattr__(case.model, "l2", torch.full((case.model.n_parameters,), 0.1).double())
    curvature = case.curvature(name, penalty=True)
    parts = [curvature.restricted(np.array([i, j])).dense() for i in range(N) for j in range(i)]
    close(torch.stack(parts).mean(0), curvature.dense())
    assert float((parts[0] - parts[5]).norm()) > 1e-3 * float(parts[0].norm())


@pytest.mark.parametrize("loss", LOSSES)
def test_sampled_fisher_tends_to_gauss_newton(loss):
    """The error falls with the square root of the number of draws: 400, then 25 times as many."""
    case = problem(loss=loss, weighted=False)
    exact = case.curvature("gauss-newton").dense()

    def error(n_draws: int, seed: int) -> float:
        X, y = case.X.repeat(n_draws, 1), case.y.repeat(n_draws, *[1] * (case.y.dim() - 1))
        drawn = sampled_fisher(
            Objective(case.model, Rows(X, y, torch.ones(len(X)))), seed=seed
        ).dense()
        return float((drawn - exact).norm() / exact.norm())

    few, many = error(400, 0), error(10_000, 0)
    assert error(400, 0) == few != error(400, 1)
    assert few < 0.2
    assert many < 0.03


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("loss", LOSSES)
def test_gauss_newton_kept_as_factors_or_not(network, loss):
    """The Jacobian is kept where it fits; both ways are the same."""
    case = problem(network, loss)
    kept, fresh = case.curvature("gauss-newton"), case.curvature("gauss-newton", memory_budget=1)
    assert kept._jacobian is not None
    assert fresh._jacobian is None
    V = torch.from_numpy(np.random.default_rng(2).normal(size=(3, case.model.n_parameters)))
    close(kept.matmat(V), V.numpy() @ case.reference("gauss-newton"))
    close(fresh.matmat(V), V.numpy() @ case.reference("gauss-newton"))
    rows = np.array([4, 0])
    close(kept.restricted(rows).matmat(V), fresh.restricted(rows).matmat(V))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("network", NETWORKS)
def test_gauss_newton_by_gradients_of_rows(network, loss):
    case = problem(network, loss)
    by_rows = RowwiseGaussNewton.of(case.curvature("gauss-newton", memory_budget=1).objective)
    V = torch.from_numpy(np.random.default_rng(2).normal(size=(5, case.model.n_parameters)))
    close(by_rows.matmat(V), V.numpy() @ case.reference("gauss-newton"))


def test_gauss_newton_takes_gradients_of_rows_for_many_vectors():
    case = problem("conv", "classes")
    curvature = case.curvature("gauss-newton", memory_budget=1)
    assert curvature._jacobian is None
    assert not curvature._by_rows.takes_less(1)
    assert curvature._by_rows.takes_less(1000)
    smoothed = replace(case.model, loss=SmoothedCrossEntropy(0.1))
    assert RowwiseGaussNewton.of(curvature.objective.at(smoothed)) is None


def test_what_is_kept_is_not_pickled():
    case = problem()
    curvature, V = case.curvature("gauss-newton"), torch.ones(1, case.model.n_parameters).double()
    product = curvature.matmat(V)
    assert curvature._jacobian is not None
    again = pickle.loads(pickle.dumps(curvature))
    assert "_jacobian" in vars(curvature)
    assert "_jacobian" not in vars(again)
    close(again.matmat(V), product, 1e-12)


class Convolutions(nn.Module):
    """Layers with positions: an image of 4 x 4, and a linear layer on a sequence."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 2, padding=1, stride=2)
        self.mix = nn.Linear(9, 5, bias=False)
        self.head = nn.Linear(15, 3)

    def forward(self, X):
        hidden = torch.tanh(self.conv(X)).flatten(2)
        return self.head(torch.relu(self.mix(hidden)).flatten(1))


def convolutions() -> tuple[FinalModel, Tensor, Tensor]:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(7, 1, 4, 4)), rng.integers(3, size=7)
    model = as_final_model(Convolutions().double(), X, y, criterion=nn.CrossEntropyLoss())
    return model, model.encode_X(X), model.encode_y(y, 3)


def test_factored_jacobian_of_layers_with_positions():
    model, X, y = convolutions()
    jacobian = factored_jacobian(Objective(model, Rows(X, y)), 2**20)
    J = model.jacobian(X)
    V = torch.from_numpy(np.random.default_rng(2).normal(size=(4, model.n_parameters)))
    U = torch.from_numpy(np.random.default_rng(3).normal(size=(7, 4, 3)))
    close(jacobian.push(V), torch.einsum("ncp,kp->nkc", J, V))
    close(jacobian.pull(U), torch.einsum("ncp,nkc->kp", J, U))
    close(jacobian[torch.tensor([5, 2])].push(V), jacobian.push(V)[[5, 2]])
    needed = sum(8 * (part.inputs.numel() + part.signals.numel()) for part in jacobian.parts)
    assert factored_jacobian(Objective(model, Rows(X, y)), needed) is not None
    assert factored_jacobian(Objective(model, Rows(X, y)), needed - 1) is None


def test_activations_of_a_row_are_counted():
    """Chunks allow for all that the forward pass keeps, also where feature maps exceed weights."""
    model, X, y = convolutions()
    kept = []
    theta = model.theta.clone().requires_grad_()
    parameters = {p.data_ptr() for p in model.views(theta).values()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model.forward(theta, X)
    rows = [t for t in kept if t.data_ptr() not in parameters]
    needed = sum({t.data_ptr(): t.numel() * 8 for t in rows}.values()) / len(X)
    assert needed >= 8 * (16 + 3 * 9 + 3 * 5)  # the image and two layers of feature maps
    assert activation_bytes(model, X) >= needed
    weights = torch.ones(len(X), dtype=torch.float64)
    for k in (1, 3):
        curvature = Hessian(
            Objective(model, Rows(X, y, weights), memory_budget=int(16 * k * needed))
        )
        assert 1 <= curvature._chunk_size(k) * k * needed <= curvature.objective.memory_budget
        whole = Hessian(Objective(model, Rows(X, y, weights)))
        V = torch.from_numpy(np.random.default_rng(2).normal(size=(k, model.n_parameters)))
        close(curvature.matmat(V), whole.matmat(V))


def test_sampled_fisher_needs_a_distribution():
    case = problem(loss="two targets")
    model = as_final_model(case.module, case.X.numpy(), criterion=nn.HuberLoss())
    with pytest.raises(ValueError, match="targets cannot be sampled"):
        sampled_fisher(Objective(model, Rows(case.X, case.y, case.weights)))
    assert isinstance(case.model.loss, SquaredError)


# ---- row gradients --------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_apply_combine_dense(network):
    case = problem(network)
    gradients = RowDifferentiator(case.model, case.X[:2])(
        Measured(Rows(case.X, case.y), case.model.loss)
    )
    G = torch.stack([case.gradient(i) for i in range(N)])
    rng = np.random.default_rng(0)
    V = torch.from_numpy(rng.normal(size=(6, G.shape[1])))
    weights = torch.from_numpy(rng.normal(size=(N, 6)))
    close(gradients.dense(), G)
    close(gradients.apply(V), G @ V.T)
    close(gradients.combine(weights), weights.T @ G)
    close(gradients.second_moment(weights[:, 0]), weights[:, 0] @ G**2)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("network", NETWORKS)
def test_output_kernel(network, loss):
    case = problem(network, loss)
    J = torch.stack([case.jacobian(i) for i in range(N)])
    expected = torch.einsum("icp,jdp->icjd", J, J)
    rows = Rows(case.X, case.y)
    close(OutputKernel(Objective(case.model, rows))(), expected)
    cut = OutputKernel(Objective(case.model, rows, memory_budget=1))
    assert cut._chunk == 1
    close(cut(), expected)
    close(cut(rows[2:5]), expected[2:5])


def test_output_kernel_is_of_the_outputs():
    case = problem()
    first = RowDifferentiator(case.model, case.X[:2])(
        Measured(Rows(case.X, case.y), Output(1))
    ).dense()
    close(first, torch.stack([case.jacobian(i)[1] for i in range(N)]))


# ---- solvers --------------------------------------------------------------------------------


def right_hand_sides(case: Problem, k: int = 4) -> Tensor:
    return torch.from_numpy(np.random.default_rng(5).normal(size=(k, case.model.n_parameters)))


def solved(case: Problem, name: str, V: Tensor, damping: float) -> np.ndarray:
    C = case.reference(name)
    return np.linalg.solve(C + damping * np.eye(len(C)), V.numpy().T).T


@pytest.mark.parametrize("name", EXACT)
def test_primal_solver(name):
    case = problem()
    solver, V = PrimalSolver(case.curvature(name)), right_hand_sides(case)
    for damping in (1.0, 2.0):
        close(solver.solve(V, damping), solved(case, name, V, damping))


@pytest.mark.parametrize("tol", [1e-3, 1e-6, 1e-10])
@pytest.mark.parametrize("name", EXACT)
def test_conjugate_gradients(name, tol):
    case = problem()
    V, damping = right_hand_sides(case), 1.0
    V[2] = 0
    found = conjugate_gradients(case.curvature(name), V, damping, tol, 1000)
    C = case.reference(name) + damping * np.eye(V.shape[1])
    left = np.linalg.norm(V.numpy() - found.u.numpy() @ C, axis=1)
    size = np.linalg.norm(V.numpy(), axis=1)
    assert (left <= tol * size).all()
    assert_array_equal(found.u[2], 0)
    close(found.residuals.numpy() * np.where(size > 0, size, 1), left, 1e-3 if tol > 1e-8 else 1)
    assert 0 < found.n_iter <= V.shape[1] + 5


def test_conjugate_gradients_that_stop_early_are_nearer_than_zero():
    """In the norm of the matrix: the residual may be larger than the right-hand side still."""
    case = problem("chain", "binary")
    curvature = case.curvature("gauss-newton")
    damping = 1e-6
    A = curvature.dense() + damping * torch.eye(case.model.n_parameters).double()
    V = torch.from_numpy(np.random.default_rng(2).normal(size=(40, len(A))))
    exact = torch.linalg.solve(A, V.mT).mT

    def energy(u: Tensor) -> Tensor:
        return ((exact - u) @ A * (exact - u)).sum(1)

    found = conjugate_gradients(curvature, V, damping, 1e-10, 2)
    assert (found.residuals > 1).any()
    assert (found.u.abs().amax(1) > 0).all()
    assert (energy(found.u) < energy(torch.zeros_like(V))).all()
    close(found.residuals, (V - found.u @ A).norm(dim=1) / V.norm(dim=1), 1e-6)


def test_conjugate_gradients_solve_each_column_on_its_own():
    """A column does not depend on the others, and stops when it is done."""
    case = problem()
    curvature, V = case.curvature("gauss-newton"), right_hand_sides(case, 5)
    V[1] = torch.linalg.eigh(curvature.dense())[1][:, -1]  # done in one iteration
    together = conjugate_gradients(curvature, V, 0.1, 1e-4, 100)
    alone = [conjugate_gradients(curvature, v[None], 0.1, 1e-4, 100) for v in V]
    assert alone[1].n_iter == 1
    assert together.n_iter == max(one.n_iter for one in alone) > 1
    close(together.u, torch.cat([one.u for one in alone]), 1e-12)


def ill_conditioned(with_norm: bool) -> tuple[GaussNewton, np.ndarray, Tensor]:
    """More rows than parameters, inputs of sizes that differ by a factor of a hundred."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 6)) * np.logspace(-1, 1, 6)
    y = rng.normal(size=(200, 2))
    torch.manual_seed(0)
    norm = nn.LayerNorm(5) if with_norm else nn.Identity()
    module = nn.Sequential(nn.Linear(6, 5), norm, nn.Tanh(), nn.Linear(5, 2)).double()
    model = as_final_model(module, X, y, criterion=nn.MSELoss())
    rows = model.encode_X(X), model.encode_y(y, 2)
    weights = torch.from_numpy(rng.uniform(0.2, 2, 200))
    curvature = GaussNewton(Objective(model, Rows(*rows, weights)))
    J = model.jacobian(rows[0]).numpy()
    shares = (weights / weights.sum()).numpy()
    V = torch.from_numpy(rng.normal(size=(4, model.n_parameters)))
    return curvature, np.einsum("n,ncp,ncq->pq", shares, J, J), V  # W is the identity: 2 / C


@pytest.mark.parametrize("skips", [False, True])
def test_preconditioned_conjugate_gradients(skips):
    """The same solution in fewer iterations, also where a layer is not treated."""
    curvature, C, V = ill_conditioned(skips)
    damping, tol = 1e-4, 1e-8
    exact = np.linalg.solve(C + damping * np.eye(len(C)), V.numpy().T).T
    preconditioner = EKFACPreconditioner(curvature)
    plain = conjugate_gradients(curvature, V, damping, tol, 2000)
    found = conjugate_gradients(curvature, V, damping, tol, 2000, preconditioner)
    assert float(found.residuals.max()) <= tol
    close(found.u, exact, 1e-4)
    close(plain.u, exact, 1e-4)
    assert found.n_iter < 0.75 * plain.n_iter


def test_preconditioner_is_symmetric_and_exact_on_one_layer():
    curvature, _, V = ill_conditioned(True)
    preconditioner = EKFACPreconditioner(curvature)
    M = preconditioner(torch.eye(V.shape[1], dtype=torch.float64), 0.1)
    close(M, M.mT)
    assert float(torch.linalg.eigvalsh(M)[0]) > 0
    rows = curvature.objective.rows
    model = as_final_model(
        nn.Linear(6, 2).double(),
        rows.inputs.numpy(),
        rows.targets.numpy(),
        criterion=nn.MSELoss(),
    )
    linear = GaussNewton(Objective(model, rows))
    V = V[:, : model.n_parameters]
    found = conjugate_gradients(linear, V, 0.1, 1e-8, 100, EKFACPreconditioner(linear))
    assert found.n_iter <= 2


@pytest.mark.parametrize("name", EXACT)
def test_shifted_solutions(name):
    """One Krylov space gives the solutions of all dampings; NaN where C is not positive on it."""
    case = problem()
    C, V = case.reference(name), right_hand_sides(case)
    V[1] = 0
    lowest = float(np.linalg.eigvalsh(C)[0])
    dampings = [0.3, 3.0, 0.05 - min(lowest, 0), 100.0, *([-lowest / 2] if lowest < -1e-6 else [])]
    assert len(dampings) == 4 + (name == "hessian")
    found = shifted_solutions(case.curvature(name), V, dampings, 1e-10, 1000)
    for damping, u in zip(dampings[:4], found, strict=False):
        if damping > -lowest:
            close(u, np.linalg.solve(C + damping * np.eye(len(C)), V.numpy().T).T, 1e-7)
    for u in found[4:]:
        assert bool(u[[0, 2, 3]].isnan().any())
    few = shifted_solutions(case.curvature(name), V, [1000.0], 1e-10, 1)[0]
    image = V.numpy() @ C + 1000 * V.numpy()
    steps = np.einsum("kp,kp->k", V, V) / np.maximum(np.einsum("kp,kp->k", V, image), 1e-300)
    close(few, steps[:, None] * V.numpy())


def test_conjugate_gradients_in_float32_reach_the_true_residual():
    case = problem()
    single = case.model.to(torch.float32)
    curvature = GaussNewton(Objective(single, Rows(case.X.float(), case.y, case.weights.float())))
    V = right_hand_sides(case).float()
    found = conjugate_gradients(curvature, V, 1e-3, 1e-6, 1000)
    product = curvature.matmat(found.u.float()).double() + 1e-3 * found.u
    left = (V.double() - product).norm(dim=1) / V.double().norm(dim=1)
    assert found.u.dtype == torch.float64
    assert_allclose(found.residuals, left, rtol=1e-12)
    assert float(left.max()) < 1e-5


def test_conjugate_gradients_meet_negative_curvature():
    case = problem()
    values, vectors = torch.linalg.eigh(case.curvature("hessian").dense())
    assert float(values[0]) < 0
    V = vectors[:, :1].mT.contiguous()
    with pytest.raises(ValueError, match=r"Raise damping, or use curvature='gauss-newton'"):
        conjugate_gradients(case.curvature("hessian"), V, float(-values[0]) / 2, 1e-6, 10)
    found = conjugate_gradients(case.curvature("hessian"), V, float(-2 * values[0]), 1e-6, 10)
    close(found.u, V / -float(values[0]))


@pytest.mark.parametrize("name", EXACT)
def test_extreme_eigenvalues(name, monkeypatch):
    case = problem()
    values = np.linalg.eigvalsh(case.reference(name))
    for small in (1024, 0):
        monkeypatch.setattr("fimoda.curvature.lanczos._SMALL", small)
        lowest, largest = extreme_eigenvalues(case.curvature(name))
        assert_allclose(largest, values[-1], rtol=1e-2)
        if name == "hessian":
            assert values[0] < 0
            assert_allclose(lowest, values[0], atol=1e-2 * np.abs(values).max())
        else:
            assert lowest == 0


def test_extreme_eigenvalues_with_a_penalty(monkeypatch):
    monkeypatch.setattr("fimoda.curvature.lanczos._SMALL", 0)
    case = problem()
    object.__setattr__(
        case.model, "l2", torch.full((case.model.n_parameters,), 0.3, dtype=torch.float64)
    )
    lowest, largest = extreme_eigenvalues(case.curvature("gauss-newton", penalty=True))
    assert_allclose(
        largest, np.linalg.eigvalsh(case.reference("gauss-newton"))[-1] + 0.3, rtol=0.01
    )
    assert lowest == 0.3


@pytest.mark.parametrize("damping", [0.2, 1.0])
def test_full_series(damping):
    """Within its tolerance, and each term shrinks the error as the formula says."""
    case = problem()
    curvature, V = case.curvature("gauss-newton"), right_hand_sides(case)
    exact = solved(case, "gauss-newton", V, damping)
    top = np.linalg.eigvalsh(case.reference("gauss-newton"))[-1]
    scale = automatic_scale(0.0, top, damping, N, None)
    found = full_series(curvature, V, damping, scale, 10_000, 1e-4, damping)
    assert found.converged
    error = np.linalg.norm(found.u.numpy() - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert 0 < error.max() <= 1e-4
    for depth in (1, 7):
        short = full_series(curvature, V, damping, scale, depth, 1e-12, damping)
        assert not short.converged
        assert short.n_iter == depth
        values, Q = np.linalg.eigh(case.reference("gauss-newton"))
        relative = (1 - (values + damping) / scale) ** (depth + 1)
        close(short.u.numpy() @ Q, (exact @ Q) * (1 - relative))
        assert np.abs(relative).max() <= (1 - damping / scale) ** (depth + 1) * (1 + 1e-12)


@pytest.mark.parametrize("name", ["gauss-newton", "hessian"])
def test_batch_series(name):
    case, batch_size = problem(weighted=False), 4
    curvature, V, damping = case.curvature(name), right_hand_sides(case), 1.0
    exact = solved(case, name, V, damping)
    values = np.linalg.eigvalsh(case.reference(name))
    assert (values[0] < -1e-3) == (name == "hessian")
    scale = automatic_scale(min(values[0], 0.0), values[-1], damping, N, batch_size)
    found = batch_series(curvature, V, damping, scale, 200, batch_size, seed=0).u.numpy()
    cosine = (found * exact).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosine.min() > 0.99
    again = batch_series(curvature, V, damping, scale, 20, batch_size, seed=0).u
    assert_array_equal(batch_series(curvature, V, damping, scale, 20, batch_size, seed=0).u, again)
    other = batch_series(curvature, V, damping, scale, 20, batch_size, seed=1).u
    assert not torch.equal(other, again)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_scale_of_batches_contracts_in_mean_square(batch_size):
    """E (I - A_B/s)^2 has no eigenvalue above 1 - lambda/s, over all batches of that size."""
    from itertools import combinations

    case = problem(weighted=False)
    curvature, damping = case.curvature("gauss-newton"), 0.1
    rows = [curvature.restricted(np.array([i])).dense().numpy() for i in range(N)]
    top = np.linalg.eigvalsh(np.mean(rows, 0))[-1]
    s = automatic_scale(0.0, top / 1.05, damping, N, batch_size)
    eye = np.eye(len(rows[0]))
    squares = []
    for batch in combinations(range(N), batch_size):
        step = eye - (np.mean([rows[i] for i in batch], 0) + damping * eye) / s
        squares.append(step @ step)
    assert np.linalg.eigvalsh(np.mean(squares, 0))[-1] <= 1 - damping / s + 1e-12


def test_series_diverges():
    case = problem()
    curvature, V = case.curvature("gauss-newton"), right_hand_sides(case)
    top = float(np.linalg.eigvalsh(case.reference("gauss-newton"))[-1])
    with pytest.raises(FloatingPointError, match=r"diverges with scale=.*larger scale"):
        full_series(curvature, V, 0.1, top / 4, 10_000, 1e-3, 0.1)
    with pytest.raises(FloatingPointError, match="diverges"):
        batch_series(curvature, V, 0.1, top / 20, 10_000, 3, 0)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("small", [0, 1024])
def test_top_eigenpairs(name, small, monkeypatch):
    monkeypatch.setattr("fimoda.curvature.lanczos._SMALL", small)
    case = problem()
    C = case.reference(name)
    values, Q = np.linalg.eigh(C)
    order = np.argsort(np.abs(values))
    for k in (1, 4, 9, len(C) - 1, len(C)):
        top = TopEigenpairs(case.curvature(name), k)
        k = min(k, 3 * N if name != "hessian" else k)
        kept = np.sort(order[-k:])
        assert_allclose(top.eigenvalues, values[kept], rtol=0, atol=1e-9 * values[-1])
        V, damping = right_hand_sides(case), 1.5
        inside = V.numpy() @ Q[:, kept]
        expected = inside / (values[kept] + damping) @ Q[:, kept].T
        if values[order[-k]] > 1e-6:  # else the span is not unique
            close(top.solve(V, damping), expected, 1e-7)
        rest = V.numpy() - inside @ Q[:, kept].T
        if values[order[-k]] > 1e-6:
            close(top.solve(V, damping, complement=True), expected + rest / damping, 1e-7)
    close(top.solve(V, damping, complement=True), solved(case, name, V, damping), 1e-9)


def test_top_eigenpairs_are_no_more_than_the_rank(monkeypatch):
    """More rows than that are not looked for, unless the penalty has curvature everywhere."""
    monkeypatch.setattr("fimoda.curvature.lanczos._SMALL", 0)
    case = problem(loss="two targets")
    p, few = case.model.n_parameters, slice(4)
    parts = case.X[few], case.y[few], torch.ones(4, dtype=torch.float64)
    top = TopEigenpairs(GaussNewton(Objective(case.model, Rows(*parts))), p - 2)
    assert len(top.eigenvalues) == 8 < p - 2
    V = right_hand_sides(case)
    exact = PrimalSolver(GaussNewton(Objective(case.model, Rows(*parts)))).solve(V, 0.5)
    close(top.solve(V, 0.5, complement=True), exact)
    object.__setattr__(case.model, "l2", torch.ones(p, dtype=torch.float64))
    assert (
        len(
            TopEigenpairs(
                GaussNewton(Objective(case.model, Rows(*parts)), penalty=True), p - 2
            ).eigenvalues
        )
        == p - 2
    )


def test_top_eigenpairs_need_memory_and_damping():
    case = problem()
    curvature = case.curvature("gauss-newton")
    with pytest.raises(MemoryError, match="Lower n_components, raise memory_budget"):
        TopEigenpairs(
            replace(curvature, objective=replace(curvature.objective, memory_budget=1000)), 3
        )
    with pytest.raises(ValueError, match="divides by the damping"):
        TopEigenpairs(curvature, 3).solve(right_hand_sides(case), 0.0, complement=True)


def test_dual_needs_a_convex_loss_with_curvature():
    case = problem(loss="two targets")
    flat = as_final_model(case.module, case.X.numpy(), criterion=nn.HuberLoss(delta=0.1))
    with pytest.raises(ValueError, match="flat pieces"):
        DualGaussNewton(Objective(flat, Rows(case.X, case.y, case.weights)))

    class Welsch(nn.Module):
        reduction = "mean"

        def forward(self, f, y):
            rows = (1 - torch.exp(-((f - y) ** 2))).mean(1)
            return rows if self.reduction == "none" else rows.mean()

    model = as_final_model(case.module, case.X.numpy(), criterion=Welsch())
    with pytest.raises(ValueError, match="not convex in the outputs"):
        DualGaussNewton(Objective(model, Rows(case.X, case.y, case.weights)))


def test_names():
    assert CURVATURES == {
        "gauss-newton": GaussNewton,
        "hessian": Hessian,
        "empirical-fisher": EmpiricalFisher,
        "sampled-fisher": sampled_fisher,
    }
