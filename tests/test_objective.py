"""Rows, what is measured of them, and the training objective, against plain float64 loops."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from naive import close
from problems import row_gradients
from torch import nn

from fimoda import as_final_model
from fimoda.measured import Measured
from fimoda.measurements import Output
from fimoda.objective import Objective
from fimoda.rows import Rows, SeveralInputs, arguments, mapped, parts

N, D, C = 11, 4, 3


def problem(l2: float | None = None) -> Objective:
    """An objective of a small network, with weights and perhaps a penalty."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(N, D, generator=generator, dtype=torch.float64)
    y = torch.randint(0, C, (N,), generator=generator)
    weights = torch.linspace(0.5, 3, N, dtype=torch.float64)
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, C)).double()
    model = as_final_model(net, X.numpy(), criterion=nn.CrossEntropyLoss())
    if l2 is not None:
        penalty = torch.full_like(model.theta, l2)
        model = replace(model, l2=penalty, decay=2 * model.theta**2)
    return Objective(model, Rows(X, y, weights))


def naive_value(objective: Objective, theta: torch.Tensor) -> torch.Tensor:
    """The objective as it is written, row by row."""
    model, rows = objective.model, objective.rows
    total = torch.zeros((), dtype=torch.float64)
    for x, y, w in zip(rows.inputs, rows.targets, rows.weights, strict=True):
        loss = nn.functional.cross_entropy(model.forward(theta, x[None]), y[None])
        total = total + w / rows.weights.sum() * loss
    for penalty in (model.l2, model.decay):
        if penalty is not None:
            total = total + 0.5 * (penalty * theta**2).sum()
    return total


@pytest.mark.parametrize("l2", [None, 0.3])
@pytest.mark.parametrize("moved", [False, True])
def test_value_and_gradient(l2, moved):
    objective = problem(l2)
    theta = objective.model.theta + (0.1 if moved else 0.0)
    leaf = theta.clone().requires_grad_()
    expected = naive_value(objective, leaf)
    gradient = torch.autograd.grad(expected, leaf)[0]
    assert objective.value(theta if moved else None) == pytest.approx(
        float(expected.detach()), rel=1e-12
    )
    found = objective.gradient(theta if moved else None)
    torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [None, 1, 4, 100])
def test_gradients_of_rows(size):
    objective = problem()
    theta = objective.model.theta.clone().requires_grad_()
    outputs = objective.model.forward(theta, objective.rows.inputs)
    losses = nn.functional.cross_entropy(outputs, objective.rows.targets, reduction="none")
    expected = torch.stack(
        [torch.autograd.grad(one, theta, retain_graph=True)[0] for one in losses]
    )
    found = torch.zeros_like(expected)
    for at, gradients in objective.row_gradients(most=size):
        found[at] = gradients.dense()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    mean = (objective.rows.shares @ expected.square()).mean()
    assert objective.mean_squared_gradient == pytest.approx(float(mean), rel=1e-12)


@pytest.mark.parametrize("chunk_size", [None, 1, 4])
def test_products_of_gradients(chunk_size):
    """In chunks, what dense matrices of gradients give."""
    objective = replace(problem(), chunk_size=chunk_size)
    test = Measured(objective.rows, Output(1))[:5]
    G, T = (
        torch.from_numpy(row_gradients(objective.model, one.inputs, one.targets, one.measure))
        for one in (objective.losses, test)
    )
    generator = torch.Generator().manual_seed(2)
    vectors = torch.randn(3, G.shape[1], generator=generator, dtype=torch.float64)
    close(objective.along(vectors), G @ vectors.mT)
    close(objective.along(vectors, test), T @ vectors.mT)
    coefficients = torch.randn(N, 3, generator=generator, dtype=torch.float64)
    close(objective.combined(coefficients), coefficients.mT @ G)
    close(objective.mapped(lambda gradients: gradients.dense()), G)
    close(objective.pairs(test), T @ G.mT)
    close(objective.pairs(test, test), T @ T.mT)
    signs = objective.pairs(test, product=lambda a, b: a.dense().sign() @ b.dense().sign().mT)
    close(signs, T.sign() @ G.sign().mT)
    close(objective.rowwise(test, objective.losses[:5]), (T * G[:5]).sum(1))


def test_a_chunk_fits_the_budget():
    model, rows = problem().model, problem().rows
    row_bytes = Objective(model, rows).differentiate.row_bytes()
    assert Objective(model, rows, memory_budget=6 * row_bytes).chunk() == 3
    assert Objective(model, rows, memory_budget=1).chunk() == 1
    assert Objective(model, rows).chunk() == N
    assert Objective(model, rows, chunk_size=2).chunk() == 2


def test_shares_stay_what_they_are_among_all_rows():
    rows = problem().rows
    expected = rows.weights / rows.weights.sum()
    torch.testing.assert_close(rows.shares, expected)
    some = np.array([7, 2, 5])
    torch.testing.assert_close(rows[some].shares, expected[some])
    torch.testing.assert_close(rows[2:9][1:3].shares, expected[3:5])
    assert float(rows[some].alone.shares.sum()) == pytest.approx(1)
    parts_of_all = torch.cat([part.shares for part in rows.split(4)])
    torch.testing.assert_close(parts_of_all, expected)
    unweighted = Rows(rows.inputs, rows.targets)
    torch.testing.assert_close(unweighted.shares, torch.full((N,), 1 / N, dtype=torch.float64))
    torch.testing.assert_close(unweighted[:2].shares, unweighted.shares[:2])


def test_chunks_of_the_objective_add_up():
    objective = problem()
    whole = objective.gradient()
    pieces = [Objective(objective.model, rows).gradient() for rows in objective.rows.split(3)]
    torch.testing.assert_close(sum(pieces), whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("named", [True, False])
def test_several_inputs(named):
    numbers, ids = torch.arange(12.0).view(6, 2), torch.arange(6)
    inputs = SeveralInputs({"numbers": numbers, "ids": ids} if named else (numbers, ids))
    rows = Rows(inputs, torch.zeros(6))
    assert (len(rows), len(inputs), len(parts(inputs))) == (6, 6, 2)
    some = parts(rows[torch.tensor([4, 1])].inputs)
    assert torch.equal(some[0], numbers[[4, 1]])
    assert torch.equal(some[1], torch.tensor([4, 1]))
    assert [len(one) for one in inputs.split(4)] == [4, 2]
    assert torch.equal(parts(inputs[5:])[1], ids[5:])
    assert [part.dtype for part in parts(rows.double.inputs)] == [torch.float64, torch.int64]
    assert torch.equal(parts(mapped(lambda part: part * 2, inputs))[1], 2 * ids)
    assert rows.identity() == Rows(mapped(torch.clone, inputs), torch.zeros(6)).identity()
    assert rows.identity()["X"] != Rows(inputs[[1, 0, 2, 3, 4, 5]], rows.targets).identity()["X"]
    products = torch.vmap(lambda x: parts(x)[0].sum() * parts(x)[1])(inputs)
    assert torch.equal(products, numbers.sum(1) * ids)


def test_arguments_are_those_of_skorch():
    ids = torch.arange(3)
    named, one, apart = {"ids": ids}, SeveralInputs((ids, ids)), SeveralInputs((ids, ids), True)
    assert arguments(SeveralInputs(named)) == ((), named)
    assert arguments(one) == (([ids, ids],), {})
    assert arguments(apart) == ((ids, ids), {})
    assert arguments(ids) == ((ids,), {})


def test_what_is_measured():
    objective = problem()
    test = Measured(objective.rows, Output(1))[:4]
    assert len(test) == 4
    model = objective.model
    thetas = torch.stack([model.theta, model.theta * 1.5])
    expected = torch.stack([model.forward(theta, test.inputs)[:, 1] for theta in thetas])
    torch.testing.assert_close(test.of_stack(model, thetas), expected)
    np.testing.assert_allclose(test.of_model(model), expected[0].numpy())
    slopes = test.slopes(model.outputs(test.inputs))
    assert torch.equal(slopes, torch.tensor([[0.0, 1.0, 0.0]]).double().expand(4, 3))
    assert [len(part) for part in test.split(3)] == [3, 1]
    other = Measured(objective.rows, Output(2))[:4]
    assert test.identity(C)["measurement"] != other.identity(C)["measurement"]
    assert test.identity(C)["X_test"] == other.identity(C)["X_test"]


def test_pickles_hold_the_fields_only():
    objective = problem(0.3)
    before = len(pickle.dumps(objective))
    for name in ("losses", "outputs", "differentiate", "mean_squared_gradient"):
        getattr(objective, name)
    again = pickle.loads(pickle.dumps(objective))
    assert set(vars(again)) == {field.name for field in fields(objective)}
    assert len(pickle.dumps(objective)) < 1.5 * before
    torch.testing.assert_close(again.gradient(), objective.gradient(), rtol=0, atol=0)


@pytest.mark.parametrize("of", [lambda x: x, lambda x: SeveralInputs({"a": x, "b": x > 0})])
def test_rows_are_the_same_in_another_process(of):
    rows = Rows(of(torch.arange(12.0).view(6, 2)), torch.zeros(6), torch.arange(6.0))[2:]
    again = pickle.loads(pickle.dumps(rows))
    assert again.identity() == rows.identity()
    assert torch.equal(again.shares, rows.shares)
    held = pickle.loads(pickle.dumps(rows.__getstate__()))["arrays"]
    assert all(isinstance(part, np.ndarray) for part in (*parts(held[0]), *held[1:]))
