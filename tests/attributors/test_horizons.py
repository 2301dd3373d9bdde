"""Horizons that are fractions of an epoch, or steps: against a loop that stops there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from naive import Naive, close, relative
from sklearn.linear_model import Ridge
from torch import nn

from fimoda import (
    AgreementCurveDisplay,
    FurtherTraining,
    GradDot,
    LinearizedFurtherTraining,
    OnceLinearizedFurtherTraining,
    TracIn,
    UnrolledDifferentiation,
    agreement_curve,
    attribute,
    compare_methods,
    further_training_curve,
)

N, D, N_TEST = 21, 3, 4
BATCH = 4  # 6 steps an epoch; without a row there are 5
SEEDS = [3, 11]
LEFT_OUT = [7, 0, 20]
EPOCHS, STEPS = [0.5, 1, 1.67], [3, 6, 10]

SETTINGS = {
    "optimizer": "Adam",
    "lr": lambda epoch: 0.02 / (1 + epoch),
    "batch_size": BATCH,
    "criterion": nn.MSELoss(),
    "measurement": "loss",
}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def data() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(5)
    X = rng.normal(size=(N + N_TEST, D))
    y = (X[:, 0] * X[:, 1] + 0.3 * rng.normal(size=len(X)))[:, None]
    return X[:N], y[:N], X[N:], y[N:]


def by_a_loop(mode: str, marks: list[int]) -> np.ndarray:
    """Scores (n_marks, n_test, n_left_out), means over seeds: the losses after so many steps."""
    X, y, X_test, y_test = map(torch.from_numpy, data())

    def losses(outputs, targets):
        return (outputs - targets)[:, 0] ** 2

    loop = Naive(
        net(), X, y, lambda f, t, _: losses(f, t).mean(), losses,
        torch.optim.Adam, SETTINGS["lr"], batch_size=BATCH,
    )  # fmt: skip

    def along(seed: int, row: int | None) -> np.ndarray:
        models = enumerate(loop.steps(seed, row, mode, 2), start=1)
        return np.stack(
            [loop.measured(model, X_test, y_test) for step, (model, _) in models if step in marks]
        )

    scores = [[along(seed, row) - along(seed, None) for seed in SEEDS] for row in LEFT_OUT]
    return np.moveaxis(np.mean(scores, 1), 0, -1)


def gold(**changes) -> FurtherTraining:
    settings = {**SETTINGS, "n_seeds": SEEDS, "leave_out": LEFT_OUT, **changes}
    return FurtherTraining(net(), **settings)


def curve(**changes):
    settings = {**SETTINGS, "n_seeds": SEEDS, "leave_out": LEFT_OUT, **changes}
    return further_training_curve(net(), *data(), **settings)


# ---- further training -----------------------------------------------------------------------


def test_further_training_is_the_loop_that_stops_there():
    X, y, X_test, y_test = data()
    expected = by_a_loop("mask", STEPS)
    for epochs, scores in zip(EPOCHS, expected, strict=True):
        found = gold(n_epochs=epochs).fit(X, y).transform(X_test, y_test)
        close(found, scores)


def test_curve_in_epochs_and_in_steps():
    expected = by_a_loop("mask", STEPS)
    for given in ({"epochs": EPOCHS}, {"steps": STEPS}):
        found = curve(**given)
        close(found.scores, expected)
        assert found.steps.tolist() == STEPS
    assert found.epochs.tolist() == [0.5, 1, 10 / 6]
    assert curve(epochs=EPOCHS, n_seeds=1).epochs.tolist() == EPOCHS
    whole = curve(steps=[6, 12], n_seeds=1)
    assert whole.epochs.tolist() == [1, 2]
    assert whole.epochs.dtype == int


def test_dropped_rows_make_fewer_steps_an_epoch():
    """The last of an epoch is not taken without a row; after whole epochs both have seen all rows."""
    X, y, X_test, y_test = data()
    (loop,) = by_a_loop("drop", [4])
    found = gold(n_epochs=4 / 6, leave_out_mode="drop").fit(X, y).transform(X_test, y_test)
    close(found, loop)
    whole = curve(epochs=[1, 2], leave_out_mode="drop").scores
    both = curve(epochs=[0.9, 1, 2], leave_out_mode="drop").scores
    np.testing.assert_array_equal(both[1:], whole)


def test_directory_of_whole_epochs_is_that_of_the_same_number_as_a_float(tmp_path):
    X, y, *_ = data()
    gold(n_epochs=1, checkpoint_dir=tmp_path).fit(X, y)
    before = sorted((one.name, one.stat().st_mtime_ns) for one in tmp_path.iterdir())
    gold(n_epochs=1.0, checkpoint_dir=tmp_path).fit(X, y)
    assert before == sorted((one.name, one.stat().st_mtime_ns) for one in tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"epochs: there \[1\], now \[0\.5\]"):
        gold(n_epochs=0.5, checkpoint_dir=tmp_path).fit(X, y)


# ---- approximations -------------------------------------------------------------------------


def approximation(cls, **changes):
    return cls(net(), **{**SETTINGS, "lr": 0.01, "n_seeds": SEEDS, **changes})


@pytest.mark.filterwarnings("ignore:.*discrepancy_")
@pytest.mark.parametrize(
    ("cls", "settings", "tolerance"),
    [
        (UnrolledDifferentiation, {}, 1e-12),
        (UnrolledDifferentiation, {"mode": "adjoint", "order": "own"}, 1e-12),
        (UnrolledDifferentiation, {"mode": "forward", "order": "own"}, 1e-12),
        (OnceLinearizedFurtherTraining, {"solver": "steps"}, 1e-12),
        # residuals are linear between horizons, so that another horizon makes them better
        (OnceLinearizedFurtherTraining, {"solver": "kernel", "optimizer": "SGD"}, 0.02),
        (LinearizedFurtherTraining, {"optimizer": "SGD", "n_segments": 3}, 0.02),
    ],
)
def test_horizons_together_and_alone(cls, settings, tolerance):
    X, y, X_test, y_test = data()
    together = approximation(cls, n_epochs=EPOCHS, **settings).fit(X, y)
    scores = together.transform_horizons(X_test, y_test)
    assert together.horizons_ == EPOCHS
    for epochs, expected in zip(EPOCHS, scores, strict=True):
        alone = approximation(cls, n_epochs=epochs, **settings).fit(X, y)
        assert relative(alone.transform(X_test, y_test), expected) < tolerance


def test_unrolled_differentiation_is_the_derivative_of_the_loop():
    """By small changes of the weight of a row: the losses of the run that stops after three steps."""
    X, y, X_test, y_test = data()
    found = approximation(
        UnrolledDifferentiation,
        n_epochs=0.5,
        n_seeds=[3],
        order="own",
        kink_smoothing=None,
        optimizer="SGD",
        optimizer_params={"momentum": 0.9},
    ).fit(X, y)
    scores = found.transform(X_test, y_test)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    row = int(order[5])
    tx, ty = torch.from_numpy(X), torch.from_numpy(y)

    def losses(weight: float) -> np.ndarray:
        module = net()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
        for rows in order[:12].split(BATCH):
            weights = 1 + (weight - 1) * (rows == row).double()
            each = (module(tx[rows]) - ty[rows])[:, 0] ** 2
            optimizer.zero_grad()
            ((weights * each).sum() / weights.sum()).backward()
            optimizer.step()
        with torch.no_grad():
            return ((module(torch.from_numpy(X_test)).numpy() - y_test)[:, 0]) ** 2

    eps = 1e-4
    # to first order in the row's part of the mean, w / (1 - w) of a batch of four
    derivative = -(losses(1 + eps) - losses(1 - eps)) / (2 * eps) * BATCH / (BATCH - 1)
    assert relative(scores[:, row], derivative) < 1e-6


@pytest.mark.filterwarnings("ignore:.*discrepancy_")
@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        (LinearizedFurtherTraining, {"n_segments": 3}),
        (OnceLinearizedFurtherTraining, {"solver": "kernel"}),
    ],
)
def test_linear_network_follows_its_mean(cls, settings):
    """Step by step: the residuals of the run on all rows, and the curvature of the mean."""
    X, y, X_test, _ = data()
    torch.manual_seed(0)
    line, lr = nn.Linear(D, 1, bias=False).double(), 0.02
    shared = {**SETTINGS, "lr": lr, "optimizer": "SGD", "measurement": "output", "n_seeds": [3]}
    found = cls(line, n_epochs=EPOCHS, **{**shared, **settings}).fit(X, y)
    loop = Naive(
        line, torch.from_numpy(X), torch.from_numpy(y), lambda f, t, _: ((f - t) ** 2).mean(),
        lambda f, t: f[:, 0], lr=lr, batch_size=BATCH,
    )  # fmt: skip
    weight, changes, reached = line.weight.detach().numpy()[0], np.zeros((N, D)), []
    for step, (module, _) in enumerate(loop.steps(3, None, "mask", 2), start=1):
        slopes = 2 * X * (X @ weight - y[:, 0])[:, None]
        removed = (slopes.mean(0) - slopes) / (N - 1)
        changes = changes - lr * (2 * changes @ X.T @ X / N + removed)
        weight = module.weight.detach().numpy()[0].copy()
        if step in STEPS:
            reached.append(X_test @ changes.T)
    assert relative(found.transform_horizons(X_test), reached) < 0.02


# ---- what looks at horizons -----------------------------------------------------------------


def test_agreement_at_fractions():
    """Methods are asked for the same steps, however the horizons were given."""
    X, y, X_test, y_test = data()
    truth = curve(steps=STEPS, lr=0.01)
    method = approximation(UnrolledDifferentiation, n_epochs=EPOCHS).fit(X, y)
    found = agreement_curve({"unrolled": method}, truth, X_test, y_test)
    scores = method.transform_horizons(X_test, y_test)[..., LEFT_OUT]
    expected = agreement_curve({"unrolled": scores}, truth)
    np.testing.assert_array_equal(found.mean(), expected.mean())
    assert "1.66667" in found.table()
    shown = AgreementCurveDisplay(found).plot().ax_
    labels = [tick.get_text() for tick in shown.get_xticklabels()]
    assert labels == ["0.5", "1", "1.66667"]
    assert shown.get_xlabel() == "epochs of further training"


def test_compared_at_fractions():
    X, y, X_test, y_test = data()
    shared = {"criterion": nn.MSELoss(), "batch_size": BATCH, "lr": 0.01}
    methods = {
        "unrolled": UnrolledDifferentiation(net(), n_epochs=[0.5, 1], **shared),
        "Grad-Dot": GradDot(net(), criterion=nn.MSELoss()),
    }
    found = compare_methods(
        net(), X, y, X_test, y_test, methods=methods, epochs=[0.5, 1], n_seeds=2, leave_out=4,
        random_state=0, **shared,
    )  # fmt: skip
    assert "0.5" in str(found)
    assert list(found.to_frame().columns)[:2] == ["0.5 epochs", "1 epoch"]
    one = attribute(net(), *data(), n_epochs=0.5, random_state=0, **shared)
    assert "0.5 epochs" in one.process


def test_amounts_of_training():
    """Grad-Dot and a final model that stands for its run count steps, too."""
    X, y, X_test, y_test = data()
    shared = {"criterion": nn.MSELoss(), "lr": 0.1, "batch_size": BATCH}
    once, half = (
        GradDot(net(), n_epochs=epochs, **shared).fit(X, y).transform(X_test, y_test)
        for epochs in (1, 0.5)
    )
    close(2 * half, once)
    once, third = (
        TracIn(net(), trajectory="final", n_epochs=epochs, **shared)
        .fit(X, y)
        .transform(X_test, y_test)
        for epochs in (1, 1 / 3)
    )
    close(3 * third, once)


# ---- errors ---------------------------------------------------------------------------------

METHODS = (
    FurtherTraining,
    UnrolledDifferentiation,
    LinearizedFurtherTraining,
    OnceLinearizedFurtherTraining,
    GradDot,
)


@pytest.mark.parametrize("cls", METHODS)
@pytest.mark.parametrize("epochs", [0, -1, 0.0, float("nan"), float("inf"), "half", True, None])
def test_horizons_are_positive_numbers(cls, epochs):
    X, y, *_ = data()
    with pytest.raises(ValueError, match="n_epochs"):
        cls(net(), n_epochs=epochs, criterion=nn.MSELoss()).fit(X, y)


@pytest.mark.parametrize("cls", METHODS)
def test_a_horizon_is_at_least_a_step(cls):
    X, y, *_ = data()
    settings = {"criterion": nn.MSELoss(), "batch_size": BATCH}
    wanted = r"n_epochs must be at least one step: an epoch of this training has 6 steps, and 0\.05 epochs"
    with pytest.raises(ValueError, match=wanted):
        cls(net(), n_epochs=0.05, **settings).fit(X, y)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"epochs": [0.5, 0.55]},
            r"epochs must lie on different steps: .* 0\.5 and 0\.55 epochs are",
        ),
        ({"epochs": [1, 1]}, "epochs must increase without repeats"),
        ({"epochs": [0.5, float("nan")]}, "epochs must be positive numbers of epochs"),
        ({"epochs": []}, "epochs must be positive numbers of epochs"),
        ({"epochs": "half"}, "epochs must be positive numbers of epochs"),
        ({"epochs": 0.01}, "epochs must be at least one step"),
        ({"steps": [1, 2.5]}, "steps must be positive whole numbers of steps"),
        ({"steps": [0, 2]}, "steps must be positive whole numbers of steps"),
        ({"steps": [3, 2]}, "steps must increase without repeats"),
        ({"epochs": [1], "steps": [2]}, "epochs and steps both give horizons"),
    ],
)
def test_bad_horizons_of_a_curve(given, message):
    with pytest.raises(ValueError, match=message):
        curve(**given)


def test_horizons_of_approximations_increase():
    X, y, *_ = data()
    for epochs, message in (([1, 0.5], "increase"), ([0.5, 0.52], "different steps")):
        with pytest.raises(ValueError, match=message):
            approximation(UnrolledDifferentiation, n_epochs=epochs).fit(X, y)


def test_an_epoch_of_one_step():
    X, y = np.random.default_rng(0).normal(size=(2, 30, 1))
    with pytest.raises(ValueError, match="an epoch of this training has 1 step,"):
        FurtherTraining(Ridge().fit(X, y[:, 0]), n_epochs=0.25).fit(X, y[:, 0])
