"""Gradients in a layer as factors: every operation against the gradients written out, in float64."""

from __future__ import annotations

import pytest
import torch
from naive import close
from torch import nn

from fimoda import as_final_model
from fimoda.layers import Factors, LayerDifferentiator, Lookups, Matrices, lookups
from fimoda.measured import Measured
from fimoda.row_gradients import RowDifferentiator, RowGradients
from fimoda.rows import Rows

N, K = 6, 4


class Sequences(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 5, bias=False)
        self.head = nn.Linear(5, 3)

    def forward(self, X):
        return self.head(torch.tanh(self.layer(X)).mean(1))


NETWORKS = {
    "vectors": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,)),
    "sequences": (Sequences, (7, 3)),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)
        ),
        (2, 3, 3),
    ),
}


def problem(name):
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    X, y = torch.randn(N, *shape, dtype=torch.float64), torch.arange(N) % 3
    return as_final_model(make().double(), X, criterion=nn.CrossEntropyLoss()), X, y


@pytest.mark.parametrize("name", NETWORKS)
def test_one_number_a_row(name):
    model, X, y = problem(name)
    found = LayerDifferentiator(model, X[:2])(Measured(Rows(X, y), model.loss))
    weights = torch.linspace(-1, 2, N, dtype=torch.float64)
    for one in found:
        G = one.dense()
        metric = torch.randn(G.shape[1:], dtype=torch.float64)
        matrices, coefficients = (
            torch.randn(K, *G.shape[1:]).double(),
            torch.randn(N, K, 1).double(),
        )
        for part in (one, Matrices(G)):
            close(part.inner(part), torch.einsum("noi,moi->nm", G, G))
            close(part.inner_rowwise(part), (G**2).sum((1, 2)))
            close(part.inner_rowwise(part, metric), (G**2 * metric).sum((1, 2)))
            close(part.apply(matrices)[:, :, 0], torch.einsum("noi,koi->nk", G, matrices))
            wanted = torch.einsum("nk,noi->koi", coefficients[:, :, 0], G)
            close(part.combine(coefficients), wanted)
            close(part.second_moment(weights), torch.einsum("n,noi->oi", weights, G**2))
            close(part.scaled(weights).dense(), weights[:, None, None] * G)
        A, S = one.covariances(weights)
        d = one.signals[:, :, 0]
        close(A, torch.einsum("n,nti,ntj->ij", weights, one.inputs, one.inputs))
        close(S, torch.einsum("n,nti,ntj->ij", weights, d, d))
        turn, other = (torch.linalg.qr(torch.randn(n, n).double())[0] for n in metric.shape[::-1])
        close(one.rotated(turn, other).dense(), other.mT @ G @ turn)
        smaller = one.compressed()
        close(smaller.dense(), G)
        numbers = one.inputs[0].numel() + one.signals[0].numel()
        assert isinstance(smaller, Factors) == (numbers <= metric.numel())


@pytest.mark.parametrize(
    ("n", "m", "T", "S", "by_pairs"),
    [(5, 4, 2, 3, True), (5, 40, 12, 9, False), (1, 1, 30, 30, False), (7, 50, 40, 1, False)],
)
def test_products_of_sums_of_products(n, m, T, S, by_pairs):
    """By pairs of positions, or written out some rows at a time: whichever takes less."""
    torch.manual_seed(0)
    width, out = 4, 6
    one, other = (
        Factors(*(torch.randn(k, L, *shape).double() for shape in ((width,), (1, out))))
        for k, L in ((n, T), (m, S))
    )
    coefficients = torch.randn(n, m, 1).double()
    close(one.inner(other), torch.einsum("now,mow->nm", one.dense(), other.dense()))
    close(one.inner(other.written_out()), one.inner(other))
    close(
        one.combine(coefficients), torch.einsum("nm,now->mow", coefficients[:, :, 0], one.dense())
    )
    assert one._takes_pairs(other, n, m) == by_pairs
    turns = torch.randn(width, width).double(), torch.randn(out, out).double()
    close(Matrices(one.dense()).rotated(*turns).dense(), one.rotated(*turns).dense())


@pytest.mark.parametrize("name", NETWORKS)
def test_several_numbers_a_row(name):
    """The outputs' Jacobian: products with vectors, and each output as a row of its own."""
    model, X, _ = problem(name)
    J = model.jacobian(X)  # (n, C, p)
    layers = LayerDifferentiator(model, X[:2])
    eye = torch.eye(3, dtype=torch.float64)
    parts = layers.pull_back(X, lambda outputs: [e.expand_as(outputs) for e in eye])
    found = RowGradients(parts, layers.places)
    V, U = torch.randn(K, J.shape[2]).double(), torch.randn(N, K, 3).double()
    close(found.push(V), torch.einsum("ncp,kp->nkc", J, V))
    close(found.pull(U), torch.einsum("nkc,ncp->kp", U, J))
    close(RowGradients([f.each() for f in parts], layers.places).dense(), J.flatten(0, 1))
    close(RowGradients([f.of(1) for f in parts], layers.places).dense(), J[:, 1])
    weights = torch.linspace(0, 1, N, dtype=torch.float64)
    close(found.second_moment(weights), torch.einsum("n,ncp->p", weights, J**2))


@pytest.mark.parametrize("name", NETWORKS)
def test_entries_in_blocks(name):
    model, X, y = problem(name)
    gradients = RowDifferentiator(model, X[:2])(Measured(Rows(X, y), model.loss))
    assert (gradients.factors is not None) == (name == "vectors")
    for size in (1, 7, 1000):
        close(torch.cat(list(gradients.entries(size))), gradients.dense().mT)


@pytest.mark.parametrize("positions", [3, 256])
@pytest.mark.parametrize("size", [4, 50, 1000])
def test_inner_products_of_lookups(size, positions, monkeypatch):
    """By stretches of positions that hold so many on a side, about."""
    monkeypatch.setattr(lookups, "_POSITIONS", positions)
    torch.manual_seed(0)
    one, other = (
        Lookups(torch.randint(-1, size, (n, T)), torch.randn(n, T, 1, 3).double(), size)
        for n, T in ((30, 20), (40, 10))
    )
    close(one.inner(other), torch.einsum("nos,mos->nm", one.dense(), other.dense()))
    elsewhere = Lookups(torch.full((2, 3), size), torch.randn(2, 3, 1, 3).double(), size + 1)
    assert not one.inner(elsewhere).any()
