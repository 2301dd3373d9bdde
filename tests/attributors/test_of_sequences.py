"""Curvature and runs of networks of sequences, against plain loops of double backward in float64."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import networks
import numpy as np
import pytest
import torch
from naive import close
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fimoda import (
    ArnoldiInfluence,
    CGInfluence,
    LinearizedFurtherTraining,
    LiSSAInfluence,
    OnceLinearizedFurtherTraining,
    UnrolledDifferentiation,
)

N, N_TEST, RATE, STEPS, DAMPING = 6, 2, 0.3, 3, 1.0

NETWORKS = {
    "encoder": (lambda: networks.Encoder(dropout=0.0), networks._tokens),
    "decoder": (networks.Decoder, networks._tokens),
    "bert": (networks.hugging_face(lambda: networks.bert(dropout=0.0)), networks._padded),
    "lstm": (networks.Recurrent, networks._sequences),
    "gru": (lambda: networks.Recurrent(nn.GRU, bidirectional=False), networks._sequences),
}


@dataclass
class Loops:
    """A network with its rows, differentiated by autograd, one row and one vector at a time."""

    module: nn.Module
    X: object
    y: np.ndarray
    X_test: object
    y_test: np.ndarray

    def __post_init__(self):
        self.start = [p.detach().clone() for p in self.module.parameters()]

    def leaves(self, theta: Tensor | None = None) -> list[Tensor]:
        parts = [part.flatten() for part in self.start]
        theta = torch.cat(parts) if theta is None else theta
        pieces = theta.split([len(part) for part in parts])
        return [
            piece.view_as(part).detach().requires_grad_()
            for piece, part in zip(pieces, self.start, strict=True)
        ]

    def output(self, leaves: list[Tensor], X, i: int) -> Tensor:
        names = [name for name, _ in self.module.named_parameters()]

        def one(values) -> Tensor:
            row = torch.as_tensor(values[i : i + 1])
            return row.double() if row.is_floating_point() else row

        named = {name: one(part) for name, part in X.items()} if isinstance(X, dict) else {}
        args = () if named else (one(X),)
        parameters = dict(zip(names, leaves, strict=True))
        with sdpa_kernel(SDPBackend.MATH):
            return torch.func.functional_call(self.module, parameters, args, named)[0]

    def loss(self, leaves: list[Tensor], i: int, test: bool = False) -> Tensor:
        X, y = (self.X_test, self.y_test) if test else (self.X, self.y)
        return -self.output(leaves, X, i).log_softmax(0)[y[i]]

    def gradients(self, theta: Tensor | None = None, test: bool = False) -> Tensor:
        leaves = self.leaves(theta)
        n = N_TEST if test else N
        return torch.stack([slopes(self.loss(leaves, i, test), leaves) for i in range(n)])

    def jacobian(self, X, i: int) -> Tensor:
        leaves = self.leaves()
        outputs = self.output(leaves, X, i)
        return torch.stack([slopes(f, leaves, retain_graph=True) for f in outputs])

    def probabilities(self, theta: Tensor, i: int) -> Tensor:
        return self.output(self.leaves(theta), self.X, i).detach().softmax(0)

    def hessian_product(self, theta: Tensor, V: Tensor) -> Tensor:
        leaves, total = self.leaves(theta), torch.zeros_like(V)
        for i in range(N):
            slope = slopes(self.loss(leaves, i), leaves, create_graph=True)
            total += torch.stack([slopes(slope @ v, leaves, retain_graph=True) for v in V])
        return total / N

    @functools.cached_property
    def trajectory(self) -> list[Tensor]:
        """Parameters before each step of gradient descent, and behind the last."""
        found = [torch.cat([part.flatten() for part in self.start])]
        for _ in range(STEPS):
            found.append(found[-1] - RATE * self.gradients(found[-1]).mean(0))
        return found

    @functools.cached_property
    def derivative(self) -> Tensor:
        """Changes of the test rows' losses after the last step, without each row."""
        *before, last = self.trajectory
        adjoints, scores = self.gradients(last, test=True), 0.0
        for theta in reversed(before):
            of_rows = self.gradients(theta)
            scores = scores + RATE / (N - 1) * adjoints @ (of_rows - of_rows.mean(0)).mT
            adjoints = adjoints - RATE * self.hessian_product(theta, adjoints)
        return scores

    def scores(self, attributor, **params) -> np.ndarray:
        attributor.set_params(estimator=self.module, criterion=nn.CrossEntropyLoss(), **params)
        return attributor.fit(self.X, self.y).transform(self.X_test, self.y_test)


def slopes(value: Tensor, leaves: list[Tensor], **options) -> Tensor:
    found = torch.autograd.grad(value, leaves, materialize_grads=True, **options)
    return torch.cat([part.flatten() for part in found])


def softmax_curvature(p: Tensor) -> Tensor:
    return p.diag() - torch.outer(p, p)


@functools.cache
def loops(network: str) -> Loops:
    made, rows = NETWORKS[network]
    torch.manual_seed(0)
    module = made().double().eval()
    rng = np.random.default_rng(3)
    X, X_test = rows(rng, N), rows(rng, N_TEST)
    return Loops(module, X, np.arange(N) % 3, X_test, np.arange(N_TEST))


@pytest.fixture(params=NETWORKS)
def it(request) -> Loops:
    if request.param in networks.NEEDS:
        pytest.importorskip(networks.NEEDS[request.param])
    return loops(request.param)


@pytest.mark.parametrize(
    "attributor",
    [
        LiSSAInfluence(tol=1e-9),
        ArnoldiInfluence(n_components=10_000, complement="damping"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_influence(it, attributor):
    """The dense Gauss-Newton matrix, solved."""
    theta = it.trajectory[0]
    C = DAMPING * torch.eye(len(theta)).double()
    for i in range(N):
        J = it.jacobian(it.X, i)
        C += J.mT @ softmax_curvature(it.probabilities(theta, i)) @ J / N
    solved = torch.linalg.solve(C, it.gradients().mT) / N
    found = it.scores(attributor, damping=DAMPING, reweight_others=False)
    close(found, it.gradients(test=True) @ solved, 1e-8)


@pytest.mark.parametrize("network", ["decoder", "gru"])
def test_influence_with_the_hessian(network):
    """By Neumann's series: the damping is far above the curvature."""
    it = loops(network)
    theta, V, damping = it.trajectory[0], it.gradients(test=True), 200.0
    u = V / damping
    for _ in range(12):
        u = (V - it.hessian_product(theta, u)) / damping
    found = it.scores(
        CGInfluence(curvature="hessian", tol=1e-12), damping=damping, reweight_others=False
    )
    close(found, u @ it.gradients().mT / N, 1e-8)


def run_settings() -> dict:
    return {
        "n_epochs": STEPS,
        "n_seeds": 1,
        "optimizer": "SGD",
        "lr": RATE,
        "batch_size": N,
        "kink_smoothing": None,
        "random_state": 0,
    }


@pytest.mark.parametrize("mode", ["adjoint", "forward"])
def test_derivative_of_the_run(it, mode):
    """Batches of all rows: only the left-out row makes a difference."""
    close(
        it.scores(UnrolledDifferentiation(mode=mode, order="own"), **run_settings()),
        it.derivative,
        1e-8,
    )


@pytest.mark.parametrize("network", ["decoder", "gru"])
def test_linearised_at_every_step(network):
    """Is the derivative of the run, with all modes of the curvature."""
    it = loops(network)
    every = sum(part.numel() for part in it.start)
    attributor = LinearizedFurtherTraining(n_components=every)
    settings = {**run_settings(), "n_epochs": [*range(1, STEPS + 1)]}
    close(it.scores(attributor, **settings), it.derivative, 1e-8)


def test_once_linearised(it):
    """Jacobians of the final model, and residuals of the run."""
    *before, last = it.trajectory
    J = torch.stack([it.jacobian(it.X, i) for i in range(N)])
    adjoints = it.gradients(last, test=True)
    expected = 0.0
    for theta in reversed(before):
        p = torch.stack([it.probabilities(theta, i) for i in range(N)])
        of_rows = torch.einsum("nc,ncp->np", p - torch.eye(3).double()[it.y], J)
        expected = expected + RATE / (N - 1) * adjoints @ (of_rows - of_rows.mean(0)).mT
        W = torch.stack([softmax_curvature(one) for one in p])
        curved = torch.einsum("ncp,ncd,ndq,kq->kp", J, W, J, adjoints)
        adjoints = adjoints - RATE / N * curved
    found = it.scores(OnceLinearizedFurtherTraining(solver="steps"), **run_settings())
    close(found, expected, 1e-8)
