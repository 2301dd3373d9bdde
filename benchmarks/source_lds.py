"""Linear datamodeling scores along the training run: SOURCE and its baselines, one model and several.

    python benchmarks/source_lds.py concrete --data path/to/concrete.csv
    python benchmarks/source_lds.py concrete-noisy --data path/to/concrete.csv
    python benchmarks/source_lds.py fashion-mnist --subsets 100 --seeds 5
    python benchmarks/source_lds.py fashion-mnist-noisy --subsets 100 --seeds 5
    python benchmarks/source_lds.py digits-two-stages
    python benchmarks/source_lds.py concrete-adamw --data path/to/concrete.csv
    python benchmarks/source_lds.py concrete-noisy-adamw --data path/to/concrete.csv
    python benchmarks/source_lds.py cost --data path/to/concrete.csv

Settings of the SOURCE paper: halves of the rows, SGD with momentum 0.9, three segments, six checkpoints;
"adamw" is the same with AdamW, learning rate 0.003 and weight decay 0.01.
Networks are trained on random subsets with several seeds (the truth), and again on all rows with five
other seeds (the models that methods look at). "One model" is the mean over those models of the score of
a method that sees one; the interval is that of a bootstrap over subsets. The directory ``--output``
keeps truth and scores; a second call takes from there what it needs, and trains more seeds if asked to.
"cost" is the time of SOURCE beside that of EK-FAC influence functions.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import fimoda
from fimoda import EnsembleAttributor, SubsetOutcomes, linear_datamodeling_score
from fimoda.datasets import split_concrete, split_fashion_mnist
from fimoda.objective import Objective
from fimoda.rows import Rows
from fimoda.training.batches import FULL_DATA
from fimoda.training.optimizers import OptimizerSpec
from fimoda.training.run import Run

N_TEST = 100


class Problem:
    """Rows, a network and how it is trained."""

    def __init__(self, name: str, data: str | None):
        self.name = name
        noisy = "noisy" in name
        rng = np.random.default_rng(0)
        self.measurement = "loss"
        if name.startswith("concrete"):
            X, X_test, y, y_test = split_concrete(data)
            self.X, self.y, self.X_test, self.y_test = X[:896], y[:896].copy(), X_test, y_test
            widths, self.criterion, self.batch_size = [8, 128, 128, 128, 1], nn.MSELoss(), 32
            self.lr, decay, self.epochs, self.components = 3e-2, 1e-5, 3 if noisy else 20, 512
            if noisy:
                changed = rng.choice(896, int(0.3 * 896), replace=False)
                self.y[changed] = rng.normal(size=(len(changed), 1)).astype(np.float32)
        elif name.startswith("fashion"):
            self.X, self.X_test, self.y, self.y_test = split_fashion_mnist(6144, N_TEST, data)
            widths, self.criterion = [784, 512, 256, 128, 10], nn.CrossEntropyLoss()
            self.batch_size, self.components, self.measurement = 64, 4096, "margin"
            self.lr, decay, self.epochs = (1e-2, 3e-5, 3) if noisy else (3e-2, 1e-3, 20)
            if noisy:
                changed = rng.choice(6144, int(0.3 * 6144), replace=False)
                self.y = self.y.copy()
                self.y[changed] = rng.integers(10, size=len(changed))
        else:
            self._digits(rng)
            widths, self.criterion, self.batch_size = [64, 128, 64, 10], nn.CrossEntropyLoss(), 64
            self.lr, decay, self.epochs, self.components = 3e-2, 1e-5, 10, 512
        torch.manual_seed(0)
        layers = [[nn.Linear(a, b), nn.ReLU()] for a, b in itertools.pairwise(widths)]
        self.net = nn.Sequential(*itertools.chain(*layers))[:-1]
        self.params = {"momentum": 0.9, "weight_decay": decay}
        self.steps: dict[str, Any] = {
            "n_epochs": self.epochs, "optimizer": "SGD", "lr": self.lr,
            "batch_size": self.batch_size, "optimizer_params": self.params,
            "criterion": self.criterion,
        }  # fmt: skip
        if name.endswith("adamw"):
            self.params = {"weight_decay": 1e-2}
            self.steps |= {"optimizer": "AdamW", "lr": 3e-3, "optimizer_params": self.params}

    def _digits(self, rng: np.random.Generator) -> None:
        """Digits as they are in stage 1, others rotated by 45 degrees in stage 2."""
        images, labels = load_digits(return_X_y=True)
        order = rng.permutation(len(images))
        images, labels = images[order].astype(np.float32) / 16, labels[order].astype(np.int64)
        turned = torch.from_numpy(images).view(-1, 1, 8, 8)
        angle = torch.tensor(np.pi / 4)
        move = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0]])
        grid = nn.functional.affine_grid(
            move.float().expand(len(turned), -1, -1), list(turned.shape), align_corners=False
        )
        turned = nn.functional.grid_sample(turned, grid, align_corners=False).view(-1, 64).numpy()
        first, second, test = slice(0, 800), slice(800, 1600), slice(1600, 1700)
        self.X, self.y, self.X_test, self.y_test = (
            images[first], labels[first], images[test], labels[test],
        )  # fmt: skip
        self.second = turned[second], labels[second]

    # ---- the truth --------------------------------------------------------------------------

    def truth(self, subsets: np.ndarray, seeds: list[int], folder: Path, jobs: int) -> Any:
        if hasattr(self, "second"):
            return self._two_stages(subsets, seeds, folder)
        return fimoda.train_on_subsets(
            self.net, self.X, self.y, subsets, self.X_test, self.y_test, n_seeds=seeds,
            measurement=self.measurement, checkpoint_dir=folder, n_jobs=jobs, **self.steps,
        )  # fmt: skip

    def _two_stages(self, subsets: np.ndarray, seeds: list[int], folder: Path) -> SubsetOutcomes:
        """Train on a subset of the first stage's rows, then on all of the second's."""
        file = folder.with_name(f"{folder.name}-{len(seeds)}.npy")
        if file.exists():
            return SubsetOutcomes(subsets, seeds, np.load(file), [])
        model = fimoda.as_final_model(self.net, self.X, criterion=self.criterion)
        spec = OptimizerSpec(torch.optim.SGD, self.lr, self.params)
        encoded = model.encode_X(self.X), model.encode_y(self.y, 10)
        later = model.encode_X(self.second[0]), model.encode_y(self.second[1], 10)
        one, two = (
            Run(Objective(model, Rows(*rows)), spec, self.batch_size) for rows in (encoded, later)
        )
        starts = {s: fimoda.adapters.initial_parameters(self.net, model, s) for s in seeds}
        X, y = model.encode_X(self.X_test), model.encode_y(self.y_test, 10)
        measured = np.empty((len(subsets), len(X), len(seeds)))
        size = one.stack_size()
        for k, seed in enumerate(seeds):
            for at in np.array_split(np.arange(len(subsets)), -(-len(subsets) // size)):
                masks = torch.from_numpy(subsets[at])
                first = replace(one, start=starts[seed])
                theta = first.train(one.plan_of(seed, masks), [one.n_steps(self.epochs)])
                plan = two.plan(seed, (FULL_DATA,) * len(at))
                theta = replace(two, start=theta).train(plan, [two.n_steps(self.epochs)])
                outputs = model.stacked_outputs(theta, X).double()
                measured[at, :, k] = torch.stack([model.loss(f, y) for f in outputs])
        np.save(file, measured)
        return SubsetOutcomes(subsets, seeds, measured, [])

    # ---- methods ----------------------------------------------------------------------------

    def ensemble(self, number: int, jobs: int, checkpoints: Any = 6) -> fimoda.Ensemble:
        """Models trained on all rows, recorded."""
        found = fimoda.train_ensemble(
            self.net,
            self.X,
            self.y,
            n_seeds=range(1000, 1000 + number),
            checkpoints=checkpoints,
            n_jobs=jobs,
            **self.steps,
        )
        if not hasattr(self, "second"):
            return found
        found = fimoda.train_ensemble(
            self.net, *self.second, start=found, checkpoints=6, n_jobs=jobs, **self.steps
        )
        everything = len(self.X) + len(self.second[0])
        for run in found.trajectories:
            run.name_rows(np.arange(len(self.X)), np.arange(len(self.X), everything))
        return found

    def rows(self, alone: bool) -> tuple[np.ndarray, np.ndarray]:
        """Rows to fit: those of both stages for methods that know stages, unless `alone`."""
        if alone or not hasattr(self, "second"):
            return self.X, self.y
        X, y = zip((self.X, self.y), self.second, strict=True)
        return np.concatenate(X), np.concatenate(y)

    def methods(self) -> dict[str, fimoda.BaseAttributor]:
        stage = {"stage": 0} if hasattr(self, "second") else {}
        found: dict[str, fimoda.BaseAttributor] = {
            "RepSim": fimoda.RepSim(),
            "Grad-Dot": fimoda.GradDot(),
            "TracIn": fimoda.TracIn(**stage),
            "TRAK": fimoda.TRAK(
                n_components=self.components, projection="sparse", damping=1e-8, random_state=0
            ),
            "EK-FAC influence 1e-8": fimoda.EKFACInfluence(damping=1e-8),
            "EK-FAC influence auto": fimoda.EKFACInfluence(),
            "SOURCE": fimoda.SOURCE(segments=4 if stage else 3, **stage),
            "SOURCE as published": fimoda.SOURCE(
                segments=4 if stage else 3, curvature_scale=1.0, **stage
            ),
            "Fast-SOURCE": fimoda.SOURCE(
                segments=4 if stage else 3, averaging="parameters", **stage
            ),
            "Fast-SOURCE as published": fimoda.SOURCE(
                segments=4 if stage else 3, averaging="parameters", curvature_scale=1.0, **stage
            ),
            "SOURCE auto": fimoda.SOURCE(segments="auto", **stage),
            "SOURCE projected": fimoda.SOURCE(
                segments=4 if stage else 3, curvature="projected", n_components=self.components,
                random_state=0, **stage,
            ),
        }  # fmt: skip
        if not stage:
            alone = {k: self.steps[k] for k in ("n_epochs", "batch_size")}
            gain = 1 - self.params.get("momentum", 0)
            found["SOURCE final model alone"] = fimoda.SOURCE(
                trajectory="final", lr=self.steps["lr"] / gain, **alone
            )
        return found

    def scores(self, name: str, method: Any, ensemble: fimoda.Ensemble) -> Iterator[np.ndarray]:
        """Scores of each single model and, last, of all."""
        alone = "final" in name or not hasattr(method, "trajectory")
        X, y = self.rows(alone)
        if alone:
            ensemble = fimoda.Ensemble(ensemble.models, [])
        whole = EnsembleAttributor(self.net, attributor=method, models=ensemble)
        whole.set_params(criterion=self.criterion).fit(X, y)
        if name == "TRAK":
            for model in ensemble.models:
                one = method.__sklearn_clone__().set_params(estimator=model)
                yield one.fit(X, y).transform(self.X_test, self.y_test)
            yield whole.transform(self.X_test, self.y_test)
            return
        each = [m.transform(self.X_test, self.y_test) for m in whole.members_]
        yield from each
        yield np.mean(each, axis=0)

    def linearized(self, ensemble: fimoda.Ensemble) -> list[np.ndarray]:
        """Further training as long as training was, from the trained models."""
        further = {k: v for k, v in self.steps.items() if k != "criterion"}
        method = fimoda.LinearizedFurtherTraining(n_seeds=[0], **further)
        return list(self.scores("linearized", method, ensemble))

    def unrolled(self, ensemble: fimoda.Ensemble, order: str) -> list[np.ndarray]:
        """Derivatives of the models' own runs, from their initial parameters."""
        found = []
        for seed, model in zip(ensemble.seeds, ensemble.models, strict=True):
            start = fimoda.adapters.initial_parameters(self.net, model, seed)
            method = fimoda.UnrolledDifferentiation(
                model, start={k: v.clone() for k, v in model.views(start).items()},
                kink_smoothing=None, n_seeds=[seed], memory_budget=2**33,
                **{k: v for k, v in self.steps.items() if k != "criterion"}, order=order,
            )  # fmt: skip
            found.append(method.fit(self.X, self.y).transform(self.X_test, self.y_test))
        return [*found, np.mean(found, axis=0)]


def as_loss(outcomes: SubsetOutcomes) -> SubsetOutcomes:
    """Outcomes of the margin as those of the cross-entropy."""
    losses = np.logaddexp(0, -outcomes.measured)
    return SubsetOutcomes(outcomes.subsets, outcomes.seeds, losses, outcomes.failed)


def judge(problem: Problem, arguments: argparse.Namespace) -> None:
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    seeds = list(range(arguments.seeds))
    subsets = fimoda.random_subsets(len(problem.X), arguments.subsets, 0.5, random_state=0)
    kept = folder / f"{problem.name}-{arguments.subsets}"
    start = time.perf_counter()
    outcomes = problem.truth(subsets, seeds, kept, arguments.jobs)
    print(
        f"{problem.name}: {arguments.subsets} subsets x {arguments.seeds} seeds trained in "
        f"{time.perf_counter() - start:.0f} s ({len(outcomes.failed)} failed), "
        f"{time.strftime('%Y-%m-%d %H:%M')}",
        flush=True,
    )
    number = arguments.members

    @cache
    def recorded(checkpoints: Any = 6) -> fimoda.Ensemble:
        return problem.ensemble(number, arguments.jobs, checkpoints)

    ways: dict[str, Callable[[], list[np.ndarray]]] = {
        name: (lambda name=name, method=method: list(problem.scores(name, method, recorded())))
        for name, method in problem.methods().items()
    }
    if arguments.slow:
        ways["Hydra"] = lambda: list(problem.scores("Hydra", fimoda.Hydra(), recorded("all")))
        ways["linearized further training"] = lambda: problem.linearized(recorded())
        for order in ("own", "expected"):
            ways[f"unrolled from the start, {order} order"] = partial(
                lambda order: problem.unrolled(recorded(), order), order
            )
    if arguments.downsampling:
        ways["Downsampling"] = lambda: downsampling(problem, arguments)
    found: dict[str, dict[str, Any]] = {}
    truths = {"loss": as_loss(outcomes) if problem.measurement == "margin" else outcomes}
    if problem.measurement == "margin":
        truths["margin"] = outcomes
    head = "".join(f" | {kind}: one model | 95% | {number} models | 95%" for kind in truths)
    print(f"\n| method{head} | s a model |\n{'| --- ' * (head.count('|') + 2)}|", flush=True)
    for name in arguments.methods.split(",") if arguments.methods else ways:
        seconds, scores = kept_scores(folder / f"{problem.name}-{number}-{name}.npz", ways[name])
        line = f"| {name} |"
        for kind, truth in truths.items():
            sign = -1 if kind == "margin" else 1  # the margin falls as the loss rises
            label = {str(k): sign * one for k, one in enumerate(scores)}
            result = linear_datamodeling_score(label, truth, random_state=0)
            found.setdefault(kind, {})[name] = one_and_all(result)
            line += f" {described(found[kind][name])} |"
        print(f"{line} {seconds / number:.1f} |", flush=True)
    for kind, truth in truths.items():
        ceiling = fimoda.noise_ceiling(truth.measured, random_state=0).mean()
        print(f"\nceiling of the truth ({kind}, {len(seeds)} seeds): {ceiling:.3f}", flush=True)
        if "SOURCE" in found[kind]:
            print(f"\n| SOURCE ({kind}) ahead of | one model | 95% | {number} models | 95% |")
            print("| --- " * 5 + "|")
            for name, both in found[kind].items():
                print(f"| {name} | {described(found[kind]['SOURCE'] - both)} |", flush=True)


def kept_scores(file: Path, way: Callable[[], list[np.ndarray]]) -> tuple[float, np.ndarray]:
    """Scores and the seconds that they took, from the file if it is there."""
    if not file.exists():
        start = time.perf_counter()
        scores = way()
        np.savez(file, seconds=time.perf_counter() - start, scores=np.float32(scores))
    kept = np.load(file)
    return float(kept["seconds"]), kept["scores"].astype(float)


def one_and_all(found: Any) -> np.ndarray:
    """Mean of the scores of single models, and score of all: value, then draws (2, 1 + n)."""
    both = np.column_stack([found.mean()[:, 0], found.bootstrap[:, 0]])
    one = both[:-1].mean(0) if len(both) > 1 else np.full_like(both[0], np.nan)
    return np.stack([one, both[-1]])


def described(both: np.ndarray) -> str:
    """Values and their intervals."""
    low, high = np.quantile(both[:, 1:], [0.025, 0.975], axis=1)
    return " | ".join(
        f"{mean:.3f} | {a:.3f} to {b:.3f}" for mean, a, b in zip(both[:, 0], low, high, strict=True)
    )


def downsampling(problem: Problem, arguments: argparse.Namespace) -> list[np.ndarray]:
    """Scores from as many trainings on other subsets as the truth took."""
    number = arguments.subsets * arguments.seeds
    subsets = fimoda.random_subsets(len(problem.X), number, 0.5, random_state=1)
    folder = Path(arguments.output) / f"{problem.name}-downsampling-{number}"
    outcomes = problem.truth(subsets, [99], folder, arguments.jobs)
    if problem.measurement == "margin":
        outcomes = as_loss(outcomes)
    return [fimoda.Downsampling(random_state=0).score_outcomes(outcomes)]


def cost(data: str | None) -> None:
    """Seconds of the core of SOURCE and of EK-FAC influence, one thread, in turn, median of three."""
    torch.set_num_threads(1)
    print("| rows | method | s | times influence |\n| --- | --- | --- | --- |", flush=True)
    for name, source in (("concrete", data), ("fashion-mnist", None)):
        try:
            problem = Problem(name, source)
        except FileNotFoundError as error:
            print(error)
            continue
        problem.steps["n_epochs"] = 2
        ensemble = problem.ensemble(1, 1)
        model, run = ensemble.models[0], ensemble.trajectories[0]
        methods = {
            "influence (EK-FAC)": lambda m=model: fimoda.EKFACInfluence(m),
            "SOURCE": lambda m=model, r=run: fimoda.SOURCE(m, trajectory=r),
            "Fast-SOURCE": lambda m=model, r=run: fimoda.SOURCE(
                m, trajectory=r, averaging="parameters"
            ),
        }
        seconds: dict[str, list[float]] = {key: [] for key in methods}
        for _ in range(3):
            for key, make in methods.items():
                start = time.process_time()
                make().fit(problem.X, problem.y).transform(problem.X_test, problem.y_test)
                seconds[key].append(time.process_time() - start)
        base = np.median(seconds["influence (EK-FAC)"])
        for key, measured in seconds.items():
            print(
                f"| {name} | {key} | {np.median(measured):.2f} | {np.median(measured) / base:.2f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problem")
    parser.add_argument("--data", help="concrete.csv, or the directory of Fashion-MNIST's files")
    parser.add_argument("--subsets", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--members", type=int, default=5, help="models trained on all rows")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--methods", help="names, separated by commas; all by default")
    parser.add_argument("--slow", action="store_true", help="methods that walk the run too")
    parser.add_argument("--downsampling", action="store_true", help="Downsampling too")
    parser.add_argument("--output", default="source_lds")
    arguments = parser.parse_args()
    if arguments.problem == "cost":
        cost(arguments.data)
    else:
        judge(Problem(arguments.problem, arguments.data), arguments)


if __name__ == "__main__":
    main()
