"""Linearised further training in the space of outputs, beside the matrix products it consists of.

    python benchmarks/kernel_recursion.py

One step of the walk back multiplies the adjoints of m test rows (twice that many while two horizons
are on their way) with the kernel of n rows and C outputs, in float64. Both sides take turns on one
thread; ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from torch import Tensor

from fimoda.training.linear_steps import LinearSteps
from fimoda.training.recorded import ObservedRun
from fimoda.walks.output_space import adjoint_in_outputs

#: Rows, outputs, test rows, steps.
SIZES = [(142, 3, 36, 200), (455, 1, 100, 200), (927, 1, 103, 100), (455, 10, 100, 20)]
STEPS = {
    "SGD": LinearSteps(),
    "momentum": LinearSteps(momentum=0.9, of_gradient=0.0, of_velocity=1.0),
}
PER_EPOCH = 10


def walk(n: int, c: int, m: int, steps: LinearSteps, n_epochs: int) -> tuple[float, float]:
    """Seconds of the recursion for two horizons, and of its products."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    J = randn(n * c, 50)
    kernel = (J @ J.mT / 50).view(n, c, n, c)
    share = torch.full((n,), 1 / n, dtype=torch.float64)
    curvature = 0.2 * torch.eye(c, dtype=torch.float64).repeat(n, 1, 1)
    residuals, inner = randn(n_epochs + 1, n, c), [randn(m, n, c), randn(m, n, c)]
    rates = torch.full((n_epochs * PER_EPOCH, 2), 0.01, dtype=torch.float64)
    knots = [epoch * PER_EPOCH for epoch in range(n_epochs + 1)]
    observed = ObservedRun({}, knots, residuals, residuals, rates)
    horizons = [knots[n_epochs // 2], knots[-1]]
    start = time.perf_counter()
    adjoint_in_outputs(kernel, share, lambda _: curvature, observed, steps, inner, horizons)
    total = time.perf_counter() - start
    matrix, left = kernel.reshape(n * c, n * c), randn(2 * m, n * c)
    start = time.perf_counter()
    for step in range(n_epochs * PER_EPOCH):
        left[: m if step >= horizons[0] * PER_EPOCH else 2 * m] @ matrix
    return total, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print("| rows, outputs, test rows | optimiser | recursion | products | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for n, c, m, n_steps in SIZES:
        for name, steps in STEPS.items():
            times = [walk(n, c, m, steps, n_steps // PER_EPOCH) for _ in range(rounds + 1)][1:]
            total, products = (1000 * median(side) / n_steps for side in zip(*times, strict=True))
            ratio = median(a / b for a, b in times)
            print(
                f"| {n}, {c}, {m} | {name} | {total:.2f} ms | {products:.2f} ms | {ratio:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
