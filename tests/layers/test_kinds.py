"""Gradients of rows in layers of every kind, against autograd one row at a time, in float64."""

from __future__ import annotations

import networks
import pytest
import torch
import torch.nn.functional as F
from naive import close
from torch import Tensor, nn

from fimoda import GradDot, as_final_model
from fimoda.curvature.datainf import parameter_layers
from fimoda.layers import LayerDifferentiator, Lookups, Matrices
from fimoda.measured import Measured
from fimoda.row_gradients import RowDifferentiator
from fimoda.rows import Rows

N, K = 5, 3


class Ended(nn.Module):
    """Layers, and the mean over positions of what they return, in three classes."""

    def __init__(self, *layers: nn.Module, width: int = 4, channels: int | None = 1):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.channels = channels
        self.head = nn.Linear(width, 3)
        self.requires_grad_(True)

    def forward(self, X: Tensor) -> Tensor:
        hidden = self.layers(X)
        if self.channels is not None and hidden.dim() > 2:
            hidden = hidden.movedim(self.channels, -1).flatten(1, -2).tanh().mean(1)
        return self.head(hidden)


class Functions(nn.Module):
    """Parameters of its own: a scale, positions, a temperature, a first token, matrix products."""

    def __init__(self):
        super().__init__()
        self.scale, self.positions = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(7, 4))
        self.first = nn.Parameter(torch.randn(1, 1, 4))
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.turn, self.last = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(3, 5))
        self.shift = nn.Parameter(torch.randn(3))

    def forward(self, X: Tensor) -> Tensor:
        hidden = torch.cat([self.first.expand(len(X), -1, -1), X], dim=1)
        hidden = self.scale * hidden + self.positions[: hidden.shape[1]]
        hidden = torch.tanh(hidden @ self.turn)
        return self.temperature * (torch.matmul(hidden, self.last.T).mean(1) + self.shift)


class Attention(nn.Module):
    """Attention of a layer's outputs to the inputs, rows first or last."""

    def __init__(self, batch_first: bool, **options: int):
        super().__init__()
        self.batch_first, self.options = batch_first, options
        self.body = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first, **options)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, X: Tensor) -> Tensor:
        X = X if self.batch_first else X.transpose(0, 1)
        other = X if not self.options else X[..., :3]
        hidden = self.attention(self.body(X), other, other, need_weights=False)[0]
        return self.head(self.norm(hidden + X).mean(1 if self.batch_first else 0))


class Positions(nn.Module):
    """Embeddings of positions, which all rows share, and a weight that has three uses."""

    def __init__(self, several: bool):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(5, 4, padding_idx=4), nn.Embedding(7, 4)
        self.mixed, self.first = nn.Linear(4, 4), nn.Linear(4, 5)
        self.last = nn.Linear(4, 5)
        self.first.weight = self.last.weight = self.tokens.weight
        self.several = several

    def forward(self, X: Tensor) -> Tensor:
        places = torch.arange(X.shape[1])
        hidden = self.tokens(X) + self.positions(places if self.several else places[None])
        hidden = torch.tanh(self.first(self.mixed(hidden)))
        hidden = F.linear(hidden, self.tokens.weight.T)
        return self.last(torch.tanh(hidden).mean(1))[:, :3]


class Folded(nn.Module):
    """Positions in the axis of rows; one layer and one normalisation that are used twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(2, 2, 3, padding=1), nn.BatchNorm1d(2)
        self.head = nn.Linear(2, 3)

    def forward(self, X: Tensor) -> Tensor:
        hidden = X.flatten(0, 1)
        for _ in range(2):
            hidden = torch.tanh(self.norm(self.conv(hidden)))
        return self.head(hidden.mean(2)).unflatten(0, X.shape[:2]).sum(1)


def parametrized(layer: nn.Module) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(layer)


def half(layer: nn.Module, frozen: str) -> nn.Module:
    layer.get_parameter(frozen).requires_grad_(False)
    return layer


def numbers(*shape: int) -> Tensor:
    return torch.randn(N, *shape, dtype=torch.float64)


def ids(length: int = 6) -> Tensor:
    return torch.randint(5, (N, length))


def group(channels: int) -> nn.Module:
    return nn.GroupNorm(2, channels)


IMAGE, SOUND, VOLUME = (4, 5, 6), (4, 7), (2, 3, 4, 3)
CASES = {
    "conv 1": (lambda: Ended(nn.Conv1d(4, 4, 3, stride=2, dilation=2, padding=2)), SOUND),
    "conv 2, same": (lambda: Ended(nn.Conv2d(4, 4, (2, 3), padding="same")), IMAGE),
    "conv 2, reflected": (
        lambda: Ended(nn.Conv2d(4, 4, 3, padding=(1, 2), padding_mode="reflect")),
        IMAGE,
    ),
    "conv 3": (lambda: Ended(nn.Conv3d(2, 4, 2, padding=(1, 0, 1), stride=(1, 2, 1))), VOLUME),
    "groups": (lambda: Ended(nn.Conv2d(4, 4, 2, groups=2)), IMAGE),
    "groups without bias": (lambda: Ended(nn.Conv1d(4, 4, 2, groups=4, bias=False)), SOUND),
    "many groups": (
        lambda: Ended(nn.Conv1d(4, 20, 2), nn.Tanh(), nn.Conv1d(20, 40, 2, groups=20), width=40),
        SOUND,
    ),
    "transposed 1": (
        lambda: Ended(nn.ConvTranspose1d(4, 4, 3, stride=2, padding=1, output_padding=1)),
        SOUND,
    ),
    "transposed 2": (
        lambda: Ended(nn.ConvTranspose2d(4, 4, (2, 3), stride=(1, 2), dilation=(2, 1), groups=2)),
        IMAGE,
    ),
    "transposed 3": (lambda: Ended(nn.ConvTranspose3d(2, 4, 2, bias=False)), VOLUME),
    "transposed, many groups": (
        lambda: Ended(nn.Conv1d(4, 20, 2), nn.ConvTranspose1d(20, 40, 2, groups=20), width=40),
        SOUND,
    ),
    "weight alone": (lambda: Ended(half(nn.Conv2d(4, 4, 2, groups=2), "bias")), IMAGE),
    "bias alone": (lambda: Ended(half(nn.ConvTranspose1d(4, 4, 2), "weight")), SOUND),
    "bias alone, groups": (lambda: Ended(half(nn.Conv1d(4, 4, 2, groups=2), "weight")), SOUND),
    "linear, bias alone": (lambda: Ended(half(nn.Linear(7, 7), "weight")), SOUND),
    "norm, scale alone": (lambda: Ended(half(nn.LayerNorm(7), "bias")), SOUND),
    "batch norm": (lambda: Ended(nn.BatchNorm2d(4)), IMAGE),
    "batch norm of vectors": (lambda: Ended(nn.BatchNorm1d(4)), (4,)),
    "group norm": (lambda: Ended(group(4)), IMAGE),
    "instance norm": (lambda: Ended(nn.InstanceNorm1d(4, affine=True)), SOUND),
    "instance norm, tracked": (
        lambda: Ended(nn.InstanceNorm1d(4, affine=True, track_running_stats=True)),
        SOUND,
    ),
    "layer norm, two axes": (lambda: Ended(nn.LayerNorm((5, 6))), IMAGE),
    "root mean square": (lambda: Ended(nn.RMSNorm(7)), SOUND),
    "embedding": (lambda: Ended(nn.Embedding(5, 4, padding_idx=2), channels=2), "ids"),
    "sum of embeddings": (lambda: Ended(nn.EmbeddingBag(5, 4, mode="sum")), "ids"),
    "mean of embeddings": (
        lambda: Ended(nn.EmbeddingBag(5, 4, mode="mean", padding_idx=-1)),
        "ids",
    ),
    "largest embeddings": (lambda: Ended(nn.EmbeddingBag(5, 4, mode="max")), "ids"),
    "tied, shared positions": (lambda: Positions(True), "ids"),
    "tied, shared positions with an axis": (lambda: Positions(False), "ids"),
    "lstm": (lambda: Recurrent(nn.LSTM(4, 3, 2, batch_first=True, proj_size=2), 2), (5, 4)),
    "gru": (lambda: Recurrent(nn.GRU(4, 2, bidirectional=True, batch_first=True), 4), (5, 4)),
    "rnn": (lambda: Recurrent(nn.RNN(4, 2, bias=False, nonlinearity="relu"), 2), (5, 4)),
    "functions": (Functions, (6, 4)),
    "attention": (lambda: Attention(True), (3, 4)),
    "attention, rows last": (lambda: Attention(False), (3, 4)),
    "attention, other widths": (lambda: Attention(True, kdim=3, vdim=3), (3, 4)),
    "folded, used twice": (Folded, (3, 2, 4)),
    "parametrized": (lambda: Ended(parametrized(nn.Conv1d(4, 4, 2))), SOUND),
    "bilinear": (lambda: Bilinear(), (4,)),
}

#: Those with modules that autograd has.
LEFT = {
    "largest embeddings": ["layers.0 (EmbeddingBag)"],
    "parametrized": ["layers.0.parametrizations.weight (ParametrizationList)"],
    "bilinear": ["body (Bilinear)"],
}


class Recurrent(nn.Module):
    def __init__(self, body: nn.RNNBase, width: int):
        super().__init__()
        self.body, self.head = body, nn.Linear(width, 3)

    def forward(self, X: Tensor) -> Tensor:
        first = self.body.batch_first
        return self.head(self.body(X if first else X.transpose(0, 1))[0].mean(1 if first else 0))


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Bilinear(4, 4, 3), nn.Linear(3, 3)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(X, X)))


def problem(name):
    torch.manual_seed(0)
    make, shape = CASES[name]
    X = ids() if shape == "ids" else numbers(*shape)
    net = make().double().eval()
    for part in net.modules():
        if getattr(part, "running_var", None) is not None:
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
        if isinstance(part, nn.LayerNorm | nn.GroupNorm | nn.modules.batchnorm._NormBase):
            nn.init.normal_(part.weight)
    y = torch.arange(N) % 3
    return as_final_model(net, X, criterion=nn.CrossEntropyLoss()), Rows(X, y)


def row_by_row(model, rows):
    """Return the gradients (n, p) of the losses of rows, by autograd of one after the other."""
    leaves = {k: p.detach().requires_grad_() for k, p in model.views(model.theta).items()}
    found = []
    for row in rows.split(1):
        loss = model.loss(model.call(leaves, row.inputs), row.targets).sum()
        slopes = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        found.append(torch.cat([slope.flatten() for slope in slopes]))
    return torch.stack(found)


def check(gradients, G):
    """Compare everything that is asked of rows' gradients with gradients written out."""
    n, p = G.shape
    V, U = torch.randn(K, p).double(), torch.randn(n, K).double()
    weights = torch.linspace(-1, 2, n, dtype=torch.float64)
    close(gradients.dense(), G)
    close(gradients.inner(gradients[: n - 1]), G @ G[: n - 1].T)
    close(gradients.inner_rowwise(gradients), (G**2).sum(1))
    close(gradients.apply(V), G @ V.T)
    close(gradients.combine(U), U.T @ G)
    close(gradients.second_moment(weights), weights @ G**2)
    close(gradients[[2, 0]].unit().dense(), F.normalize(G[[2, 0]]))
    for size in (7, 10_000):
        close(torch.cat(list(gradients.entries(size))), G.T)


@pytest.mark.parametrize("name", CASES)
def test_row_by_row(name):
    model, rows = problem(name)
    G = row_by_row(model, rows)
    assert LayerDifferentiator(model, rows[:2].inputs).others == LEFT.get(name, [])
    gradients = RowDifferentiator(model, rows[:3].inputs)(Measured(rows, model.loss))
    check(gradients, G)
    for part in gradients.parts:
        metric = torch.rand(part.dense().shape[1:]).double() + 1
        close(part.divided(metric).dense(), part.dense() / metric)
        close(part.inner_rowwise(part, metric), (part.dense() ** 2 * metric).sum((1, 2)))
        close(part.inner(Matrices(part.dense())), part.inner(part))
        close(Matrices(part.dense()).inner(part), part.inner(part))
    for n_bytes in (0, 500, 10**6):
        close(gradients.written_out(n_bytes).inner(gradients), G @ G.T)


@pytest.mark.parametrize("name", CASES)
def test_several_numbers_of_a_row(name):
    model, rows = problem(name)
    J = torch.autograd.functional.jacobian(lambda t: model.forward(t, rows.inputs), model.theta)
    layers = LayerDifferentiator(model, rows[:2].inputs)
    eye = torch.eye(3, dtype=torch.float64)
    parts = layers.pull_back(rows.inputs, lambda outputs: [e.expand_as(outputs) for e in eye])
    weights = torch.linspace(0.5, 1, N, dtype=torch.float64)
    for part, place in zip(parts, layers.places, strict=True):
        G = place.matrices(J.flatten(0, 1))  # (n C, out, in)
        close(part.each().dense(), G)
        close(part.of(1).dense(), G.unflatten(0, (N, 3))[:, 1])
        close(type(part).together([part, part]).of(0).dense()[N:], part.of(0).dense())
        moments = torch.einsum("n,ncoi->oi", weights, G.unflatten(0, (N, 3)) ** 2)
        close(part.second_moment(weights), moments)
        M = torch.randn(K, *G.shape[1:]).double()
        close(part.apply(M), torch.einsum("ncoi,koi->nkc", G.unflatten(0, (N, 3)), M))
        U = torch.randn(N, K, 3).double()
        close(part.combine(U), torch.einsum("nkc,ncoi->koi", U, G.unflatten(0, (N, 3))))


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_networks(name):
    if name in networks.NEEDS:
        pytest.importorskip(networks.NEEDS[name])
    case = networks.case(name, torch.float64)
    objective = GradDot(case.model).fit(case.X, case.y)._objective
    differentiate = objective.differentiate
    check(differentiate(objective.losses), row_by_row(objective.model, objective.rows))
    assert LayerDifferentiator(objective.model, objective.rows[:2].inputs).complete


@pytest.mark.parametrize("name", ["encoder", "decoder, tied", "conv"])
def test_gradients_by_module(name):
    case = networks.case(name, torch.float64)
    objective = GradDot(case.model).fit(case.X, case.y)._objective
    layers = list(parameter_layers(objective.model).values())
    G = row_by_row(objective.model, objective.rows)
    found = objective.differentiate(objective.losses).of_layers(layers)
    for part, slices in zip(found, layers, strict=True):
        own = torch.cat([G[:, s] for s in slices], dim=1)
        close(part.inner(part), own @ own.T)


def test_tokens_are_matched():
    """Inner products of many rows by stretches of tokens, some of them rare."""
    torch.manual_seed(0)
    a, b = (
        Lookups(torch.randint(-1, 40, (n, 9)), torch.randn(n, 9, 1, 3).double(), 40)
        for n in (70, 90)
    )
    close(a.inner(b), a.dense().flatten(1) @ b.dense().flatten(1).T)
    b = Lookups(torch.full((2, 9), -1), b.signals[:2], 40)
    assert not a.inner(b).any()
