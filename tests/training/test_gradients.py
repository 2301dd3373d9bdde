"""Gradients of stacks, chains of layers, and steps of a run, each against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from fimoda import as_final_model, losses
from fimoda.layers.truth import Truth
from fimoda.losses import SquaredError, row_loss
from fimoda.measured import Measured
from fimoda.model import FinalModel
from fimoda.objective import Objective
from fimoda.row_gradients import RowDifferentiator
from fimoda.rows import Rows
from fimoda.training.batches import FULL_DATA, Batch
from fimoda.training.chains import Affine, Dropout, Pointwise, read_chain
from fimoda.training.examination import Verdict
from fimoda.training.further import FurtherRuns
from fimoda.training.gradients import _by_autograd, _by_layers, stacked_gradient
from fimoda.training.optimizers import OptimizerSpec
from fimoda.training.run import Run

D = 3


class Functions(nn.Module):
    """A chain written in a forward of its own; `how` names the functions."""

    def __init__(self, how: str):
        super().__init__()
        self.how = how
        self.a, self.b = nn.Linear(D, 4), nn.Linear(4, 1)

    def forward(self, x):
        h = self.a(x)
        h = {
            "F.relu": lambda h: F.relu(h),
            "F.relu inplace": lambda h: F.relu(h, inplace=True),
            "torch.relu": torch.relu,
            "method": lambda h: h.relu(),
            "F.tanh": lambda h: F.tanh(h),
            "torch.sigmoid": torch.sigmoid,
            "squeeze": torch.tanh,
            "dropout": lambda h: F.dropout(F.relu(h), 0.5, self.training),
            "dropout in training only": lambda h: F.dropout(h) if self.training else h,
            "used twice": lambda h: h * torch.sigmoid(h),
            "gelu": lambda h: F.gelu(h),
            "leaky": lambda h: F.leaky_relu(h, 0.2),
            "data": lambda h: h if h.sum() > 0 else -h,
        }[self.how](h)
        h = self.b(h)
        return h.squeeze(-1) if self.how == "squeeze" else h


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(D, D), nn.Linear(D, 1)

    def forward(self, x):
        return self.b(x + torch.tanh(self.a(x)))


class Shared(nn.Module):
    """The same layer twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(D, D), nn.Linear(D, 1)

    def forward(self, x):
        return self.b(torch.tanh(self.a(torch.tanh(self.a(x)))))


def tied():
    """Two layers with the same weights."""
    module = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D), nn.Tanh(), nn.Linear(D, 1))
    module[2].weight = module[0].weight
    return module


def frozen():
    module = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, 1))
    module[0].bias.requires_grad_(False)
    return module


def hooked():
    module = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, 1))
    module[0].register_forward_hook(lambda part, inputs, output: 2 * output)
    return module


def parametrized():
    module = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, 1))
    torch.nn.utils.parametrizations.weight_norm(module[0])
    return module


def unused():
    module = nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, 1))
    module[0].register_parameter("extra", nn.Parameter(torch.ones(2)))
    return module


class RowsOfRows(nn.Module):
    """A linear layer on the last axis of matrices, squeezed: (n, 5, 3) to (n, 5)."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(D, 1)

    def forward(self, x):
        return self.a(x).squeeze(-1)


CHAINS = {
    "linear": lambda: nn.Linear(D, 2),
    "no bias": lambda: nn.Sequential(
        nn.Linear(D, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)
    ),
    "one bias": lambda: nn.Sequential(
        nn.Linear(D, 4), nn.Sigmoid(), nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 2)
    ),
    "nested": lambda: nn.Sequential(
        nn.Sequential(nn.Linear(D, 4), nn.ReLU(inplace=True)),
        nn.Identity(),
        nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Tanh()),
        nn.Linear(4, 2),
    ),
    "activation first": lambda: nn.Sequential(nn.Tanh(), nn.Linear(D, 2)),
    "activation last": lambda: nn.Sequential(nn.Linear(D, 2), nn.Sigmoid()),
    "two in a row": lambda: nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.ReLU(), nn.Linear(4, 2)),
    "no activation": lambda: nn.Sequential(nn.Linear(D, 4), nn.Linear(4, 2)),
    "dropout layers": lambda: nn.Sequential(
        nn.Dropout(0.2), nn.Linear(D, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)
    ),
    "dropout of zero": lambda: nn.Sequential(nn.Linear(D, 4), nn.Dropout(0.0), nn.Linear(4, 2)),
    "flatten": lambda: nn.Sequential(nn.Flatten(), nn.Linear(2 * D, 4), nn.ReLU(), nn.Linear(4, 1)),
    **{
        how: lambda how=how: Functions(how)
        for how in (
            "F.relu",
            "F.relu inplace",
            "torch.relu",
            "method",
            "F.tanh",
            "torch.sigmoid",
            "squeeze",
        )
    },
}

NO_CHAINS = {
    "residual": Residual,
    "shared": Shared,
    "tied": tied,
    "frozen": frozen,
    "hooked": hooked,
    "parametrized": parametrized,
    "unused": unused,
    "matrices": RowsOfRows,
    "batch norm": lambda: nn.Sequential(nn.Linear(D, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)),
    "layer norm": lambda: nn.Sequential(nn.Linear(D, 4), nn.LayerNorm(4), nn.Linear(4, 1)),
    "softmax": lambda: nn.Sequential(nn.Linear(D, 4), nn.Softmax(-1)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, D)), nn.Conv1d(1, 2, 2), nn.Flatten(), nn.Linear(4, 1)
    ),
    "flatten in between": lambda: nn.Sequential(nn.Linear(D, 2), nn.Flatten(), nn.Linear(4, 1)),
    **{
        how: lambda how=how: Functions(how)
        for how in ("dropout", "dropout in training only", "used twice", "gelu", "leaky", "data")
    },
}

ROW_SHAPES = {"flatten": (2, D), "flatten in between": (2, D), "matrices": (5, D)}


def final_model(name: str, l2: bool = False, dtype=torch.float64) -> FinalModel:
    torch.manual_seed(0)
    module = {**CHAINS, **NO_CHAINS}[name]().to(dtype).eval()
    with torch.no_grad():
        ndim = module(torch.ones(1, *ROW_SHAPES.get(name, (D,)), dtype=dtype)).dim()
    model = FinalModel(module, SquaredError(), output_ndim=ndim)
    if l2:
        model = FinalModel(
            module,
            SquaredError(),
            output_ndim=ndim,
            l2=torch.rand(model.n_parameters, dtype=dtype),
        )
    return model


# ---- chains and gradients -------------------------------------------------------------------


@pytest.mark.parametrize("name", CHAINS)
def test_chain_is_read(name):
    model = final_model(name)
    links = read_chain(model)
    assert links is not None
    held = [n for link in links if isinstance(link, Affine) for n in (link.weight, link.bias)]
    assert sorted(n for n in held if n) == sorted(model.shapes)


@pytest.mark.parametrize("name", NO_CHAINS)
def test_no_chain_is_read(name):
    assert read_chain(final_model(name)) is None


def test_links_in_order():
    links = read_chain(final_model("dropout layers"))
    assert [type(link) for link in links] == [Dropout, Affine, Pointwise, Dropout, Affine]
    assert (links[0].p, links[3].p) == (0.2, 0.5)
    assert links[1] == Affine("1.weight", "1.bias")
    assert [type(link) for link in read_chain(final_model("dropout of zero"))] == [Affine, Affine]


def plain_gradient(model: FinalModel, theta, x, y, weights):
    """Ordinary autograd, one model of the stack at a time."""
    rows = []
    for k in range(len(theta)):
        own = theta[k].clone().requires_grad_()
        named = {name: own[part].view(model.shapes[name]) for name, part in model.slices.items()}
        outputs = functional_call(model.training_module, named, (x[k],))
        outputs = outputs.reshape(len(y[k]), -1)
        total = (weights[k] * ((outputs - y[k]) ** 2).mean(1)).sum()
        if model.l2 is not None:
            total = total + 0.5 * (model.l2 * own**2).sum()
        rows.append(torch.autograd.grad(total, own)[0])
    return torch.stack(rows)


def stack_inputs(model: FinalModel, name: str, n_models=4, batch=7):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(model.dtype)

    theta = model.theta + 0.3 * normal(n_models, model.n_parameters)
    x = normal(n_models, batch, *ROW_SHAPES.get(name, (D,)))
    n_outputs = model.outputs(x[0]).shape[1]
    weights = normal(n_models, batch).abs()
    weights[0, 2] = 0
    return theta, x, normal(n_models, batch, n_outputs), weights / weights.sum(1, keepdim=True)


def flat(gradient):
    """A stacked gradient on stacks of flat parameters."""

    def of_stack(model, theta, *batch):
        return model.flatten(gradient(model.views(theta), *batch))

    return of_stack


@pytest.mark.parametrize("l2", [False, True])
@pytest.mark.parametrize("name", [n for n in CHAINS if n != "dropout layers"])
def test_layers_autograd_and_plain_autograd_agree(name, l2):
    model = final_model(name, l2)
    inputs = stack_inputs(model, name)
    expected = plain_gradient(model, *inputs)
    found = flat(stacked_gradient(model))(model, *inputs)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    penalty = model.l2 * inputs[0] if l2 else 0
    by_layers = flat(_by_layers(model, read_chain(model)))(model, *inputs)
    torch.testing.assert_close(by_layers + penalty, expected, rtol=1e-10, atol=1e-12)
    by_autograd = flat(_by_autograd(model))(model, *inputs)
    torch.testing.assert_close(by_autograd + penalty, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("l2", [False, True])
@pytest.mark.parametrize("name", [n for n in CHAINS if n != "dropout layers"])
def test_layers_write_where_they_are_told(name, l2, batch):
    """Twice into the same memory, the second time over other numbers; a batch of one row too."""
    model = final_model(name, l2)
    theta, x, y, weights = stack_inputs(model, name)
    x, y, weights = x[:, :batch], y[:, :batch], weights[:, :batch] + 0.1
    views = model.views(theta)
    room = {key: torch.full_like(view, 7.0).contiguous() for key, view in views.items()}
    gradient = stacked_gradient(model)
    gradient(views, 2 * x, y, weights, room)
    written = gradient(views, x, y, weights, room)
    assert all(written[key] is room[key] for key in room)
    expected = plain_gradient(model, theta, x, y, weights)
    torch.testing.assert_close(model.flatten(room), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("l2", [False, True])
@pytest.mark.parametrize(
    "name",
    ["residual", "shared", "tied", "frozen", "hooked", "parametrized", "matrices", "gelu"]
    + ["batch norm", "layer norm", "softmax", "convolution", "used twice", "leaky"],
)
def test_other_networks_go_through_autograd(name, l2):
    model = final_model(name, l2)
    inputs = stack_inputs(model, name)
    found = flat(stacked_gradient(model))(model, *inputs)
    expected = plain_gradient(model, *inputs)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["dropout layers", "dropout", "dropout in training only"])
def test_dropout_is_the_same_in_all_models_and_ways(name):
    model = final_model(name)
    theta, x, y, weights = stack_inputs(model, name)
    x, y, weights = x[:1].expand_as(x), y[:1].expand_as(y), weights[:1].expand_as(weights)
    theta = theta[:1].expand_as(theta)

    def seeded(gradient, *inputs):
        torch.manual_seed(4)
        return gradient(model, *inputs)

    with torch.random.fork_rng():
        together = seeded(flat(stacked_gradient(model)), theta, x, y, weights)
        alone = seeded(plain_gradient, theta[:1], x[:1], y[:1], weights[:1])
        by_autograd = seeded(flat(_by_autograd(model)), theta, x, y, weights)
        evaluated = plain_gradient(
            FinalModel(model.module, model.loss, output_ndim=model.output_ndim),
            *(theta[:1], x[:1], y[:1], weights[:1]),
        )
    torch.testing.assert_close(together, alone.expand_as(together), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(by_autograd, together, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(evaluated, alone)  # another draw: dropout is active


def row_losses():
    """Name, loss and n_outputs of every kind of loss."""
    weight = torch.arange(1.0, 4.0)
    return {
        "mse": (row_loss(nn.MSELoss(), (2,)), 2),
        "summed squares": (SquaredError(0.5, "sum"), 2),
        "cross-entropy": (row_loss(nn.CrossEntropyLoss(weight=weight), (3,)), 3),
        "smoothed": (row_loss(nn.CrossEntropyLoss(label_smoothing=0.1), (3,)), 3),
        "bce": (row_loss(nn.BCEWithLogitsLoss(), (1,)), 1),
        "bce pos_weight": (
            row_loss(nn.BCEWithLogitsLoss(pos_weight=torch.full((1,), 3.0)), (1,)),
            1,
        ),
        "bce of probability": (row_loss(nn.BCELoss(), (1,)), 1),
        "one against rest": (losses.OneVsRestCrossEntropy(), 3),
        "nll": (row_loss(nn.NLLLoss(), (3,)), 3),
        "nll of probability": (losses.ProbabilityNLL(1e-7), 3),
        "huber": (row_loss(nn.HuberLoss(delta=0.3), (2,)), 2),
        "l1": (row_loss(nn.L1Loss(), (2,)), 2),
        "poisson": (row_loss(nn.PoissonNLLLoss(), (2,)), 2),
    }


LOSSES = list(row_losses())


def loss_inputs(loss, n_outputs, lead=(4, 6)):
    generator = torch.Generator().manual_seed(2)
    outputs = torch.rand(*lead, n_outputs, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    if loss.is_classifier:
        return outputs, torch.randint(0, max(n_outputs, 2), lead, generator=generator)
    return outputs, torch.rand(*lead, n_outputs, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_of_a_loss_is_its_derivative(name):
    loss, n_outputs = row_losses()[name]
    outputs, targets = loss_inputs(loss, n_outputs)
    outputs.requires_grad_()
    values = loss(outputs, targets)
    assert values.shape == outputs.shape[:-1]
    (expected,) = torch.autograd.grad(values.sum(), outputs)
    found = loss.gradient(outputs.detach(), targets)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_a_stack_is_that_of_each_row(name):
    loss, n_outputs = row_losses()[name]
    outputs, targets = loss_inputs(loss, n_outputs)
    values = loss(outputs, targets)
    for place in np.ndindex(4, 6):
        one = loss(outputs[place].unsqueeze(0), targets[place].unsqueeze(0))
        torch.testing.assert_close(one[0], values[place], rtol=1e-12, atol=1e-14)


# ---- runs -----------------------------------------------------------------------------------


def test_step_on_a_batch_of_the_left_out_row_alone():
    """The penalty and the optimiser's state act, the data do not, and nothing is NaN."""
    model = final_model("linear", l2=True)
    X = torch.randn(3, D, dtype=torch.float64)
    objective = Objective(model, Rows(X, torch.zeros(3, 2, dtype=torch.float64)))
    run = Run(objective, OptimizerSpec(torch.optim.SGD, 0.1), 4)
    theta = model.theta.expand(2, -1)
    batch = Batch(torch.tensor([1]), torch.tensor([[1.0], [0.0]]).double())
    gradient = model.flatten(run.gradient(model.views(theta), batch))
    torch.testing.assert_close(gradient[1], model.l2 * model.theta, rtol=1e-12, atol=0)
    assert not torch.allclose(gradient[0], gradient[1])


def test_units_cover_every_seed_and_row_once():
    for mode in ("mask", "drop"):
        rows = np.array([5, 2, 9, 14])
        objective = Objective(final_model("linear"), Rows(torch.zeros(20, D), torch.zeros(20, 2)))
        run = Run(objective, OptimizerSpec(torch.optim.SGD, 0.1), 4)
        for size in (1, 2, 3, 5, None):
            kept = {"checkpoint_dir": None, "memory_budget": 0, "n_jobs": None, "verbose": 0}
            units = FurtherRuns(
                run, [1], rows, [1, 2], None, "full", mode, "auto", size, **kept
            ).units([1, 2])
            pairs = [(u.seed, row) for u in units for row in u.left_out]
            assert sorted(pairs) == sorted((s, r) for s in (1, 2) for r in (FULL_DATA, *rows))
            assert len({u.key for u in units}) == len(units)
            assert all(len(u.left_out) <= (size or 5) for u in units)
            if mode == "drop":
                assert all(u.left_out == (FULL_DATA,) for u in units if FULL_DATA in u.left_out)


def test_compile_is_decided_by_the_work_alone():
    """Not by who does it: compiled or not gives other bits."""
    chain, other = final_model("one bias"), final_model("residual")
    for model, rows, steps, expected in (
        (chain, 100, 1, False),
        (chain, 100, 10**10, True),
        (other, 100, 10**10, False),
    ):
        objective = Objective(model, Rows(torch.zeros(rows, D), torch.zeros(rows, 2)))
        run = Run(objective, OptimizerSpec(torch.optim.SGD, 0.1), 10)
        assert run.compiles("auto", 5, steps) is expected
        assert run.compiles(True, 5, steps) is True
        assert run.compiles(False, 5, steps) is False


# ---- devices --------------------------------------------------------------------------------


@pytest.fixture
def device():
    """Another device than the CPU, of tensors without numbers: mixing the two is an error.

    (Torch built without CUDA cannot differentiate fake tensors on "cuda"; on "meta" it can.)
    """
    with FakeTensorMode():
        yield torch.device("meta")


def test_fake_devices_do_not_mix(device):
    x = torch.ones(2, 2, device=device)
    for mixed in (lambda: x + torch.ones(2, 2), lambda: x @ torch.ones(2, 2)):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()


def on_device(name: str, loss, n_outputs: int, device) -> FinalModel:
    last = [nn.Softmax(-1)] if loss.outputs_are == "probabilities" else []
    with device:
        module = {
            "chain": lambda: nn.Sequential(
                nn.Linear(D, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, n_outputs), *last
            ),
            "no chain": lambda: nn.Sequential(
                nn.Linear(D, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, n_outputs), *last
            ),
        }[name]()
    n_parameters = sum(p.numel() for p in module.parameters())
    return FinalModel(module.eval(), loss, l2=torch.ones(n_parameters, device=device))


def loss_on_device(name: str, device):
    with device:
        loss, n_outputs = row_losses()[name]
    criterion = getattr(loss, "criterion", nn.Module())
    for key, buffer in list(criterion.named_buffers()):  # a copied fake tensor is of no use
        criterion.register_buffer(key, torch.ones(buffer.shape, device=device))
    return loss, n_outputs


def targets_on_device(loss, shape, n_outputs, device):
    if loss.is_classifier:
        return torch.zeros(shape, dtype=torch.long, device=device)
    return torch.zeros(*shape, n_outputs, device=device)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_stay_on_the_device(name, device):
    loss, n_outputs = loss_on_device(name, device)
    outputs = torch.rand(4, 6, n_outputs, device=device)
    targets = targets_on_device(loss, (4, 6), n_outputs, device)
    assert loss(outputs, targets).device == device
    assert loss.gradient(outputs, targets).device == device


@pytest.mark.parametrize("name", ["chain", "no chain"])
@pytest.mark.parametrize("loss_name", LOSSES)
def test_training_stays_on_the_device(loss_name, name, device, monkeypatch):
    """Gradient and optimiser; orders and weights of the batches are drawn on the CPU."""
    # an examination compares numbers, which fake tensors do not have
    monkeypatch.setattr("fimoda.training.run.examine", lambda *_: Verdict(True, True))
    loss, n_outputs = loss_on_device(loss_name, device)
    model = on_device(name, loss, n_outputs, device)
    assert (read_chain(model) is None) == (
        name == "no chain" or loss.outputs_are == "probabilities"
    )
    X = torch.rand(10, D, device=device)
    y = targets_on_device(loss, (10,), n_outputs, device)
    spec = OptimizerSpec(torch.optim.SGD, 0.1, {"momentum": 0.9, "fused": False})
    run = Run(Objective(model, Rows(X, y)), spec, 4)
    stack = model.theta.expand(3, -1).detach().clone().requires_grad_()
    optimizer = spec.build([stack])
    rows = {"shared": torch.arange(4), "own": torch.arange(12).view(3, 4) % 10}
    for own in rows.values():
        views = model.views(stack.detach())
        stack.grad = model.flatten(run.gradient(views, Batch(own, torch.rand(3, 4))))
        assert stack.grad.device == device
        assert stack.grad.shape == (3, model.n_parameters)
        optimizer.step()
    assert stack.device == device


@pytest.mark.parametrize("name", ["chain", "no chain"])
def test_outputs_and_row_gradients_stay_on_the_device(name, device, monkeypatch):
    # how to differentiate is decided by numbers, which fake tensors do not have
    monkeypatch.setattr(Truth, "agrees", lambda *_: True)
    model = on_device(name, losses.CrossEntropy(), 3, device)
    X = torch.rand(6, D, device=device)
    y = torch.zeros(6, dtype=torch.long, device=device)
    assert model.outputs(X).device == device
    assert model.stacked_outputs(model.theta.expand(2, -1), X).device == device
    rows = RowDifferentiator(model, X[:1])(Measured(Rows(X, y), model.loss))
    assert rows.inner(rows).device == device
    assert rows.inner(rows).shape == (6, 6)
    assert rows.inner_rowwise(rows).device == device


def test_weights_of_a_criterion_stay_on_its_device(device):
    criterion = nn.CrossEntropyLoss(weight=torch.ones(2, device=device))
    module = nn.Linear(D, 2, device=device)
    model = FinalModel(
        module, row_loss(criterion, (2,)), class_weight=losses.class_weight_of(criterion, 2)
    )
    y = torch.zeros(6, dtype=torch.long, device=device)
    assert model.row_weights(y, torch.ones(6)).device == device


def test_float32_fits_float64():
    """The whole engine in float32 is float32 training, not less."""
    scores = {}
    X = torch.randn(32, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for dtype in (torch.float32, torch.float64):
        model = as_final_model(
            final_model("one bias", dtype=dtype).module, X.numpy(), criterion=nn.MSELoss()
        )
        objective = Objective(model, Rows(X.to(dtype), X[:, :2].to(dtype)))
        run = Run(objective, OptimizerSpec(torch.optim.Adam, 0.01), 8)
        scores[dtype] = run.train(run.plan(0, (FULL_DATA, 1, 2)), [run.n_steps(3)]).double()
    change = scores[torch.float64] - final_model("one bias").theta
    gap = scores[torch.float32] - scores[torch.float64]
    assert float(gap.norm() / change.norm()) < 1e-4
