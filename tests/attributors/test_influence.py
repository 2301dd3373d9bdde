"""Influence functions against dense references, exact refits and each other."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from naive import close, refits
from numpy.testing import assert_allclose, assert_array_equal
from problems import LOSSES, D, N, problem, tanh_network
from sklearn.datasets import load_diabetes
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDRegressor
from sklearn.preprocessing import scale
from torch import nn

from fimoda import (
    ArnoldiInfluence,
    CGInfluence,
    EKFACInfluence,
    ExactInfluence,
    GradDot,
    LiSSAInfluence,
    as_final_model,
)
from fimoda.attributors import exact_influence
from fimoda.curvature.exact import DualGaussNewton, PrimalSolver
from fimoda.curvature.operators import GaussNewton
from fimoda.curvature.trace import gauss_newton_trace
from fimoda.objective import Objective
from fimoda.rows import Rows

N_TEST = 4


def test_rows(loss: str):
    rng = np.random.default_rng(8)
    y = {
        "classes": rng.integers(3, size=N_TEST),
        "binary": rng.integers(2, size=N_TEST),
        "two targets": rng.normal(size=(N_TEST, 2)),
    }[loss]
    return rng.normal(size=(N_TEST, D)), y


test_rows.__test__ = False


class Case:
    """A network with its training rows, test rows and reference scores."""

    def __init__(self, network: str = "chain", loss: str = "classes"):
        self.problem = problem(network, loss)
        self.criterion = LOSSES[loss][1]
        self.X, self.y = self.problem.X.numpy(), self.problem.y.numpy()
        self.weights = self.problem.weights.numpy()
        self.X_test, self.y_test = test_rows(loss)

    def fit(self, cls, **params):
        given = {"reweight_others": False, **params}
        made = cls(self.problem.module, criterion=self.criterion, **given)
        return made.fit(self.X, self.y, sample_weight=self.weights)

    def scores(self, fitted) -> np.ndarray:
        return fitted.transform(self.X_test, self.y_test)

    def reference(self, damping: float, curvature: str | np.ndarray = "gauss-newton") -> np.ndarray:
        case = self.problem
        G = np.array([case.gradient(i).numpy() for i in range(N)])
        C = case.reference(curvature) if isinstance(curvature, str) else curvature
        C = C + damping * np.eye(G.shape[1])
        X = case.X
        case.X = torch.from_numpy(self.X_test)
        M = np.array(
            [case.gradient(z, torch.as_tensor(self.y_test[z])).numpy() for z in range(N_TEST)]
        )
        case.X = X
        return M @ np.linalg.solve(C, G.T) * self.weights / self.weights.sum()

    def automatic(self, curvature: str = "gauss-newton") -> float:
        G = np.array([self.problem.gradient(i).numpy() for i in range(N)])
        share = self.weights / self.weights.sum()
        by_gradients = 1000 * float(share @ (G**2).mean(1))
        if curvature == "hessian":
            return by_gradients
        return min(by_gradients, 0.05 * float(self.problem.reference(curvature).trace()))


def cosine(a, b) -> float:
    """The lowest cosine between rows."""
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


# ---- exact ----------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("network", ["chain", "conv"])
def test_dual_and_primal_equal_the_reference(network, loss):
    case = Case(network, loss)
    dual, primal = (case.fit(ExactInfluence, damping=0.3) for _ in range(2))
    n_outputs = N * LOSSES[loss][0]
    smaller = n_outputs <= case.problem.model.n_parameters
    assert (dual._dual is not None, dual._primal is None) == (smaller, smaller)
    dual._dual, dual._primal = DualGaussNewton(dual._objective), None
    primal._dual, primal._primal = None, PrimalSolver(GaussNewton(primal._objective, penalty=True))
    for damping in (0.3, 1e-2, 10.0):
        dual.damping_ = primal.damping_ = damping
        expected = case.reference(damping)
        close(case.scores(dual), expected, 1e-8)
        close(case.scores(primal), expected, 1e-8)
        close(case.scores(dual), case.scores(primal), 1e-8)


@pytest.mark.parametrize("curvature", ["gauss-newton", "hessian", "empirical-fisher"])
def test_every_curvature(curvature):
    case = Case()
    fitted = case.fit(ExactInfluence, curvature=curvature, damping=1.0)
    close(case.scores(fitted), case.reference(1.0, curvature), 1e-8)


@pytest.mark.parametrize("cls", [ExactInfluence, CGInfluence, LiSSAInfluence, ArnoldiInfluence])
def test_automatic_damping_and_defaults(cls):
    """Default settings come within cosine 0.999 of the exact solution."""
    case = Case()
    fitted = case.fit(cls)
    assert_allclose(fitted.damping_, case.automatic(), rtol=1e-10)
    assert cosine(case.scores(fitted), case.reference(case.automatic())) >= 0.999


@pytest.mark.parametrize("curvature", ["hessian", "empirical-fisher"])
def test_automatic_damping_of_other_curvatures(curvature):
    case = Case()
    fitted = case.fit(ExactInfluence, curvature=curvature)
    assert_allclose(fitted.damping_, case.automatic(curvature), rtol=1e-10)


def test_automatic_damping_by_gradients():
    """Where residuals are small the trace does not bound it."""
    case = Case(loss="two targets")
    outputs = case.problem.model.outputs(case.problem.X)
    noise = np.random.default_rng(0).normal(size=outputs.shape)
    y = outputs.numpy() + 1e-3 * noise
    fitted = ExactInfluence(case.problem.module, criterion=case.criterion).fit(case.X, y)
    G = fitted._objective.differentiate(fitted._objective.losses).dense()
    assert_allclose(fitted.damping_, 1000 * float((G**2).mean()), rtol=1e-10)
    assert fitted.damping_ < 0.05 * float(
        GaussNewton(fitted._objective, penalty=True).dense().trace()
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("network", ["chain", "conv"])
def test_trace(network, loss):
    case = Case(network, loss).problem
    dense = float(case.reference("gauss-newton").trace())
    for chunk_size in (3, N):
        rows = Rows(case.X, case.y, case.weights)
        found = gauss_newton_trace(Objective(case.model, rows, chunk_size=chunk_size))
        assert found == pytest.approx(dense, rel=1e-8)


def test_trace_with_many_outputs():
    """Sums of outputs with random signs: close, and the same in any order of the rows."""
    torch.manual_seed(0)
    net, X = nn.Linear(5, 40).double(), torch.randn(200, 5, dtype=torch.float64)
    model = as_final_model(net, X, criterion=nn.CrossEntropyLoss())
    rows = X, torch.arange(200) % 40, torch.ones(200, dtype=torch.float64)
    found = gauss_newton_trace(Objective(model, Rows(*rows), chunk_size=64))
    assert found == pytest.approx(
        float(GaussNewton(Objective(model, Rows(*rows))).dense().trace()), rel=0.05
    )
    turned = Objective(model, Rows(*(part.flip(0) for part in rows)), chunk_size=64)
    assert gauss_newton_trace(turned) == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize(
    "cls", [ExactInfluence, CGInfluence, LiSSAInfluence, ArnoldiInfluence, EKFACInfluence]
)
def test_by_default_a_fitted_linear_model_is_at_its_minimum(cls):
    """Close to leaving rows out for real, whatever the unit of the targets."""
    X, y = load_diabetes(return_X_y=True)
    X, y = scale(X)[:200], y[:200]
    some = [0, 50, 100]
    model = LinearRegression().fit(X, y)
    scores = cls(model).fit(X, y).transform(X[some], y[some])
    left_out = np.empty((3, 200))
    for i in range(200):
        kept = np.arange(200) != i
        other = LinearRegression().fit(X[kept], y[kept])
        before, after = ((y - m.predict(X))[some] ** 2 for m in (model, other))
        left_out[:, i] = after - before
    assert cosine(scores, left_out) > 0.97
    assert cosine(scores, GradDot(model).fit(X, y).transform(X[some], y[some])) < 0.9
    other = cls(LinearRegression().fit(X, y / 100)).fit(X, y / 100)
    close(other.transform(X[some], y[some] / 100) * 1e4, scores, 1e-6)


def test_by_default_the_unit_of_features_is_free():
    """Columns of very different size: the damping is small beside the smallest curvature."""
    X, y = load_diabetes(return_X_y=True)
    X, y = scale(X)[:200], y[:200]
    wide = X * np.logspace(-2, 2, X.shape[1])
    scores = (
        ExactInfluence(LinearRegression().fit(rows, y)).fit(rows, y).transform(rows[:3], y[:3])
        for rows in (X, wide)
    )
    close(*scores, 1e-3)  # curvatures differ by 1e8


def test_a_layer_that_no_solver_has_fitted():
    """A plain nn.Linear, and SGDRegressor, are as far as their training went."""
    X, y = load_diabetes(return_X_y=True)
    X, y = scale(X)[:200], scale(y)[:200]
    torch.manual_seed(0)
    layer = nn.Linear(10, 1).double()
    for influence in (
        ExactInfluence(layer, criterion=nn.MSELoss()).fit(X, y[:, None]),
        ExactInfluence(SGDRegressor(random_state=0).fit(X, y)).fit(X, y),
    ):
        trace = float(GaussNewton(influence._objective, penalty=True).dense().trace())
        assert influence.damping_ == pytest.approx(0.05 * trace, rel=1e-6)


@pytest.mark.parametrize("cls", [ExactInfluence, EKFACInfluence, CGInfluence])
def test_losses_of_linear_pieces(cls):
    """No curvature but, for the regressor, the penalty: damping by gradients, of a sane size."""
    X, y = load_diabetes(return_X_y=True)
    X = scale(X)[:100]
    far = SGDRegressor(loss="huber", random_state=0, max_iter=5000).fit(X, y[:100])
    net = tanh_network(10, 4, 1)
    for influence in (
        cls(far).fit(X, y[:100]),
        cls(net, criterion=nn.L1Loss()).fit(X, y[:100, None]),
    ):
        assert_allclose(
            influence.damping_, 1000 * influence._objective.mean_squared_gradient, rtol=1e-10
        )


def test_tuned_damping_of_a_solved_model_warns():
    X, y = load_diabetes(return_X_y=True)
    tuned = ExactInfluence(Ridge().fit(X, y), damping="tuned", tuning={"n_seeds": 1, "n_epochs": 1})
    with pytest.warns(UserWarning, match="take damping='auto'"):
        tuned.fit(X, y)


def test_no_output_depends_on_the_parameters():
    X, y = np.zeros((5, 2)), np.arange(5.0)
    model = LinearRegression(fit_intercept=False).fit(X, y)
    with pytest.raises(ValueError, match="damping='auto' needs a training row with a gradient"):
        ExactInfluence(model).fit(X, y)


def test_singular_curvature_needs_damping():
    X = np.random.default_rng(0).normal(size=(4, 6))
    y = X[:, 0] + 1
    model = LinearRegression().fit(X[:, :6], y + np.arange(4))
    for curvature in ("gauss-newton", "empirical-fisher"):
        exact = ExactInfluence(model, damping=0.0, curvature=curvature).fit(X, y)
        with pytest.raises(ValueError, match=r"singular, and damping=0 .* Raise damping above"):
            exact.transform(X, y)


def test_negative_curvature():
    case = Case()
    lowest = float(np.linalg.eigvalsh(case.problem.reference("hessian"))[0])
    assert lowest < -1e-3
    settings = {"curvature": "hessian", "damping": -lowest / 2}
    with pytest.raises(ValueError, match=r"indefinite \(lowest eigenvalue .*Raise damping"):
        case.scores(case.fit(ExactInfluence, **settings))
    with pytest.raises(ValueError, match="Raise damping, or use curvature='gauss-newton'"):
        case.scores(case.fit(CGInfluence, **settings))
    with pytest.raises(ValueError, match=r"series would diverge\. Raise damping above"):
        case.fit(LiSSAInfluence, **settings)
    with pytest.raises(ValueError, match="indefinite"):
        case.scores(case.fit(ArnoldiInfluence, **settings))
    settings["damping"] = -1.5 * lowest
    expected = case.reference(settings["damping"], "hessian")
    close(case.scores(case.fit(ExactInfluence, **settings)), expected, 1e-8)
    close(case.scores(case.fit(CGInfluence, **settings)), expected, 1e-4)
    assert cosine(case.scores(case.fit(LiSSAInfluence, **settings)), expected) >= 0.999


def test_memory():
    case = Case()
    with pytest.raises(MemoryError, match="Raise memory_budget, or use CGInfluence"):
        case.fit(ExactInfluence, memory_budget=1000)
    with pytest.raises(MemoryError, match="Raise memory_budget, or use CGInfluence"):
        Case(loss="binary").fit(ExactInfluence, memory_budget=1000)
    with pytest.raises(MemoryError, match="Lower n_components"):
        case.fit(ArnoldiInfluence, memory_budget=1000)


# ---- against refits -------------------------------------------------------------------------


def rows_of_regression():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 3))
    return (
        X,
        X @ [1.0, -2.0, 0.5] + rng.normal(size=40),
        rng.normal(size=(6, 3)),
        rng.normal(size=6),
    )


def derivative(refit, losses, n: int, h: float = 1e-3) -> np.ndarray:
    """Minus the derivative of the test losses in the weight of each row, from refits."""
    columns = []
    for i in range(n):
        up, down = np.ones(n), np.ones(n)
        up[i] += h
        down[i] -= h
        columns.append((losses(refit(down)) - losses(refit(up))) / (2 * h))
    return np.array(columns).T


def test_linear_regression_is_the_derivative_of_the_refit():
    """Removal has the first-order effect of the row's weight; the mean of weights stays n."""
    X, y, X_test, y_test = rows_of_regression()
    n = len(X)
    model = LinearRegression().fit(X, y)
    found = ExactInfluence(model, damping=0.0).fit(X, y).transform(X_test, y_test)

    def losses(refitted):
        return (refitted.predict(X_test) - y_test) ** 2 / scale

    unit = ExactInfluence(model, damping=0.0).fit(X, y)
    first = unit._objective.rows[:1]
    scale = float(
        (model.predict(X[:1]) - y[:1])[0] ** 2
        / unit.model_.losses(first.inputs, first.targets).numpy()[0]
    )
    close(found, derivative(lambda w: LinearRegression().fit(X, y, w), losses, n), 1e-6)
    without = refits(model, X, y, losses)
    large = np.abs(found) > 0.1 * np.abs(found).max()
    assert_array_equal(np.sign(found)[large], np.sign(without)[large])
    # the prediction is linear in the parameters: it has no terms of second order
    found = (
        ExactInfluence(model, damping=0.0, measurement="output").fit(X, y).transform(X_test, y_test)
    )
    assert cosine(found, refits(model, X, y, lambda one: one.predict(X_test))) > 0.98


@pytest.mark.parametrize("cls", [ExactInfluence, CGInfluence, LiSSAInfluence, ArnoldiInfluence])
def test_logistic_regression_is_the_derivative_of_the_refit(cls):
    X, y, X_test, y_test = rows_of_regression()
    y, y_test = (y > 0).astype(int), (y_test > 0).astype(int)
    n = len(X)

    def refit(w):
        return LogisticRegression(C=0.5, tol=1e-12, solver="newton-cholesky").fit(X, y, w)

    def losses(model):
        return -np.log(model.predict_proba(X_test)[np.arange(len(y_test)), y_test])

    model = refit(np.ones(n))
    params = {"tol": 1e-8} if cls in (CGInfluence, LiSSAInfluence) else {}
    params |= {"damping": 1e-9 if cls is LiSSAInfluence else 0.0}
    if cls is LiSSAInfluence:
        params["depth"] = 3000
    fitted = cls(model, curvature="hessian", **params).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = fitted.transform(X_test, y_test)
    close(found, derivative(refit, losses, n), 1e-4)
    without = refits(LogisticRegression(C=0.5), X, y, losses)
    large = np.abs(found) > 0.1 * np.abs(found).max()
    assert_array_equal(np.sign(found)[large], np.sign(without)[large])


# ---- iterative solvers ----------------------------------------------------------------------


@pytest.mark.parametrize("tol", [1e-4, 1e-9])
def test_cg_equals_exact_to_its_tolerance(tol):
    case = Case()
    exact = case.reference(0.1)
    found = case.fit(CGInfluence, damping=0.1, tol=tol)
    assert found.n_iter_ >= 1  # of the trial
    close(case.scores(found), exact, 30 * tol)
    assert 1 < found.n_iter_ <= case.problem.model.n_parameters
    found.damping_ = 1.0
    close(case.scores(found), case.reference(1.0), 30 * tol)


def test_preconditioned_cg_is_the_same_influence_function():
    case = Case()
    found = case.fit(CGInfluence, damping=0.1, tol=1e-9, preconditioner="ekfac")
    close(case.scores(found), case.reference(0.1), 1e-7)
    found.damping_ = 1.0
    close(case.scores(found), case.reference(1.0), 1e-7)


@pytest.mark.parametrize(
    ("cls", "params"),
    [
        (CGInfluence, {"tol": 1e-10}),
        (CGInfluence, {"tol": 1e-10, "preconditioner": "ekfac"}),
        (ArnoldiInfluence, {"n_components": 10_000}),
    ],
)
def test_curvature_of_some_rows(cls, params):
    case = Case()

    def without(i: int) -> np.ndarray:
        """Return the reference with the curvature of all rows but one, scaled to all."""
        weights = case.problem.weights
        others = weights * (torch.arange(N) != i)
        share = float(others.sum() / weights.sum()) * N / (N - 1)
        case.problem.weights = others
        C = share * case.problem.reference("gauss-newton")
        case.problem.weights = weights
        return case.reference(0.1, C)

    references = [without(i) for i in range(N)]
    found = []
    for seed in range(6):
        own = {"damping": 0.1, "curvature_rows": N - 1, "random_state": seed, **params}
        scores = case.scores(case.fit(cls, **own))
        distances = [abs(scores - reference).max() for reference in references]
        assert min(distances) < 1e-7 * abs(scores).max()
        found.append(int(np.argmin(distances)))
    assert len(set(found)) > 1
    whole = case.fit(cls, damping=0.1, curvature_rows=N, **params)
    close(case.scores(whole), case.reference(0.1), 1e-7)


@pytest.mark.parametrize("damping", [1e-2, 1e-4])
def test_preconditioning_saves_iterations_where_columns_differ_in_size(damping):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    scales = np.array([1.0, 3, 10, 30, 100])
    X, y = rng.normal(size=(120, 5)) * scales, rng.normal(size=(120, 1))
    net = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    with torch.no_grad():
        net[0].weight /= torch.from_numpy(scales)
    given = {"criterion": nn.MSELoss(), "damping": damping}
    exact = ExactInfluence(net, **given).fit(X, y).transform(X[:5], y[:5])
    n_iter = {}
    for preconditioner in (None, "ekfac"):
        own = {"preconditioner": preconditioner, "tol": 1e-9, "random_state": 0}
        found = CGInfluence(net, **given, **own).fit(X, y)
        close(found.transform(X[:5], y[:5]), exact, 1e-6)
        n_iter[preconditioner] = found.n_iter_
    assert n_iter["ekfac"] < 0.7 * n_iter[None]


def test_exact_says_for_how_many_test_rows_cg_takes_less(monkeypatch):
    case = Case()
    n, p = len(case.problem.X), case.problem.model.n_parameters
    monkeypatch.setattr(exact_influence, "MANY_OPERATIONS", 8 * p**3 - 1)
    monkeypatch.setattr(exact_influence, "FEW_ROWS", 0)
    even = 8 * p**3 / (15 * 4 * n * p)
    # decomposed as a matrix of all parameters
    with pytest.warns(UserWarning, match=rf"a matrix of {p:,} rows.* up to about {even:,.1g} test"):
        case.fit(ExactInfluence, damping=1.0, curvature="empirical-fisher")
    monkeypatch.setattr(exact_influence, "MANY_OPERATIONS", 8 * p**3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        case.fit(ExactInfluence, damping=1.0, curvature="empirical-fisher")


def test_cg_that_does_not_converge_warns():
    case = Case()
    with pytest.warns(ConvergenceWarning, match=r"worst relative residual is .*after max_iter=2"):
        fitted = case.fit(CGInfluence, damping=1e-4, max_iter=2)
    with pytest.warns(ConvergenceWarning, match="raise max_iter or damping"):
        case.scores(fitted)
    assert fitted.n_iter_ == 2


def test_lissa_batches():
    case = Case()
    fitted = case.fit(LiSSAInfluence, damping=2.0, batch_size=5, random_state=0)
    whole = case.fit(LiSSAInfluence, damping=2.0, random_state=0)
    assert fitted.scale_ > whole.scale_
    found = case.scores(fitted)
    assert cosine(found, case.reference(2.0)) >= 0.99
    assert fitted.n_iter_ == fitted.depth_
    assert_array_equal(case.scores(fitted), found)
    other = case.fit(LiSSAInfluence, damping=2.0, batch_size=5, random_state=1)
    assert not np.array_equal(case.scores(other), found)
    full = case.fit(LiSSAInfluence, damping=2.0, batch_size=N, random_state=0)
    assert_array_equal(case.scores(full), case.scores(whole))


def test_lissa_batches_of_the_hessian():
    case = Case()
    settings = {"damping": 2.0, "curvature": "hessian", "batch_size": 5, "random_state": 0}
    found = case.scores(case.fit(LiSSAInfluence, **settings))
    expected = case.reference(2.0, "hessian")
    assert cosine(found, expected) >= 0.99
    assert cosine(case.reference(2.0), expected) < 0.99  # another matrix, another answer


def test_lissa_errors_and_warnings():
    case = Case()
    with pytest.raises(FloatingPointError, match=r"scale='auto' or a larger scale"):
        case.scores(case.fit(LiSSAInfluence, damping=0.1, scale=0.05))
    with pytest.raises(ValueError, match=r"it may be singular\. Raise damping, or give depth"):
        case.fit(LiSSAInfluence, damping=0.0)
    with pytest.warns(ConvergenceWarning, match=r"not within tol=0.001 after 3 terms"):
        case.scores(case.fit(LiSSAInfluence, damping=0.01, depth=3))


def test_lissa_reaches_its_tolerance_and_follows_damping():
    case = Case()
    fitted = case.fit(LiSSAInfluence, damping=0.2, tol=1e-6)
    close(case.scores(fitted), case.reference(0.2), 1e-4)
    assert 1 < fitted.n_iter_ <= fitted.depth_
    before = fitted.scale_, fitted.depth_
    fitted.damping_ = 1.0
    assert fitted.scale_ > before[0]
    assert fitted.depth_ < before[1]
    close(case.scores(fitted), case.reference(1.0), 1e-4)


@pytest.mark.parametrize("complement", ["drop", "damping"])
def test_arnoldi_converges_to_exact(complement, monkeypatch):
    monkeypatch.setattr("fimoda.curvature.lanczos._SMALL", 0)
    case = Case()
    exact = case.reference(0.05)
    p = case.problem.model.n_parameters
    distances = []
    for k in (2, 8, 14, p):
        fitted = case.fit(
            ArnoldiInfluence, damping=0.05, n_components=k, complement=complement, random_state=0
        )
        assert len(fitted.eigenvalues_) == k
        distances.append(np.linalg.norm(case.scores(fitted) - exact))
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 1e-3 * np.linalg.norm(exact)
    assert distances[-1] < 1e-8 * np.linalg.norm(exact)


# ---- invariances ----------------------------------------------------------------------------

SETTINGS = {
    ExactInfluence: {},
    CGInfluence: {"tol": 1e-9},
    LiSSAInfluence: {"tol": 1e-7},
    ArnoldiInfluence: {"n_components": 6},
}


@pytest.mark.parametrize("cls", SETTINGS, ids=lambda cls: cls.__name__)
def test_order_chunks_and_budget_do_not_matter(cls):
    case = Case()
    settings = {"damping": 0.5, "random_state": 0, "reweight_others": True, **SETTINGS[cls]}
    scores = case.scores(case.fit(cls, **settings))
    close(case.scores(case.fit(cls, chunk_size=2, **settings)), scores, 1e-6)
    budget = 100_000 if cls in (ExactInfluence, ArnoldiInfluence) else 1
    close(case.scores(case.fit(cls, memory_budget=budget, **settings)), scores, 1e-6)
    order = np.random.default_rng(0).permutation(N)
    made = cls(case.problem.module, criterion=case.criterion, **settings)
    made.fit(case.X[order], case.y[order], sample_weight=case.weights[order])
    close(case.scores(made), scores[:, order], 1e-6)


def test_float32_model_with_the_dense_matrix():
    """The dense matrix of a float32 model is computed in float64."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, D)).astype(np.float32), rng.integers(3, size=60)
    net = tanh_network(D, 3, 3).float()
    settings = {"criterion": nn.CrossEntropyLoss(), "damping": 1e-6}
    single = ExactInfluence(net, **settings).fit(X, y)
    assert single._primal is not None
    found = single.transform(X[:5], y[:5])
    exact = ExactInfluence(net.double(), **settings).fit(X, y).transform(X[:5], y[:5])
    close(found, exact, 1e-3)


def test_ridge_with_its_penalty():
    """The penalty is part of the curvature: every solver agrees."""
    X, y, X_test, y_test = rows_of_regression()
    model = Ridge(alpha=20.0).fit(X, y)
    exact = ExactInfluence(model, damping=0.0).fit(X, y).transform(X_test, y_test)
    without = refits(model, X, y, lambda one: one.predict(X_test))
    output = ExactInfluence(model, damping=0.0, measurement="output").fit(X, y)
    assert cosine(output.transform(X_test), without) > 0.98
    close(CGInfluence(model, damping=0.0).fit(X, y).transform(X_test, y_test), exact, 1e-5)
    close(ArnoldiInfluence(model, damping=0.0).fit(X, y).transform(X_test, y_test), exact, 1e-8)
