"""Optimisers as linear recursions, and a run that is looked at on its way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fimoda import as_final_model
from fimoda.objective import Objective
from fimoda.rows import Rows
from fimoda.training.linear_steps import linear_steps, rates
from fimoda.training.optimizers import OptimizerSpec
from fimoda.training.recorded import RecordedRun, observe_run
from fimoda.training.run import Run
from fimoda.walks.kinks import kink_sharpness

P, STEPS = 5, 6

OPTIMIZERS = {
    "sgd": ("SGD", {}),
    "weight decay": ("SGD", {"weight_decay": 0.3}),
    "momentum": ("SGD", {"momentum": 0.9}),
    "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.3}),
    "dampening": ("SGD", {"momentum": 0.5, "dampening": 0.3}),
    "adam": ("Adam", {"weight_decay": 0.3}),
    "decoupled": ("Adam", {"weight_decay": 0.3, "decoupled_weight_decay": True}),
    "adamw": ("AdamW", {"betas": (0.7, 0.9), "weight_decay": 0.3}),
    "rmsprop": ("RMSprop", {"weight_decay": 0.3}),
    "rmsprop, momentum": ("RMSprop", {"momentum": 0.9, "eps": 0.1}),
    "adagrad": ("Adagrad", {"weight_decay": 0.3}),
}


def as_spec(name: str, params: dict, lr=0.1) -> OptimizerSpec:
    return OptimizerSpec(getattr(torch.optim, name), lr, params)


def hold(state: dict, options: dict, gradient, second) -> None:
    """Set the second moments so that the step with this gradient is taken with `second`."""
    square = gradient**2
    if "exp_avg_sq" in state:
        beta, t = options["betas"][1], float(state["step"]) + 1
        state["exp_avg_sq"] = (second * (1 - beta**t) - (1 - beta) * square) / beta
    elif "square_avg" in state:
        alpha = options["alpha"]
        state["square_avg"] = (second - (1 - alpha) * square) / alpha
    elif "sum" in state:
        state["sum"] = second - square


def fresh(name: str, like) -> dict:
    """What an adaptive optimiser begins with."""
    kept = {
        "Adam": ["exp_avg", "exp_avg_sq"],
        "AdamW": ["exp_avg", "exp_avg_sq"],
        "RMSprop": ["square_avg", "momentum_buffer"],
        "Adagrad": ["sum"],
    }
    return {"step": torch.tensor(0.0), **{key: torch.zeros_like(like) for key in kept[name]}}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_the_optimizer(name):
    """Second moments held fixed."""
    torch.manual_seed(0)
    spec = as_spec(*OPTIMIZERS[name], lr=lambda epoch: 0.1 / (1 + epoch))
    options = spec.defaults()
    second = torch.rand(P, dtype=torch.float64) + 0.5
    gradients = torch.randn(STEPS, P, dtype=torch.float64)
    theta = torch.randn(P, dtype=torch.float64).requires_grad_()
    optimizer = spec.build([theta])
    if spec.cls is not torch.optim.SGD:
        optimizer.state[theta] = fresh(OPTIMIZERS[name][0], theta.detach())
    state = optimizer.state[theta]
    decoupled = name in ("adamw", "decoupled")
    v = torch.zeros(P, dtype=torch.float64)
    for step, rate in enumerate(rates(spec, STEPS, 2)):
        optimizer.param_groups[0]["lr"] = spec.lr_at(step // 2)
        before = theta.detach().clone()
        g = gradients[step] + (0 if decoupled else options["weight_decay"]) * before
        hold(state, options, g, second)
        theta.grad = gradients[step].clone()
        optimizer.step()
        steps = linear_steps(spec, state)
        root = 1.0 if steps.preconditioner is None else steps.preconditioner.sqrt()
        x, v = steps.push(rate, before / root, v, g * root)
        kept = steps.velocity(state)
        if name == "dampening" and step == 0:  # which torch does not dampen
            torch.testing.assert_close(v, 0.7 * kept)
            v = kept.clone()
            continue
        torch.testing.assert_close(x * root, theta.detach(), rtol=1e-12, atol=1e-12)
        assert (kept is None) == (name in ("sgd", "weight decay", "rmsprop", "adagrad"))
        if kept is not None:
            torch.testing.assert_close(v, kept * root, rtol=1e-12, atol=1e-12)
    decays = {steps.coupled_decay, steps.decoupled_decay} - {0.0}
    assert decays == {options["weight_decay"]} - {0}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pull_is_the_transpose_of_push(name):
    torch.manual_seed(0)
    spec = as_spec(*OPTIMIZERS[name])
    second = torch.rand(P, dtype=torch.float64)
    buffers = {"step": 3, "exp_avg_sq": second, "square_avg": second, "sum": second}
    steps = linear_steps(spec, buffers)
    rate = rates(spec, 2, 1)[1].tolist()
    x, v, force, X, V, curved = torch.randn(6, P, dtype=torch.float64)
    new_x, new_v = steps.push(rate, x, v, curved * x + force)
    old_X, old_V, G = steps.pull(rate, X, V, curved)
    torch.testing.assert_close(X * new_x + V * new_v, old_X * x + old_V * v + G * force)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("Adam", {"amsgrad": True}),
        ("AdamW", {"amsgrad": True}),
        ("RMSprop", {"centered": True}),
        ("Adagrad", {"lr_decay": 0.1}),
        ("NAdam", {}),
        ("Adadelta", {}),
    ],
)
def test_what_has_no_linear_form(name, params):
    message = rf"{name} with these settings cannot be linearised; supported are SGD, .*Unrolled"
    with pytest.raises(ValueError, match=message):
        linear_steps(as_spec(name, params), {})


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_maximize(name):
    with pytest.raises(ValueError, match=rf"{name} with maximize=True is not supported"):
        linear_steps(as_spec(name, {"maximize": True}), {})


class Tagged(torch.optim.AdamW):
    """An optimiser of the user's own that steps as AdamW does."""


class SGD(torch.optim.SGD):
    """One whose name is that of another."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data -= group["lr"] * p.grad.sign()


def test_an_optimizer_is_known_by_its_step_and_not_by_its_name():
    second = torch.rand(P, dtype=torch.float64)
    buffers = {"step": 3, "exp_avg_sq": second}
    params = {"weight_decay": 0.3}
    for _ in range(2):  # torch wraps the step of a class when it is first used
        own, known = (OptimizerSpec(cls, 0.1, params) for cls in (Tagged, torch.optim.AdamW))
        found, expected = (linear_steps(spec, buffers) for spec in (own, known))
        assert found.decoupled_decay == expected.decoupled_decay == 0.3
        torch.testing.assert_close(found.preconditioner, expected.preconditioner)
        torch.testing.assert_close(rates(own, 4, 2), rates(known, 4, 2))
        with pytest.raises(ValueError, match="SGD with these settings cannot be linearised"):
            linear_steps(OptimizerSpec(SGD, 0.1), {})
    spec = as_spec("SGD", {})
    assert kink_sharpness("auto", spec, 3.0) == 3.0
    assert kink_sharpness("auto", OptimizerSpec(SGD, 0.1), 3.0) is None
    assert kink_sharpness("auto", own, 3.0) is None
    assert kink_sharpness(2, own, 3.0) == 2.0


# ---- a run that is looked at ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_observed_run_is_the_recorded_run(name):
    torch.manual_seed(0)
    X, y = torch.randn(10, 3).double(), torch.randn(10, 2).double()
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    model = as_final_model(net, X, y, criterion=nn.MSELoss())
    objective = Objective(model, Rows(X, y, torch.arange(1.0, 11).double()))
    described = Run(objective, as_spec(*OPTIMIZERS[name], lr=0.01), 4)
    seen = observe_run(described, 5, [6, 12], {5})
    run = RecordedRun(described, 5, 12)
    moments = [*run.forwards(), run.last]
    assert seen.knots == [0, 3, 6, 9, 12]
    for step in (0, 1, 5, 6, 7, 12):
        assert torch.equal(seen.moments[step].theta, moments[step].theta)
    assert torch.equal(seen.theta(6), moments[6].theta)
    for key in run.names(run.last):
        assert torch.equal(seen.buffers_of(5)[key], moments[6].buffers[key])
    for epoch in range(5):
        outputs = model.outputs(X, moments[3 * epoch].theta)
        assert torch.equal(seen.outputs[epoch], outputs)
        torch.testing.assert_close(seen.residuals[epoch], outputs - y)  # of two outputs
    assert seen.rates.shape == (12, 2)
