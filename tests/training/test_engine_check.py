"""The engine against a plain loop on every kind of layer, and its own examination of itself."""

from __future__ import annotations

import copy
import random
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from naive import Naive, relative
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fimoda import FurtherTraining, as_final_model
from fimoda.objective import Objective
from fimoda.rows import Rows
from fimoda.training import examination
from fimoda.training.batches import FULL_DATA
from fimoda.training.gradients import dense, stacked_gradient
from fimoda.training.optimizers import OptimizerSpec
from fimoda.training.recorded import RecordedRun
from fimoda.training.run import Run

N, T, WORDS = 18, 6, 11


class Forward(nn.Module):
    """Parts, and a forward that is given as a function of them and x."""

    def __init__(self, forward, **parts):
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            self.register_parameter(name, part) if isinstance(
                part, nn.Parameter
            ) else self.add_module(name, part)

    def forward(self, x):
        return self._forward(self, x)


def numbers(*shape, scale=0.5):
    return nn.Parameter(scale * torch.randn(shape))


def tied():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(4, 2))


def normed_weights():
    first = nn.utils.parametrizations.weight_norm(nn.Linear(4, 5))
    return nn.Sequential(first, nn.Tanh(), nn.Linear(5, 2))


def orthogonal_weights():
    first = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))
    return nn.Sequential(first, nn.Tanh(), nn.Linear(4, 2))


class Counting(nn.Module):
    """A network that writes what it sees to a buffer."""

    def __init__(self):
        super().__init__()
        self.e, self.out = nn.Embedding(WORDS, 3), nn.Linear(3 * T, 2)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen.add_(x.sum())
        return self.out(self.e(x).flatten(1))


def attended(m, x):
    h = m.e(x) + m.p(torch.arange(T))
    with sdpa_kernel(SDPBackend.MATH):
        h = h + m.a(h, h, h, need_weights=False)[0]
    return m.out(h.mean(1))


def laid_out(weight):
    """A parameter whose numbers lie in another order than its axes."""
    return nn.Parameter(weight.detach().T.contiguous().T)


#: Networks of 4 numbers a row, or of T words.
NUMBERS = {
    "linear": lambda: nn.Linear(4, 2),
    "chain": lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)),
    "conv1d": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2)
    ),
    "conv2d": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1), nn.Flatten(), nn.Linear(27, 2)
    ),
    "conv2d, channels last": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 1, 2)),
        nn.Conv2d(2, 3, (1, 2)).to(memory_format=torch.channels_last),
        nn.Flatten(),
        nn.Linear(3, 2),
    ),
    "grouped convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.Conv1d(2, 4, 2, groups=2), nn.Flatten(), nn.Linear(4, 2)
    ),
    "conv3d": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 1, 2, 2)), nn.Conv3d(1, 3, (1, 2, 2)), nn.Flatten(), nn.Linear(3, 2)
    ),
    "transposed convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.ConvTranspose1d(2, 3, 2), nn.Flatten(), nn.Linear(9, 2)
    ),
    "transposed conv2d": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.ConvTranspose2d(1, 2, 2), nn.Flatten(), nn.Linear(18, 2)
    ),
    "batch norm": lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2)),
    "layer norm": lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2)),
    "group norm": lambda: nn.Sequential(nn.Linear(4, 6), nn.GroupNorm(2, 6), nn.Linear(6, 2)),
    "rms norm": lambda: nn.Sequential(nn.Linear(4, 6), nn.RMSNorm(6), nn.Linear(6, 2)),
    "max pooling": lambda: nn.Sequential(
        nn.Linear(4, 6), nn.Unflatten(1, (1, 6)), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(3, 2)
    ),
    "bilinear": lambda: Forward(lambda m, x: m.b(x[:, :2], x[:, 2:]), b=nn.Bilinear(2, 2, 2)),
    "prelu": lambda: nn.Sequential(nn.Linear(4, 5), nn.PReLU(5), nn.Linear(5, 2)),
    "one prelu": lambda: nn.Sequential(nn.Linear(4, 5), nn.PReLU(), nn.Linear(5, 2)),
    "tied": tied,
    "weight norm": normed_weights,
    "orthogonal": orthogonal_weights,
    "residual": lambda: Forward(
        lambda m, x: m.b(x + torch.tanh(m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 2)
    ),
    "transposed": lambda: Forward(lambda m, x: x @ m.w.t(), w=numbers(2, 4)),
    "other way round": lambda: Forward(lambda m, x: (m.w @ x.T).T, w=numbers(2, 4)),
    "transposed twice": lambda: Forward(
        lambda m, x: torch.tanh(x @ m.w) @ m.w.T @ m.v, w=numbers(4, 3), v=numbers(4, 2)
    ),
    "expanded number": lambda: Forward(
        lambda m, x: m.a(x) + m.c.expand(len(x), 2), a=nn.Linear(4, 2), c=numbers()
    ),
    "expanded row": lambda: Forward(
        lambda m, x: m.a(x * m.c.expand_as(x)), a=nn.Linear(4, 2), c=numbers(1, 4)
    ),
    "zero stride": lambda: Forward(
        lambda m, x: x @ m.w.as_strided((4, 2), (0, 1)) + m.w.sum(), w=numbers(2)
    ),
    "sum of a matrix": lambda: Forward(
        lambda m, x: m.a(x) * m.w.sum() + m.w.mean(0), a=nn.Linear(4, 2), w=numbers(3, 2)
    ),
    "einsum": lambda: Forward(
        lambda m, x: torch.einsum("bi,ijk,bj->bk", x, m.w, x), w=numbers(4, 4, 2)
    ),
    "diagonal": lambda: Forward(
        lambda m, x: m.a(x * m.w.diagonal()), a=nn.Linear(4, 2), w=numbers(4, 4)
    ),
    "laid out otherwise": lambda: Forward(lambda m, x: x @ m.w, w=laid_out(torch.randn(4, 2) / 2)),
    "strided slice": lambda: Forward(lambda m, x: x @ m.w[::2].flip(1), w=numbers(8, 2)),
    "reshaped": lambda: Forward(
        lambda m, x: x @ m.w.permute(2, 0, 1).reshape(2, 4).T, w=numbers(2, 2, 2)
    ),
    "complex": lambda: Forward(
        lambda m, x: torch.view_as_real(
            torch.complex(x[:, :2], x[:, 2:]) @ torch.view_as_complex(m.w)
        ).flatten(1),
        w=numbers(2, 1, 2),
    ),
    "spectrum": lambda: Forward(
        lambda m, x: m.a(torch.fft.irfft(torch.fft.rfft(x) * m.w, n=4)),
        a=nn.Linear(4, 2),
        w=numbers(3),
    ),
    "dropout": lambda: nn.Sequential(
        nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.LayerNorm(8), nn.Linear(8, 2)
    ),
    "dropout in a chain": lambda: nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)
    ),
}

WORDS_IN = {
    "embedding": lambda: nn.Sequential(nn.Embedding(WORDS, 3), nn.Flatten(), nn.Linear(3 * T, 2)),
    "padded embedding": lambda: nn.Sequential(
        nn.Embedding(WORDS, 3, padding_idx=0), nn.Flatten(), nn.Linear(3 * T, 2)
    ),
    "positions": lambda: Forward(
        lambda m, x: m.out(torch.tanh(m.e(x) + m.p(torch.arange(T))).mean(1)),
        e=nn.Embedding(WORDS, 5),
        p=nn.Embedding(T, 5),
        out=nn.Linear(5, 2),
    ),
    "positions as a parameter": lambda: Forward(
        lambda m, x: m.out(torch.tanh(m.e(x) + m.p).mean(1)),
        e=nn.Embedding(WORDS, 5),
        p=numbers(1, T, 5),
        out=nn.Linear(5, 2),
    ),
    "attention": lambda: Forward(
        attended,
        e=nn.Embedding(WORDS, 4),
        p=nn.Embedding(T, 4),
        a=nn.MultiheadAttention(4, 2, batch_first=True),
        out=nn.Linear(4, 2),
    ),
    "bag of words": lambda: nn.Sequential(nn.EmbeddingBag(WORDS, 3, mode="mean"), nn.Linear(3, 2)),
    "lstm": lambda: Forward(
        lambda m, x: m.out(m.r(m.e(x))[0][:, -1]),
        e=nn.Embedding(WORDS, 3),
        r=nn.LSTM(3, 4, batch_first=True),
        out=nn.Linear(4, 2),
    ),
    "gru": lambda: Forward(
        lambda m, x: m.out(m.r(m.e(x))[1][0]),
        e=nn.Embedding(WORDS, 3),
        r=nn.GRU(3, 4, batch_first=True),
        out=nn.Linear(4, 2),
    ),
    "tied embedding": lambda: Forward(
        lambda m, x: (torch.tanh(m.e(x).mean(1)) @ m.e.weight.T)[:, :2], e=nn.Embedding(WORDS, 4)
    ),
}

#: What vmap cannot do: it is differentiated model by model.
ONE_BY_ONE = {
    "looks at numbers": lambda: Forward(
        lambda m, x: m.out(m.e(x).flatten(1)) * (1 if m.out.bias.sum() > 0 else -1),
        e=nn.Embedding(WORDS, 3),
        out=nn.Linear(3 * T, 2),
    ),
    "counts its rows": Counting,
}

NETWORKS = {**NUMBERS, **WORDS_IN, **ONE_BY_ONE}

OPTIMIZERS = {
    "SGD": (torch.optim.SGD, 0.1, {"momentum": 0.9, "weight_decay": 0.01}),
    "Adam": (torch.optim.Adam, 0.02, {}),
    "AdamW": (torch.optim.AdamW, 0.02, {"weight_decay": 0.1}),
}


def case(name):
    """The network in float64, rows and targets."""
    torch.manual_seed(3)
    module = NETWORKS[name]().double()
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
    X = torch.randn(N, 4, dtype=torch.float64)
    if name not in NUMBERS:
        X = torch.randint(WORDS, (N, T))
    return module.eval(), X, torch.randn(N, 2, dtype=torch.float64)


def flat(module):
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def naive(module, X, y, optimizer):
    cls, lr, params = OPTIMIZERS[optimizer]
    return Naive(
        module,
        X,
        y,
        lambda outputs, targets, _: F.mse_loss(outputs, targets),
        lambda outputs, targets: ((outputs - targets) ** 2).mean(1),
        optimizer=cls,
        lr=lr,
        params=params,
        batch_size=5,
        batch_statistics="frozen",
    )


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Every test examines for itself, with the caller's generators at a place it knows."""
    monkeypatch.setattr(examination, "_VERDICTS", {})
    torch.manual_seed(11)


def run(module, X, y, spec, left_out, **settings):
    model = as_final_model(module, X, criterion=nn.MSELoss())
    rows = Rows(model.encode_X(X), model.encode_y(y, 2))
    described = Run(Objective(model, rows), spec, 5, **settings)
    return described.train(described.plan(7, left_out), [described.n_steps(2)]), described


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_engine_is_a_plain_loop(name, optimizer):
    """Three models of a stack and a recorded run, each against the loop of its own left-out row."""
    module, X, y = case(name)
    cls, lr, params = OPTIMIZERS[optimizer]
    spec = OptimizerSpec(cls, lr, params)
    left_out = (FULL_DATA, 0, 4) if "dropout" not in name else (FULL_DATA, FULL_DATA)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found, described = run(module, X, y, spec, left_out)
    told = [str(w.message) for w in caught if w.category is RuntimeWarning]
    assert len(told) == (name in ONE_BY_ONE), told
    with torch.random.fork_rng():
        loop = naive(module, X, y, optimizer)
        for theta, row in zip(found, left_out, strict=True):
            *_, trained = loop.train(7, None if row == FULL_DATA else row, "mask", 2)
            assert relative(theta - flat(module), flat(trained) - flat(module)) < 1e-8
    recorded = RecordedRun(described, 7, described.n_steps(2))
    assert relative(recorded.last.theta, found[0]) < 1e-9


def test_gradients_lie_as_their_parameters_do():
    """vmap leaves the gradient of the positions in another order; what is dense is not copied."""
    module, X, y = case("positions")
    model = as_final_model(module, X, criterion=nn.MSELoss())
    theta = {k: v.contiguous() for k, v in model.views(model.theta.expand(3, -1)).items()}
    x, targets = X[:5].expand(3, -1, -1), y[:5].expand(3, -1, -1)
    found = stacked_gradient(model)(theta, x, targets, torch.full((3, 5), 0.2).double())
    assert not found["p.weight"].is_contiguous()
    laid = dense(found, theta)
    for name, part in laid.items():
        assert part.stride() == theta[name].stride()
        torch.testing.assert_close(part, found[name], rtol=0, atol=0)
        assert (part is found[name]) == (found[name].stride() == theta[name].stride())
    number = {"a": torch.ones(2, 3)}
    expanded = dense({"a": torch.tensor(2.0).expand(2, 3)}, number)["a"]
    assert expanded.stride() == (3, 1)
    assert expanded.tolist() == [[2.0] * 3] * 2


def test_penalty_writes_into_dense_room():
    """With an L2 penalty the gradient is written over `out`, or made anew: dense both times."""
    module, X, y = case("positions")
    model = as_final_model(module, X, criterion=nn.MSELoss())
    l2 = torch.rand(model.n_parameters, dtype=torch.float64)
    model = replace(model, l2=l2)
    described = Run(Objective(model, Rows(X, y)), OptimizerSpec(torch.optim.Adam, 0.02), 5)
    found = described.train(described.plan(7), [described.n_steps(2)])[0]
    loop = naive(module, X, y, "Adam")
    loop.l2 = lambda m: (
        0.5 * sum((model.views(l2)[name] * p**2).sum() for name, p in m.named_parameters())
    )
    *_, trained = loop.train(7, None, "mask", 2)
    assert relative(found - flat(module), flat(trained) - flat(module)) < 1e-8


# ---- the examination ------------------------------------------------------------------------


def broken(real):
    """A stacked gradient that has the first parameter's numbers in another order."""

    def stacked(model, training=True, **way):
        of_stack = real(model, training, **way)

        def gradient(theta, x, y, weights, out=None):
            found = dict(of_stack(theta, x, y, weights))
            name = next(iter(found))
            found[name] = found[name].flatten(1).flip(1).view_as(found[name])
            return found

        return gradient

    return stacked


def test_a_wrong_gradient_is_found_and_left(monkeypatch):
    module, X, y = case("residual")
    spec = OptimizerSpec(torch.optim.SGD, 0.1, {"momentum": 0.9, "weight_decay": 0.01})
    expected, _ = run(module, X, y, spec, (FULL_DATA, 0, 4))
    monkeypatch.setattr(examination, "_VERDICTS", {})
    monkeypatch.setattr(examination, "stacked_gradient", broken(stacked_gradient))
    monkeypatch.setattr("fimoda.training.run.stacked_gradient", broken(stacked_gradient))
    with pytest.warns(RuntimeWarning, match=r"differ from plain autograd's \(that of 'a.weight'"):
        found, _ = run(module, X, y, spec, (FULL_DATA, 0, 4))
    assert relative(found - flat(module), expected - flat(module)) < 1e-10
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a network is examined, and spoken of, once
        again, _ = run(module, X, y, spec, (FULL_DATA, 0, 4))
    assert torch.equal(again, found)


class Reversed(torch.optim.SGD):
    """SGD whose fused form reads the gradient from behind."""

    def __init__(self, params, lr=0.1, *, fused=None, foreach=None):
        super().__init__(params, lr=lr)
        self.turned = bool(fused)

    def step(self, closure=None):
        for part in self.param_groups[0]["params"] if self.turned else ():
            part.grad = part.grad.flatten(1).flip(1).view_as(part)
        return super().step(closure)


def test_a_wrong_optimizer_is_found_and_left():
    module, X, y = case("residual")
    with pytest.warns(RuntimeWarning, match=r"fast step of Reversed was found to differ"):
        found, described = run(module, X, y, OptimizerSpec(Reversed, 0.1), (FULL_DATA, 0, 4))
    assert described.engine.optimizer.params == {"fused": False, "foreach": False}
    expected, _ = run(module, X, y, OptimizerSpec(torch.optim.SGD, 0.1), (FULL_DATA, 0, 4))
    assert relative(found, expected) < 1e-12


def test_a_wrong_gradient_under_dropout_is_found(monkeypatch):
    """Dropout that is drawn in another order is none; a wrong gradient beside it is."""
    module, X, y = case("dropout")
    model = as_final_model(module, X, criterion=nn.MSELoss())
    spec = OptimizerSpec(torch.optim.Adam, 0.02)

    def redrawn(model, training=True, **way):
        of_stack = stacked_gradient(model, training, **way)

        def gradient(*batch):
            torch.rand(1)
            return of_stack(*batch)

        return gradient

    for how, right in ((redrawn, True), (broken(redrawn), False)):
        monkeypatch.setattr(examination, "_VERDICTS", {})
        monkeypatch.setattr(examination, "stacked_gradient", how)
        with warnings.catch_warnings():
            warnings.simplefilter("error" if right else "ignore")
            assert examination.examine(Objective(model, Rows(X, y)), spec).stacked is right


def test_a_wrong_compiled_gradient_is_left(monkeypatch):
    module, X, y = case("chain")
    monkeypatch.setattr(
        torch,
        "compile",
        lambda eager, **_: lambda *batch: {k: 2 * v for k, v in eager(*batch).items()},
    )
    monkeypatch.setattr("fimoda.training.gradients._COMPILED", {})
    spec = OptimizerSpec(torch.optim.SGD, 0.1)
    with pytest.warns(RuntimeWarning, match="uncompiled.*gradient of .* is another"):
        found, _ = run(module, X, y, spec, (FULL_DATA, 0, 4), compile=True)
    expected, _ = run(module, X, y, spec, (FULL_DATA, 0, 4))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["chain", "attention", "batch norm", "dropout"])
def test_rounding_is_no_fault(name, dtype):
    """Also where the network fits its rows so well that nothing is left but rounding."""
    module, X, _ = case(name)
    module = module.to(dtype)
    X = X.to(dtype) if X.is_floating_point() else X
    for scale in (1e-3, 1.0, 30.0):
        own = copy.deepcopy(module)
        with torch.no_grad():
            own[-1].weight.mul_(scale) if name != "attention" else own.out.weight.mul_(scale)
            labels = own(X).argmax(1)
            targets = own(X).mean(0).expand(N, -1)
        for criterion, target in (
            (nn.CrossEntropyLoss(), labels * 0 + labels[0]),
            (nn.CrossEntropyLoss(), labels),
            (nn.MSELoss(), targets),
        ):
            model = as_final_model(own, X, criterion=criterion)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                objective = Objective(model, Rows(X, target))
                examination.examine(objective, OptimizerSpec(torch.optim.Adam, 0.01))


def test_a_perfect_fit_is_no_fault():
    """Every residual is zero but for rounding."""
    X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float64):
        module = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2)).to(dtype)
        with torch.no_grad():
            module[-1].weight.mul_(1e-7 if dtype == torch.float32 else 1e-16)
        model = as_final_model(module, X, criterion=nn.MSELoss())
        target = module[-1].bias.detach().expand(N, -1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            objective = Objective(model, Rows(X.to(dtype), target))
            examination.examine(objective, OptimizerSpec(torch.optim.SGD, 0.1))


@pytest.mark.parametrize("name", ["dropout", "gru", "residual"])
def test_nobody_s_generator_moves(name):
    module, X, y = case(name)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(module, X, y, OptimizerSpec(torch.optim.Adam, 0.01), (FULL_DATA, 0))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # noqa: NPY002


# ---- attributors ----------------------------------------------------------------------------


class TinyBert(nn.Module):
    """Words and positions, attention by hand, layer norms, the first word's state classified."""

    def __init__(self, width=8, heads=2):
        super().__init__()
        self.words, self.positions = nn.Embedding(WORDS, width), nn.Embedding(T, width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.one, self.two = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.heads, self.out = heads, nn.Linear(width, 3)

    def forward(self, x):
        h = self.words(x) + self.positions(torch.arange(T, device=x.device))
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        h = self.one(h + self.mix((weights @ v).transpose(1, 2).flatten(2)))
        h = self.two(h + self.down(F.gelu(self.up(h))))
        return self.out(torch.tanh(h[:, 0]))


def cosine(a, b):
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_further_training_of_a_tiny_bert(optimizer):
    torch.manual_seed(0)
    module = TinyBert().double()
    generator = torch.Generator().manual_seed(1)
    X = torch.randint(WORDS, (24, T), generator=generator)
    y = torch.arange(24) % 3
    cls, lr, params = OPTIMIZERS[optimizer]
    rows, seeds = [0, 5, 9], [1, 2]
    settings = {
        "n_epochs": 3, "n_seeds": seeds, "leave_out": rows, "batch_size": 8, "optimizer": cls,
        "lr": lr, "criterion": nn.CrossEntropyLoss(),
    }  # fmt: skip

    def scores(**own):
        gold = FurtherTraining(module, optimizer_params={**params, **own}, **settings).fit(X, y)
        return gold.transform(X[:6], y[:6])

    found = scores()
    assert cosine(found, scores(fused=False)) > 1 - 1e-9
    loop = Naive(
        module, X, y, lambda outputs, targets, _: F.cross_entropy(outputs, targets),
        lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none"),
        optimizer=cls, lr=lr, params=params, batch_size=8,
    )  # fmt: skip
    without, full, _ = loop.run(X[:6], y[:6], marks=[3], seeds=seeds, leave_out=rows)
    expected = (without - full[:, :, None]).mean(-1)[0]
    assert cosine(found, expected) > 1 - 1e-9
    assert relative(found, expected) < 1e-7


@pytest.mark.parametrize("name", ["lstm", "gru", *ONE_BY_ONE])
def test_what_vmap_cannot_do_from_end_to_end(name):
    """Outputs of a stack, too, where vmap has no rule for them."""
    module, X, _ = case(name)
    y = torch.arange(N) % 2
    settings = {"criterion": nn.CrossEntropyLoss(), "optimizer": "SGD", "lr": 0.1, "n_epochs": 2}
    settings |= {"n_seeds": [3], "leave_out": [0, 1], "batch_size": 6}
    gold = FurtherTraining(module, **settings).fit(X, y)
    assert gold.engine_ == "loop"
    found = gold.transform(X[:4], y[:4])
    stacked = FurtherTraining(module, engine="vmap", **settings)
    if name in ONE_BY_ONE:
        with pytest.warns(RuntimeWarning, match="one after the other, which is slower"):
            stacked.fit(X, y)
    again = stacked.fit(X, y).transform(X[:4], y[:4])
    assert relative(again, found) < 1e-9
    loop = Naive(
        module, X, y, lambda outputs, targets, _: F.cross_entropy(outputs, targets),
        lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none"),
        optimizer=torch.optim.SGD, lr=0.1, batch_size=6,
    )  # fmt: skip
    without, full, _ = loop.run(X[:4], y[:4], marks=[2], seeds=[3], leave_out=[0, 1])
    assert relative(found, (without - full[:, :, None]).mean(-1)[0]) < 1e-8
