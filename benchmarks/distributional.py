"""Distributional attribution: what it predicts, against training again.

    python benchmarks/distributional.py noise
    python benchmarks/distributional.py variance
    python benchmarks/distributional.py pruning
    python benchmarks/distributional.py speed

noise: correlation of predicted and measured leave-one-out effects, by retrainings a row.
variance: a row of digits that changes the variance and not the mean, found and verified.
pruning: drop a tenth of digits with wrong labels by scores of many models, of each model, at random.
speed: seconds of each distance for 1,000 rows, 100 test rows and 100 samples.
Each prints a table; noise draws a figure if given ``--figure``. On Concrete: distributional_concrete.py.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.stats import t
from sklearn.datasets import load_diabetes, load_digits
from sklearn.preprocessing import StandardScaler
from torch import nn

from fimoda import (
    DistributionalInfluence,
    Ensemble,
    ExactInfluence,
    FurtherTraining,
    OutcomeSamples,
    UnrolledDifferentiation,
    flip_labels,
    train_ensemble,
    train_on_subsets,
)
from fimoda.distances import NAMED, Quantile


class Task:
    """A network, its rows, and how it is trained."""

    def __init__(self, rows: Any, widths: tuple[int, ...], activation: type, criterion: nn.Module,
                 n_epochs: int, init: Any = None, **steps: Any):  # fmt: skip
        self.X, self.X_test, self.y, self.y_test = rows
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), activation()]
        self.net = nn.Sequential(*layers[:-1])
        self.criterion, self.n_epochs, self.init, self.steps = criterion, n_epochs, init, steps

    def without(self, rows: Any) -> np.ndarray:
        """Subsets: all rows first, and without each."""
        subsets = np.ones((len(rows) + 1, len(self.X)), dtype=bool)
        subsets[np.arange(1, len(subsets)), rows] = False
        return subsets

    def ensemble(self, seeds: Any, horizons: Any = ()) -> Ensemble:
        """Models trained on all rows; their initial parameters are kept, and those after these epochs."""
        n_batches = -(-len(self.X) // self.steps["batch_size"])
        return train_ensemble(
            self.net, self.X, self.y, n_seeds=seeds, n_epochs=self.n_epochs, init=self.init,
            checkpoints=[0, *(h * n_batches for h in horizons)], criterion=self.criterion, **self.steps,
        )  # fmt: skip

    def pairs(self, ensemble: Ensemble, rows: Any, **params: Any) -> OutcomeSamples:
        """Training from scratch with and without each row, with the same parameters at the start and
        the same batches: the row keeps its place in its batch, with weight zero."""
        trainings = [
            FurtherTraining(
                n_epochs=self.n_epochs, n_seeds=[seed], leave_out=rows, compile=False, **self.steps
            )
            for seed in ensemble.seeds
        ]
        starts = [
            model.at(model.flatten(run.state(0)))
            for model, run in zip(ensemble.models, ensemble.trajectories, strict=True)
        ]
        trained = self.predict(starts, trainings, **params)
        return trained.outcome_samples(self.X_test, self.y_test)

    def retrain(self, subsets: np.ndarray, seeds: Any, **params: Any) -> Any:
        return train_on_subsets(
            self.net, self.X, self.y, subsets, self.X_test, self.y_test, n_seeds=seeds,
            n_epochs=self.n_epochs, criterion=self.criterion, compile=False, **self.steps, **params,
        )  # fmt: skip

    def unrolled(self, ensemble: Ensemble, leave_out: Any = None) -> list:
        """Unrolled differentiation of each model's training, from its initial parameters."""
        return [
            UnrolledDifferentiation(
                n_epochs=self.n_epochs, n_seeds=[seed], start=run.state(0),
                leave_out=leave_out, kink_smoothing=None, **self.steps, order="own",
            )
            for seed, run in zip(ensemble.seeds, ensemble.trajectories, strict=True)
        ]  # fmt: skip

    def predict(self, ensemble: Ensemble, method: Any, **params: Any) -> DistributionalInfluence:
        influence = DistributionalInfluence(
            self.net, method=method, models=ensemble, criterion=self.criterion, **params
        )
        return influence.fit(self.X, self.y)


def load_small() -> Task:
    X, y = load_diabetes(return_X_y=True)
    X = StandardScaler().fit_transform(X).astype(np.float32)
    y = ((y - y.mean()) / y.std()).astype(np.float32)[:, None]
    return Task(
        (X[:342], X[342:392], y[:342], y[342:392]), (10, 8, 1), nn.Tanh, nn.MSELoss(), 20,
        optimizer="SGD", lr=0.05, batch_size=32,
    )  # fmt: skip


def noise(options: Any) -> None:
    """Leave-one-out by the number of retrainings a row."""
    task = load_small()
    rows = np.sort(np.random.RandomState(0).choice(len(task.X), options.rows, replace=False))
    seeds = range(options.seeds)
    outcomes = task.retrain(task.without(rows), seeds)
    measured = OutcomeSamples.from_retraining(outcomes, "loss")
    ensemble = task.ensemble(
        range(1000, 1000 + options.models)
    )  # other seeds than those that are measured
    methods = {
        "unrolled": (None, task.unrolled(ensemble, rows)),
        "influence function": (ensemble, ExactInfluence(damping=1e-2)),
    }
    scores = {
        name: task.predict(models, method).outcome_samples(task.X_test, task.y_test)
        .of_rows(rows).distance("mean")
        for name, (models, method) in methods.items()
    }  # fmt: skip
    counts = [r for r in (1, 2, 5, 10, 20, 50, 100, 200, 500) if r <= options.seeds]
    table: dict[tuple[str, str], list[float]] = {}
    # Retrainings are drawn, with replacement, from those that were trained: with the same seeds for all
    # rows, or seeds of its own for each. The ceiling is what the mean of all of them would reach.
    rng = np.random.RandomState(0)
    columns = np.arange(len(rows))
    for kind, n_own in (("own seeds for each row", len(rows)), ("the same seeds", 1)):
        sample = measured.left_out if n_own > 1 else measured.effects
        for name in (*scores, "ceiling"):
            table[kind, name] = []
        for r in counts:
            drawn = [rng.randint(options.seeds, size=(r, n_own)) for _ in range(20)]
            effects = [sample[seeds, :, columns].mean(0).T for seeds in drawn]
            for name, one in {**scores, "ceiling": sample.mean(0)}.items():
                table[kind, name].append(np.mean([_correlation(one, e) for e in effects]))
    print("| retrainings a row | " + " | ".join(map(str, counts)) + " |")
    print("| --- |" + " --- |" * len(counts))
    for (kind, name), line in table.items():
        print(f"| {name}, {kind} | " + " | ".join(f"{v:.2f}" for v in line) + " |")
    if options.figure:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots()
        for (kind, name), line in table.items():
            ax.plot(counts, line, "k--" if name == "ceiling" else "o-", label=f"{name}, {kind}")
        ax.set(xscale="log", xlabel="retrainings a row", ylabel="correlation over rows")
        ax.legend(fontsize=7)
        ax.figure.savefig(options.figure)


def _correlation(scores: np.ndarray, effects: np.ndarray) -> float:
    """Mean over test rows of the correlation over left-out rows."""
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(scores, effects, strict=True)]))


def load_small_digits(
    seed: int, n_train: int = 400, wrong: float = 0.0, width: int = 10, n_epochs: int = 20
) -> Task:
    X, y = load_digits(return_X_y=True)
    order = np.random.RandomState(seed).permutation(len(X))
    X, y = (X[order] / 16).astype(np.float32), y[order]
    labels = y[:n_train] if wrong == 0 else flip_labels(y[:n_train], wrong, random_state=seed)[0]
    return Task(
        (X[:n_train], X[n_train:], labels, y[n_train:]), (64, width, 10), nn.Tanh,
        nn.CrossEntropyLoss(), n_epochs, optimizer="SGD", lr=0.2, batch_size=32,
    )  # fmt: skip


def variance(options: Any) -> None:
    """A large effect on the variance and a small one on the mean."""
    task = load_small_digits(0, options.rows)
    task.X_test, task.y_test = task.X_test[:40], task.y_test[:40]
    ensemble = task.ensemble(range(1000, 1000 + options.models))  # other seeds than the measured
    influence = task.predict(None, task.unrolled(ensemble), measurement="margin")
    samples = influence.outcome_samples(task.X_test, task.y_test)
    halves = np.array(
        [OutcomeSamples(samples.full[k::2], samples.left_out[k::2]).distance("std") for k in (0, 1)]
    )
    sure = np.abs(halves).min(0) * (np.sign(halves).prod(0) > 0)  # what both halves of models say
    mean, spread = samples.distance("mean"), samples.distance("std")
    score = sure - 4 * np.abs(mean)
    best = np.argsort(-score.max(0))[:5]  # five rows, each with its test row
    tests = score[:, best].argmax(0)
    task.X_test, task.y_test = task.X_test[tests], task.y_test[tests]
    measured = task.pairs(task.ensemble(range(options.seeds)), best, measurement="margin")
    print(
        "| row | test row | std, all rows | effect on | predicted | measured | 95 % interval | p |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for distance, predicted in (("mean", mean), ("std", spread)):
        low, high = measured.interval(distance, n_bootstrap=1000, random_state=0)
        found = measured.distance(distance)
        p = measured.permutation_test(distance, n_permutations=999, random_state=0)
        for k, (z, i) in enumerate(zip(tests, best, strict=True)):
            print(
                f"| {i} | {z} | {measured.full[:, k].std(ddof=1):.3f} | {distance} | "
                f"{predicted[z, i]:+.4f} | {found[k, k]:+.4f} | "
                f"[{low[k, k]:+.4f}, {high[k, k]:+.4f}] | {p[k, k]:.3f} |"
            )


def accuracy(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (outputs.argmax(-1) == y).double()


def pruning(options: Any) -> None:
    """Accuracy after dropping a tenth of the rows."""
    found: dict[str, list[float]] = {
        "none": [],
        "at random": [],
        "one model": [],
        "many models": [],
    }
    for seed in range(5):
        task = load_small_digits(seed, 400, 0.2, options.width, options.epochs)
        n, n_drop = len(task.X), len(task.X) // 10
        validation = task.X_test[:300], task.y_test[:300]
        task.X_test, task.y_test = task.X_test[300:], task.y_test[300:]
        ensemble = task.ensemble(range(options.models))
        influence = task.predict(ensemble, ExactInfluence(damping=1e-2))
        effects = influence.outcome_samples(*validation).effects.sum(1)  # (models, n)
        rng = np.random.RandomState(seed)

        def retrain(dropped: Any, seeds: Any, task: Task = task, n: int = n) -> float:
            subset = np.ones((1, n), dtype=bool)
            subset[0, dropped] = False
            return float(task.retrain(subset, seeds, measurement=accuracy).measured.mean())

        every = list(ensemble.seeds)
        found["none"].append(retrain([], every))
        found["at random"].append(
            np.mean([retrain(rng.permutation(n)[:n_drop], [one]) for one in every]))  # fmt: skip
        found["one model"].append(
            np.mean([retrain(np.argsort(own)[:n_drop], [one])
                     for one, own in zip(every, effects, strict=True)]))  # fmt: skip
        found["many models"].append(retrain(np.argsort(effects.mean(0))[:n_drop], every))
    print("| dropped | accuracy | 95 % interval | gain over one model | 95 % interval |")
    print("| --- | --- | --- | --- | --- |")
    for name, values in found.items():
        gain = np.subtract(values, found["one model"])
        print(f"| {name} | {_interval(np.array(values))} | {_interval(gain)} |")


def _interval(values: np.ndarray) -> str:
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.4f} | [{values.mean() - half:.4f}, {values.mean() + half:.4f}]"


def speed(options: Any) -> None:
    """Seconds of the distances."""
    rng = np.random.default_rng(0)
    full = rng.normal(size=(100, 100))
    samples = OutcomeSamples(full, full[..., None] + 0.1 * rng.normal(size=(100, 100, 1000)))
    print("| distance | seconds | of the core |")
    print("| --- | --- | --- |")
    for name, distance in {**NAMED, "Quantile(0.9)": Quantile(0.9)}.items():
        start = time.perf_counter(), time.process_time()
        samples.distance(distance)
        wall, core = time.perf_counter() - start[0], time.process_time() - start[1]
        print(f"| {name} | {wall:.2f} | {core:.2f} |")


PARTS = {f.__name__: f for f in (noise, variance, pruning, speed)}
COUNTS = {  # seeds, rows, models
    "noise": (200, 20, 10), "variance": (200, 100, 40), "pruning": (0, 0, 10), "speed": (0, 0, 0),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--seeds", type=int, help="trainings")
    parser.add_argument("--rows", type=int, help="left-out rows (variance: training rows)")
    parser.add_argument("--models", type=int, help="models that predict")
    parser.add_argument("--width", type=int, default=10, help="of the network that prunes")
    parser.add_argument("--epochs", type=int, default=20, help="of its training")
    parser.add_argument("--figure", help="file of the figure")
    options = parser.parse_args()
    for name, count in zip(("seeds", "rows", "models"), COUNTS[options.part], strict=True):
        setattr(options, name, getattr(options, name) or count)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    start = time.perf_counter(), time.process_time()
    PARTS[options.part](options)
    print(
        f"\n{options.part}: {options.seeds} seeds, {options.rows} rows, {options.models} models; "
        f"{time.perf_counter() - start[0]:.0f} s, of the core {time.process_time() - start[1]:.0f} s; "
        f"load {os.getloadavg()[1]:.1f}"
    )


if __name__ == "__main__":
    main()
