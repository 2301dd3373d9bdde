"""Brittleness of predictions of a logistic regression by dattri: run by flips.py, where dattri is."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from dattri.algorithm.influence_function import IFAttributorExplicit
from dattri.benchmark.utils import SubsetSampler
from dattri.metric import brittleness
from dattri.task import AttributionTask
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def trained(X: torch.Tensor, y: torch.Tensor, n_classes: int, C: float) -> nn.Linear:
    """Return the logistic regression of scikit-learn: sum of losses beside a penalty on the coefficients."""
    model = nn.Linear(X.shape[1], n_classes).double()
    for p in model.parameters():
        nn.init.zeros_(p)
    steps = torch.optim.LBFGS(
        model.parameters(),
        max_iter=500,
        tolerance_grad=1e-8,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def objective() -> torch.Tensor:
        steps.zero_grad()
        loss = nn.functional.cross_entropy(model(X), y, reduction="sum")
        total = (loss + model.weight.square().sum() / (2 * C)) / len(X)
        total.backward()
        return total

    steps.step(objective)
    return model


def main() -> None:
    given, out = sys.argv[1:]
    data: dict[str, Any] = dict(np.load(given))
    X, y, X_test, predicted = (torch.from_numpy(data[k]) for k in ("X", "y", "X_test", "predicted"))
    n, n_classes = len(X), int(y.max()) + 1
    C = float(data["C"]) / (
        2 if n_classes == 2 else 1
    )  # two columns of coefficients, each half of one
    rows = TensorDataset(X, y)
    model = trained(X, y, n_classes, C)
    P = model(X_test).softmax(1)
    if not np.allclose(P.detach().numpy(), data["P"], atol=1e-3):
        raise SystemExit("the model is another one")

    def loss(params: Any, batch: Any) -> torch.Tensor:
        x, label = batch
        outputs = torch.func.functional_call(model, params, (x,))
        return nn.functional.cross_entropy(outputs, label.long())

    task = AttributionTask(loss_func=loss, model=model, checkpoints=model.state_dict())
    everything = DataLoader(rows, batch_size=n, sampler=SubsetSampler(list(range(n))))
    asked = DataLoader(TensorDataset(X_test, predicted), batch_size=len(X_test), shuffle=False)
    attributor = IFAttributorExplicit(task, regularization=1 / (C * n))
    attributor.cache(everything)
    scores = attributor.attribute(everything, asked).detach()  # (n, n_test)

    def train(loader: DataLoader) -> nn.Linear:
        kept = torch.tensor(loader.sampler.indices)
        return trained(X[kept], y[kept], n_classes, C)

    def predict(fitted: nn.Linear, loader: DataLoader) -> torch.Tensor:
        return torch.cat([fitted(x).argmax(1) for x, _ in loader])

    found = {}
    for name, space in (("default", None), ("fine", [*range(1, int(data["max_rows"]) + 1)])):
        sizes = []
        for z in range(len(X_test)):
            one = DataLoader(TensorDataset(X_test[z : z + 1], predicted[z : z + 1]), batch_size=1)
            size = brittleness(
                everything, one, scores[:, z].numpy(), train, predict, search_space=space
            )
            sizes.append(np.nan if size is None else size)
        found[name] = np.array(sizes, dtype=float)
    np.savez(out, scores=scores.numpy(), **found)


if __name__ == "__main__":
    main()
