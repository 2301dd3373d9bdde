"""Seconds and peak memory of the influence functions at the scale of Fashion-MNIST.

    python benchmarks/influence_scale.py [--rows 6144] [--methods GradDot,TRAK-sparse] [--threads 2]

Training rows of Fashion-MNIST (Debian's and Ubuntu's package dataset-fashion-mnist, or its directory
as ``--data``; without it random data of that shape), a 784-512-256-128-10 ReLU network (570k
parameters) trained for three epochs, the first 100 rows of the test set. Each method runs in a process
of its own with a memory budget that leaves it 4 GiB in all; ``fit`` and ``transform`` are timed apart
(and together the seconds that the cores worked: on a busy machine these say more), and the peak of
the resident memory includes the data and the libraries. r is the correlation with Grad-Dot.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from torch import nn

import fimoda
from fimoda.datasets import Split, split_fashion_mnist

WIDTHS = [784, 512, 256, 128, 10]
N_TEST = 100
BUDGET = 2**30
METHODS = {
    "GradDot": ("GradDot", {}),
    "EK-FAC": ("EKFACInfluence", {}),
    "DataInf": ("DataInf", {}),
    "TRAK": ("TRAK", {"n_components": 4096, "random_state": 0}),
    "TRAK-sparse": ("TRAK", {"n_components": 4096, "projection": "sparse", "random_state": 0}),
    "TRAK-product": ("TRAK", {"n_components": 4096, "projection": "product", "random_state": 0}),
    "CG": ("CGInfluence", {"preconditioner": "ekfac", "tol": 1e-3}),
}


def data(n_rows: int, folder: str | None) -> tuple[Split, bool]:
    """Training and test rows, and whether they are real."""
    try:
        return split_fashion_mnist(n_rows, N_TEST, folder), True
    except FileNotFoundError as error:
        if folder is not None:
            raise
        print(f"{error}\n", file=sys.stderr)
    rng = np.random.default_rng(0)
    y = rng.integers(10, size=n_rows + N_TEST)
    X = rng.uniform(size=(10, 784))[y] + 0.5 * rng.normal(size=(len(y), 784))
    X = np.clip(X, 0, 1).astype(np.float32)
    return (X[:n_rows], X[n_rows:], y[:n_rows], y[n_rows:]), False


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


def peak() -> float:
    """Peak memory of this process in MiB (what getrusage says may be the parent's)."""
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return float(status["VmHWM"].split()[0]) / 1024


def measure(method: str, model: str, n_rows: int, folder: str | None) -> None:
    (X, X_test, y, y_test), _ = data(n_rows, folder)
    net = torch.load(model, weights_only=False)
    before = peak()
    name, params = METHODS[method]
    attributor = getattr(fimoda, name)(
        net, criterion=nn.CrossEntropyLoss(), memory_budget=BUDGET, **params
    )
    start, worked = time.perf_counter(), time.process_time()
    attributor.fit(X, y)
    fitted = time.perf_counter()
    scores = attributor.transform(X_test, y_test)
    done, worked = time.perf_counter(), time.process_time() - worked
    after = peak()
    note = ""
    if name == "CGInfluence":
        note = f"damping {attributor.damping_:.1e}, {attributor.n_iter_} iterations"
    product = fimoda.GradDot(net, criterion=nn.CrossEntropyLoss()).fit(X, y)
    r = np.corrcoef(scores.ravel(), product.transform(X_test, y_test).ravel())[0, 1]
    print(json.dumps([fitted - start, done - fitted, worked, before, after, float(r), note]))


def row(method: str, model: str, arguments: argparse.Namespace) -> str:
    """A row of the table, from a process of its own."""
    command = [sys.executable, __file__, "--one", method, model]
    for option in ("rows", "data", "threads"):
        if (value := getattr(arguments, option)) is not None:
            command += [f"--{option}", str(value)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    fit, scores, worked, before, after, r, note = json.loads(result.stdout.splitlines()[-1])
    return (
        f"| {method} | {fit:.1f} | {scores:.1f} | {worked:.1f} | {after:.0f}, {before:.0f} "
        f"| {r:.2f} | {note} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=6144)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--data", help="directory with the four files of Fashion-MNIST")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        measure(*arguments.one, arguments.rows, arguments.data)
        return
    (X, _, y, _), real = data(arguments.rows, arguments.data)
    print(
        f"{arguments.rows} rows of {'Fashion-MNIST' if real else 'random data'}, {N_TEST} test rows, "
        f"{arguments.threads} threads, {time.strftime('%Y-%m-%d')}\n"
    )
    print("| method | fit (s) | scores (s) | both, of the cores (s) | peak, before (MiB) | r |  |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        model = os.path.join(folder, "model.pt")
        torch.save(network(X, y), model)
        for method in arguments.methods.split(","):
            print(row(method, model, arguments), flush=True)


if __name__ == "__main__":
    main()
