"""TRAK against dense solutions in float64 and by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from naive import refits
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from fimoda import TRAK, ExactInfluence, as_final_model
from fimoda.attributors import trak
from fimoda.curvature import projection
from fimoda.curvature.projection import BLOCK, KINDS, Projection, signs
from fimoda.layers import Factors
from fimoda.measured import Measured
from fimoda.row_gradients import RowDifferentiator, RowGradients
from fimoda.rows import Rows

N, M, D = 30, 5, 4
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def data(kind: str):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, D))
    if kind == "regression":
        return X, X @ rng.normal(size=D) + rng.normal(size=N)
    if kind == "outputs":
        return X, X @ rng.normal(size=(D, 2)) + rng.normal(size=(N, 2))
    n_classes = 2 if kind == "binary" else 3
    return X, np.digitize(X[:, 0] + rng.normal(size=N), np.linspace(-0.5, 0.5, n_classes - 1))


def trained(kind: str, seed: int = 0):
    X, y = data(kind)
    cls = MLPRegressor if kind in ("regression", "outputs") else MLPClassifier
    model = cls(
        hidden_layer_sizes=(5,), activation="tanh", max_iter=40, random_state=seed, alpha=0.0
    )
    return model.fit(X, y), X, y


KINDS_OF_MODEL = ["binary", "classes", "regression", "outputs"]


def by_hand(estimator, X, y, weights, damping, n_test=M):
    """Dense matrices from plain autograd: the two factors (m, n, F) and (n, F) of the scores."""
    model = as_final_model(estimator, X, y)
    rows, targets = (
        model.encode_X(X),
        model.encode_y(y, model.outputs(model.encode_X(X[:1])).shape[1]),
    )
    classes = targets.dtype == torch.long

    def functions(theta, i):
        f = model.forward(theta, rows[i : i + 1])[0]
        if not classes:
            return f
        if len(f) == 1:
            return (2 * targets[i] - 1) * f
        p = f.softmax(0)[targets[i]]
        return torch.log(p / (1 - p))[None]

    def jacobian(fn, i):
        return torch.autograd.functional.jacobian(lambda theta: fn(theta, i), model.theta)

    def loss(theta, i):
        return model.loss(model.forward(theta, rows[i : i + 1]), targets[i : i + 1])

    J = torch.stack([jacobian(functions, i) for i in range(N)])  # (N, F, p)
    test = torch.cat([jacobian(loss, i) for i in range(n_test)])
    if classes:
        margin = torch.cat([functions(model.theta, i) for i in range(N)])
        Q = -(1 - margin.sigmoid())[:, None]
    else:
        f = model.outputs(rows)
        factor = model.loss.constant_curvature(f.shape[1]) / 2
        Q = 2 * factor * (f - targets)
    share = torch.from_numpy(weights / weights.sum())
    C = torch.einsum("n,nfp,nfq->pq", share, J, J) + damping * torch.eye(J.shape[2]).double()
    return torch.einsum("mp,nfp->mnf", torch.linalg.solve(C, test.T).T, J), Q, share


@pytest.mark.parametrize("weights", [np.ones(N), np.linspace(0, 2, N)], ids=["equal", "weighted"])
@pytest.mark.parametrize("kind", KINDS_OF_MODEL)
def test_without_projection_equals_the_dense_solution(kind, weights):
    model, X, y = trained(kind)
    product, Q, share = by_hand(model, X, y, weights, 0.05)
    expected = torch.einsum("mnf,nf,n->mn", product, Q, share).detach().numpy()
    for n_components in (None, 10_000):
        trak = TRAK(model, n_components=n_components, damping=0.05).fit(X, y, sample_weight=weights)
        found = trak.transform(X[:M], y[:M])
        assert_allclose(found, expected, rtol=1e-8, atol=1e-10 * abs(expected).max())
    assert trak.output_function_ == ("output" if kind in ("regression", "outputs") else "margin")


def test_regression_without_projection_is_the_exact_influence():
    """Under half the squared error the outputs have unit curvature."""
    model, X, y = trained("regression")
    found = TRAK(model, n_components=None, damping=0.1).fit(X, y).transform(X[:M], y[:M])
    factor = as_final_model(model, X, y).loss.constant_curvature(1) / 2
    exact = ExactInfluence(model, damping=0.2 * factor, reweight_others=False).fit(X, y)
    wanted = exact.transform(X[:M], y[:M])  # its curvature is 2 * factor times TRAK's
    assert_allclose(found, wanted * 2 * factor, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_a_square_projection_changes_the_basis_only(kind):
    """With k above p an invertible P gives what no projection gives, at no damping."""
    rng = np.random.default_rng(0)
    J, v = rng.normal(size=(50, 6)), rng.normal(size=(3, 6))
    project = Projection(7, 6, kind, seed=0)
    P = project(RowGradients.of(torch.eye(7, dtype=torch.float64)))[:6].numpy()
    wanted = v @ np.linalg.solve(J.T @ J, J.T)
    found = (v @ P) @ np.linalg.solve((J @ P).T @ (J @ P), (J @ P).T)
    assert_allclose(found, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS_OF_MODEL)
def test_ensembles_average_the_two_factors(kind):
    models = [trained(kind, seed)[0] for seed in range(3)]
    X, y = data(kind)
    parts = [by_hand(m, X, y, np.ones(N), 0.05) for m in models]
    product = sum(p for p, _, _ in parts) / 3
    Q = sum(q for _, q, _ in parts) / 3
    expected = torch.einsum("mnf,nf->mn", product, Q).detach().numpy() / N
    trak = TRAK(models[0], models=models[1:], n_components=None, damping=0.05).fit(X, y)
    found = trak.transform(X[:M], y[:M])
    assert_allclose(found, expected, rtol=1e-8, atol=1e-10 * abs(expected).max())
    alone = [TRAK(m, n_components=None, damping=0.05).fit(X, y) for m in models]
    mean = np.mean([t.transform(X[:M], y[:M]) for t in alone], axis=0)
    assert np.abs(mean - found).max() > 1e-4 * np.abs(found).max()


def test_ensembles_survive_clone_and_check_their_models():
    (one, X, y), (two, _, _) = trained("classes", 0), trained("classes", 1)
    trak = TRAK(one, models=[two], damping=0.05)
    copied = clone(trak)
    assert copied.models is trak.models
    assert_array_equal(copied.fit(X, y).transform(X, y), trak.fit(X, y).transform(X, y))
    with pytest.raises(ValueError, match=r"models\[0\] has other outputs"):
        TRAK(one, models=[trained("binary")[0]]).fit(X, y)
    with pytest.raises(ValueError, match=r"models\[0\] is a Pipeline"):
        TRAK(one, models=[make_pipeline(StandardScaler(), MLPClassifier((3,))).fit(X, y)]).fit(X, y)


@pytest.mark.parametrize("measurement", ["loss", "output"])
@pytest.mark.parametrize("kind", ["classes", "regression"])
def test_self_influence_of_an_ensemble_is_the_diagonal(kind, measurement):
    (one, X, y), (two, _, _) = trained(kind, 0), trained(kind, 1)
    trak = TRAK(one, models=[two], n_components=20, measurement=measurement, random_state=0)
    diagonal = trak.fit(X, y).transform(X, y).diagonal()
    assert np.abs(diagonal).max() > 0
    assert_allclose(trak.self_influence(), diagonal, rtol=1e-8, atol=1e-10 * np.abs(diagonal).max())


# ---- the projection -------------------------------------------------------------------------


def network(dtype=torch.float64, width=40):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(D, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
    return nn.Sequential(net, nn.Linear(width, 3)).to(dtype)


def classification(dtype=torch.float64):
    X, y = data("classes")
    return torch.from_numpy(X).to(dtype), torch.from_numpy(y)


class OnSequences(nn.Module):
    """The same function with layers that see every row twice: nothing factors."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, X):
        return self.net(X.unsqueeze(1).expand(-1, 2, -1)).mean(1)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian", "sparse"])
def test_factors_and_gradients_give_the_same_features(kind):
    X, y = classification()
    model = as_final_model(network(), X, criterion=nn.CrossEntropyLoss())
    assert model.n_parameters > BLOCK + 100  # several blocks, cut through layers
    differentiate = RowDifferentiator(model, X[:2])
    assert differentiate.factors
    gradients = differentiate(Measured(Rows(X, y), model.loss))
    project = Projection(model.n_parameters, 64, kind, seed=5)
    P = project(RowGradients.of(torch.eye(model.n_parameters, dtype=torch.float64)))
    found = project(gradients)
    assert found.shape == (N, 64)
    assert_allclose(found, gradients.dense() @ P, rtol=1e-10, atol=1e-12)
    without_memory = Projection(model.n_parameters, 64, kind, seed=5, memory_budget=1)
    assert_array_equal(without_memory(gradients), found)
    assert not without_memory._kept
    other = Projection(model.n_parameters, 64, kind, seed=6)(gradients)
    assert float((other - found).abs().max()) > 0.01


def test_product_projection_is_a_product_of_signs():
    X, y = classification()
    model = as_final_model(network(), X, criterion=nn.CrossEntropyLoss())
    gradients = RowDifferentiator(model, X[:2])(Measured(Rows(X, y), model.loss))
    found = Projection(model.n_parameters, 64, "product", seed=5)(gradients)
    expected = torch.zeros(N, 64, dtype=torch.float64)
    for k, layer in enumerate(gradients.parts):
        a, d = layer.inputs[:, 0], layer.signals[:, 0, 0]
        rng = np.random.default_rng([5, k])
        left, right = signs(rng, a.shape[1], 64), signs(rng, d.shape[1], 64)
        for c in range(64):
            P = torch.from_numpy(np.outer(right[:, c], left[:, c]).astype(float))
            expected[:, c] += torch.einsum("no,oi,ni->n", d, P, a)
    assert_allclose(found, expected / 8, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n_components", [3, 64, 65])
@pytest.mark.parametrize("wrap", [nn.Sequential, OnSequences], ids=["factored", "dense"])
def test_sparse_projection_has_four_entries_a_parameter(monkeypatch, wrap, n_components):
    monkeypatch.setattr(projection, "_SPARSE_ROWS", 7)
    monkeypatch.setattr(projection, "_SPARSE_SIZE", 1000)  # cuts through rows and parameters
    X, y = classification()
    model = as_final_model(wrap(network()), X, criterion=nn.CrossEntropyLoss())
    gradients = RowDifferentiator(model, X[:2])(Measured(Rows(X, y), model.loss))
    project = Projection(model.n_parameters, n_components, "sparse", seed=5)
    P = project(RowGradients.of(torch.eye(model.n_parameters, dtype=torch.float64)))
    s = min(4, n_components)
    assert P.shape == (model.n_parameters, n_components)
    assert_array_equal(P[P != 0].abs(), torch.full((model.n_parameters * s,), s**-0.5).double())
    ends = np.arange(s + 1) * n_components // s
    for a, b in itertools.pairwise(ends):
        assert bool(((P[:, a:b] != 0).sum(1) == 1).all())
    assert_allclose(project(gradients), gradients.dense() @ P, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["rademacher", "sparse"])
def test_variance_of_inner_products(kind):
    """(|g|^2 |h|^2 + (g h)^2 - 2 sum g^2 h^2) / k, for few entries as for many."""
    rng = np.random.default_rng(0)
    G = torch.from_numpy(rng.normal(size=(2, 40)) * np.r_[np.ones(35), 4 * np.ones(5)])
    g, h = G
    expected = g.square().sum() * h.square().sum() + (g @ h) ** 2 - 2 * (g**2 * h**2).sum()
    draws = []
    for seed in range(4000):
        a, b = Projection(40, 16, kind, seed=seed)(RowGradients.of(G))
        draws.append(float(a @ b))
    assert np.var(draws) == pytest.approx(float(expected) / 16, rel=0.1)
    assert np.mean(draws) == pytest.approx(float(g @ h), abs=4 * np.std(draws) / 4000**0.5)


def test_float32_products_are_exact():
    """Whichever library multiplies: as far from float64 as a float32 product of that length."""
    X, y = classification(torch.float32)
    model = as_final_model(network(torch.float32), X, criterion=nn.CrossEntropyLoss())
    gradients = RowDifferentiator(model, X[:2])(Measured(Rows(X, y), model.loss))
    for kind in ("rademacher", "sparse", "product"):
        project = Projection(model.n_parameters, 256, kind, seed=5)
        exact = [Factors(f.inputs.double(), f.signals.double()) for f in gradients.parts]
        wanted = project(RowGradients(exact, gradients.places))
        assert project(gradients).dtype == torch.float32
        assert float((project(gradients) - wanted).norm() / wanted.norm()) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_inner_products_are_unbiased(kind):
    X, y = classification()
    model = as_final_model(network(width=8), X, criterion=nn.CrossEntropyLoss())
    gradients = RowDifferentiator(model, X[:2])(Measured(Rows(X, y), model.loss))
    exact = gradients.inner(gradients).numpy()
    draws = []
    for seed in range(400):
        features = Projection(model.n_parameters, 16, kind, seed=seed)(gradients)
        draws.append((features @ features.T).numpy())
    error = np.mean(draws, axis=0) - exact
    z = error / (np.std(draws, axis=0) / 20)
    assert np.abs(z).max() < 5
    assert 0.3 < np.sqrt(np.mean(z**2)) < 3


def test_signs_are_balanced_and_independent():
    drawn = signs(np.random.default_rng(0), 500, 40).astype(float)
    assert set(np.unique(drawn)) == {-1.0, 1.0}
    gram = drawn.T @ drawn / 500
    assert np.abs(gram - np.eye(40)).max() < 6 / 500**0.5
    assert np.abs(drawn.mean(0)).max() < 5 / 500**0.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factored", [True, False])
def test_scores_do_not_depend_on_chunks_or_memory(kind, factored):
    X, y = classification()
    net = network()

    def scores(**params):
        trak = TRAK(
            net if factored else OnSequences(net),
            criterion=nn.CrossEntropyLoss(), n_components=50, projection=kind, damping=0.05,
            **{"random_state": 0, **params},
        )  # fmt: skip
        return trak.fit(X, y).transform(X[:M], y[:M])

    if kind == "product" and not factored:
        with pytest.raises(ValueError, match="projection='product' needs"):
            scores()
        return
    whole = scores()
    for params in ({"chunk_size": 1}, {"chunk_size": 7}, {"memory_budget": 10_000}):
        assert_allclose(scores(**params), whole, rtol=1e-8, atol=1e-10 * np.abs(whole).max())
    assert np.abs(scores(random_state=1) - whole).max() > 1e-3 * np.abs(whole).max()


def test_factored_and_dense_models_have_the_same_scores():
    X, y = classification()
    net = network()
    found = [
        TRAK(
            model, criterion=nn.CrossEntropyLoss(), n_components=50, damping=0.05, random_state=0
        ).fit_transform(X, y)
        for model in (net, OnSequences(net))
    ]
    assert_allclose(found[0], found[1], rtol=1e-8, atol=1e-10 * np.abs(found[0]).max())


@pytest.mark.parametrize("kind", KINDS)
def test_scores_tend_to_the_unprojected_ones(kind):
    X, y = classification()
    net = network()

    def scores(k):
        trak = TRAK(
            net, criterion=nn.CrossEntropyLoss(), n_components=k, projection=kind, damping=0.5,
            random_state=0,
        )  # fmt: skip
        return trak.fit(X, y).transform(X, y).ravel()

    exact = scores(None)
    close = [np.corrcoef(scores(k), exact)[0, 1] for k in (8, 64, 1024)]
    assert close[0] < close[1] < close[2]
    assert close[2] > 0.98


def test_features_are_kept(monkeypatch):
    X, y = classification()
    trak = TRAK(network(), criterion=nn.CrossEntropyLoss(), n_components=50, random_state=0)
    trak.fit(X, y)
    seen = []
    original = RowDifferentiator.__call__
    monkeypatch.setattr(
        RowDifferentiator,
        "__call__",
        lambda self, X, *a: seen.append(len(X)) or original(self, X, *a),
    )
    trak.transform(X[:3], y[:3])
    assert seen == [3]


# ---- damping, order, errors -----------------------------------------------------------------


def test_damping_is_auto_and_may_change_after_fit():
    X, y = classification()
    net = network()
    trak = TRAK(net, criterion=nn.CrossEntropyLoss(), n_components=None).fit(X, y)
    model = as_final_model(net, X, criterion=nn.CrossEntropyLoss())

    def margin(outputs, targets):
        p = outputs.softmax(1).gather(1, targets[:, None])[:, 0]
        return torch.log(p / (1 - p))

    squares = RowDifferentiator(model, X[:2])(Measured(Rows(X, y), margin)).dense() ** 2
    assert model.n_parameters < 20_000
    assert trak.damping_ == pytest.approx(0.05 * float(squares.sum(1).mean()), rel=1e-8)
    trak.damping_ = 0.3
    other = TRAK(net, criterion=nn.CrossEntropyLoss(), n_components=None, damping=0.3).fit(X, y)
    assert_allclose(trak.transform(X, y), other.transform(X, y), rtol=1e-10)


def test_automatic_damping_of_a_large_network():
    X, y = np.random.default_rng(0).normal(size=(30, 10_000)), np.arange(30) % 3
    net = nn.Sequential(nn.Linear(10_000, 3)).double()
    trak = TRAK(net, criterion=nn.CrossEntropyLoss(), n_components=20, random_state=0).fit(X, y)
    features = trak._members[0].features.numpy()  # (n, 1, 20)
    lengths = (features**2).sum((1, 2)).mean()
    assert trak.damping_ == pytest.approx(1000 / 30_003 * lengths, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS_OF_MODEL)
def test_order_of_training_rows(kind):
    model, X, y = trained(kind)
    order = np.random.default_rng(1).permutation(N)
    trak = TRAK(model, n_components=20, damping=0.05, random_state=0)
    scores = trak.fit(X, y).transform(X[:M], y[:M])
    permuted = trak.fit(X[order], y[order]).transform(X[:M], y[:M])
    assert_allclose(permuted, scores[:, order], rtol=1e-8, atol=1e-11 * np.abs(scores).max())


def test_singular_kernel():
    X, y = classification()
    trak = TRAK(network(), criterion=nn.CrossEntropyLoss(), n_components=N + 20, damping=0.0)
    with pytest.raises(ValueError, match="singular, and damping=0 "):
        trak.fit(X, y)


def test_saturated_probabilities():
    net = nn.Sequential(nn.Linear(1, 2), nn.Softmax(-1))
    nn.init.constant_(net[0].weight, 0)
    net[0].weight.data[1] = 1e4
    X, y = torch.ones(6, 1), np.ones(6, dtype=int)
    from skorch import NeuralNetClassifier

    model = NeuralNetClassifier(net, classes=[0, 1]).initialize()
    with pytest.raises(ValueError, match="margin of a training row"):
        TRAK(model).fit(X, y)


def test_sign_and_size_agree_with_leave_one_out():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4))
    y = X @ [1.0, -1, 0.5, 0] + rng.normal(size=60)

    final = Ridge(alpha=1e-6).fit(X, y)

    def losses(model):
        return (model.predict(X) - y) ** 2

    truth = refits(final, X, y, losses)
    factor = as_final_model(final, X, y).loss.constant_curvature(1) / 2
    scores = TRAK(final, damping=0.0).fit(X, y).transform(X, y)
    # the output has unit curvature in the kernel where the loss has 2 * factor
    assert np.corrcoef(scores.ravel(), truth.ravel())[0, 1] > 0.97
    ratio = np.linalg.norm(scores) / np.linalg.norm(truth) / (2 * factor)
    assert 0.7 < ratio < 1.1


def test_sign_agrees_with_leave_one_out_in_classification():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4))
    y = (X @ [1.0, -1, 0.5, 0] + rng.logistic(size=60) > 0).astype(int)

    final = LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(X, y)

    def margins(model):
        return (2 * y - 1) * model.decision_function(X)

    truth = refits(final, X, y, margins)
    trak = TRAK(final, damping=0.0, measurement="margin").fit(X, y)
    scores = trak.transform(X, y)
    assert np.corrcoef(scores.ravel(), truth.ravel())[0, 1] > 0.9
    assert (scores.diagonal() < 0).all()  # without it its own margin falls
    assert (truth.diagonal() < 0).all()


def test_projection_is_sparse_where_signs_take_long(monkeypatch):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(12, 4)), rng.integers(2, size=12)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    operations = 12 * 44 * 8
    for most, kind in ((operations, "rademacher"), (operations - 1, "sparse")):
        monkeypatch.setattr(trak, "MANY_OPERATIONS", most)
        given = {"criterion": nn.CrossEntropyLoss(), "n_components": 8, "random_state": 0}
        found, own = (TRAK(net, projection=p, **given).fit(X, y) for p in ("auto", kind))
        assert found.projection_ == kind
        np.testing.assert_array_equal(found.transform(X, y), own.transform(X, y))
