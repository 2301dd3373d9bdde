"""Clipped gradients: against torch's own clipping in a loop, and finite differences of that loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from naive import Naive, close, relative
from skorch import NeuralNetRegressor
from skorch.callbacks import GradientNormClipping
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from fimoda import (
    FurtherTraining,
    LinearizedFurtherTraining,
    OnceLinearizedFurtherTraining,
    UnrolledDifferentiation,
    attribute,
)
from fimoda.recipe import Recipe
from fimoda.training.clipping import Clipping
from fimoda.training.optimizers import resolve_optimizer

N, D, N_TEST = 21, 3, 4
BATCH, SEED = 4, 3
LEFT_OUT = [7, 0, 20]
NORM = 1.0  # clips some steps, and leaves others

LIMITS = {
    "norm": ({"max_grad_norm": NORM}, lambda m: clip_grad_norm_(m.parameters(), NORM)),
    "value": ({"max_grad_value": 0.1}, lambda m: clip_grad_value_(m.parameters(), 0.1)),
}
OPTIMIZERS = {
    "SGD": (torch.optim.SGD, 0.05, {"momentum": 0.9, "weight_decay": 0.01}),
    "AdamW": (torch.optim.AdamW, 0.02, {"weight_decay": 0.1}),
}


class Scaled(nn.Module):
    """No chain of layers, with a parameter that is a number."""

    def __init__(self):
        super().__init__()
        self.inner, self.scale = nn.Linear(D, 1), nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return self.scale * torch.tanh(self.inner(x)) + x[:, :1]


def chain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def scaled() -> nn.Module:
    torch.manual_seed(0)
    return Scaled().double()


def data() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(5)
    X = rng.normal(size=(N + N_TEST, D))
    y = (X[:, 0] * X[:, 1] + 0.3 * rng.normal(size=len(X)))[:, None]
    return X[:N], y[:N], X[N:], y[N:]


def settings(optimizer: str, limits: dict, **changes) -> dict:
    cls, lr, params = OPTIMIZERS[optimizer]
    own = {"optimizer": cls, "lr": lr, "optimizer_params": {**params, **limits}}
    own |= {"batch_size": BATCH, "n_seeds": [SEED], "n_epochs": 1.5, "criterion": nn.MSELoss()}
    return own | changes


def squared(outputs, targets):
    return (outputs - targets)[:, 0] ** 2


def naive(module: nn.Module, optimizer: str, clip) -> Naive:
    X, y, *_ = map(torch.from_numpy, data())
    cls, lr, params = OPTIMIZERS[optimizer]
    return Naive(
        module,
        X,
        y,
        lambda f, t, _: squared(f, t).mean(),
        squared,
        cls,
        lr,
        params,
        BATCH,
        clip=clip,
    )


def after(loop: Naive, n_steps: int, row: int | None = None) -> np.ndarray:
    """Losses (n_test,) of test rows after so many steps."""
    _, _, X_test, y_test = map(torch.from_numpy, data())
    steps = loop.steps(SEED, row, "mask", 3)
    module = next(m for number, (m, _) in enumerate(steps, start=1) if number == n_steps)
    return loop.measured(module, X_test, y_test)


# ---- training -------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize(
    ("make", "way"), [(chain, "layers"), (chain, "vmap"), (scaled, "vmap"), (scaled, "loop")]
)
def test_each_model_of_a_stack_is_clipped_on_its_own(make, way, limit, optimizer):
    X, y, X_test, y_test = data()
    limits, clip = LIMITS[limit]
    gold = FurtherTraining(
        make(), engine=way, leave_out=LEFT_OUT, **settings(optimizer, limits)
    ).fit(X, y)
    loop = naive(make(), optimizer, clip)
    full = after(loop, 9)
    expected = np.stack([after(loop, 9, row) - full for row in LEFT_OUT], 1)
    close(gold.transform(X_test, y_test), expected)
    unclipped = after(naive(make(), optimizer, None), 9)
    assert relative(unclipped, full) > 1e-3


def test_some_steps_are_clipped_and_some_are_not():
    """So that the tests above and below see both."""
    sizes = []

    def clip(module):
        sizes.append(float(clip_grad_norm_(module.parameters(), NORM)))

    after(naive(chain(), "SGD", clip), 9)
    assert min(sizes) < NORM < max(sizes)


def test_training_of_a_skorch_net_goes_on_as_it_was():
    X, y, X_test, y_test = data()
    net = NeuralNetRegressor(
        chain(),
        max_epochs=1,
        lr=0.05,
        batch_size=BATCH,
        optimizer__momentum=0.9,
        optimizer__weight_decay=0.01,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
        callbacks=[GradientNormClipping(NORM)],
    ).fit(X, y)
    found = FurtherTraining(net, n_epochs=1.5, n_seeds=[SEED], leave_out=LEFT_OUT).fit(X, y)
    loop = naive(net.module_, "SGD", LIMITS["norm"][1])
    expected = np.stack([after(loop, 9, row) - after(loop, 9) for row in LEFT_OUT], 1)
    close(found.transform(X_test, y_test), expected)
    assert "max_grad_norm 1" in attribute(net, *data(), method=found).process
    # another optimiser, or None, takes the limit away
    for changes in ({"optimizer": "Adam"}, {"optimizer_params": {"max_grad_norm": None}}):
        other = FurtherTraining(net, n_epochs=1, n_seeds=1, leave_out=[0], **changes).fit(X, y)
        assert "max_grad_norm" not in other._process()


# ---- derivatives ----------------------------------------------------------------------------


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("size", [0.05, 3.0])
def test_derivative_is_that_of_autograd(limit, size):
    clipping = Clipping.taken_from(dict(LIMITS[limit][0]))
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(7, generator=generator, dtype=torch.float64)
    gradient *= size / gradient.norm()
    vectors = torch.randn(3, 7, generator=generator, dtype=torch.float64)

    def clipped(g):
        if limit == "value":
            return g.clamp(-0.1, 0.1)
        return g * torch.clamp(NORM / (g.norm() + 1e-6), max=1)

    found = clipping.derivative(gradient)
    jacobian = torch.autograd.functional.jacobian(clipped, gradient)
    expected = vectors @ jacobian.mT
    torch.testing.assert_close(vectors if found is None else found(vectors), expected)
    by_torch = gradient[None].clone()
    clipping.clip([by_torch])
    torch.testing.assert_close(by_torch[0], clipped(gradient))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("limit", LIMITS)
def test_unrolled_differentiation_is_the_derivative_of_the_loop(limit, optimizer):
    """Finite differences in the weight of a row, through clipped and other steps."""
    X, y, X_test, y_test = data()
    limits, clip = LIMITS[limit]
    found = UnrolledDifferentiation(
        chain(), kink_smoothing=None, mode="adjoint", **settings(optimizer, limits), order="own"
    ).fit(X, y)
    scores = found.transform(X_test, y_test)[:, LEFT_OUT]
    forwards = UnrolledDifferentiation(
        chain(), kink_smoothing=None, mode="forward", leave_out=LEFT_OUT,
        **settings(optimizer, limits), order="own",
    ).fit(X, y)  # fmt: skip
    assert relative(forwards.transform(X_test, y_test), scores) < 1e-10

    def losses(row: int, change: float) -> np.ndarray:
        """With the weights of batches so far between those of all rows and those without one."""
        loop = naive(chain(), optimizer, clip)

        def objective(outputs, targets, rows):
            each = squared(outputs, targets)
            others = (rows != row).double()
            without = others / others.sum().clamp(min=1)
            return (torch.lerp(torch.full_like(each, 1 / len(rows)), without, change) * each).sum()

        loop.objective = objective
        return after(loop, 9)

    eps = 1e-6
    expected = [(losses(row, eps) - losses(row, -eps)) / (2 * eps) for row in LEFT_OUT]
    assert relative(scores, np.stack(expected, 1)) < 1e-6


def test_linearised_once_along_the_steps():
    """Of a linear network, whose Jacobians stand still anyway."""
    X, y, X_test, _ = data()
    torch.manual_seed(0)
    line = nn.Linear(D, 1).double()
    shared = settings("SGD", {"max_grad_norm": NORM}, measurement="output", kink_smoothing=None)
    exact = UnrolledDifferentiation(line, **shared, order="own").fit(X, y).transform(X_test)
    found = OnceLinearizedFurtherTraining(line, solver="steps", **shared).fit(X, y)
    assert relative(found.transform(X_test), exact) < 1e-10


@pytest.mark.parametrize(
    ("cls", "changes"),
    [(LinearizedFurtherTraining, {}), (OnceLinearizedFurtherTraining, {"solver": "kernel"})],
)
def test_clipping_is_not_linear(cls, changes):
    X, y, *_ = data()
    with pytest.raises(ValueError, match=r"with max_grad_norm cannot be linearised.*lift it"):
        cls(chain(), **settings("SGD", {"max_grad_norm": 1.0}, **changes)).fit(X, y)


# ---- settings -------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), float("inf"), "one", True])
@pytest.mark.parametrize("name", ["max_grad_norm", "max_grad_value"])
def test_limits_are_positive_numbers(name, limit):
    with pytest.raises(ValueError, match=f"optimizer_params: {name} must be a positive number"):
        resolve_optimizer("SGD", 0.1, {name: limit}, Recipe())


def test_one_limit_at_a_time():
    with pytest.raises(ValueError, match="Give one"):
        resolve_optimizer("SGD", 0.1, {"max_grad_norm": 1.0, "max_grad_value": 1.0}, Recipe())


def test_clipping_is_part_of_what_a_run_is():
    plain, none, clipped = (
        resolve_optimizer("SGD", 0.1, params, Recipe()).describe(1)
        for params in ({}, {"max_grad_norm": None}, {"max_grad_norm": 1.0})
    )
    assert plain == none
    assert plain["optimizer_params"] == {}
    assert clipped["optimizer_params"] == {"max_grad_norm": 1.0}
