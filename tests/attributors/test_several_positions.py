"""Networks with several positions a row, against plain loops with the user's own criterion, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from naive import Naive
from torch import nn

from fimoda import CGInfluence, ExactInfluence, FurtherTraining, GradDot

N, T, C, M = 9, 4, 5, 2
CRITERION = nn.CrossEntropyLoss()


class Words(nn.Module):
    """A small model of the next word, whose classes are on the axis that is asked for."""

    def __init__(self, second: bool = False):
        super().__init__()
        self.tokens = nn.Embedding(C, 3)
        self.mix = nn.Conv1d(3, 3, 2, padding=1)
        self.head = nn.Linear(3, C)
        self.second = second

    def forward(self, ids):
        hidden = torch.tanh(self.mix(self.tokens(ids).mT)[..., :-1]).mT
        outputs = self.head(hidden)
        return outputs.mT if self.second else outputs


def words(second: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return Words(second).double()


rng = np.random.default_rng(0)
X, X_TEST = rng.integers(C, size=(N, T)), rng.integers(C, size=(M, T))


def following(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    y = np.full_like(ids, -100)
    y[:, :-1] = ids[:, 1:]
    y[np.arange(T) >= lengths[:, None]] = -100
    return y


Y = following(X, rng.integers(1, T + 1, size=N))
Y_TEST = following(X_TEST, np.array([3, 2]))
COUNTS = torch.as_tensor((Y != -100).sum(1)).double()


def row_losses(module: nn.Module, X, y) -> list[torch.Tensor]:
    """The user's criterion of each row alone, by torch's order of axes."""
    found = []
    for ids, target in zip(torch.as_tensor(X), torch.as_tensor(y), strict=True):
        outputs = module(ids[None])
        outputs = outputs if module.second else outputs.mT
        found.append(CRITERION(outputs, target[None]))
    return found


def flat(parts) -> torch.Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def gradients(module: nn.Module, X, y) -> torch.Tensor:
    parameters = list(module.parameters())
    return torch.stack([flat(torch.autograd.grad(v, parameters)) for v in row_losses(module, X, y)])


@pytest.mark.parametrize("second", [False, True])
def test_grad_dot(second):
    module = words(second)
    method = GradDot(module, criterion=CRITERION, lr=1.0, reweight_others=False).fit(X, Y)
    share = COUNTS / COUNTS.sum()
    expected = gradients(module, X_TEST, Y_TEST) @ gradients(module, X, Y).mT * share
    np.testing.assert_allclose(method.transform(X_TEST, Y_TEST), expected, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(method._objective.value(), float(whole(module)), rtol=1e-12)


def whole(module: nn.Module) -> torch.Tensor:
    """The criterion on all rows as one batch: what it was made for."""
    outputs = module(torch.as_tensor(X))
    return CRITERION(outputs if module.second else outputs.mT, torch.as_tensor(Y))


def gauss_newton(module: nn.Module) -> torch.Tensor:
    """The matrix, position by position: J' (diag(p) - p p') J over the number of all positions."""
    parameters = list(module.parameters())
    total = 0.0
    for ids, target in zip(torch.as_tensor(X), torch.as_tensor(Y), strict=True):
        for outputs, label in zip(module(ids[None])[0], target, strict=True):
            if label == -100:
                continue
            rows = [
                flat(torch.autograd.grad(f, parameters, retain_graph=True, materialize_grads=True))
                for f in outputs
            ]
            J, p = torch.stack(rows), outputs.softmax(0).detach()
            total = total + J.mT @ (torch.diag(p) - torch.outer(p, p)) @ J
    return total / int(COUNTS.sum())


@pytest.mark.parametrize(
    ("method", "budget"), [(ExactInfluence, 2**29), (CGInfluence, 2**29), (CGInfluence, 2**16)]
)
def test_influence(method, budget):
    module, damping = words(), 0.1
    settings = {"criterion": CRITERION, "damping": damping, "reweight_others": False}
    if method is CGInfluence:
        settings |= {"tol": 1e-12, "memory_budget": budget}
    found = method(module, **settings).fit(X, Y).transform(X_TEST, Y_TEST)
    matrix = gauss_newton(module)
    matrix = matrix + damping * torch.eye(len(matrix), dtype=torch.float64)
    solved = torch.linalg.solve(matrix, gradients(module, X_TEST, Y_TEST).mT)
    expected = (gradients(module, X, Y) @ solved).mT * COUNTS / COUNTS.sum()
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("second", [False, True])
def test_further_training_is_that_of_torchs_criterion(second):
    module = words(second)
    ids, y = torch.as_tensor(X), torch.as_tensor(Y)

    def objective(outputs, targets, rows):
        return CRITERION(outputs if second else outputs.mT, targets)

    def measure(outputs, targets):
        ordered = outputs if second else outputs.mT
        return torch.stack(
            [CRITERION(f[None], t[None]) for f, t in zip(ordered, targets, strict=True)]
        )

    naive = Naive(module, ids, y, objective, measure, lr=0.3, batch_size=4)
    rows = [0, 5]
    method = FurtherTraining(
        module, criterion=CRITERION, n_epochs=2, lr=0.3, batch_size=4, optimizer="SGD", n_seeds=1,
        leave_out=rows, random_state=0,
    )  # fmt: skip
    found = method.fit(X, Y).transform(X_TEST, Y_TEST)
    seed = int(method.seeds_[0])
    ends = []
    for left_out in (None, *rows):
        *_, trained = naive.train(seed, left_out, "mask", 2)
        ends.append(naive.measured(trained, torch.as_tensor(X_TEST), torch.as_tensor(Y_TEST)))
    expected = np.stack([end - ends[0] for end in ends[1:]], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-10)
