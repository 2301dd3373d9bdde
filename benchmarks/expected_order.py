"""Unrolled differentiation in the expected order and in its own, beside the gold standard of many seeds.

    python benchmarks/expected_order.py [--optimizer SGD|Adam] [--seeds 24] [--runs 3]

A small convolutional network on 600 digits, trained by skorch and trained further. The table has the cosine
(both centred, mean over 30 test rows, of 20 left-out rows) with the mean over the seeds of the gold standard,
after 1, 3 and 10 epochs: one half of the seeds with the other, one seed and five seeds with the rest, and
runs of seeds that the gold standard does not have: further training with rows left out in expectation, and
unrolled differentiation. Seconds are those of one run on one thread, of the 20 rows or of all.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from removal_protocol import cosine, with_the_rest
from sklearn.datasets import load_digits
from skorch import NeuralNetClassifier
from torch import nn

from fimoda import UnrolledDifferentiation, further_training_curve

EPOCHS = [1, 3, 10]
LEFT_OUT = list(range(0, 600, 30))

#: Learning rates of training and of further training.
RATES = {"SGD": (0.1, 0.02), "Adam": (1e-3, 1e-3)}


def trained(optimizer: str, X: NDArray[np.float32], y: NDArray[np.int64]) -> NeuralNetClassifier:
    """Return the network after 15 epochs."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    return NeuralNetClassifier(
        module, criterion=nn.CrossEntropyLoss, optimizer=getattr(torch.optim, optimizer),
        lr=RATES[optimizer][0], max_epochs=15, batch_size=64, train_split=None, verbose=0,
        iterator_train__shuffle=True,
    ).fit(X, y)  # fmt: skip


def row(name: str, figures: list[float], seconds: float | None = None) -> None:
    told = "" if seconds is None else f"{seconds:.1f}"
    print(f"| {name} | {' | '.join(f'{f:.2f}' for f in figures)} | {told} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--optimizer", choices=list(RATES), default="SGD")
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    known = load_digits()
    X, y = (known.images[:, None] / 16).astype(np.float32), known.target
    train, test = (X[:600], y[:600]), (X[1500:1530], y[1500:1530])
    net = trained(given.optimizer, *train)
    further = {"optimizer": given.optimizer, "lr": RATES[given.optimizer][1], "batch_size": 64}
    seeds = list(range(1, given.seeds + 1))
    curve = further_training_curve(
        net, *train, *test, epochs=EPOCHS, n_seeds=seeds, leave_out=LEFT_OUT, n_jobs=2, **further
    )
    gold, half = curve.per_seed, given.seeds // 2
    print("| further training by " + given.optimizer + " | 1 epoch | 3 | 10 | seconds |")
    print("| --- | --- | --- | --- | --- |")
    row("half of the seeds", [cosine(g[..., :half].mean(-1), g[..., half:].mean(-1)) for g in gold])
    row("one seed", [with_the_rest(g, 1) for g in gold])
    row("five seeds", [with_the_rest(g, 5) for g in gold])
    for seed in range(100, 100 + given.runs):
        start = time.perf_counter()
        one = further_training_curve(
            net, *train, *test, epochs=EPOCHS, n_seeds=[seed], leave_out=LEFT_OUT, n_jobs=1,
            leave_out_mode="expected", **further,
        )  # fmt: skip
        figures = [cosine(a, g.mean(-1)) for a, g in zip(one.scores, gold, strict=True)]
        row("further training in expectation, a seed", figures, time.perf_counter() - start)
    for order in ("own", "expected"):
        for seed in range(100, 100 + given.runs):
            start = time.perf_counter()
            method = UnrolledDifferentiation(
                net, n_epochs=EPOCHS, n_seeds=[seed], order=order, mode="adjoint", **further
            )
            scores = method.fit(*train).transform_horizons(*test)[:, :, LEFT_OUT]
            figures = [cosine(one, g.mean(-1)) for one, g in zip(scores, gold, strict=True)]
            row(f"{order} order, a run", figures, time.perf_counter() - start)


if __name__ == "__main__":
    main()
