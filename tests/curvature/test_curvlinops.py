"""Products with curvatures, and EK-FAC, against curvlinops, which computes them in its own way."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from naive import close
from problems import LOSSES, chain, problem, row_gradients
from torch import nn

from fimoda import EKFACInfluence, as_final_model
from fimoda.curvature.operators import CURVATURES
from fimoda.objective import Objective
from fimoda.rows import Rows

curvlinops = pytest.importorskip("curvlinops")

# Of torch 2.13 the forward derivative of LayerNorm's batched gradient is wrong, and curvlinops goes
# that way for the Hessian; so that networks here have none.
OPERATORS = {
    "hessian": "HessianLinearOperator",
    "gauss-newton": "GGNLinearOperator",
    "empirical-fisher": "EFLinearOperator",
}
# It also scales the gradients of a mean over several outputs in another way.
CASES = [case for case in product(OPERATORS, LOSSES) if case != ("empirical-fisher", "two targets")]


def convolution(n_outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)),
        nn.Conv2d(1, 3, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(3, n_outputs),
    )


@pytest.mark.parametrize("make", [chain, convolution])
@pytest.mark.parametrize(("name", "loss"), CASES)
def test_products(name, loss, make):
    """Whole weights are copies of a row, of which curvlinops takes the plain mean in two batches."""
    case = problem(loss=loss)
    n_outputs, criterion, _ = LOSSES[loss]
    torch.manual_seed(0)
    module = make(n_outputs).double()
    copies = torch.arange(len(case.X)) % 3 + 1
    model = as_final_model(module, case.X, criterion=criterion)
    found = CURVATURES[name](Objective(model, Rows(case.X, case.y, copies.double())))

    X, y = (part.repeat_interleave(copies, 0) for part in (case.X, case.y))
    y = y.reshape(-1, 1).double() if loss == "binary" else y
    operator = getattr(curvlinops, OPERATORS[name])
    expected = operator(
        module, criterion, list(module.parameters()), [(X[:5], y[:5]), (X[5:], y[5:])]
    )
    V = torch.randn(4, model.n_parameters, dtype=torch.float64)
    close(found.matmat(V), (expected @ V.T).T, 1e-10)


@pytest.mark.parametrize("make", [chain, convolution])
@pytest.mark.parametrize("loss", ["classes", "two targets"])
def test_ekfac(loss, make):
    """Both take the mean over the model's own targets exactly."""
    case = problem(loss=loss)
    n_outputs, criterion, _ = LOSSES[loss]
    torch.manual_seed(0)
    module = make(n_outputs).double()
    model = as_final_model(module, case.X, criterion=criterion)
    scores = EKFACInfluence(model, damping=0.05, reweight_others=False).fit(case.X, case.y)
    curvature = curvlinops.EKFACLinearOperator(
        module, criterion, list(module.parameters()), [(case.X, case.y)],
        fisher_type=curvlinops.FisherType.TYPE2, separate_weight_and_bias=False,
    )  # fmt: skip
    eye = torch.eye(model.n_parameters, dtype=torch.float64)
    G = torch.from_numpy(row_gradients(model, case.X, case.y))
    expected = G[:4] @ torch.linalg.solve(curvature @ eye + 0.05 * eye, G.T) / len(G)
    close(scores.transform(case.X[:4], case.y[:4]), expected, 1e-10)
