"""Methods are compared with further training of a few rows, and the best that fits is taken."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from problems import tanh_network
from sklearn.datasets import load_diabetes
from torch import nn

from fimoda import (
    FurtherTraining,
    GradDot,
    RefinedAttributor,
    RepSim,
    UnrolledDifferentiation,
    attribute,
)
from fimoda.attribution import call
from fimoda.attribution.check import N_ROWS, Check
from fimoda.attribution.ladder import Candidate, Ladder
from fimoda.training.workers import Deadline

N, N_TEST = 60, 5
STEPS = {"n_epochs": 4, "optimizer": "SGD", "lr": 0.05, "batch_size": 20}


@pytest.fixture(scope="module")
def problem():
    X, y = load_diabetes(return_X_y=True)
    X, y = X / X.std(0), (y - y.mean()) / y.std()
    net = tanh_network(10, 8, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.mse_loss(
            net(torch.from_numpy(X[:N]))[:, 0], torch.from_numpy(y[:N])
        ).backward()
        optimizer.step()
    return net, X[:N], y[:N], X[N : N + N_TEST], y[N : N + N_TEST]


def gold_of(net):
    return FurtherTraining(
        net, criterion=nn.MSELoss(), n_seeds=3, random_state=0, leave_out_mode="expected", **STEPS
    )


def ladder(problem, methods, whole: float = 1.0, budget: float = 1e3) -> Ladder:
    """Further training would take too long, the methods no time."""
    net, X, y, X_test, y_test = problem
    clock = Deadline(budget)
    check = Check(gold_of(net), lambda: whole, (X, y, None), (X_test, y_test), clock)
    candidates = [Candidate(gold_of(net), lambda: 1e9)]
    candidates += [Candidate(method, lambda: 0.0) for method in methods]
    return Ladder(candidates, "it is best", clock, budget, check=check)


def climbed(problem, methods, **settings):
    _, X, y, X_test, y_test = problem
    calls = []

    def scores(method):
        calls.append(type(method).__name__)
        return method.fit(X, y).transform(X_test, y_test)

    step, found = ladder(problem, methods, **settings).climb(scores)
    return step, found, calls


def methods_of(net):
    unrolled = UnrolledDifferentiation(net, criterion=nn.MSELoss(), random_state=0, **STEPS)
    return RepSim(net, criterion=nn.MSELoss()), unrolled, GradDot(net, criterion=nn.MSELoss())


def test_agreement_is_that_with_further_training_of_the_rows(problem):
    net, X, y, X_test, y_test = problem
    scores = np.random.default_rng(0).normal(size=(N_TEST, N))
    check = ladder(problem, []).check
    found = check.agreement(scores)
    rows, _ = check._found
    sizes = np.linalg.norm(scores - scores.mean(1, keepdims=True), axis=0)
    assert len(rows) <= N_ROWS
    assert {sizes.argmax(), sizes.argmin()} <= set(rows)
    gold = gold_of(net).set_params(leave_out=rows).fit(X, y).transform(X_test, y_test)
    expected = [np.corrcoef(scores[i, rows], gold[i])[0, 1] for i in range(N_TEST)]
    assert found == pytest.approx(np.mean(expected))


def test_a_method_that_agrees_is_taken_alone(problem):
    _, unrolled, grad_dot = methods_of(problem[0])
    step, _, calls = climbed(problem, [unrolled, grad_dot])
    assert calls == ["UnrolledDifferentiation"]
    assert step.attributor is unrolled
    (said,) = step.checked
    assert float(said.split()[1]) > 0.9


def test_a_better_one_behind_it_is_found(problem):
    similar, unrolled, grad_dot = methods_of(problem[0])
    step, found, calls = climbed(problem, [similar, unrolled, grad_dot])
    assert calls == ["RepSim", "UnrolledDifferentiation"]
    assert step.attributor is unrolled
    assert "agrees less with RepSim 0." in step.reason
    np.testing.assert_array_equal(found, unrolled.transform(*problem[3:]))


def test_a_worse_one_behind_it_is_left_alone(problem):
    similar, *_ = methods_of(problem[0])
    other = RepSim(problem[0], criterion=nn.MSELoss())
    step, _, calls = climbed(problem, [similar, other])
    assert calls == ["RepSim", "RepSim"]
    assert step.attributor is similar


def test_nothing_is_said_where_there_is_no_time(problem):
    similar, unrolled, _ = methods_of(problem[0])
    step, _, calls = climbed(problem, [similar, unrolled], whole=1e9)
    assert calls == ["RepSim"]
    assert step.checked == []


def test_a_method_that_fails_is_passed_over(problem):
    similar, unrolled, _ = methods_of(problem[0])
    step, _, _ = climbed(problem, [similar, RepSim("no model"), unrolled])
    assert step.attributor is unrolled
    assert "RepSim gave no scores: TypeError" in step.reason


def test_one_call_says_how_far_it_is_right(problem, monkeypatch):
    net, X, y, X_test, y_test = problem
    similar, unrolled, _ = methods_of(net)
    monkeypatch.setattr(call, "ladder_for", lambda *_: ladder(problem, [similar, unrolled]))
    found = attribute(net, X, y, X_test, y_test)
    assert found.attributor is unrolled
    assert re.match(
        r"agrees (0\.9\d|1\.00) with further training of 10 rows \(correlation\); ", found.trust
    )
    assert re.search(r"Further training of 10 rows agrees less with RepSim 0\.\d\d\.", found.reason)


def test_a_method_that_compares_itself_is_not_compared_again(problem):
    net, X, y, X_test, y_test = problem
    gold = FurtherTraining(n_seeds=2, random_state=0, **STEPS)
    refined = RefinedAttributor(
        net, gold_standard=gold, criterion=nn.MSELoss(), trained_rows=5, random_state=0
    )
    one = ladder(problem, [])
    one.candidates.append(Candidate(refined, lambda: 0.0, is_compared=True))
    step, found = one.climb(lambda method: method.fit(X, y).transform(X_test, y_test))
    assert step.attributor is refined
    assert step.checked == []
    assert one.check._found is None
    assert refined._known_error(found)[0].startswith("UnrolledDifferentiation agrees 0.9")
