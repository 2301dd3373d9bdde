"""Derivatives of networks of every kind against plain loops of autograd, in float64."""

from __future__ import annotations

import networks
import numpy as np
import pytest
import torch
from alive import Alive
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

from fimoda import UnrolledDifferentiation, as_final_model, hessians
from fimoda.curvature.operators import activation_bytes
from fimoda.derivatives import (
    Linearization,
    gradient,
    row_gradients,
    row_jacobians,
)
from fimoda.fallbacks import explanations
from fimoda.formulas import by_formulas
from fimoda.hessians import hessian_products
from fimoda.model import FinalModel
from fimoda.rows import Rows

N_VECTORS = 2


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    scale = max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= 1e-8 * scale


class Naive:
    """Derivatives by double backward, one row and one output at a time."""

    def __init__(self, model: FinalModel, rows: Rows):
        self.model, self.rows = model, rows
        self.leaves = {k: v.clone().requires_grad_() for k, v in model.views(model.theta).items()}

    def outputs(self, i: int) -> Tensor:
        with by_formulas(True):
            return self.model.call(self.leaves, self.rows.inputs[i : i + 1])[0]

    def loss(self, i: int) -> Tensor:
        return self.model.loss(self.outputs(i)[None], self.rows.targets[i : i + 1])[0]

    def slopes(self, value: Tensor, **options) -> Tensor:
        found = torch.autograd.grad(
            value, list(self.leaves.values()), materialize_grads=True, **options
        )
        return torch.cat([part.reshape(-1) for part in found])

    def gradients(self) -> Tensor:
        return torch.stack([self.slopes(self.loss(i)) for i in range(len(self.rows))])

    def jacobians(self) -> Tensor:
        return torch.stack(
            [
                torch.stack([self.slopes(f, retain_graph=True) for f in self.outputs(i)])
                for i in range(len(self.rows))
            ]
        )

    def products(self, V: Tensor, weights: Tensor) -> Tensor:
        """Return second derivatives of the weighted losses along vectors."""
        total = torch.zeros_like(V)
        for i, w in enumerate(weights):
            slopes = self.slopes(self.loss(i), create_graph=True)
            total += w * torch.stack([self.slopes(slopes @ v, retain_graph=True) for v in V])
        return total


def example(name: str) -> tuple[FinalModel, Rows]:
    """Return a network of the zoo in float64, with five rows."""
    if name in networks.NEEDS:
        pytest.importorskip(networks.NEEDS[name])
    case = networks.bare(name, torch.float64)
    model = as_final_model(case.model, case.X, case.y, **case.params)
    inputs = model.encode_X(case.X)
    targets = model.encode_y(case.y, model.outputs(inputs[:1]).shape[1])
    return model, Rows(inputs, targets)[:5]


def losses_of(model: FinalModel, rows: Rows):
    return lambda parameters: model.loss(model.call(parameters, rows.inputs), rows.targets)


def vectors(model: FinalModel, k: int = N_VECTORS) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(k, model.n_parameters, generator=generator, dtype=torch.float64)


def check(model: FinalModel, rows: Rows) -> None:
    """Compare all derivatives with plain loops."""
    naive = Naive(model, rows)
    losses, V = losses_of(model, rows), vectors(model)
    gradients, jacobians = naive.gradients(), naive.jacobians()
    weights = torch.arange(1, len(rows) + 1).double()

    close(gradient(model, lambda p: weights @ losses(p)), weights @ gradients)
    close(
        row_gradients(
            model, lambda p, x, y: model.loss(model.call(p, x), y), rows.inputs, rows.targets
        ),
        gradients,
    )
    close(row_jacobians(model, rows.inputs), jacobians)
    linear = Linearization(model, lambda p: model.call(p, rows.inputs))
    close(linear.outputs, model.outputs(rows.inputs))
    close(linear.push(V), torch.einsum("ncp,kp->knc", jacobians, V))
    U = torch.stack([torch.cos(k + linear.outputs) for k in range(N_VECTORS)])
    close(linear.pull(U), torch.einsum("ncp,knc->kp", jacobians, U))
    products, slopes = hessian_products(model, losses, weights, V)
    close(products, naive.products(V, weights))
    close(slopes, V @ gradients.mT)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_network_by_plain_loops(name):
    check(*example(name))


def of_module(module: nn.Module, X: Tensor) -> tuple[FinalModel, Rows]:
    """Return a classifier in float64 and five rows."""
    y = torch.arange(len(X)) % networks.CLASSES
    model = as_final_model(
        module.double().eval(), X.numpy(), y.numpy(), criterion=nn.CrossEntropyLoss()
    )
    return model, Rows(model.encode_X(X.numpy()), model.encode_y(y, networks.CLASSES))


def sequences(n: int = 5) -> Tensor:
    return torch.from_numpy(networks._sequences(np.random.default_rng(2), n)).double()


# ---- recurrent layers ------------------------------------------------------------------------

RECURRENT = {
    "lstm": lambda **given: nn.LSTM(4, 5, **given),
    "projected lstm": lambda **given: nn.LSTM(4, 5, proj_size=3, **given),
    "gru": lambda **given: nn.GRU(4, 5, **given),
    "rnn": lambda **given: nn.RNN(4, 5, **given),
    "relu rnn": lambda **given: nn.RNN(4, 5, nonlinearity="relu", **given),
}

OPTIONS = {
    "plain": {},
    "two layers": {"num_layers": 2},
    "both directions": {"bidirectional": True},
    "no bias": {"bias": False},
    "dropout": {"num_layers": 2, "dropout": 0.5},
    "all": {"num_layers": 3, "bidirectional": True, "bias": False, "dropout": 0.3},
}


def same(found, expected) -> None:
    """Compare what a recurrent layer returns: outputs, packed or not, and states."""
    pairs = zip(tree_leaves(found), tree_leaves(expected), strict=True)
    for one, other in pairs:
        if isinstance(one, Tensor):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("options", OPTIONS)
def test_recurrent_layers_by_their_formula(kind, options):
    """In evaluation and in training, batches, single sequences and packed ones, with states given."""
    torch.manual_seed(0)
    X = torch.randn(3, 6, 4).double()
    for batch_first in (True, False):
        module = RECURRENT[kind](**OPTIONS[options], batch_first=batch_first).double()
        steps = X if batch_first else X.transpose(0, 1)
        packed = nn.utils.rnn.pack_padded_sequence(steps, [6, 4, 1], batch_first=batch_first)
        state = module(steps)[1]
        for inputs in ((steps,), (steps[:, 0],), (packed,), (steps, state), (packed, state)):
            for training in (True, False):
                module.train(training)
                torch.manual_seed(1)
                expected = module(*inputs)
                torch.manual_seed(1)
                with by_formulas(True):
                    same(module(*inputs), expected)


class OfLast(nn.Module):
    """The outputs of a recurrent layer at the last step, and its last state."""

    def __init__(self, kind: str, **options):
        super().__init__()
        self.recurrent = RECURRENT[kind](batch_first=True, **options)
        width = (3 if "projected" in kind else 5) * (1 + options.get("bidirectional", False))
        self.head = nn.Linear(width, networks.CLASSES)

    def forward(self, X):
        outputs, state = self.recurrent(X)
        state = state[1] if isinstance(state, tuple) else state
        return self.head(outputs[:, -1]) + state.square().mean((0, 2)).unsqueeze(1)


@pytest.mark.parametrize("kind", RECURRENT)
def test_derivatives_of_recurrent_networks(kind):
    torch.manual_seed(0)
    model, rows = of_module(OfLast(kind, num_layers=2, bidirectional=True), sequences())
    check(model, rows)
    assert not explanations(model)


def test_weights_are_not_packed_within():
    """A recurrent layer on a GPU packs its weights for the fused kernels, which derivatives cannot follow."""
    packed = torch.backends.cudnn.enabled
    with by_formulas(recurrent=False):
        assert torch.backends.cudnn.enabled == packed

    def fails() -> None:
        with by_formulas(recurrent=True):
            assert not torch.backends.cudnn.enabled
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert torch.backends.cudnn.enabled == packed


# ---- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_vectors_go_through_a_batch_in_blocks(monkeypatch, dropout):
    """Products are the same for any number of vectors at a time, with the same dropout."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1)
    ).double()
    X = np.random.default_rng(0).normal(size=(6, 3))
    model, y = as_final_model(module, X, criterion=nn.MSELoss()), torch.ones(6, 1).double()
    inputs = torch.from_numpy(X)

    def losses(parameters):
        return model.loss(model.call(parameters, inputs, training=True), y)

    def products(room: int):
        monkeypatch.setattr(hessians, "_ACTIVATIONS", room)
        torch.manual_seed(1)
        return hessian_products(model, losses, torch.ones(6).double() / 6, V)

    V = torch.randn(7, model.n_parameters, dtype=torch.float64)
    whole = products(2**40)
    kept = hessians._bytes_of_vector(model, losses, None)
    for room in (1, 5 * kept, 6 * kept):  # the first is one graph for all of them
        for found, expected in zip(products(room), whole, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_tangents_are_no_larger_than_their_parameters():
    """A vector that begins elsewhere than the parameters do costs no vector for each of them."""
    torch.manual_seed(0)
    small = [nn.Linear(5, 5) for _ in range(20)]
    module = nn.Sequential(nn.Linear(10_001, 5), *small, nn.Linear(5, 1)).double()
    X = torch.randn(4, 10_001, dtype=torch.float64)
    model = as_final_model(module, X.numpy(), criterion=nn.MSELoss())

    def losses(parameters):
        return model.loss(model.call(parameters, X), torch.ones(4, 1).double())

    V = torch.randn(2, model.n_parameters, dtype=torch.float64)[1:]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        Linearization(model, losses).push(V)
        hessian_products(model, losses, torch.ones(4).double(), V)
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in seen.key_averages())
    assert allocated < 20 * V.nbytes


def test_nothing_stays_behind():
    """What has been looked at to know its size is not held by a graph that holds itself."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 50), nn.Tanh(), nn.Softplus(), nn.Linear(50, 1)).double()
    X = torch.randn(20, 5, dtype=torch.float64)
    model = as_final_model(module, X.numpy(), criterion=nn.MSELoss())

    def losses(parameters):
        return model.loss(model.call(parameters, X), torch.ones(20, 1).double())

    V, there = torch.randn(3, model.n_parameters, dtype=torch.float64), []
    with Alive() as seen:
        for _ in range(3):
            hessian_products(model, losses, torch.ones(20).double(), V)
            activation_bytes(model, X)
            there.append(seen.now())
    assert there[0] == there[1] == there[2]


# ---- attention -------------------------------------------------------------------------------


class Masked(nn.Module):
    """Attention that leaves padding out, which is zero."""

    def __init__(self, encoder: bool):
        super().__init__()
        self.embedding = nn.Embedding(networks.VOCABULARY, 8)
        self.encoder = (
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 2)
            if encoder
            else nn.MultiheadAttention(8, 2, batch_first=True)
        )
        self.head = nn.Linear(8, networks.CLASSES)

    def forward(self, X):
        hidden, padding = self.embedding(X), X == 0
        if isinstance(self.encoder, nn.TransformerEncoder):
            hidden = self.encoder(hidden, src_key_padding_mask=padding)
        else:
            hidden = self.encoder(hidden, hidden, hidden, key_padding_mask=padding)[0]
        return self.head(hidden.mean(1))


@pytest.mark.parametrize("encoder", [True, False])
def test_attention_with_padding(encoder):
    torch.manual_seed(0)
    given = networks._padded(np.random.default_rng(0), 5)["input_ids"]
    model, rows = of_module(Masked(encoder), torch.from_numpy(given))
    check(model, rows)
    assert torch.backends.mha.get_fastpath_enabled()


# ---- what torch cannot batch, or not differentiate -------------------------------------------


class Looking(nn.Module):
    """A forward pass with an `if` that depends on its numbers, and with `.item()`."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 5), nn.Linear(5, networks.CLASSES)

    def forward(self, X):
        hidden = self.first(X).tanh()
        if (hidden.abs() > 100).any():
            raise ValueError("hidden units are too large")
        return self.head(hidden * (1 + 0 * hidden.max().item()))


def test_data_dependent_control_flow_is_explained():
    torch.manual_seed(0)
    model, rows = of_module(Looking(), torch.randn(5, 4))
    assert not explanations(model)
    check(model, rows)
    found = explanations(model)
    assert any("looks at numbers" in line and "one after the other" in line for line in found)
    assert explanations(model.double) == found
    other, _ = of_module(nn.Linear(4, networks.CLASSES), torch.randn(5, 4))
    assert not explanations(other)


def test_scores_are_explained():
    torch.manual_seed(0)
    module, X, y = Looking(), torch.randn(5, 4).numpy(), np.arange(5) % networks.CLASSES
    method = UnrolledDifferentiation(
        module,
        n_epochs=1,
        optimizer="SGD",
        lr=0.1,
        batch_size=2,
        criterion=nn.CrossEntropyLoss(),
        order="own",
    )
    method.fit(X, y).transform(X, y)
    assert any(line.startswith("gradients of rows are taken one") for line in method._caveats())


class Once(torch.autograd.Function):
    """The exponential, with a first derivative alone."""

    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return slope * ctx.saved_tensors[0]


class Quiet(Once):
    """The same for transforms of torch, which take its second derivative for zero."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.exp()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * ctx.saved_tensors[0]


class Blind(Once):
    """The same with a backward pass that leaves torch."""

    @staticmethod
    def backward(ctx, slope):
        return torch.from_numpy(slope.numpy() * ctx.saved_tensors[0].numpy())


class Exponential(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, X):
        return self.function.apply(X)


@pytest.mark.parametrize("function", [Once, Quiet, Blind])
def test_no_second_derivative_is_an_error_that_names_the_module(function):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(4, 5),
        nn.Sequential(nn.Tanh(), Exponential(function)),
        nn.Linear(5, networks.CLASSES),
    )
    model, rows = of_module(module, torch.randn(5, 4))
    naive, losses, V = Naive(model, rows), losses_of(model, rows), vectors(model)
    close(gradient(model, lambda p: losses(p).sum()), naive.gradients().sum(0))
    close(row_jacobians(model, rows.inputs), naive.jacobians())
    with pytest.raises(TypeError, match=r"no second .* of 1\.1 \(Exponential\).*GradDot, DataInf"):
        hessian_products(model, losses, torch.ones(5).double(), V)
    linear = Linearization(model, lambda p: model.call(p, rows.inputs))
    if function is Quiet:
        close(linear.push(V), torch.einsum("ncp,kp->knc", naive.jacobians(), V))
    else:
        with pytest.raises(TypeError, match=r"derivatives.* of 1\.1 \(Exponential\)"):
            linear.push(V)


def test_errors_of_the_call_itself_stay():
    model, rows = of_module(nn.Linear(4, networks.CLASSES), torch.randn(5, 4))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        gradient(model, lambda p: model.call(p, rows.inputs[:, :2]).sum())


def test_unused_parameters_have_no_gradient():
    model, rows = of_module(nn.Linear(4, networks.CLASSES), torch.randn(5, 4))
    zero = torch.zeros(model.n_parameters).double()
    close(gradient(model, lambda p: rows.inputs.sum()), zero)
    at_bias = gradient(model, lambda p: p["bias"].sum())
    close(at_bias, torch.cat([zero[: -networks.CLASSES], torch.ones(networks.CLASSES).double()]))
    constant = Linearization(model, lambda p: rows.inputs.sum(1) + p["bias"].sum())
    close(constant.pull(torch.ones(1, 5).double()), 5 * at_bias[None])
