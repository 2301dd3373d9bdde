"""Distributional attribution on Concrete: what is predicted, against training.

    python benchmarks/distributional_concrete.py further --data path/to/concrete.csv --gold path/to/gold.npz
    python benchmarks/distributional_concrete.py scratch --data path/to/concrete.csv
    python benchmarks/distributional_concrete.py source --data path/to/concrete.csv
    python benchmarks/distributional_concrete.py tanh --data path/to/concrete.csv
    python benchmarks/distributional_concrete.py growth --data path/to/concrete.csv

The first four ask: are predicted samples without a row closer to trained ones than those with all rows
are? Both have the same seeds, and the row keeps its place in its batch, with weight zero. Each prints a
table and draws a figure if given ``--figure``.

further: the final model of FiMODA (8-128-128-1 ReLU units), trained further.
scratch: the same network, from random initial parameters.
source: SOURCE's network (3 x 128 ReLU units) and steps, from random initial parameters.
tanh: a small smooth network, with weight decay and steps that become smaller.
growth: correlation of the responses of unrolled training and of influence functions, by steps.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
import warnings
from functools import partial
from typing import Any

import numpy as np
import torch
from distributional import Task
from influence import read
from torch import nn
from torch.func import grad

from fimoda import (
    EKFACInfluence,
    ExactInfluence,
    OutcomeDensityDisplay,
    OutcomeSamples,
    UnrolledDifferentiation,
    distributional_agreement,
    further_training_curve,
)
from fimoda.curvature.operators import Hessian
from fimoda.datasets import split_concrete
from fimoda.objective import Objective
from fimoda.rows import Rows

DECAY = 3e-3
N_TEST = 20
FIMODA = (8, 128, 128, 1)


def smaller(epoch: int) -> float:
    """A learning rate that becomes smaller with the epochs."""
    return 0.05 / (1 + epoch / 60)


def load(options: Any) -> tuple[Task, list[int]]:
    """The network with its training, and horizons in epochs."""
    X, X_test, y, y_test = split_concrete(options.data)
    rows = X, X_test[:N_TEST], y, y_test[:N_TEST]
    params: dict[str, Any] = {"optimizer": "SGD", "batch_size": 128}
    if options.part == "further":
        net, _ = read(options.gold)
        widths, unit, horizons = FIMODA, nn.ReLU, [10, 50, 100]
        params |= {"lr": 0.03, "init": partial(copy.deepcopy, net)}
    elif options.part == "scratch":
        widths, unit, horizons = FIMODA, nn.ReLU, [20, 100]
        params |= {"lr": options.lr}
    elif options.part == "source":
        widths, unit, horizons = (8, 128, 128, 128, 1), nn.ReLU, [5, 20]
        heavy_ball = {"momentum": options.momentum, "weight_decay": 1e-5}
        params |= {"lr": 0.03, "batch_size": 32, "optimizer_params": heavy_ball}
    else:
        widths, unit, horizons = (8, 16, 1), nn.Tanh, [80]
        heavy_ball = {"momentum": 0.9, "weight_decay": DECAY}
        params |= {"lr": smaller, "batch_size": 256, "optimizer_params": heavy_ball}
    horizons = options.epochs or horizons
    return Task(rows, widths, unit, nn.MSELoss(), horizons[-1], **params), horizons


def trained(task: Task, seeds: Any, horizons: list[int]) -> list[list]:
    """Models of all seeds at the start and at each horizon."""
    ensemble = task.ensemble(seeds, horizons)
    runs = list(zip(ensemble.models, ensemble.trajectories, strict=True))
    return [
        [model.at(model.flatten(run.state(k))) for model, run in runs]
        for k in range(len(horizons) + 1)
    ]


def choose(n_rows: int, n: int) -> np.ndarray:
    return np.sort(np.random.RandomState(0).choice(n, n_rows, replace=False))


def header(names: str) -> None:
    print(f"| {names} |\n|" + " --- |" * (1 + names.count("|")))


# ---- predicted against trained -------------------------------------------------------------------


def closer(options: Any) -> None:
    """Distances of trained samples from those with all rows, and from predicted ones."""
    task, horizons = load(options)
    rows, seeds = choose(options.rows, len(task.X)), range(options.seeds)
    start, *reached = trained(task, seeds, horizons)
    measured = measure(task, start, rows, horizons)
    walks = [
        UnrolledDifferentiation(
            model, n_epochs=horizons, n_seeds=[seed], mode="adjoint", **task.steps, order="own"
        ).fit(task.X, task.y)
        for seed, model in zip(seeds, start, strict=True)
    ]
    test = task.X_test, task.y_test
    unrolled = np.stack([walk.transform_horizons(*test)[..., rows] for walk in walks], 1)
    header(
        "epochs, method | distance | before | after | after / before | closer | other seeds | corr."
    )
    for epochs, models, truth, effects in zip(horizons, reached, measured, unrolled, strict=True):
        one = OutcomeSamples(truth.full, truth.full[..., None] + effects, rows, measurement="loss")
        shown = {"trained": truth, "by unrolled differentiation": one}
        compare(f"{epochs}, unrolled", one, truth)
        notes = []
        for method in (ExactInfluence(), EKFACInfluence(random_state=0)):
            name = type(method).__name__
            influence = task.predict(models, method)
            default = [member.damping_ for member in influence.members_]
            for factor in options.dampings:
                for member, damping in zip(influence.members_, default, strict=True):
                    member.damping_ = factor * damping
                one = influence.outcome_samples(*test).of_rows(rows)
                label = f"{epochs}, {name}, {factor:g} x default ({factor * np.mean(default):.2g})"
                compare(label, one, truth)
                if factor == 1:
                    shown[f"by {name}"] = one
                    alike = np.mean(list(map(_correlation, effects, one.effects)))
                    notes.append(f"{name} with unrolled, seed by seed: {alike:.2f}")
        halves = OutcomeSamples(truth.full[::2], truth.full[1::2, :, None], paired=False)
        floor = [f"{d} {np.abs(halves.distance(d)).mean():.2g}" for d in ("mean", "w2")]
        notes.append(f"std over seeds {truth.full.std(0, ddof=1).mean():.2g}")
        notes.append(f"one half of the seeds from the other, all rows: {', '.join(floor)}")
        print(f"| {epochs} epochs: {'; '.join(notes)} |", flush=True)
    print("\nlargest growth of a small change: " + ", ".join(f"{w.growth_:.1f}" for w in walks))
    if options.figure:
        size = truth.distance("w2") / truth.full.std(0)[:, None]
        z, column = np.unravel_index(size.argmax(), size.shape)
        display = OutcomeDensityDisplay(shown, row=int(rows[column]), test_row=int(z)).plot()
        display.figure_.savefig(options.figure)


def measure(task: Task, start: list, rows: np.ndarray, horizons: list[int]) -> list[OutcomeSamples]:
    """Samples at each horizon after training with and without each row, a seed from each model."""
    outcomes = [
        further_training_curve(
            model, task.X, task.y, task.X_test, task.y_test, epochs=horizons, n_seeds=[seed],
            leave_out=rows, compile=False, **task.steps,
        ).outcomes
        for seed, model in enumerate(start)
    ]  # fmt: skip
    full = np.stack([one.full[..., 0] for one in outcomes], 1)
    left_out = np.stack([one.left_out[..., 0] for one in outcomes], 1)
    return [
        OutcomeSamples(a, b, rows, measurement="loss") for a, b in zip(full, left_out, strict=True)
    ]


def compare(label: str, predicted: OutcomeSamples, measured: OutcomeSamples) -> None:
    """One line a distance; *other seeds*: predicted from one half of the seeds, trained with the other."""
    rng = np.random.RandomState(0)
    n, n_test, n_rows = measured.left_out.shape
    every = np.arange(n_test), np.arange(n_rows)

    def agreement(distance: str, ours: Any, theirs: Any, z: Any, i: Any) -> Any:
        parts = [
            OutcomeSamples(one.full[np.ix_(r, z)], one.left_out[np.ix_(r, z, i)])
            for one, r in ((predicted, ours), (measured, theirs))
        ]
        return distributional_agreement(*parts, distance)

    for distance in ("mean", "w2"):
        found = distributional_agreement(predicted, measured, distance)
        other = agreement(distance, np.arange(0, n, 2), np.arange(1, n, 2), *every)
        drawn = []
        for _ in range(200):  # seeds, test rows and left-out rows together
            r, z, i = (rng.randint(size, size=size) for size in (n, n_test, n_rows))
            one = agreement(distance, r, r, z, i)
            drawn.append(one.after.mean() / one.before.mean())
        low, high = np.quantile(drawn, [0.025, 0.975])
        before, after = found.before.mean(), found.after.mean()
        print(
            f"| {label} | {distance} | {before:.2e} | {after:.2e} | {after / before:.2f} "
            f"[{low:.2f}, {high:.2f}] | {found.closer:.2f} | {other.closer:.2f} | "
            f"{found.pearson.mean():.2f} |", flush=True
        )  # fmt: skip


def _correlation(scores: np.ndarray, effects: np.ndarray) -> float:
    """Mean over test rows of the correlation over left-out rows."""
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(scores, effects, strict=True)]))


# ---- growth with training ------------------------------------------------------------------------

N_ROWS = 927
SCHEDULES = {  # batch size, learning rate by epoch, weight decay
    "settles": (N_ROWS, 0.2, 0.01),
    "batches": (256, 0.05, 0.01),
    "rate": (N_ROWS, lambda epoch: smaller(epoch // 4), 0.01),
    "both": (256, smaller, 0.01),
    "earlier": (256, smaller, DECAY),
}


def growth(options: Any) -> None:
    """Correlation of the two responses over steps, seed by seed, in float64."""
    X, X_test, y, y_test = (part.astype(float) for part in split_concrete(options.data))
    rows = choose(options.rows, len(X))
    steps = options.epochs or [40, 160, 640, 2560]
    header("training, steps | gradient | smallest eigenvalue | Gauss-Newton | Hessian | its error")
    for name in options.schedules:
        batch_size, lr, decay = SCHEDULES[name]
        horizons = [step // -(-len(X) // batch_size) for step in steps]
        task = Task(
            (X, X_test[:N_TEST], y, y_test[:N_TEST]), (8, 16, 1), nn.Tanh, nn.MSELoss(), horizons[-1],
            optimizer="SGD", lr=lr, batch_size=batch_size,
            optimizer_params={"momentum": 0.9, "weight_decay": decay},
        )  # fmt: skip
        task.net.double()
        found = np.array(
            [settled(task, seed, rows, horizons, decay) for seed in range(options.seeds)]
        )
        for k, step in enumerate(steps):
            print(f"| {name}, {step} | " + " | ".join(map(_cell, found[:, k].T)) + " |", flush=True)


def settled(
    task: Task, seed: int, rows: np.ndarray, horizons: list[int], decay: float
) -> list[list[float]]:
    """A line of the table for each horizon; NaN where the Hessian is not positive definite."""
    test = task.X_test, task.y_test
    (start,), *reached = trained(task, [seed], horizons)
    walk = UnrolledDifferentiation(
        start, n_epochs=horizons, n_seeds=[seed], leave_out=rows, **task.steps, order="own"
    )
    unrolled = walk.fit(task.X, task.y).transform_horizons(*test)
    found = []
    for (model,), scores in zip(reached, unrolled, strict=True):
        gradient, lowest = at_end(model, task, decay)
        line = [gradient, lowest, np.nan, np.nan, np.nan]
        for k, curvature in enumerate(("gauss-newton", "hessian")[: 1 + (lowest > 0)], 2):
            influence = ExactInfluence(model, curvature=curvature, damping=decay)
            predicted = influence.fit(task.X, task.y).transform(*test)[:, rows]
            line[k] = _correlation(scores, predicted)
        if lowest > 0:
            ours, theirs = (one - one.mean(1, keepdims=True) for one in (scores, predicted))
            line[4] = float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours))
        found.append(line)
    return found


def at_end(model: Any, task: Task, decay: float) -> tuple[float, float]:
    """Length of the objective's gradient, and smallest eigenvalue of its Hessian."""
    X, y = torch.from_numpy(task.X), torch.from_numpy(task.y)

    def objective(theta: torch.Tensor) -> torch.Tensor:
        return model.loss(model.forward(theta, X), y).mean() + decay / 2 * theta @ theta

    gradient = grad(objective)(model.theta)
    data = Hessian(Objective(model, Rows(X, y, torch.ones(len(X))))).dense()
    return float(gradient.norm()), float(torch.linalg.eigvalsh(data)[0]) + decay


def _cell(values: np.ndarray) -> str:
    """Mean and standard error over the seeds that have a value."""
    known = values[~np.isnan(values)]
    if not len(known):
        return ""
    error = known.std(ddof=1) / np.sqrt(len(known)) if len(known) > 1 else np.nan
    of = f" ({len(known)} seeds)" if len(known) < len(values) else ""
    return f"{known.mean():.3g} ± {error:.1g}{of}"


PARTS = {"further": closer, "scratch": closer, "source": closer, "tanh": closer, "growth": growth}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--data", help="path of concrete.csv, or the directory that holds it")
    parser.add_argument("--gold", help="path of the file with the final model (npz)")
    parser.add_argument("--seeds", type=int, default=20, help="trainings")
    parser.add_argument("--rows", type=int, default=16, help="left-out rows")
    parser.add_argument("--epochs", type=int, nargs="+", help="horizons (growth: steps)")
    parser.add_argument("--dampings", type=float, nargs="+", default=[0.1, 1, 10],
                        help="multiples of the default one")  # fmt: skip
    parser.add_argument("--lr", type=float, default=0.1, help="of the part scratch")
    parser.add_argument("--momentum", type=float, default=0.9, help="of the part source")
    parser.add_argument("--schedules", nargs="+", default=list(SCHEDULES), help="of growth")
    parser.add_argument("--figure", help="file of the figure")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    start = time.perf_counter(), time.process_time()
    PARTS[options.part](options)
    print(
        f"\n{options.part}: {options.seeds} seeds, {options.rows} rows, {N_TEST} test rows; "
        f"{time.perf_counter() - start[0]:.0f} s, of the core {time.process_time() - start[1]:.0f} s; "
        f"load {os.getloadavg()[1]:.1f}"
    )


if __name__ == "__main__":
    main()
