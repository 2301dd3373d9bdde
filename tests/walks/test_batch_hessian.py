"""The Hessian of a batch, and the curvature of kinks, against dense matrices in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from naive import relative
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, hessian, jvp

import fimoda.walks.batch_hessian as under_test
from fimoda import as_final_model, losses
from fimoda.model import FinalModel
from fimoda.rows import Rows
from fimoda.training.chains import read_chain
from fimoda.walks.batch_hessian import AutogradHessian, ChainHessian, batch_hessian
from fimoda.walks.kinks import SmoothedKinks, bump

B, D = 3, 4
SHARPNESS = 3.0


class Pooled(nn.Module):
    """The largest of each of three pairs of units."""

    def __init__(self):
        super().__init__()
        self.inner, self.pool, self.outer = nn.Linear(D, 6), nn.MaxPool2d((1, 2)), nn.Linear(3, 1)

    def forward(self, x):
        return self.outer(self.pool(self.inner(x).reshape(-1, 1, 3, 2)).flatten(1))


def mlp(activation, n_outputs):
    return nn.Sequential(
        nn.Linear(D, 5),
        activation,
        nn.Linear(5, 6, bias=False),
        activation,
        nn.Linear(6, n_outputs),
    )


LOSSES = {
    "mse1": (1, nn.MSELoss()),
    "mse3": (3, nn.MSELoss()),
    "ce": (3, nn.CrossEntropyLoss()),
    "bce": (1, nn.BCEWithLogitsLoss()),
}
ACTIVATIONS = {"tanh": nn.Tanh(), "sigmoid": nn.Sigmoid(), "relu": nn.ReLU()}


def problem(net: nn.Module, criterion: nn.Module):
    """Model, rows, targets as the criterion wants them, and weights that do not sum to one."""
    torch.manual_seed(0)
    net = net.double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.6)
    x = torch.randn(B, D, dtype=torch.float64)
    n_outputs = net(x).shape[1]
    classes = isinstance(criterion, nn.CrossEntropyLoss | nn.BCEWithLogitsLoss)
    y = torch.arange(B) % max(n_outputs, 2) if classes else torch.randn(B, n_outputs).double()
    return as_final_model(net, x, y.numpy(), criterion=criterion), x, y, torch.rand(B).double()


def loss_of_row(criterion, f, target):
    """By torch's own criterion."""
    if isinstance(criterion, nn.BCEWithLogitsLoss):
        return criterion(f[:, 0], target.double()[None])
    return criterion(f, target[None])


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients])


def dense(model, criterion, x, y, w, sharpness=None, kinks=()):
    """Hessian (p, p) and gradients (B, p) of the rows, one row at a time.

    Curvature of a kink in unit h: gradient of the loss in its value a, times its change of slope,
    times the bump at its argument z, times the outer product of z's gradient with itself.

    Parameters
    ----------
    kinks : list of (str, callable)
        Modules with a kink, and functions of their input that give z and the change of slope.
    """

    def loss(theta, row, target):
        return loss_of_row(criterion, model.forward(theta, row[None]), target)

    H = sum(wb * hessian(loss)(model.theta, r, t) for wb, r, t in zip(w, x, y, strict=True))
    G = torch.stack([grad(loss)(model.theta, r, t) for r, t in zip(x, y, strict=True)])
    if sharpness is None:
        return H, G
    parameters = list(model.module.parameters())
    for p in parameters:
        p.requires_grad_()
    for row, target, weight in zip(x, y, w, strict=True):
        seen = []
        hooks = [
            model.module.get_submodule(name).register_forward_hook(
                lambda part, inputs, value, bend=bend, seen=seen: seen.append(
                    (bend(inputs[0]), value)
                )
            )
            for name, bend in kinks
        ]
        total = loss_of_row(criterion, model.module(row[None]), target)
        for hook in hooks:
            hook.remove()
        for (z, change), value in seen:
            (upstream,) = torch.autograd.grad(total, value, retain_graph=True)
            size = (upstream * change * bump(z, sharpness)).flatten()
            for c, unit in zip(size, z.flatten(), strict=True):
                q = flat(
                    torch.zeros_like(p) if g is None else g
                    for p, g in zip(
                        parameters,
                        torch.autograd.grad(unit, parameters, retain_graph=True, allow_unused=True),
                        strict=True,
                    )
                )
                H = H + weight * c.detach() * torch.outer(q, q)
    return H, G


def batch(x, y, w) -> Rows:
    """Rows with these shares."""
    return Rows(x, y, w, total=torch.tensor(1.0))


def check(hessian, expected, x, y, w):
    H, G = expected
    V = torch.randn(5, len(H), dtype=torch.float64)
    products, slopes = hessian(hessian.model.theta, batch(x, y, w), V)
    assert relative(products, V @ H) < 1e-10
    assert relative(slopes, V @ G.mT) < 1e-12


def both(model, sharpness=None):
    chain = batch_hessian(model, sharpness)
    assert isinstance(chain, ChainHessian)
    return chain, AutogradHessian(model, sharpness)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_equals_dense(loss, activation):
    n_outputs, criterion = LOSSES[loss]
    model, x, y, w = problem(mlp(ACTIVATIONS[activation], n_outputs), criterion)
    expected = dense(model, criterion, x, y, w)
    for implementation in both(model):
        check(implementation, expected, x, y, w)


@pytest.mark.parametrize("loss", LOSSES)
def test_kinks_of_relu_equal_the_sum_over_units(loss):
    n_outputs, criterion = LOSSES[loss]
    model, x, y, w = problem(mlp(nn.ReLU(), n_outputs), criterion)
    kinks = [("1", lambda z: (z, 1))]  # the module stands for both places
    smooth = dense(model, criterion, x, y, w, SHARPNESS, kinks)
    plain = dense(model, criterion, x, y, w)
    assert relative(smooth[0], plain[0]) > 0.1
    for implementation in both(model, SHARPNESS):
        check(implementation, smooth, x, y, w)


CHAINS = {
    "linear": lambda: nn.Linear(D, 2),
    "activation first": lambda: nn.Sequential(nn.ReLU(), nn.Linear(D, 3), nn.ReLU()),
    "two in a row": lambda: nn.Sequential(
        nn.Linear(D, 5), nn.Tanh(), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.ReLU()
    ),
    "three layers": lambda: nn.Sequential(
        nn.Linear(D, 5, bias=False), nn.ReLU(), nn.Linear(5, 5), nn.Linear(5, 4), nn.Sigmoid()
    ),
}


@pytest.mark.parametrize("sharpness", [None, SHARPNESS])
@pytest.mark.parametrize("name", CHAINS)
def test_chain_equals_autograd(name, sharpness):
    model, x, y, w = problem(CHAINS[name](), nn.MSELoss())
    V = torch.randn(5, model.n_parameters, dtype=torch.float64)
    found, expected = (h(model.theta, batch(x, y, w), V) for h in both(model, sharpness))
    assert relative(found[0], expected[0]) < 1e-12
    assert relative(found[1], expected[1]) < 1e-12


def test_blocks_of_vectors_do_not_matter(monkeypatch):
    model, x, y, w = problem(mlp(nn.ReLU(), 3), nn.CrossEntropyLoss())
    V = torch.randn(5, model.n_parameters, dtype=torch.float64)
    whole = both(model, SHARPNESS)[0](model.theta, batch(x, y, w), V)
    monkeypatch.setattr(under_test, "_BLOCK", 2 * B * 6)
    parts = both(model, SHARPNESS)[0](model.theta, batch(x, y, w), V)
    assert relative(parts[0], whole[0]) < 1e-13
    assert relative(parts[1], whole[1]) < 1e-13


GENERIC = {
    "leaky": (lambda: mlp(nn.LeakyReLU(0.2), 2), [("1", lambda z: (z, 0.8))]),
    "hardtanh": (
        lambda: mlp(nn.Hardtanh(-0.3, 0.5), 2),
        # two kinks of a unit: one gives all its slope, the other takes it away
        [("1", lambda z: (z + 0.3, 1)), ("1", lambda z: (z - 0.5, -1))],
    ),
    "pool": (Pooled, [("pool", lambda z: ((z[..., 1] - z[..., 0])[..., None], 1))]),
}


@pytest.mark.parametrize("name", GENERIC)
def test_kinks_of_other_networks(name):
    make, kinks = GENERIC[name]
    model, x, y, w = problem(make(), nn.MSELoss())
    found = batch_hessian(model, SHARPNESS)
    assert isinstance(found, AutogradHessian)
    smooth = dense(model, nn.MSELoss(), x, y, w, SHARPNESS, kinks)
    assert relative(smooth[0], dense(model, nn.MSELoss(), x, y, w)[0]) > 0.01
    check(found, smooth, x, y, w)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_kinks_of_an_absolute_loss(activation):
    """Curvature 2 at a residual of zero, for each output, beside that of the units."""
    criterion = nn.L1Loss()
    model, x, y, w = problem(mlp(ACTIVATIONS[activation], 2), criterion)
    kinks = [("1", lambda z: (z, 1))] if activation == "relu" else []
    H, G = dense(model, criterion, x, y, w, SHARPNESS, kinks)
    for row, target, weight in zip(x, y, w, strict=True):
        J = torch.func.jacrev(lambda theta, row=row: model.forward(theta, row[None])[0])(
            model.theta
        )
        residual = model.forward(model.theta, row[None])[0] - target
        H = H + weight * J.mT @ torch.diag(2 * bump(residual, SHARPNESS) / 2) @ J
    for implementation in both(model, SHARPNESS):
        check(implementation, (H, G), x, y, w)


@pytest.mark.parametrize("net", [lambda: mlp(nn.ReLU(), 1), Pooled], ids=["relu", "pool"])
def test_gradients_change_by_the_integral_of_the_curvature(net):
    """Along a way through kinks, and only with their curvature."""
    model, x, y, w = problem(net(), nn.MSELoss())
    far = 0.3 * torch.randn_like(model.theta)

    def gradient(theta):
        return grad(lambda t: (w * model.loss(model.forward(t, x), y)).sum())(theta)

    def error(sharpness):
        product = batch_hessian(model, sharpness)
        times = (torch.arange(150) + 0.5) / 150
        total = (
            sum(product(model.theta + t * far, batch(x, y, w), far[None])[0][0] for t in times)
            / 150
        )
        change = gradient(model.theta + far) - gradient(model.theta)
        return relative(total, change)

    assert error(150.0) < 0.3 * error(None)


# ---- kinks ----------------------------------------------------------------------------------


class ClampMin(nn.Module):
    def forward(self, z):
        return torch.clamp_min(z, 0.25)


class Absolute(nn.Module):
    def forward(self, z):
        return z.abs() + torch.abs(z)


#: Function of a number, where it bends, and by how much its slope changes there.
BENDS = {
    "relu": (nn.ReLU(), {0.0: 1}),
    "inplace": (nn.ReLU(inplace=True), {0.0: 1}),
    "leaky": (nn.LeakyReLU(0.2), {0.0: 0.8}),
    "relu6": (nn.ReLU6(), {0.0: 1, 6.0: -1}),
    "hardtanh": (nn.Hardtanh(-0.5, 0.75), {-0.5: 1, 0.75: -1}),
    "absolute": (Absolute(), {0.0: 4}),
    "clamp": (ClampMin(), {0.25: 1}),
    "l1": (lambda z: F.l1_loss(z, torch.full_like(z, 0.5), reduction="none"), {0.5: 2}),
    "l1 sum": (lambda z: F.l1_loss(z, torch.zeros_like(z), reduction="sum"), {0.0: 2}),
}
GRID = torch.linspace(-3, 9, 1201, dtype=torch.float64)  # the bends are on it


@pytest.mark.parametrize("name", BENDS)
def test_values_and_slopes_stay(name):
    function, _ = BENDS[name]

    def total(z):
        return function(z * 1).sum()

    with SmoothedKinks(SHARPNESS):
        value, slope = function(GRID.clone()), grad(total)(GRID)
    torch.testing.assert_close(value, function(GRID.clone()), rtol=0, atol=1e-13)
    torch.testing.assert_close(slope, grad(total)(GRID), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", BENDS)
def test_curvature_integrates_to_the_change_of_slope(name):
    function, bends = BENDS[name]

    def slope(z):
        return grad(lambda z: function(z * 1).sum())(z)

    with SmoothedKinks(40.0):
        forward = jvp(slope, (GRID,), (torch.ones_like(GRID),))[1]
        backward = grad(lambda z: slope(z).sum())(GRID)
    torch.testing.assert_close(forward, backward)
    for place, change in bends.items():
        near = (GRID - place).abs() < 0.55
        area = torch.trapezoid(forward[near], GRID[near])
        assert abs(area - change) < 1e-4
    assert forward.abs().max() < 40 * max(abs(c) for c in bends.values())
    no_bend = jvp(slope, (GRID,), (torch.ones_like(GRID),))[1]
    assert not no_bend.any()


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (2, 3), "stride": (1, 2), "dilation": (2, 1)},
    ],
)
def test_max_pooling(options):
    pool = nn.MaxPool2d(**options)
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    # all negative, so that a padding of zeros would win; and ties, as ReLU makes them
    for image in (x - 10, x.relu()):
        mix = torch.randn_like(pool(image))

        def weighted(z, mix=mix):
            return (pool(z) * mix).sum()

        with SmoothedKinks(SHARPNESS):
            value, slope = pool(image), grad(weighted)(image)
        torch.testing.assert_close(value, pool(image), rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(slope, grad(weighted)(image))


@pytest.mark.parametrize("options", [{"ceil_mode": True}, {"return_indices": True}])
def test_max_pooling_that_is_not_supported(options):
    with SmoothedKinks(SHARPNESS), pytest.raises(ValueError, match="Set kink_smoothing=None"):
        nn.MaxPool2d(2, **options)(torch.ones(1, 1, 4, 4))


def test_bump_is_the_second_derivative_of_softplus():
    def softplus(z):
        return F.softplus(z, beta=SHARPNESS).sum()

    expected = grad(lambda z: grad(softplus)(z).sum())(GRID)
    np.testing.assert_allclose(bump(GRID, SHARPNESS), expected, rtol=1e-6, atol=1e-8)


# ---- devices --------------------------------------------------------------------------------


def test_products_stay_on_the_device():
    with FakeTensorMode():
        device = torch.device("meta")
        with device:
            module = nn.Sequential(nn.Linear(D, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
        model = FinalModel(module, losses.CrossEntropy())
        assert read_chain(model) is not None
        x, w = torch.rand(B, D, device=device), torch.rand(B, device=device)
        y = torch.zeros(B, dtype=torch.long, device=device)
        V = torch.rand(2, model.n_parameters, device=device)
        found = batch_hessian(model, SHARPNESS)(model.theta, batch(x, y, w), V)
        assert [t.device for t in found] == [device, device]
