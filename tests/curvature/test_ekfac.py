"""EK-FAC against dense matrices in float64, built by plain autograd one row at a time."""

from __future__ import annotations

import networks
import numpy as np
import pytest
import torch
from naive import refits
from numpy.testing import assert_allclose, assert_array_equal
from problems import row_gradients
from sklearn.datasets import load_digits
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from torch import nn

from fimoda import EKFACInfluence, ExactInfluence, as_final_model
from fimoda.curvature.ekfac import EKFAC
from fimoda.curvature.operators import GaussNewton, sampled_fisher
from fimoda.curvature.trace import gauss_newton_trace
from fimoda.layers import LayerDifferentiator, Matrices, Vectors
from fimoda.measured import Measured
from fimoda.objective import Objective
from fimoda.rows import Rows

N, D = 12, 5


class Conv(nn.Module):
    def __init__(self, bias=True, **options):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 2, bias=bias, **options)
        self.head = nn.LazyLinear(2)

    def forward(self, X):
        return self.head(torch.tanh(self.conv(X.reshape(-1, 2, 4, 5))).flatten(1))


class Sequence(nn.Module):
    """A layer that sees several vectors of each row."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 4)
        self.head = nn.Linear(4, 3, bias=False)

    def forward(self, X):
        return self.head(torch.tanh(self.inner(X.reshape(-1, 3, 2))).mean(1))


class Folded(Sequence):
    """The same, its positions folded into the axis of the rows; the inner layer is used twice."""

    def forward(self, X):
        steps = X.reshape(-1, 2)
        hidden = torch.tanh(self.inner(steps)) + torch.tanh(self.inner(-2 * steps))
        return self.head(hidden.reshape(-1, 3, 4).mean(1))


class Tied(nn.Module):
    """A weight that is also used without a call of its layer, by a model of probabilities."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(D, 3)
        self.head = nn.Linear(3, 3)

    def forward(self, X):
        hidden = torch.tanh(self.inner(X)) @ (self.inner.weight @ self.inner.weight.T)
        return self.head(hidden).softmax(-1)


def mlp():
    return nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, 3))


CASES = {
    "mlp": (mlp, (D,), nn.CrossEntropyLoss()),
    "mlp without bias": (
        lambda: nn.Sequential(nn.Linear(D, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False)),
        (D,),
        nn.CrossEntropyLoss(),
    ),
    "regression": (mlp, (D,), nn.MSELoss()),
    "sequence": (Sequence, (6,), nn.CrossEntropyLoss()),
    "folded sequence, used twice": (Folded, (6,), nn.MSELoss()),
    "conv": (lambda: Conv(stride=2, padding=1), (40,), nn.CrossEntropyLoss()),
    "conv, dilated, same": (
        lambda: Conv(bias=False, dilation=(1, 2), padding="same", padding_mode="circular"),
        (40,),
        nn.MSELoss(),
    ),
}


def problem(case: str, n: int = N):
    make, shape, criterion = CASES[case]
    torch.manual_seed(0)
    X = torch.randn(n, *shape, dtype=torch.float64)
    net = make().double()
    n_outputs = net(X[:1]).shape[1]
    classes = isinstance(criterion, nn.CrossEntropyLoss)
    y = torch.arange(n) % n_outputs if classes else torch.randn(n, n_outputs, dtype=torch.float64)
    model = as_final_model(net, X, criterion=criterion)
    return net, model, X, y, criterion


def kronecker_basis(block) -> tuple[torch.Tensor, list[int]]:
    """Eigenvectors as columns, and the parameters (weight and bias, interleaved) they act on."""
    n_out, width = len(block.signal_basis), len(block.input_basis)
    parts = [torch.arange(s.start, s.stop).view(n_out, -1) for s in block.place.slices]
    index = torch.cat(parts, dim=1)
    assert index.shape == (n_out, width)
    return torch.kron(block.signal_basis, block.input_basis), index.flatten().tolist()


def dense(ekfac: EKFAC) -> torch.Tensor:
    p = ekfac.objective.model.n_parameters
    matrix = torch.zeros(p, p, dtype=torch.float64)
    for block in ekfac.blocks:
        Q, index = kronecker_basis(block)
        matrix[np.ix_(index, index)] = Q @ torch.diag(block.eigenvalues.flatten()) @ Q.T
    return matrix


# ---- factors --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_factors_are_the_gradients(case):
    _, model, X, y, _ = problem(case)
    differentiate = LayerDifferentiator(model, X[:2])
    assert differentiate.complete
    expected = torch.from_numpy(row_gradients(model, X, y))
    found = torch.full_like(expected, torch.nan)
    for place, f in zip(
        differentiate.places, differentiate(Measured(Rows(X, y), model.loss)), strict=True
    ):
        place.fill(found, f.dense())
    assert_allclose(found, expected, rtol=1e-10, atol=1e-13)


def test_matrices_take_the_place_of_larger_factors():
    _, model, X, y, _ = problem("conv")
    factors = LayerDifferentiator(model, X[:2])(Measured(Rows(X, y), model.loss))
    conv, head = (f.compressed() for f in factors)
    assert isinstance(conv, Matrices)
    assert_allclose(conv.rows, factors[0].dense(), rtol=0)
    assert conv.rows[0].numel() < factors[0].inputs[0].numel()
    assert head is factors[1]


# ---- curvature ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_bases_are_those_of_the_second_moments(case):
    """A and S by a loop over rows, positions and classes; the bias a last coordinate of one."""
    _, model, X, y, _ = problem(case)
    weights = torch.linspace(0.5, 2, N, dtype=torch.float64)
    ekfac = EKFAC(Objective(model, Rows(X, y, weights)), fisher="sampled", seed=3)
    targets = model.loss.sample_targets(model.outputs(X), torch.Generator().manual_seed(3))
    factors = LayerDifferentiator(model, X[:2])(Measured(Rows(X, targets), model.loss))
    for block, f in zip(ekfac.blocks, factors, strict=True):
        if len(block.place.slices) == 2:
            assert bool((f.inputs[..., -1] == 1).all())
        for basis, vectors in [(block.input_basis, f.inputs), (block.signal_basis, f.signals)]:
            moment = torch.zeros(len(basis), len(basis), dtype=torch.float64)
            for w, row in zip(weights / weights.sum(), vectors, strict=True):
                for v in row.flatten(0, -2):
                    moment += w * torch.outer(v, v)
            rotated = basis.T @ moment @ basis
            off = rotated - torch.diag(rotated.diagonal())
            assert float(off.abs().max()) < 1e-12 * float(rotated.abs().max())
            assert_allclose(basis.T @ basis, torch.eye(len(basis)), atol=1e-12)


@pytest.mark.parametrize("fisher", ["sampled", "expected"])
@pytest.mark.parametrize("case", CASES)
def test_eigenvalues_are_the_diagonal_of_the_dense_matrix(case, fisher):
    _, model, X, y, _ = problem(case)
    weights = torch.linspace(0.5, 2, N, dtype=torch.float64)
    ekfac = EKFAC(Objective(model, Rows(X, y, weights), chunk_size=5), fisher=fisher, seed=3)
    if fisher == "sampled":
        targets = model.loss.sample_targets(model.outputs(X), torch.Generator().manual_seed(3))
        g = torch.from_numpy(row_gradients(model, X, targets))
        matrix = (g * (weights / weights.sum())[:, None]).T @ g
        assert_allclose(
            sampled_fisher(Objective(model, Rows(X, y, weights)), seed=3).dense(),
            matrix,
            atol=1e-12,
        )
    else:
        matrix = GaussNewton(Objective(model, Rows(X, y, weights))).dense()
    for block in ekfac.blocks:
        Q, index = kronecker_basis(block)
        diagonal = (Q.T @ matrix[np.ix_(index, index)] @ Q).diagonal()
        assert float(diagonal.max()) > 1e-4
        assert_allclose(block.eigenvalues.flatten(), diagonal, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("fisher", ["sampled", "expected"])
@pytest.mark.parametrize("case", CASES)
def test_matched_scale(case, fisher):
    """The ratio of the dense matrices' norms; with sampled targets both are of the draw."""
    _, model, X, y, _ = problem(case)
    weights = torch.linspace(0, 2, N, dtype=torch.float64)
    plain, matched = (
        EKFAC(Objective(model, Rows(X, y, weights)), fisher=fisher, scale=s)
        for s in (1.0, "matched")
    )
    if fisher == "sampled":
        whole = sampled_fisher(Objective(model, Rows(X, y, weights)), seed=0).dense()
    else:
        whole = GaussNewton(Objective(model, Rows(X, y, weights))).dense()
    expected = float(whole.norm() / dense(plain).norm())
    assert matched.scale == pytest.approx(expected, rel=1e-8)
    assert expected > 1.02
    for one, other in zip(plain.blocks, matched.blocks, strict=True):
        assert_allclose(other.eigenvalues, expected * one.eigenvalues, rtol=1e-8)


def test_matched_scale_from_some_rows():
    _, model, X, y, _ = problem("mlp", 1000)
    weights = torch.linspace(0, 2, 1000, dtype=torch.float64)
    scale = EKFAC(Objective(model, Rows(X, y, weights)), scale="matched").scale
    whole = GaussNewton(Objective(model, Rows(X, y, weights))).dense().norm()
    expected = float(whole / dense(EKFAC(Objective(model, Rows(X, y, weights)))).norm())
    assert scale == pytest.approx(expected, rel=0.03)
    assert scale != pytest.approx(expected, rel=1e-8)


def test_matched_scale_with_uneven_weights():
    """Few rows that weigh much: rows are drawn in proportion."""
    X, y = load_digits(return_X_y=True)
    X, y = torch.from_numpy(X / 16)[:200], torch.from_numpy(y)[:200]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).double()
    model = as_final_model(net, X, criterion=nn.CrossEntropyLoss())
    for weights in (torch.where(y == 3, 50.0, 1.0), torch.ones(200).index_fill(0, y[:5], 100.0)):
        found = EKFAC(Objective(model, Rows(X, y, weights)), scale="matched").scale
        whole = GaussNewton(Objective(model, Rows(X, y, weights))).dense().norm()
        expected = float(whole / dense(EKFAC(Objective(model, Rows(X, y, weights)))).norm())
        assert found == pytest.approx(expected, rel=0.05)


def test_matched_scale_with_many_cotangents():
    """More than are compared with one another: sums with random signs stand for them."""
    torch.manual_seed(0)
    X = torch.randn(400, D, dtype=torch.float64)
    net = nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Linear(6, 40)).double()
    y = torch.arange(400) % 40
    model = as_final_model(net, X, criterion=nn.CrossEntropyLoss())
    weights = torch.ones(400, dtype=torch.float64)
    found = EKFAC(Objective(model, Rows(X, y, weights)), scale="matched", others=[model]).scale
    whole = GaussNewton(Objective(model, Rows(X, y, weights))).dense().norm()
    expected = float(whole / dense(EKFAC(Objective(model, Rows(X, y, weights)))).norm())
    assert found == pytest.approx(expected, rel=0.03)


def test_the_penalty_is_not_scaled():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 6)), rng.normal(size=40)
    model = as_final_model(Ridge(alpha=3.0).fit(X, y), X)
    rows = model.encode_X(X), model.encode_y(y, 1), torch.ones(40, dtype=torch.float64)
    fisher = GaussNewton(Objective(model, Rows(*rows))).dense()
    once, more = (dense(EKFAC(Objective(model, Rows(*rows)), scale=scale)) for scale in (1.0, 2.5))
    assert_allclose(more - once, 1.5 * fisher, atol=1e-10)  # one layer: EK-FAC is exact
    assert float((once - fisher).abs().max()) > 0.05  # the penalty


def test_probabilities_and_logits_have_the_same_expected_fisher():
    _, model, X, y, _ = problem("mlp")
    weights = torch.ones(N, dtype=torch.float64)
    expected = dense(EKFAC(Objective(model, Rows(X, y, weights))))
    net = nn.Sequential(model.module, nn.LogSoftmax(-1))
    log_model = as_final_model(net, X, criterion=nn.NLLLoss())
    assert_allclose(
        dense(EKFAC(Objective(log_model, Rows(X, y, weights)))), expected, rtol=1e-8, atol=1e-12
    )
    assert float(expected.trace()) > 0.1


def test_sampling_tends_to_the_expectation():
    _, model, X, y, _ = problem("mlp")
    weights = torch.ones(N, dtype=torch.float64)
    draws = [
        EKFAC(Objective(model, Rows(X, y, weights)), fisher="sampled", seed=s) for s in range(200)
    ]
    # the bases differ from draw to draw: compare the traces of the blocks
    for k, block in enumerate(EKFAC(Objective(model, Rows(X, y, weights))).blocks):
        traces = np.array([float(d.blocks[k].eigenvalues.sum()) for d in draws])
        error = abs(traces.mean() - float(block.eigenvalues.sum()))
        assert error < 4 * traces.std() / len(traces) ** 0.5
        assert traces.std() > 1e-3 * traces.mean()


@pytest.mark.parametrize("case", CASES)
def test_solve_is_the_dense_solution(case):
    _, model, X, y, _ = problem(case)
    ekfac = EKFAC(Objective(model, Rows(X, y, torch.ones(N, dtype=torch.float64))))
    V = torch.randn(4, model.n_parameters, dtype=torch.float64)
    p = model.n_parameters
    expected = torch.linalg.solve(dense(ekfac) + 0.1 * torch.eye(p, dtype=torch.float64), V.T).T
    assert_allclose(ekfac.solve(V, 0.1), expected, rtol=1e-8, atol=1e-12)


# ---- scores ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_scores_are_products_with_the_dense_inverse(case):
    net, model, X, y, criterion = problem(case)
    weights = np.linspace(0.5, 2, N)
    attributor = EKFACInfluence(
        net, criterion=criterion, damping=0.05, chunk_size=5, reweight_others=False
    )
    attributor.fit(X, y, sample_weight=weights)
    curvature = dense(EKFAC(Objective(model, Rows(X, y, torch.from_numpy(weights)))))
    inverse = torch.linalg.inv(curvature + 0.05 * torch.eye(len(curvature), dtype=torch.float64))
    g = torch.from_numpy(row_gradients(model, X, y))
    expected = (g[:4] @ inverse @ g.T).numpy() * weights / weights.sum()
    assert_allclose(attributor.transform(X[:4], y[:4]), expected, rtol=1e-8, atol=1e-13)


def test_exact_for_one_output():
    """One linear layer, bias included, and squared error: the factorisation holds."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 6)) + 1, rng.normal(size=40)
    model = LinearRegression().fit(X, y)
    for damping in (0.0, 0.3):
        found = EKFACInfluence(model, damping=damping).fit(X, y).transform(X[:5], y[:5])
        wanted = ExactInfluence(model, damping=damping).fit(X, y).transform(X[:5], y[:5])
        assert_allclose(found, wanted, rtol=1e-8, atol=1e-12 * abs(wanted).max())
    H = np.column_stack([X, np.ones(40)])
    residual = model.predict(X) - y
    closed = 4 * np.outer(residual[:5], residual) * (H[:5] @ np.linalg.inv(2 * H.T @ H / 40) @ H.T)
    found = EKFACInfluence(model, damping=0.0).fit(X, y).transform(X[:5], y[:5])
    assert_allclose(found, closed / 40, rtol=1e-8, atol=1e-10 * abs(closed).max())


def test_exact_for_several_outputs_of_one_layer():
    """Under squared error S is a multiple of the identity: A alone decides."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 6)) + 1, rng.normal(size=(40, 3))
    model = LinearRegression().fit(X, y)
    found = EKFACInfluence(model, damping=0.1).fit(X, y).transform(X[:5], y[:5])
    wanted = ExactInfluence(model, damping=0.1).fit(X, y).transform(X[:5], y[:5])
    assert_allclose(found, wanted, rtol=1e-8, atol=1e-12 * abs(wanted).max())


def test_exact_where_the_second_moments_factor():
    """Inputs and sampled signals in a full design: E[ss' x aa'] = E[ss'] x E[aa'] exactly."""
    torch.manual_seed(0)
    signs = torch.tensor([[i, j] for i in (-1.0, 1.0) for j in (-1.0, 1.0)], dtype=torch.float64)
    X = signs @ torch.randn(2, 3, dtype=torch.float64)
    net = nn.Linear(3, 2, bias=False).double()
    nn.init.zeros_(net.weight)  # equal probabilities at every row: independent of the inputs
    model = as_final_model(net, X, criterion=nn.CrossEntropyLoss())
    y = torch.tensor([0, 1, 1, 0])
    weights = torch.ones(4, dtype=torch.float64)
    exact = GaussNewton(Objective(model, Rows(X, y, weights))).dense()
    assert_allclose(dense(EKFAC(Objective(model, Rows(X, y, weights)))), exact, atol=1e-12)


def test_penalty_enters():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 4)), rng.normal(size=30)
    X -= X.mean(0)  # then the bias, which has no penalty, is an eigenvector of its own
    X = np.linalg.qr(X)[0]
    model = Ridge(alpha=2.0).fit(X, y)
    found = EKFACInfluence(model, damping=0.0).fit(X, y).transform(X[:5], y[:5])
    wanted = ExactInfluence(model, damping=0.0).fit(X, y).transform(X[:5], y[:5])
    assert_allclose(found, wanted, rtol=1e-8, atol=1e-10 * abs(wanted).max())
    plain = LinearRegression().fit(X, y)
    plain.coef_, plain.intercept_ = model.coef_, model.intercept_
    without = EKFACInfluence(plain, damping=0.0).fit(X, y).transform(X[:5], y[:5])
    assert np.abs(found - without).max() > 0.01 * np.abs(found).max()


@pytest.mark.parametrize("measurement", ["loss", "log_prob"])
@pytest.mark.parametrize("case", ["mlp", "sequence", "conv"])
def test_self_influence_is_the_diagonal(case, measurement):
    net, _, X, y, criterion = problem(case)
    attributor = EKFACInfluence(net, criterion=criterion, damping=0.05, measurement=measurement)
    for memory_budget in (2**30, 2000):
        attributor.set_params(memory_budget=memory_budget).fit(X, y)
        diagonal = attributor.transform(X, y).diagonal()
        assert np.abs(diagonal).max() > 1e-3
        assert_allclose(attributor.self_influence(), diagonal, rtol=1e-8, atol=1e-12)


# ---- invariances ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_order_chunks_and_memory_do_not_matter(case):
    net, _, X, y, criterion = problem(case)

    def scores(X, y, **params):
        fitted = EKFACInfluence(net, criterion=criterion, damping=0.05, **params).fit(X, y)
        return fitted, fitted.transform(X[:7], y[:7])

    kept, whole = scores(X, y)
    assert kept._kept is not None
    for chunk_size in (1, 5):
        assert_allclose(scores(X, y, chunk_size=chunk_size)[1], whole, rtol=1e-8, atol=1e-12)
    small, revisited = scores(X, y, memory_budget=2000)
    assert small._kept is None
    assert_allclose(revisited, whole, rtol=1e-8, atol=1e-12)
    order = torch.cat([torch.arange(7), 7 + torch.randperm(N - 7)])
    assert_allclose(scores(X[order], y[order])[1], whole[:, order], rtol=1e-8, atol=1e-12)


def test_sampling_follows_random_state():
    net, _, X, y, criterion = problem("mlp")

    def scores(seed, **params):
        attributor = EKFACInfluence(
            net, criterion=criterion, damping=0.05, fisher="sampled", random_state=seed, **params
        )
        return attributor.fit(X, y).transform(X, y)

    assert_allclose(scores(0, chunk_size=5), scores(0), rtol=1e-8, atol=1e-12)
    assert np.abs(scores(1) - scores(0)).max() > 1e-3 * np.abs(scores(0)).max()


def test_transform_does_not_differentiate_training_rows(monkeypatch):
    net, _, X, y, criterion = problem("mlp")
    attributor = EKFACInfluence(net, criterion=criterion, damping=0.05).fit(X, y)
    seen = []
    original = LayerDifferentiator.__call__
    monkeypatch.setattr(
        LayerDifferentiator,
        "__call__",
        lambda self, X, *a: seen.append(len(X)) or original(self, X, *a),
    )
    attributor.transform(X[:3], y[:3])
    assert seen == [3]


def test_damping_may_change_after_fit():
    net, _, X, y, criterion = problem("mlp")
    attributor = EKFACInfluence(net, criterion=criterion, damping=0.05).fit(X, y)
    attributor.damping_ = 2.0
    other = EKFACInfluence(net, criterion=criterion, damping=2.0).fit(X, y)
    assert_allclose(attributor.transform(X, y), other.transform(X, y), rtol=1e-12)


# ---- layers of every kind --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["conv", "encoder", "gpt2", "lstm", "two inputs"])
def test_the_best_diagonal_of_every_block(name):
    """A block has the diagonal of the dense Gauss-Newton matrix in its basis, or all of it if small."""
    if name in networks.NEEDS:
        pytest.importorskip(networks.NEEDS[name])
    objective, gradients = dense_problem(name)
    matrix = gradients.mT @ gradients / len(objective)
    ekfac = EKFAC(objective)
    seen = torch.zeros(len(matrix), dtype=torch.bool)
    for block, sample in zip(ekfac.blocks, ekfac.differentiate.samples, strict=True):
        index = block.place.matrices(torch.arange(len(matrix))[None])[0].flatten()
        assert not bool(seen[index].any())
        seen[index] = True
        out, width = block.eigenvalues.shape
        bases = zip((block.signal_basis, block.input_basis), (out, width), strict=True)
        eyes = (torch.eye(k).double() if q is None else q.contiguous() for q, k in bases)
        Q = torch.kron(*eyes)
        turned = Q.T @ matrix[index[:, None], index] @ Q
        assert_allclose(block.eigenvalues.flatten(), turned.diagonal(), rtol=1e-8, atol=1e-13)
        if isinstance(sample, Vectors):
            assert_allclose(turned, torch.diag(turned.diagonal()), atol=1e-10 * float(turned.max()))
    assert bool(seen.all())


def dense_problem(name):
    """Return the objective of a network of the zoo, and gradients along all cotangents (n C, p)."""
    case = networks.case(name, torch.float64)
    attributor = EKFACInfluence(case.model).fit(case.X, case.y)
    objective = attributor._objective
    model, found = objective.model, []
    leaves = {k: p.detach().requires_grad_() for k, p in model.views(model.theta).items()}
    for row in objective.rows.split(1):
        outputs = model.call(leaves, row.inputs)
        for v in model.loss.fisher_cotangents(outputs.detach(), row.targets):
            slopes = torch.autograd.grad(
                (outputs * v).sum(),
                list(leaves.values()),
                retain_graph=True,
                materialize_grads=True,
            )
            found.append(torch.cat([slope.flatten() for slope in slopes]))
    return objective, torch.stack(found)


def test_wide_layers_have_a_diagonal(monkeypatch):
    monkeypatch.setattr("fimoda.layers.factors._WIDEST", 3)
    monkeypatch.setattr("fimoda.layers.factors._EXACT", 3)
    objective, gradients = dense_problem("two inputs")
    ekfac = EKFAC(objective)
    assert [block.input_basis for block in ekfac.blocks] == [None] * 4
    diagonal = (gradients**2).sum(0) / len(objective)
    for block in ekfac.blocks:
        if block.signal_basis is None:
            wanted = block.place.matrices(diagonal[None])[0]
            assert_allclose(block.eigenvalues, wanted, rtol=1e-8)
    assert sum(block.signal_basis is None for block in ekfac.blocks) == 2


def test_weights_in_several_places_and_half_a_layer():
    """What torch multiplies by itself is left to autograd; of half a layer, what is trained is treated."""
    X = torch.randn(N, D, dtype=torch.float64)
    model = as_final_model(Tied().double(), X, criterion=nn.MSELoss())
    assert LayerDifferentiator(model, X[:2]).others == ["inner (Linear)"]
    net = mlp().double()
    net[0].weight.requires_grad_(False)
    net[2].bias.requires_grad_(False)
    differentiate = LayerDifferentiator(as_final_model(net, X, criterion=nn.MSELoss()), X[:2])
    assert differentiate.complete
    assert [place.key for place in differentiate.places] == [((0, 4),), ((4, 16),)]


def test_singular_without_damping():
    X, y = np.ones((10, 3)), np.arange(10.0)
    with pytest.raises(ValueError, match="singular, and damping=0 "):
        EKFACInfluence(LinearRegression().fit(X, y), damping=0).fit(X, y)


def test_losses_that_cannot_be_sampled():
    net = nn.Linear(3, 1).double()
    X, y = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    with pytest.raises(ValueError, match="cannot be sampled"):
        EKFACInfluence(net, criterion=nn.HuberLoss(), fisher="sampled").fit(X, y)
    scores = EKFACInfluence(net, criterion=nn.HuberLoss(), damping=0.1).fit(X, y).transform(X, y)
    clipped = torch.nn.functional.huber_loss(net(X)[:, 0], y, reduction="none").detach().numpy()
    assert np.linalg.matrix_rank(scores) == 4  # weights and bias
    assert_array_equal(scores.diagonal() > 0, clipped > 0)


@pytest.mark.parametrize(("n_outputs", "chosen"), [(128, "expected"), (129, "sampled")])
def test_auto_draws_targets_of_many_outputs(n_outputs, chosen):
    torch.manual_seed(0)
    net, X = nn.Linear(2, n_outputs).double(), torch.randn(6, 2, dtype=torch.float64)
    given = {"criterion": nn.CrossEntropyLoss(), "damping": 0.1, "random_state": 0}
    y = np.arange(6)
    auto, other = (
        EKFACInfluence(net, fisher=fisher, **given).fit(X, y).transform(X, y)
        for fisher in ("auto", chosen)
    )
    assert_array_equal(auto, other)


def test_the_trace_is_that_of_the_fisher_matrix():
    torch.manual_seed(0)
    net, X = Sequence().double(), torch.randn(N, 6, dtype=torch.float64)
    model = as_final_model(net, X, criterion=nn.CrossEntropyLoss())
    objective = Objective(model, Rows(X, torch.arange(N) % 3))
    assert_allclose(EKFAC(objective).trace(), gauss_newton_trace(objective), rtol=1e-12)


# ---- leave-one-out --------------------------------------------------------------------------


def test_sign_and_size_agree_with_leave_one_out():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 4))
    y = (X @ [1.0, -1, 0.5, 0] + rng.logistic(size=120) > 0).astype(int)

    final = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(X, y)

    def losses(model):
        return -model.predict_log_proba(X)[np.arange(120), y]

    truth = refits(final, X, y, losses)
    scores = EKFACInfluence(final, damping=0.0).fit(X, y).transform(X, y)
    assert np.corrcoef(scores.ravel(), truth.ravel())[0, 1] > 0.98
    assert 0.7 < np.linalg.norm(scores) / np.linalg.norm(truth) < 1.3
