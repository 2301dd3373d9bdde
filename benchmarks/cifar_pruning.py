"""Pruning of CIFAR-10 by the scores of each model, and by their mean over models, as in the third paper.

    FIMODA_DATA=path/to/data python benchmarks/cifar_pruning.py --output path/to/folder [--small]

Networks (ResNet-9 of width 8 with batch normalisation) are trained with several seeds on some images. At
each of them a method scores every training image for the loss of some validation images, in the mean over
these. Dropped are the images whose removal is said to raise that loss most ("helpful"), or to lower it most
("harmful"): by each seed's own scores, or by the mean of all seeds, which is the score of
`DistributionalInfluence` with the difference of means. Then all seeds are trained again, and the accuracy on
test images is compared seed by seed. Every seed is kept in the folder of `--output`; a second call computes
what is missing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine import ResNet9
from numpy.typing import NDArray
from scipy.stats import t
from torch import nn

import fimoda
from fimoda import train_ensemble, train_on_subsets
from fimoda.datasets import load_cifar10

STEPS: dict[str, Any] = {
    "optimizer": "SGD",
    "lr": 0.05,
    "batch_size": 64,
    "optimizer_params": {"momentum": 0.9},
}
CRITERION = nn.CrossEntropyLoss()


def accuracy(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (outputs.argmax(-1) == y).double()


def network() -> nn.Module:
    torch.manual_seed(0)
    return ResNet9(nn.BatchNorm2d).eval()


def scores_of(seed: int, args: argparse.Namespace, rows: Any) -> NDArray[np.float64]:
    """Return the mean scores (n,) at the model of a seed, once."""
    path = args.output / f"scores-{args.method}-{seed}.npy"
    if not path.exists():
        X, y, X_validation, y_validation = rows
        ensemble = train_ensemble(
            network(), X, y, n_seeds=[seed], n_epochs=args.epochs, checkpoints=1, criterion=CRITERION, **STEPS
        )  # fmt: skip
        method = getattr(fimoda, args.method)(ensemble.models[0])
        np.save(path, method.fit(X, y).transform(X_validation, y_validation).mean(0))
    return np.load(path)


def dropped(
    n: int, drop: float, scores: dict[str, NDArray[np.float64]], seed: int
) -> dict[str, Any]:
    """Return which rows each way of pruning drops, (k,) of them."""
    k, rng = round(drop * n), np.random.default_rng(seed)
    ways = {"at random": rng.permutation(n)[:k]}
    for name, one in scores.items():
        order = np.argsort(-one)
        ways |= {f"helpful, {name}": order[:k], f"harmful, {name}": order[n - k :]}
    return ways


def accuracies(
    seed: int, args: argparse.Namespace, rows: Any, test: Any, scores: dict[str, Any]
) -> dict[str, float]:
    """Return the accuracy without pruning and after each way, by one seed, once."""
    X, y = rows[:2]
    ways: dict[str, Any] = {"nothing": []}
    for drop in args.drop:
        found = dropped(len(y), drop, scores, seed)
        ways |= {f"{drop:.0%} {name}": gone for name, gone in found.items()}
    parts = "-".join(f"{drop:g}" for drop in args.drop)
    path = args.output / f"accuracies-{args.method}-{parts}-{seed}.npy"
    if not path.exists():
        subsets = np.ones((len(ways), len(y)), dtype=bool)
        for subset, gone in zip(subsets, ways.values(), strict=True):
            subset[gone] = False
        outcomes = train_on_subsets(
            network(), X, y, subsets, *test, n_seeds=[seed], n_epochs=args.epochs, criterion=CRITERION,
            measurement=accuracy, compile=False, **STEPS,
        )  # fmt: skip
        np.save(path, outcomes.measured[..., 0].mean(-1))
    return dict(zip(ways, np.load(path), strict=True))


def interval(values: NDArray[np.float64]) -> str:
    """Return a mean over seeds with its 95 percent t interval."""
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.3f} [{values.mean() - half:.3f}, {values.mean() + half:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=None, help="the folder of the files, or FIMODA_DATA")
    parser.add_argument("--output", type=Path, required=True, help="a folder for what is computed")
    parser.add_argument("--method", default="GradDot", help="an attributor of networks")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--validation", type=int, default=300)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--drop", type=float, nargs="*", default=[0.1, 0.3])
    parser.add_argument("--small", action="store_true", help="a setting of minutes")
    args = parser.parse_args()
    if args.small:
        args.rows, args.validation, args.test, args.seeds, args.epochs, args.drop = (
            200,
            50,
            100,
            3,
            3,
            [0.3],
        )
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    start = time.perf_counter()
    X, y = load_cifar10(args.data, n_rows=args.rows, return_X_y=True)
    n = args.validation
    held_X, held_y = load_cifar10(args.data, subset="test", n_rows=n + args.test, return_X_y=True)
    rows, test = (X, y, held_X[:n], held_y[:n]), (held_X[n:], held_y[n:])
    own = [scores_of(seed, args, rows) for seed in range(args.seeds)]
    mean = np.mean(own, axis=0)
    found = [
        accuracies(seed, args, rows, test, {"each model's": one, "mean of models": mean})
        for seed, one in enumerate(own)
    ]
    print("| dropped | accuracy | mean of models less each model's |\n| --- | --- | --- |")
    for way in found[0]:
        values = np.array([one[way] for one in found])
        gain = ""
        if way.endswith("mean of models"):
            gain = interval(
                values - [one[way.replace("mean of models", "each model's")] for one in found]
            )
        print(f"| {way} | {interval(values)} | {gain} |")
    print(
        f"\n{args.method}, {args.seeds} seeds, {args.rows} images: {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
