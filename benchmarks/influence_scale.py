"""Seconds and peak memory of the influence functions at the scale of Fashion-MNIST.

    python benchmarks/influence_scale.py [--rows 6144] [--methods GradDot,EKFACInfluence,DataInf,TRAK]

6,144 training rows of Fashion-MNIST (Debian's package dataset-fashion-mnist; without it random data of
that shape), a 784-512-256-128-10 ReLU network (570k parameters) trained for three epochs, 100 test
rows. Each method runs in a process of its own with a memory budget for 4 GiB in all; ``fit`` and
``transform`` are timed apart, and the peak of the resident memory includes the data and the libraries.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

import fimoda

DEBIAN = Path("/usr/share/dataset-fashion-mnist")
WIDTHS = [784, 512, 256, 128, 10]
N_TEST = 100
BUDGET = 2**30
METHODS = {
    "GradDot": ("GradDot", {}),
    "EKFACInfluence": ("EKFACInfluence", {}),
    "DataInf": ("DataInf", {}),
    "TRAK": ("TRAK", {"n_components": 4096, "random_state": 0}),
    "TRAK-product": ("TRAK", {"n_components": 4096, "projection": "product", "random_state": 0}),
}


def images(n_rows: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """Rows and labels, and whether they are real."""
    try:
        with gzip.open(DEBIAN / "train-images-idx3-ubyte.gz") as file:
            X = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 784)
        with gzip.open(DEBIAN / "train-labels-idx1-ubyte.gz") as file:
            y = np.frombuffer(file.read(), np.uint8, offset=8)
    except FileNotFoundError:
        rng = np.random.default_rng(0)
        centres = rng.uniform(size=(10, 784))
        y = rng.integers(10, size=n_rows)
        X = 255 * np.clip(centres[y] + 0.5 * rng.normal(size=(n_rows, 784)), 0, 1)
        return (X / 255).astype(np.float32), y.astype(np.int64), False
    return (X[:n_rows] / 255).astype(np.float32), y[:n_rows].astype(np.int64), True


def network(X: np.ndarray, y: np.ndarray) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(WIDTHS):
        layers += [nn.Linear(a, b), nn.ReLU()]
    net = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    rows, labels = torch.from_numpy(X), torch.from_numpy(y)
    for _ in range(3):
        for batch in torch.randperm(len(X)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(rows[batch]), labels[batch]).backward()
            optimizer.step()
    return net


def measure(method: str, n_rows: int) -> None:
    X, y, real = images(n_rows + N_TEST)
    X, X_test, y, y_test = X[:n_rows], X[n_rows:], y[:n_rows], y[n_rows:]
    net = network(X, y)
    name, params = METHODS[method]
    cls = getattr(fimoda, name)
    attributor = cls(net, criterion=nn.CrossEntropyLoss(), memory_budget=BUDGET, **params)
    start = time.perf_counter()
    attributor.fit(X, y)
    fitted = time.perf_counter()
    scores = attributor.transform(X_test, y_test)
    done = time.perf_counter()
    product = fimoda.GradDot(net, criterion=nn.CrossEntropyLoss()).fit(X, y)
    cosine = np.corrcoef(scores.ravel(), product.transform(X_test, y_test).ravel())[0, 1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([fitted - start, done - fitted, peak / 2**20, float(cosine), real]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=6144)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure(arguments.one, arguments.rows)
        return
    real = images(1)[2]
    print("Fashion-MNIST" if real else "random data of Fashion-MNIST's shape", flush=True)
    print(f"{arguments.rows} rows, {N_TEST} test rows, {torch.get_num_threads()} threads")
    print(f"{'':<16}{'fit (s)':>9}{'scores (s)':>12}{'peak (MiB)':>12}{'r(Grad-Dot)':>13}")
    for method in arguments.methods.split(","):
        command = [sys.executable, __file__, "--one", method, "--rows", str(arguments.rows)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        fit, scores, peak, r, _ = json.loads(result.stdout.splitlines()[-1])
        print(f"{method:<16}{fit:>9.1f}{scores:>12.1f}{peak:>12.0f}{r:>13.2f}", flush=True)


if __name__ == "__main__":
    main()
