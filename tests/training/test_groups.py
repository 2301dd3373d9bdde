"""Parameter groups: against torch's own in a loop, and finite differences of that loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from naive import Naive, close, relative
from skorch import NeuralNetRegressor
from skorch.callbacks import GradientNormClipping, LRScheduler
from torch import nn
from torch.nn.utils import clip_grad_norm_

from fimoda import (
    SOURCE,
    FurtherTraining,
    LinearizedFurtherTraining,
    OnceLinearizedFurtherTraining,
    TracIn,
    UnrolledDifferentiation,
    as_final_model,
    attribute,
    train_ensemble,
)
from fimoda.recipe import Recipe
from fimoda.training.optimizers import resolve_optimizer

N, D, N_TEST = 21, 3, 4
BATCH, SEED = 4, 3
LEFT_OUT = [7, 0, 20]

GROUPS = [("*.bias", {"weight_decay": 0.0}), ("0.*", {"lr": 0.004, "weight_decay": 0.3})]

OPTIMIZERS = {
    "SGD": (torch.optim.SGD, 0.05, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "Adam": (torch.optim.Adam, 0.02, {"weight_decay": 0.1}),
    "AdamW": (torch.optim.AdamW, lambda epoch: 0.02 / (1 + epoch), {"weight_decay": 0.1}),
    "RMSprop": (torch.optim.RMSprop, 0.01, {"weight_decay": 0.1}),
}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def by_hand(module: nn.Module) -> list[dict]:
    """The groups of `GROUPS`: biases first, then what is left of the first layer."""
    first, _, last = module
    return [
        {"params": [first.bias, last.bias], "weight_decay": 0.0},
        {"params": [first.weight], "lr": 0.004, "weight_decay": 0.3},
        {"params": [last.weight]},
    ]


def data() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(5)
    X = rng.normal(size=(N + N_TEST, D))
    y = (X[:, 0] * X[:, 1] + 0.3 * rng.normal(size=len(X)))[:, None]
    return X[:N], y[:N], X[N:], y[N:]


def settings(name: str, **changes) -> dict:
    cls, lr, params = OPTIMIZERS[name]
    beside = {"param_groups": GROUPS, **changes.pop("beside", {})}
    own = {"optimizer": cls, "lr": lr, "optimizer_params": {**params, **beside}}
    own |= {"batch_size": BATCH, "n_seeds": [SEED], "n_epochs": 1.5, "criterion": nn.MSELoss()}
    return own | changes


def squared(outputs, targets):
    return (outputs - targets)[:, 0] ** 2


def naive(name: str, module: nn.Module | None = None, groups=by_hand, clip=None) -> Naive:
    X, y, *_ = map(torch.from_numpy, data())
    cls, lr, params = OPTIMIZERS[name]
    return Naive(
        net() if module is None else module, X, y, lambda f, t, _: squared(f, t).mean(), squared,
        cls, lr, params, BATCH, clip=clip, groups=groups,
    )  # fmt: skip


def after(loop: Naive, n_steps: int, row: int | None = None) -> np.ndarray:
    """Losses (n_test,) of test rows after so many steps."""
    _, _, X_test, y_test = map(torch.from_numpy, data())
    steps = loop.steps(SEED, row, "mask", 3)
    module = next(m for number, (m, _) in enumerate(steps, start=1) if number == n_steps)
    return loop.measured(module, X_test, y_test)


def removals(loop: Naive, n_steps: int = 9) -> np.ndarray:
    full = after(loop, n_steps)
    return np.stack([after(loop, n_steps, row) - full for row in LEFT_OUT], 1)


# ---- training -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("way", ["layers", "vmap", "loop"])
def test_groups_are_those_of_torch(way, name):
    X, y, X_test, y_test = data()
    gold = FurtherTraining(net(), engine=way, leave_out=LEFT_OUT, **settings(name)).fit(X, y)
    expected = removals(naive(name))
    close(gold.transform(X_test, y_test), expected)
    assert relative(removals(naive(name, groups=None)), expected) > 1e-2
    assert "2 parameter groups" in gold._process()


def test_groups_are_clipped_together():
    X, y, X_test, y_test = data()
    beside = {"max_grad_norm": 0.5}
    gold = FurtherTraining(net(), leave_out=LEFT_OUT, **settings("AdamW", beside=beside))
    loop = naive("AdamW", clip=lambda module: clip_grad_norm_(module.parameters(), 0.5))
    close(gold.fit(X, y).transform(X_test, y_test), removals(loop))


def test_a_group_of_everything():
    X, y, X_test, y_test = data()
    _, lr, params = OPTIMIZERS["Adam"]
    one = {**params, "param_groups": [("*", {"lr": 0.004})]}
    shared = {k: v for k, v in settings("Adam").items() if k not in ("optimizer_params", "lr")}
    for method in (FurtherTraining, UnrolledDifferentiation):
        found, expected = (
            method(net(), leave_out=LEFT_OUT, **shared, **own).fit(X, y).transform(X_test, y_test)
            for own in (
                {"lr": lr, "optimizer_params": one},
                {"lr": 0.004, "optimizer_params": params},
            )
        )
        assert relative(found, expected) < 1e-12


def warm_then_linear(step: int) -> float:
    """The schedule that fine-tuning on text has: three steps up, and down to zero at the last."""
    return min((step + 1) / 3, 1) * (18 - step) / 18


@pytest.mark.parametrize("ends_at_zero", [False, True])
def test_training_of_a_skorch_net_goes_on_as_it_was(ends_at_zero):
    """Groups, clipping and a learning rate that changes with every step, all at once."""
    X, y, X_test, y_test = data()
    found = NeuralNetRegressor(
        net(),
        max_epochs=3 if ends_at_zero else 2,
        lr=0.05,
        batch_size=BATCH,
        optimizer__momentum=0.9,
        optimizer__nesterov=True,
        optimizer__weight_decay=0.1,
        optimizer__param_groups=[("nothing*", {"lr": 1.0}), *GROUPS],
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
        callbacks=[
            GradientNormClipping(1.0),
            LRScheduler(
                torch.optim.lr_scheduler.LambdaLR, lr_lambda=warm_then_linear, step_every="batch"
            ),
        ],
    ).fit(X, y)
    recipe = as_final_model(found, X).recipe
    assert recipe.obstacle is None
    assert recipe.lr == 0.05
    # after 12 steps; at the end the last rate that moved it
    now = warm_then_linear(17 if ends_at_zero else 12)
    assert recipe.last_lr == pytest.approx(0.05 * now, rel=1e-12)
    gold = FurtherTraining(found, n_epochs=1.5, n_seeds=[SEED], leave_out=LEFT_OUT).fit(X, y)

    def groups(module):
        biases, first, last = by_hand(module)
        return [biases, {**first, "lr": 0.004 * now}, last]

    loop = naive(
        "SGD", found.module_, groups, lambda module: clip_grad_norm_(module.parameters(), 1.0)
    )
    loop.lr = 0.05 * now
    close(gold.transform(X_test, y_test), removals(loop))
    text = attribute(found, *data(), method=gold).process
    assert "2 parameter groups, max_grad_norm 1" in text


def test_recipe_of_other_settings_and_frozen_parameters():
    X, y, *_ = data()
    shared = {"max_epochs": 1, "verbose": 0, "train_split": None}
    momentum = [("0.*", {"momentum": 0.5})]
    found = NeuralNetRegressor(net(), optimizer__param_groups=momentum, **shared).fit(X, y)
    with pytest.raises(ValueError, match="parameter groups have other settings"):
        FurtherTraining(found, n_epochs=1, n_seeds=1).fit(X, y)
    module = net()
    module[0].requires_grad_(False)
    found = NeuralNetRegressor(module, optimizer__param_groups=[GROUPS[1]], **shared).fit(X, y)
    assert as_final_model(found, X).recipe.beside == {}


# ---- derivatives ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_unrolled_differentiation_is_the_derivative_of_the_loop(name):
    X, y, X_test, y_test = data()
    shared = settings(name, kink_smoothing=None)
    scores, forwards = (
        UnrolledDifferentiation(net(), mode=mode, leave_out=LEFT_OUT, **shared, order="own")
        .fit(X, y)
        .transform(X_test, y_test)
        for mode in ("adjoint", "forward")
    )
    assert relative(forwards, scores) < 1e-10

    def losses(row: int, change: float) -> np.ndarray:
        loop = naive(name)

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
    line = nn.Sequential(nn.Linear(D, 1)).double()
    shared = settings("Adam", measurement="output", kink_smoothing=None)
    exact = UnrolledDifferentiation(line, **shared, order="own").fit(X, y).transform(X_test)
    found = OnceLinearizedFurtherTraining(line, solver="steps", **shared).fit(X, y)
    assert relative(found.transform(X_test), exact) < 1e-10


@pytest.mark.parametrize(
    ("cls", "changes"),
    [(LinearizedFurtherTraining, {}), (OnceLinearizedFurtherTraining, {"solver": "kernel"})],
)
def test_groups_are_no_linear_recursion(cls, changes):
    X, y, *_ = data()
    with pytest.raises(ValueError, match="with param_groups cannot be linearised"):
        cls(net(), **settings("SGD", **changes)).fit(X, y)


# ---- settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        "0.*",
        5,
        [("0.*", {"momentum": 0.1})],
        [("0.*", {})],
        [("0.*", 0.1)],
        [(0, {"lr": 0.1})],
        [("0.*", {"lr": 0.1}, 1)],
        [("0.*", {"lr": 0.0})],
        [("0.*", {"lr": float("nan")})],
        [("0.*", {"weight_decay": -0.1})],
        [("0.*", {"lr": "large"})],
        {"0.*": {"lr": 0.1}},
    ],
)
def test_bad_groups(given):
    with pytest.raises(ValueError, match="optimizer_params: param_groups"):
        resolve_optimizer("SGD", 0.1, {"param_groups": given}, Recipe())


def test_patterns_fit_something():
    X, y, *_ = data()
    shared = {"n_epochs": 1, "criterion": nn.MSELoss()}
    message = (
        r"the pattern 'head\*', which fits none of the parameters: 0\.weight, 0\.bias, 2\.weight"
    )
    with pytest.raises(ValueError, match=message):
        FurtherTraining(
            net(), optimizer_params={"param_groups": [("head*", {"lr": 0.1})]}, **shared
        ).fit(X, y)


def test_groups_are_part_of_what_a_run_is():
    plain, none, grouped = (
        resolve_optimizer("SGD", 0.1, params, Recipe()).describe(1)
        for params in ({}, {"param_groups": None}, {"param_groups": GROUPS})
    )
    assert plain == none
    assert plain["optimizer_params"] == {}
    assert grouped["optimizer_params"]["param_groups"][1] == [
        "0.*",
        {"lr": 0.004, "weight_decay": 0.3},
    ]
    with pytest.raises(ValueError, match="ASGD keeps its learning rate"):
        resolve_optimizer("ASGD", 0.1, {"param_groups": GROUPS}, Recipe())


def test_ensembles_record_learning_rates_of_their_own():
    X, y, *_ = data()
    shared = {"n_seeds": 1, "n_epochs": 1, "batch_size": BATCH, "criterion": nn.MSELoss()}
    for groups, expected in ((GROUPS[:1], {}), (GROUPS, {"0.weight": 0.04})):
        params = {"weight_decay": 0.1, "param_groups": groups}
        found = train_ensemble(net(), X, y, lr=0.1, optimizer_params=params, **shared)
        run = found.trajectories[0]
        others = dict.fromkeys(["0.bias", "2.weight", "2.bias"], 1.0) if expected else {}
        assert run.lr_factors == pytest.approx({**others, **expected})
        assert run.learning_rates.tolist() == [0.1] * 6
        trained = found.models[0]
        assert TracIn(trained, trajectory=run).fit(X, y).transform(X, y).shape == (N, N)
    params = {"weight_decay": 0.1, "param_groups": GROUPS[:1]}
    found = train_ensemble(net(), X, y, lr=0.1, optimizer_params=params, **shared)
    with pytest.warns(
        UserWarning, match="SOURCE does not see all of this training: it has parameter"
    ):
        SOURCE(found.models[0], trajectory=found.trajectories[0], segments=1).fit(X, y)
