"""Derivatives of networks of every kind against plain loops of autograd, in float64."""

from __future__ import annotations

import networks
import pytest
import torch
from torch import Tensor

from fimoda import as_final_model
from fimoda.derivatives import (
    Linearization,
    gradient,
    hessian_products,
    row_gradients,
    row_jacobians,
)
from fimoda.formulas import by_formulas
from fimoda.model import FinalModel
from fimoda.rows import Rows

N_VECTORS = 2


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    scale = max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= 1e-8 * scale


class Naive:
    """Derivatives by double backward, one row and one output at a time."""

    def __init__(self, model: FinalModel, rows: Rows):
        self.model, self.rows = model, rows
        self.leaves = {k: v.clone().requires_grad_() for k, v in model.views(model.theta).items()}

    def outputs(self, i: int) -> Tensor:
        with by_formulas():
            return self.model.call(self.leaves, self.rows.inputs[i : i + 1])[0]

    def loss(self, i: int) -> Tensor:
        return self.model.loss(self.outputs(i)[None], self.rows.targets[i : i + 1])[0]

    def slopes(self, value: Tensor, **options) -> Tensor:
        found = torch.autograd.grad(
            value, list(self.leaves.values()), materialize_grads=True, **options
        )
        return torch.cat([part.reshape(-1) for part in found])

    def gradients(self) -> Tensor:
        return torch.stack([self.slopes(self.loss(i)) for i in range(len(self.rows))])

    def jacobians(self) -> Tensor:
        return torch.stack(
            [
                torch.stack([self.slopes(f, retain_graph=True) for f in self.outputs(i)])
                for i in range(len(self.rows))
            ]
        )

    def products(self, V: Tensor, weights: Tensor) -> Tensor:
        """Return second derivatives of the weighted losses along vectors."""
        total = torch.zeros_like(V)
        for i, w in enumerate(weights):
            slopes = self.slopes(self.loss(i), create_graph=True)
            total += w * torch.stack([self.slopes(slopes @ v, retain_graph=True) for v in V])
        return total


def example(name: str) -> tuple[FinalModel, Rows]:
    """Return a network of the zoo in float64, with five rows."""
    if name in networks.NEEDS:
        pytest.importorskip(networks.NEEDS[name])
    if name == "language model":
        pytest.skip("outputs of several positions")
    case = networks.bare(name, torch.float64)
    model = as_final_model(case.model, case.X, case.y, **case.params)
    inputs = model.encode_X(case.X)
    targets = model.encode_y(case.y, model.outputs(inputs[:1]).shape[1])
    return model, Rows(inputs, targets)[:5]


def losses_of(model: FinalModel, rows: Rows):
    return lambda parameters: model.loss(model.call(parameters, rows.inputs), rows.targets)


def vectors(model: FinalModel, k: int = N_VECTORS) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(k, model.n_parameters, generator=generator, dtype=torch.float64)


def check(model: FinalModel, rows: Rows) -> None:
    """Compare all derivatives with plain loops."""
    naive = Naive(model, rows)
    losses, V = losses_of(model, rows), vectors(model)
    gradients, jacobians = naive.gradients(), naive.jacobians()
    weights = torch.arange(1, len(rows) + 1).double()

    close(gradient(model, lambda p: weights @ losses(p)), weights @ gradients)
    close(
        row_gradients(
            model, lambda p, x, y: model.loss(model.call(p, x), y), rows.inputs, rows.targets
        ),
        gradients,
    )
    close(row_jacobians(model, rows.inputs), jacobians)
    linear = Linearization(model, lambda p: model.call(p, rows.inputs))
    close(linear.outputs, model.outputs(rows.inputs))
    close(linear.push(V), torch.einsum("ncp,kp->knc", jacobians, V))
    U = torch.stack([torch.cos(k + linear.outputs) for k in range(N_VECTORS)])
    close(linear.pull(U), torch.einsum("ncp,knc->kp", jacobians, U))
    products, slopes = hessian_products(model, losses, weights, V)
    close(products, naive.products(V, weights))
    close(slopes, V @ gradients.mT)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_network_by_plain_loops(name):
    check(*example(name))
