"""Small networks, their rows, and their curvature by plain loops of autograd, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from fimoda import FinalModel, as_final_model
from fimoda.curvature.operators import CURVATURES, Curvature
from fimoda.measured import Measure
from fimoda.model import DEFAULT_BUDGET
from fimoda.objective import Objective
from fimoda.rows import Rows

N, D = 11, 4


def tanh_network(*sizes: int) -> nn.Sequential:
    """Return linear layers of these sizes with tanh between them, drawn from seed 0, in float64."""
    torch.manual_seed(0)
    layers = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.Tanh())]
    return nn.Sequential(*layers[:-1]).double()


class ConvNorm(nn.Module):
    """Layers whose gradients do not factor."""

    def __init__(self, n_outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 2)
        self.norm = nn.LayerNorm(2)
        self.head = nn.Linear(2, n_outputs)

    def forward(self, X):
        return self.head(self.norm(torch.tanh(self.conv(X.reshape(-1, 1, 2, 2))).flatten(1)))


def chain(n_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, n_outputs))


NETWORKS = {"chain": chain, "conv": ConvNorm}

# name: (outputs, criterion, the loss of one row by hand)
LOSSES = {
    "classes": (3, nn.CrossEntropyLoss(), lambda f, y: -f.log_softmax(0)[y]),
    "binary": (
        1,
        nn.BCEWithLogitsLoss(),
        lambda f, y: -(y * f.sigmoid().log() + (1 - y) * (1 - f.sigmoid()).log())[0],
    ),
    "two targets": (2, nn.MSELoss(), lambda f, y: ((f - y) ** 2).mean()),
}


@dataclass
class Problem:
    """A model, its rows, and what a plain loop needs."""

    module: nn.Module
    model: FinalModel
    X: Tensor
    y: Tensor
    weights: Tensor
    loss: object

    def value(self, parameters: Tensor, i: int) -> Tensor:
        return self.loss(self.output(parameters, i), self.y[i])

    def output(self, parameters: Tensor, i: int) -> Tensor:
        start, views = 0, {}
        for name, p in self.module.named_parameters():
            views[name] = parameters[start : start + p.numel()].reshape(p.shape)
            start += p.numel()
        return torch.func.functional_call(self.module, views, (self.X[i : i + 1],))[0]

    @property
    def theta(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.module.parameters()])

    def jacobian(self, i: int) -> Tensor:
        return torch.autograd.functional.jacobian(lambda t: self.output(t, i), self.theta)

    def gradient(self, i: int, y: Tensor | None = None) -> Tensor:
        target = self.y[i] if y is None else y
        return torch.autograd.functional.jacobian(
            lambda t: self.loss(self.output(t, i), target), self.theta
        )

    def reference(self, name: str) -> np.ndarray:
        """The curvature, written out."""
        total = torch.zeros(len(self.theta), len(self.theta), dtype=torch.float64)
        shares = self.weights / self.weights.sum()
        if name == "hessian":

            def objective(t: Tensor) -> Tensor:
                return sum(share * self.value(t, i) for i, share in enumerate(shares))

            return torch.autograd.functional.hessian(objective, self.theta).numpy()
        for i, share in enumerate(shares):
            if name == "gauss-newton":
                J, f = self.jacobian(i), self.output(self.theta, i)
                y = self.y[i]
                W = torch.autograd.functional.hessian(lambda o, y=y: self.loss(o, y), f)
                total += share * J.T @ W @ J
            else:
                g = self.gradient(i)
                total += share * torch.outer(g, g)
        return total.numpy()

    def curvature(self, name: str, memory_budget: int = DEFAULT_BUDGET, **kwargs) -> Curvature:
        rows = Rows(self.X, self.y, self.weights)
        return CURVATURES[name](Objective(self.model, rows, memory_budget), **kwargs)


def problem(network: str = "chain", loss: str = "classes", weighted: bool = True) -> Problem:
    n_outputs, criterion, by_hand = LOSSES[loss]
    torch.manual_seed(0)
    module = NETWORKS[network](n_outputs).double()
    rng = np.random.default_rng(1)
    X = rng.normal(size=(N, D))
    y = {
        "classes": rng.integers(3, size=N),
        "binary": rng.integers(2, size=N),
        "two targets": rng.normal(size=(N, 2)),
    }[loss]
    model = as_final_model(module, X, y, criterion=criterion)
    weights = torch.from_numpy(rng.uniform(0.2, 2, N)) if weighted else torch.ones(N).double()
    if weighted:
        weights[3] = 0
    return Problem(module, model, model.encode_X(X), model.encode_y(y, n_outputs), weights, by_hand)


def row_gradients(
    model: FinalModel, X: Tensor, y: Tensor, measure: Measure | None = None
) -> np.ndarray:
    """Return the gradient (n, p) of each row's measurement, by default its loss, one row at a time."""
    measure = model.loss if measure is None else measure
    found = []
    for x, target in zip(X, y, strict=True):
        theta = model.theta.clone().requires_grad_()
        value = measure(model.forward(theta, x[None]), target[None]).sum()
        found.append(torch.autograd.grad(value, theta)[0].numpy())
    return np.array(found)
