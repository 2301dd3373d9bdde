"""Grad-Dot over 60,000 training rows: seconds and peak memory.

    python benchmarks/grad_dot.py

60,000 x 784 random rows, 100 test rows, a 784-512-256-128-10 network with 569,226 parameters. The
gradients of all rows would take 127 GiB; inner products go through the factors of each layer. For
comparison the same scores of the first rows by explicit per-row gradients (``vmap`` of ``grad``),
scaled to all rows, and one forward and backward pass over the rows, which no method can avoid.
"""

from __future__ import annotations

import argparse
import resource
import time
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from fimoda import GradDot


def network() -> nn.Sequential:
    torch.manual_seed(0)
    widths = (784, 512, 256, 128, 10)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def explicit(
    net: nn.Module, X: torch.Tensor, y: torch.Tensor, n_test: int, rows: int
) -> torch.Tensor:
    """Scores of the first rows from explicit gradients."""
    parameters = {k: p.detach() for k, p in net.named_parameters()}

    def loss(p: dict[str, torch.Tensor], x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(functional_call(net, p, (x[None],)), t[None])

    per_row = vmap(grad(loss), in_dims=(None, 0, 0))

    def flat(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.cat([g.flatten(1) for g in per_row(parameters, x, t).values()], 1)

    test = flat(X[-n_test:], y[-n_test:])
    return torch.cat([test @ flat(X[a : a + 64], y[a : a + 64]).T for a in range(0, rows, 64)], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    n, n_test, few = arguments.rows, 100, 512
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n + n_test, 784), dtype=np.float32)
    y = rng.integers(10, size=n + n_test)
    net = network()

    attributor = GradDot(
        net, criterion=nn.CrossEntropyLoss(), lr=1.0, batch_size=n, reweight_others=False
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    attributor.fit(X[:n], y[:n])
    fitted = time.perf_counter()
    scores = attributor.transform(X[n:], y[n:])
    done = time.perf_counter()
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20

    rows, targets = torch.from_numpy(X), torch.from_numpy(y)
    start_pass = time.perf_counter()
    for x, t in zip(rows[:n].split(4096), targets[:n].split(4096), strict=True):
        nn.functional.cross_entropy(net(x), t).backward()
    one_pass = time.perf_counter() - start_pass

    start_explicit = time.perf_counter()
    reference = explicit(net, rows, targets, n_test, few)
    scaled = (time.perf_counter() - start_explicit) * n / few
    difference = (
        np.abs(scores[:, :few] * n - reference.numpy()).max() / reference.abs().max().item()
    )

    print("| rows | fit | transform | peak memory above the data | forward + backward | explicit |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(
        f"| {n} | {fitted - start:.2f} s | {done - fitted:.2f} s | {peak:.2f} GiB | {one_pass:.2f} s "
        f"| {scaled:.0f} s |"
    )
    print(f"\nlargest difference from explicit gradients, relative: {difference:.1e}")


if __name__ == "__main__":
    main()
