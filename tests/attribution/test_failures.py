"""A method that fails is followed by the next, and what is wrong with rows or parameters is raised."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import tanh_network
from skorch import NeuralNetRegressor
from torch import nn

from fimoda import ExactInfluence, FurtherTraining, GradDot, attribute, compare_methods
from fimoda.attribution.ladder import Candidate, Ladder
from fimoda.evaluation._candidates import planned_methods
from fimoda.training.workers import Deadline

N, N_TEST, D = 20, 3, 4


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N + N_TEST, D))
    y = np.tanh(X[:, :1]) + 0.1 * rng.normal(size=(N + N_TEST, 1))
    return X[:N], y[:N], X[N:], y[N:]


class Once(torch.autograd.Function):
    """The square, whose derivative torch cannot differentiate again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class DifferentiableOnce(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(D, 3).double(), nn.Linear(3, 1).double()

    def forward(self, X):
        return self.last(Once.apply(self.first(X)))


GIVEN = {"criterion": nn.MSELoss(), "n_epochs": 2, "random_state": 0}


def ladder(*methods):
    return Ladder([Candidate(m, lambda: 0.0) for m in methods], "it is best", Deadline(60.0), 60.0)


def test_too_little_memory(rows):
    X, y, X_test, y_test = rows
    net = tanh_network(D, 3, 1)
    gold = FurtherTraining(net, criterion=nn.MSELoss(), memory_budget=10)
    exact = ExactInfluence(net, criterion=nn.MSELoss(), memory_budget=10)
    dots = GradDot(net, criterion=nn.MSELoss())
    climbed = ladder(gold, exact, dots).climb(lambda m: m.fit(X, y).transform(X_test, y_test))
    step, scores = climbed
    assert step.attributor is dots
    assert step.reason.startswith("GradDot. FurtherTraining gave no scores: MemoryError: ")
    assert "ExactInfluence gave no scores: MemoryError: " in step.reason
    np.testing.assert_array_equal(scores, dots.fit(X, y).transform(X_test, y_test))


def test_if_all_fail_the_last_error_tells_the_others(rows):
    X, y, *_ = rows
    net = tanh_network(D, 3, 1)
    own = {"criterion": nn.MSELoss(), "memory_budget": 10}
    methods = FurtherTraining(net, **own), ExactInfluence(net, **own)
    with pytest.raises(MemoryError, match=r"dense curvature|kernel") as caught:
        ladder(*methods).climb(lambda method: method.fit(X, y))
    assert "FurtherTraining gave no scores either: MemoryError" in caught.value.__notes__[0]


def test_optimiser_of_the_model_that_is_refused(rows):
    X, y, X_test, y_test = (part.astype(np.float32) for part in rows)
    net = NeuralNetRegressor(
        tanh_network(D, 3, 1).float(), max_epochs=2, optimizer=torch.optim.LBFGS, verbose=0
    )
    net.fit(X, y)
    found = attribute(net, X, y, X_test, y_test, n_epochs=2)
    assert not isinstance(found.attributor, FurtherTraining)
    assert "FurtherTraining gave no scores: ValueError: optimizer" in found.reason
    # one that is asked for must be right
    for asked, message in (
        ("LBFGS", "mixes coordinates"),
        ("SDG", "torch.optim class or its name"),
    ):
        with pytest.raises(ValueError, match=message):
            attribute(net, X, y, X_test, y_test, optimizer=asked)


def test_training_that_diverges(rows):
    found = attribute(tanh_network(D, 3, 1), *rows, lr=1e200, **GIVEN)
    assert not isinstance(found.attributor, FurtherTraining)
    assert "FurtherTraining gave no scores: FloatingPointError" in found.reason


def test_network_that_cannot_be_differentiated_twice(rows):
    torch.manual_seed(0)
    net = DifferentiableOnce()
    found = compare_methods(net, *rows, epochs=[2], n_seeds=2, leave_out=5, criterion=nn.MSELoss())
    assert {"Grad-Dot", "Grad-Cos"} <= set(found.agreement.methods)
    assert "unrolled" in found.skipped
    assert found.to_frame().loc["unrolled", "not_run"] == found.skipped["unrolled"]


@pytest.mark.parametrize(
    ("part", "bad", "message"),
    [
        (0, np.full((N, D), np.nan), "NaN"),
        (1, np.zeros((N - 1, 1)), "inconsistent|length|rows"),
        (1, np.full((N, 1), np.nan), "NaN"),
        (2, np.full((N_TEST, D), np.nan), "NaN"),
        (2, np.zeros((N_TEST, D + 1)), "features"),
        (3, np.zeros((N_TEST + 1, 1)), "inconsistent|length|rows"),
    ],
)
def test_bad_rows_are_raised_at_once(rows, part, bad, message):
    given = list(rows)
    given[part] = bad
    with pytest.raises(ValueError, match=message):
        attribute(tanh_network(D, 3, 1), *given, **GIVEN)


def test_bad_parameters_are_raised_at_once(rows):
    for wrong in ({"n_epochs": 0}, {"lr": -1.0}, {"batch_size": 0}, {"measurement": "lost"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            attribute(tanh_network(D, 3, 1), *rows, **GIVEN | wrong)


# ---- comparison -----------------------------------------------------------------------------


def test_comparison_leaves_out_what_would_overrun(rows):
    net = tanh_network(D, 3, 1)
    slow = FurtherTraining(
        net, criterion=nn.MSELoss(), n_epochs=10**7, n_seeds=1, leave_out=[0], random_state=0
    )
    methods = {"slow": slow, "dots": GradDot(net, criterion=nn.MSELoss())}
    given = {"criterion": nn.MSELoss(), "epochs": [1], "n_seeds": 1, "leave_out": 5}
    found = compare_methods(net, *rows, methods=methods, budget=5.0, **given)
    assert found.agreement.methods == ["dots"]
    assert found.skipped["slow"].startswith("it would take about ")
    assert found.skipped["slow"].endswith(" s of the budget of 5 s")
    assert found.to_frame().loc["slow", "not_run"] == found.skipped["slow"]


def test_time_goes_to_the_methods_with_priority_first():
    expected = {"fast": 1.0, "middle": 6.0, "best": 8.0}
    assert planned_methods(expected, 10.0, ["best", "middle", "fast"]) == (
        ["fast", "best"],
        ["middle"],
    )
    assert planned_methods(expected, 10.0, ["fast", "middle", "best"]) == (
        ["fast", "middle"],
        ["best"],
    )
    assert planned_methods(expected, 15.0, list(expected)) == (list(expected), [])
