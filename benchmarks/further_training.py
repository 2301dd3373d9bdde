"""Speed of further training against a plain loop, as ratios in one run.

    python benchmarks/further_training.py path/to/concrete.csv

The plain loop trains one model at a time: a ``DataLoader`` over the rows that are left, forward,
``backward``, ``step``. fimoda's side is `further_training_curve` as a user calls it. Every round
times all variants in turn; a ratio is taken within a round and its median over rounds is printed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from fimoda import further_training_curve
from fimoda.datasets import split_concrete

BATCH = 128
LEFT_OUT = 60


@dataclass(frozen=True)
class Case:
    name: str
    widths: tuple[int, ...]
    optimizer: str
    lr: float
    n_rows: int
    epochs: int
    naive_epochs: int

    def network(self) -> nn.Sequential:
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for a, b in pairwise(self.widths):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    @property
    def criterion(self) -> nn.Module:
        return nn.CrossEntropyLoss() if self.widths[-1] > 1 else nn.MSELoss()

    @property
    def operations(self) -> float:
        """Multiply-adds, times two, of the products of one model and epoch."""
        products = [a * b for a, b in pairwise(self.widths)]
        return 2.0 * self.n_rows * (3 * sum(products) - products[0])


CASES = [
    Case("8-128-128-1, SGD", (8, 128, 128, 1), "SGD", 0.03, 927, 80, 12),
    Case("8-128-128-1, Adam", (8, 128, 128, 1), "Adam", 1e-4, 927, 80, 12),
    Case("64-64-64-1, SGD", (64, 64, 64, 1), "SGD", 0.03, 927, 80, 12),
    Case("784-512-256-128-10, SGD", (784, 512, 256, 128, 10), "SGD", 0.01, 1024, 3, 2),
]


def data(case: Case, concrete: str) -> tuple[np.ndarray, np.ndarray]:
    if case.widths[0] == 8:
        X, _, y, _ = split_concrete(concrete)
        return X, y
    rng = np.random.default_rng(0)
    X = rng.standard_normal((case.n_rows, case.widths[0]), dtype=np.float32)
    if case.widths[-1] > 1:
        return X, rng.integers(case.widths[-1], size=case.n_rows)
    return X, X[:, :1]


def naive(case: Case, X: np.ndarray, y: np.ndarray) -> float:
    """Seconds per model and epoch of the plain loop."""
    network, criterion = case.network(), case.criterion
    rows = Subset(TensorDataset(torch.from_numpy(X), torch.from_numpy(y)), range(1, len(X)))
    loader = DataLoader(rows, batch_size=BATCH, shuffle=True)
    optimizer = getattr(torch.optim, case.optimizer)(network.parameters(), lr=case.lr)
    start = time.perf_counter()
    for _ in range(case.naive_epochs):
        for x, target in loader:
            optimizer.zero_grad()
            criterion(network(x), target).backward()
            optimizer.step()
    return (time.perf_counter() - start) / case.naive_epochs


def stacked(case: Case, X: np.ndarray, y: np.ndarray, compile: bool, n_jobs: int) -> float:
    """Seconds per model and epoch of further training as a user calls it."""
    start = time.perf_counter()
    further_training_curve(
        case.network(), X, y, X[:1], y[:1], criterion=case.criterion, epochs=case.epochs,
        n_seeds=range(n_jobs), leave_out=range(LEFT_OUT - 1), optimizer=case.optimizer, lr=case.lr,
        batch_size=BATCH, compile=compile, n_jobs=n_jobs,
    )  # fmt: skip
    return (time.perf_counter() - start) / (case.epochs * LEFT_OUT * n_jobs)


def product_rate(precision: str) -> float:
    """Float32 operations a second of a 1024 x 1024 matrix product on one thread."""
    switch = torch.backends.mkldnn.matmul
    before, switch.fp32_precision = switch.fp32_precision, precision
    a, b = torch.randn(2, 1024, 1024)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    switch.fp32_precision = before
    return 2 * 1024**3 / min(times)


def peak() -> float:
    """Peak memory of this process in KiB (what getrusage says may be the parent's)."""
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return float(status["VmHWM"].split()[0])


def peak_memory(case: Case, concrete: str) -> None:
    """Print the peak memory of this process after the loop and after further training."""
    X, y = data(case, concrete)
    naive(case, X, y)
    before = peak()
    stacked(case, X, y, compile=False, n_jobs=1)
    after = peak()
    print(f"{before / 1024:.0f}, {after / 1024:.0f} MiB")


def run(case: Case, concrete: str, rounds: int, peak: float) -> str:
    X, y = data(case, concrete)
    variants: dict[str, Callable[[], float]] = {
        "loop": lambda: naive(case, X, y),
        "1 core": lambda: stacked(case, X, y, False, 1),
        "1 core, compiled": lambda: stacked(case, X, y, True, 1),
        "2 jobs": lambda: stacked(case, X, y, False, 2),
        "2 jobs, compiled": lambda: stacked(case, X, y, True, 2),
    }
    for variant in variants.values():
        variant()  # starts workers, compiles
    times = [{name: variant() for name, variant in variants.items()} for _ in range(rounds)]
    cells = [f"{1e3 * median(t['loop'] for t in times):.2f} ms"]
    for name in list(variants)[1:]:
        ms = 1e3 * median(t[name] for t in times)
        ratio = median(t["loop"] / t[name] for t in times)
        share = case.operations / (1e-3 * ms) / peak / (2 if "2 jobs" in name else 1)
        cells.append(f"{ms:.2f} ms, {ratio:.1f}x, {share:.0%}")
    memory = subprocess.run(
        [sys.executable, __file__, concrete, "--memory", case.name],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return f"| {case.name} | " + " | ".join(cells) + f" | {memory.stdout.strip()} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("concrete", help="path of concrete.csv, or the directory that holds it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", metavar="CASE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if arguments.memory:
        peak_memory(next(c for c in CASES if c.name == arguments.memory), arguments.concrete)
        return
    usual, fast = product_rate("ieee"), product_rate("bf16")
    print(f"float32 matrix product, one thread: {usual / 1e9:.0f} GFLOP/s by torch's default")
    print(
        f"library, {fast / 1e9:.0f} GFLOP/s by the faster one; shares are of the default's rate.\n"
    )
    print("Per model and epoch: time, times faster than the loop, share of the product rate.\n")
    print(
        "| network | loop | 1 core | 1 core, compiled | 2 jobs | 2 jobs, compiled "
        "| peak memory: loop, 1 core |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for case in CASES:
        print(run(case, arguments.concrete, arguments.rounds, usual), flush=True)


if __name__ == "__main__":
    main()
