"""Speed of training on subsets against a plain loop and skorch in joblib, as ratios in one run.

    python benchmarks/retraining.py --data path/to/concrete.csv --case concrete
    python benchmarks/retraining.py --case fashion-mnist --subsets 8 --seeds 1

The settings are those of the papers: half of the rows, 20 epochs of SGD with momentum 0.9. fimoda's
side is `train_on_subsets` as a user calls it, with two workers, all models, and the measurement of
all test rows. The plain loop trains a few models one at a time: a ``DataLoader`` over the subset,
forward, ``backward``, ``step``; with one thread and with as many as there are cores. skorch nets are
fitted by two joblib workers of one thread each. What trains fewer models is scaled to all. Every
round times all variants in turn; a ratio is taken within a round and its median over rounds is
printed. The time of fimoda's first call, which starts the workers, is printed besides.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from skorch import NeuralNet
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from fimoda import random_subsets, train_on_subsets
from fimoda.datasets import split_concrete, split_fashion_mnist

EPOCHS = 20
JOBS = 2


@dataclass(frozen=True)
class Case:
    widths: tuple[int, ...]
    batch_size: int
    weight_decay: float
    criterion: type[nn.Module]

    def network(self) -> nn.Sequential:
        layers: list[nn.Module] = []
        for a, b in pairwise(self.widths):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    @property
    def optimizer(self) -> dict[str, float]:
        return {"momentum": 0.9, "weight_decay": self.weight_decay}


LR = 0.03
CASES = {
    "concrete": Case((8, 128, 128, 128, 1), 32, 1e-5, nn.MSELoss),
    "fashion-mnist": Case((784, 512, 256, 128, 10), 64, 1e-3, nn.CrossEntropyLoss),
}


def data(name: str, path: str | None) -> tuple[np.ndarray, ...]:
    return split_concrete(path) if name == "concrete" else split_fashion_mnist(6144, 100)


def plain(case: Case, X: np.ndarray, y: np.ndarray, subsets: np.ndarray) -> float:
    """Seconds per model of the plain loop."""
    rows = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    start = time.perf_counter()
    for seed, subset in enumerate(subsets):
        torch.manual_seed(seed)
        network, criterion = case.network(), case.criterion()
        inside = Subset(rows, np.flatnonzero(subset).tolist())
        loader = DataLoader(inside, batch_size=case.batch_size, shuffle=True)
        optimizer = torch.optim.SGD(network.parameters(), lr=LR, **case.optimizer)
        for _ in range(EPOCHS):
            for x, target in loader:
                optimizer.zero_grad()
                criterion(network(x), target).backward()
                optimizer.step()
    return (time.perf_counter() - start) / len(subsets)


def threaded(case: Case, X: np.ndarray, y: np.ndarray, subsets: np.ndarray) -> float:
    """`plain` with as many threads as cores."""
    torch.set_num_threads(os.cpu_count() or 1)
    seconds = plain(case, X, y, subsets)
    torch.set_num_threads(1)
    return seconds


def fit_net(case: Case, X: np.ndarray, y: np.ndarray, seed: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    NeuralNet(
        case.network(), case.criterion, optimizer=torch.optim.SGD, lr=LR, max_epochs=EPOCHS,
        batch_size=case.batch_size, iterator_train__shuffle=True, train_split=None, verbose=0,
        **{f"optimizer__{key}": value for key, value in case.optimizer.items()},
    ).fit(X, y)  # fmt: skip


def nets(case: Case, X: np.ndarray, y: np.ndarray, subsets: np.ndarray) -> float:
    """Seconds per model of skorch nets in joblib workers."""
    start = time.perf_counter()
    Parallel(JOBS)(delayed(fit_net)(case, X[s], y[s], k) for k, s in enumerate(subsets))
    return (time.perf_counter() - start) / len(subsets)


def stacked(
    case: Case, rows: tuple[np.ndarray, ...], subsets: np.ndarray, seeds: int, **settings: Any
) -> float:
    """Seconds per model of `train_on_subsets`."""
    X, X_test, y, y_test = rows
    start = time.perf_counter()
    outcomes = train_on_subsets(
        case.network(), X, y, subsets, X_test, y_test, criterion=case.criterion(), n_epochs=EPOCHS,
        n_seeds=range(seeds), optimizer="SGD", lr=LR, optimizer_params=case.optimizer,
        batch_size=case.batch_size, **settings,
    )  # fmt: skip
    assert not outcomes.failed
    return (time.perf_counter() - start) / (len(subsets) * seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=list(CASES), default="concrete")
    parser.add_argument("--data", help="path of concrete.csv, or the directory that holds it")
    parser.add_argument("--subsets", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--loop-models", type=int, default=8, help="models of the other sides")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    case = CASES[arguments.case]
    rows = data(arguments.case, arguments.data)
    X, _, y, _ = rows
    subsets = random_subsets(len(X), arguments.subsets, 0.5, random_state=0)
    few, seeds = subsets[: arguments.loop_models], arguments.seeds
    variants: dict[str, Callable[[], float]] = {
        "plain loop": lambda: plain(case, X, y, few),
        "plain loop, a thread a core": lambda: threaded(case, X, y, few),
        f"skorch, {JOBS} workers": lambda: nets(case, X, y, few),
        "fimoda, 1 core, one seed": lambda: stacked(case, rows, subsets, 1, n_jobs=1),
        f"fimoda, {JOBS} workers": lambda: stacked(case, rows, subsets, seeds, n_jobs=JOBS),
    }
    ours = f"fimoda, {JOBS} workers"
    n_models = len(subsets) * seeds
    first = variants[ours]() * n_models
    for name, variant in variants.items():
        if name != ours:
            variant()
    times = [
        {name: variant() for name, variant in variants.items()} for _ in range(arguments.rounds)
    ]
    print(f"{arguments.case}: {len(subsets)} subsets x {seeds} seeds, {EPOCHS} epochs")
    print(f"first call of fimoda: {first:.1f} s\n")
    print("| side | seconds for all models | times slower than fimoda |")
    print("| --- | --- | --- |")
    for name in variants:
        seconds = median(t[name] for t in times) * n_models
        ratio = median(t[name] / t[ours] for t in times)
        print(f"| {name} | {seconds:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
