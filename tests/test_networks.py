"""Every kind of network: attributors against plain loops of autograd in float64, and none breaks."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import networks
import numpy as np
import pytest
import torch
from cells import ATTRIBUTORS, run_cell
from naive import close
from numpy.typing import NDArray
from torch import Tensor, nn

from fimoda import (
    CGInfluence,
    DataInf,
    ExactInfluence,
    GradCos,
    GradDot,
    TracIn,
    TrajectoryRecorder,
)

#: Why an attributor refuses a network; every other cell works.
REFUSALS: dict[tuple[str, str], str] = {
    **{
        (network, "KNNShapley"): "X must be one array to compare rows by distance"
        for network in ("bert", "gpt2", "lora", "two inputs")
    },
    ("language model", "KNNShapley"): "targets must be one class or number each",
}


def each_network(but: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("network", [n for n in networks.NETWORKS if n not in but])


@pytest.fixture(autouse=True)
def _libraries(network: str) -> None:
    if network in networks.NEEDS:
        pytest.importorskip(networks.NEEDS[network])


@each_network()
@pytest.mark.parametrize("attributor", ATTRIBUTORS)
def test_works_or_refuses_for_a_reason(network, attributor):
    cell = run_cell(network, attributor)
    if (network, attributor) in REFUSALS:
        assert cell.outcome == "refused", "it works now: take it from the list"
        assert REFUSALS[network, attributor] in cell.message
    else:
        assert cell.outcome == "works", f"{cell.message} ({cell.place})"


# ---- against plain loops --------------------------------------------------------------------


@dataclass
class Loop:
    """A trained network in float64, and gradients of its rows by autograd, one row at a time."""

    case: networks.Case
    module: nn.Module
    criterion: nn.Module
    #: gradients of the losses: (n, p) of training rows, (n_test, p) of test rows
    train: NDArray[np.float64]
    test: NDArray[np.float64]

    def scores(self, attributor) -> NDArray[np.float64]:
        fitted = attributor.set_params(estimator=self.case.model).fit(self.case.X, self.case.y)
        return fitted.transform(self.case.X_test, self.case.y_test)


def row(values, i: int):
    """Return a batch of one row, as the network takes it."""
    if isinstance(values, dict):
        return {name: row(part, i) for name, part in values.items()}
    one = torch.as_tensor(np.asarray(values)[i : i + 1])
    return one.double() if one.is_floating_point() else one


def output(module: nn.Module, X, i: int) -> Tensor:
    inputs = row(X, i)
    return module(**inputs) if isinstance(inputs, dict) else module(inputs)


def trainable(module: nn.Module) -> list[Tensor]:
    return [p for p in module.parameters() if p.requires_grad]


def gradient(value: Tensor, parameters: list[Tensor]) -> NDArray[np.float64]:
    """Return the gradient of a number, as one vector."""
    parts = torch.autograd.grad(
        value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([part.reshape(-1) for part in parts]).numpy()


def gradients(module: nn.Module, criterion: nn.Module, X, y) -> NDArray[np.float64]:
    losses = (criterion(output(module, X, i), row(y, i)) for i in range(len(y)))
    return np.array([gradient(loss, trainable(module)) for loss in losses])


@functools.cache
def loop(network: str) -> Loop:
    case = networks.case(network, torch.float64)
    module = case.model.module_.eval()
    module = getattr(module, "_orig_mod", module)  # a compiled one
    criterion = networks.NETWORKS[network].criterion()
    train = gradients(module, criterion, case.X, case.y)
    test = gradients(module, criterion, case.X_test, case.y_test)
    return Loop(case, module, criterion, train, test)


#: Computed in float32, whatever float64 could say of it.
each_in_float64 = each_network(but=("bfloat16",))


@each_in_float64
def test_gradient_products(network):
    it = loop(network)
    expected = 0.3 * 2 * it.test @ it.train.T / networks.N * 4  # 16 rows are 4 batches of 4
    close(it.scores(GradDot(lr=0.3, n_epochs=2, batch_size=4, reweight_others=False)), expected)
    lengths = [np.linalg.norm(part, axis=1) for part in (it.test, it.train)]
    close(it.scores(GradCos()), it.test @ it.train.T / np.outer(*lengths))


@each_in_float64
def test_data_inf(network):
    """The mean of the inverses of each row's own matrix, layer by layer."""
    it, damping, expected = loop(network), 0.02, 0
    where = {id(p): k for k, p in enumerate(trainable(it.module))}
    ends = np.cumsum([p.numel() for p in trainable(it.module)])
    starts = np.concatenate([[0], ends[:-1]])
    for part in it.module.modules():
        own = [where.pop(id(p)) for p in part.parameters(recurse=False) if id(p) in where]
        columns = [np.arange(starts[k], ends[k]) for k in own]
        if not columns:
            continue
        G, V = (g[:, np.concatenate(columns)] for g in (it.train, it.test))
        solved = sum(v_less(V, g, damping) for g in G) / len(G)
        expected = expected + solved @ G.T / len(G)
    assert not where
    close(it.scores(DataInf(damping=damping)), expected)


def v_less(V: NDArray[np.float64], g: NDArray[np.float64], damping: float) -> NDArray[np.float64]:
    """Return the solutions of (g gᵀ + damping) u = v."""
    return (V - np.outer(V @ g, g) / (damping + g @ g)) / damping


@functools.cache
def half_gauss_newton(network: str) -> NDArray[np.float64]:
    """Return B (n C, p), whose BᵀB is the Gauss-Newton matrix of the mean loss."""
    it, halves = loop(network), []
    for i in range(networks.N):
        f, y = output(it.module, it.case.X, i), row(it.case.y, i)
        J = np.array([gradient(one, trainable(it.module)) for one in f.reshape(-1)])
        W = torch.autograd.functional.hessian(
            lambda values, y=y: it.criterion(values, y), f.detach()
        )
        values, vectors = np.linalg.eigh(W.reshape(len(J), len(J)).numpy())
        halves.append(np.sqrt(values.clip(0))[:, None] * (vectors.T @ J))
    return np.concatenate(halves) / networks.N**0.5


@each_in_float64
@pytest.mark.parametrize("attributor", [ExactInfluence(), CGInfluence(tol=1e-12)], ids=str)
def test_influence(network, attributor):
    """The damped Gauss-Newton matrix, inverted by Woodbury's identity."""
    it, B, damping = loop(network), half_gauss_newton(network), 0.05
    inner = np.linalg.solve(B @ B.T + damping * np.eye(len(B)), B @ it.train.T)
    solved = (it.train.T - B.T @ inner) / damping
    found = it.scores(attributor.set_params(damping=damping, reweight_others=False))
    close(found, it.test @ solved / networks.N, 1e-8)


@each_in_float64
def test_trac_in(network):
    """The recorded steps, each with the gradients at its end."""
    it, expected = loop(network), 0
    callbacks = [callback for _, callback in it.case.model.callbacks_]
    recorded = next(c for c in callbacks if isinstance(c, TrajectoryRecorder)).trajectory_
    final = {name: value.clone() for name, value in it.module.state_dict().items()}
    for k in range(1, len(recorded)):
        it.module.load_state_dict(recorded.state(k), strict=False)
        parts = [(it.case.X, it.case.y), (it.case.X_test, it.case.y_test)]
        train, test = (gradients(it.module, it.criterion, *part) for part in parts)
        expected = expected + 0.05 * test @ train.T / networks.N
    it.module.load_state_dict(final)
    close(it.scores(TracIn()), expected)
