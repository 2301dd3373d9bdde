"""How well TRAK's projections agree with the kernel that they estimate.

    python benchmarks/trak_projections.py [--rows 1024] [--components 1024]

The network and rows of influence_scale.py. Without projection the kernel of the 570k gradients is
that of the rows' inner products, so TRAK's scores follow from an n x n system at the same damping.
Correlations are Pearson's: median and lowest over 100 test rows, and of all scores at once.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from influence_scale import data, network
from torch import nn

from fimoda import TRAK, as_final_model, measurements
from fimoda.measured import Measured
from fimoda.row_gradients import RowDifferentiator
from fimoda.rows import Rows


def exact(
    net: nn.Module, X: torch.Tensor, y: torch.Tensor, X_test: torch.Tensor, y_test: torch.Tensor
) -> np.ndarray:
    """TRAK's scores without projection, from the kernel of the rows."""
    model = as_final_model(net, X, criterion=nn.CrossEntropyLoss())
    margin = measurements.resolve("margin", model)
    differentiate = RowDifferentiator(model, X[:2])
    train, test = (
        differentiate(Measured(Rows(X, y), margin)),
        differentiate(Measured(Rows(X_test, y_test), model.loss)),
    )
    K, K_test = train.inner(train).double(), test.inner(train).double()
    n = len(X)
    damping = 1000 * K.diagonal().mean() / model.n_parameters
    solved = torch.linalg.solve(K + n * damping * torch.eye(n), K_test.mT).mT
    slopes = -(1 - margin(model.outputs(X).double(), y).sigmoid())
    return (solved * slopes).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--components", type=int, default=1024)
    arguments = parser.parse_args()
    (X, X_test, y, y_test), _ = data(arguments.rows, None)
    net = network(X, y)
    wanted = exact(net, *(torch.from_numpy(part) for part in (X, y, X_test, y_test)))
    print("| projection, seed | fit (s) | of the cores (s) | median | lowest | all |")
    print("| --- | --- | --- | --- | --- | --- |")
    for projection, seed in [(p, s) for p in ("rademacher", "sparse", "product") for s in (0, 1)]:
        trak = TRAK(
            net, criterion=nn.CrossEntropyLoss(), n_components=arguments.components,
            projection=projection, random_state=seed,
        )  # fmt: skip
        start, worked = time.perf_counter(), time.process_time()
        trak.fit(X, y)
        seconds, worked = time.perf_counter() - start, time.process_time() - worked
        scores = trak.transform(X_test, y_test)
        r = [np.corrcoef(a, b)[0, 1] for a, b in zip(scores, wanted, strict=True)]
        everything = np.corrcoef(scores.ravel(), wanted.ravel())[0, 1]
        print(
            f"| {projection}, {seed} | {seconds:.1f} | {worked:.1f} | {np.median(r):.4f} "
            f"| {min(r):.4f} | {everything:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
