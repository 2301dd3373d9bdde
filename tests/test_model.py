"""FinalModel: parameters as one vector, Jacobians and Hessians against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from problems import tanh_network
from sklearn.datasets import make_classification, make_regression
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from torch import nn

from fimoda import as_final_model

N, D = 8, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D))


def net(n_outputs: int = 3) -> nn.Module:
    return tanh_network(D, 5, n_outputs)


def frozen(n_outputs: int = 3, criterion: nn.Module | None = None):
    return as_final_model(net(n_outputs), X, criterion=criterion or nn.CrossEntropyLoss())


def test_views_and_vector():
    model = frozen()
    assert model.n_parameters == len(model.theta) == 5 * D + 5 + 15 + 3
    named = dict(model.module.named_parameters())
    for name, view in model.views(model.theta).items():
        assert torch.equal(view, named[name])
        assert_array_equal(model.theta[model.slices[name]], named[name].detach().reshape(-1))
    stack = torch.randn(2, 3, model.n_parameters)
    assert model.views(stack)["0.weight"].shape == (2, 3, 5, D)


def test_outputs_of_other_parameters_and_in_chunks():
    model = frozen()
    rows = model.encode_X(X)
    theta = model.theta + 0.1 * torch.randn(model.n_parameters, dtype=torch.float64)
    moved = net()
    nn.utils.vector_to_parameters(theta, moved.parameters())
    with torch.no_grad():
        assert_allclose(model.outputs(rows, theta), moved(rows), rtol=1e-12)
    assert_allclose(model.outputs(rows, chunk_size=3), model.outputs(rows), rtol=1e-12)
    stacked = model.stacked_outputs(torch.stack([model.theta, theta]), rows)
    assert_allclose(stacked[0], model.outputs(rows), rtol=1e-12)
    assert_allclose(stacked[1], model.outputs(rows, theta), rtol=1e-12)


@pytest.mark.parametrize("budget", [1, 4000, 2**20])
def test_jacobian_against_finite_differences(budget):
    model = frozen()
    rows = model.encode_X(X)
    jacobian = torch.cat(list(model.jacobian_chunks(rows, budget)))
    assert jacobian.shape == (N, 3, model.n_parameters)
    step = 1e-6
    for k in range(model.n_parameters):
        move = torch.zeros(model.n_parameters, dtype=torch.float64)
        move[k] = step
        up, down = (model.outputs(rows, model.theta + s * move) for s in (1, -1))
        assert_allclose(jacobian[:, :, k], (up - down) / (2 * step), rtol=1e-6, atol=1e-8)
    assert_allclose(model.jacobian(rows), jacobian)


def test_jacobian_that_does_not_fit():
    model = frozen()
    with pytest.raises(MemoryError, match=r"Raise budget or go through jacobian_chunks"):
        model.jacobian(model.encode_X(X), budget=100)


def models():
    """Losses of every kind of outputs."""
    features, labels = make_classification(
        60, D, n_informative=3, n_redundant=0, n_classes=3, random_state=0
    )
    yield frozen(), labels
    yield frozen(criterion=nn.MSELoss()), RNG.normal(size=(N, 3))
    yield frozen(criterion=nn.HuberLoss(delta=0.2)), RNG.normal(size=(N, 3))
    yield frozen(criterion=nn.CrossEntropyLoss(label_smoothing=0.2)), labels
    yield frozen(1, nn.BCEWithLogitsLoss()), labels % 2
    yield as_final_model(LogisticRegression().fit(features, labels), features), labels
    yield (
        as_final_model(SGDClassifier("log_loss", alpha=1.0).fit(features, labels), features),
        labels,
    )
    features, numbers = make_regression(60, D, random_state=0)
    yield as_final_model(Ridge().fit(features, numbers), features), numbers


@pytest.mark.parametrize("index", range(8))
def test_output_hessian_against_finite_differences(index):
    model, y = list(models())[index]
    rows = model.encode_X(X)
    outputs = model.outputs(rows)
    targets = model.encode_y(y[:N], outputs.shape[1])
    hessian = model.loss.output_hessian(outputs, targets)
    step = 1e-5
    for c in range(outputs.shape[1]):
        move = torch.zeros(outputs.shape[1], dtype=torch.float64)
        move[c] = step
        up, down = (model.loss.gradient(outputs + s * move, targets) for s in (1, -1))
        assert_allclose(hessian[:, :, c], (up - down) / (2 * step), rtol=1e-5, atol=1e-7)


def test_other_precision():
    model = frozen()
    single = model.to(torch.float32)
    assert model.double is model
    assert single.dtype == torch.float32
    assert single.double.dtype == torch.float64
    rows = single.encode_X(X)
    assert rows.dtype == torch.float32
    assert_allclose(single.outputs(rows), model.outputs(model.encode_X(X)), rtol=1e-4, atol=1e-6)
    assert single.losses(rows, single.encode_y(np.zeros(N, int), 3)).dtype == torch.float64


def test_fingerprint_tells_models_apart():
    model = frozen()
    assert model.fingerprint == frozen().fingerprint
    moved = net()
    with torch.no_grad():
        moved[2].bias[1] += 1e-12
    others = [
        as_final_model(moved, X, criterion=nn.CrossEntropyLoss()),
        frozen(criterion=nn.CrossEntropyLoss(weight=torch.ones(3))),
        frozen(criterion=nn.MSELoss()),
        as_final_model(
            nn.Sequential(net()[0], nn.ReLU(), net()[2]), X, criterion=nn.CrossEntropyLoss()
        ),
    ]
    assert len({m.fingerprint for m in [model, *others]}) == 5


def test_integers_stay_for_embeddings():
    module = nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(6, 1))
    tokens = RNG.integers(9, size=(N, 2))
    model = as_final_model(module, tokens, criterion=nn.MSELoss())
    assert model.encode_X(tokens).dtype == torch.long
    assert model.outputs(model.encode_X(tokens)).shape == (N, 1)


def test_labels_in_any_order_and_type():
    model = frozen()
    for labels in ([0, 2, 1], np.array([[0.0], [2.0], [1.0]]), torch.tensor([0, 2, 1])):
        assert model.encode_y(labels, 3).tolist() == [0, 2, 1]
