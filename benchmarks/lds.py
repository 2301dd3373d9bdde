"""Linear datamodeling scores of all methods on Concrete or Fashion-MNIST, within some minutes.

    python benchmarks/lds.py --problem concrete --data path/to/concrete.csv --minutes 20
    python benchmarks/lds.py --problem fashion-mnist --minutes 120 [--data path/to/its/files]

The settings are those of the papers: half of the rows, 20 epochs of SGD with momentum 0.9. Half of the
minutes go into the truth: networks are trained on up to 100 random subsets, with as many seeds as fit,
at least two. The methods then score the same test rows from one network that was trained on all rows,
each in a process of its own that is stopped when the minutes are over. Downsampling and Datamodel train
on other subsets than the truth, as often as it did. The directory ``--output`` keeps what is finished; a
second call goes on from there. Table and figure are written to it as ``lds.md`` and ``lds.png``;
`metrics_peers.py` checks the scores with another library's metric.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from torch import nn

import fimoda
from fimoda.datasets import split_concrete, split_fashion_mnist

EPOCHS = 20
MAX_SUBSETS, MAX_SEEDS = 100, 20


@dataclass
class Problem:
    """What is trained on which rows, and the directory that keeps what is finished."""

    name: str
    data: str | None
    output: Path
    n_jobs: int

    def __post_init__(self) -> None:
        self.is_concrete = self.name == "concrete"
        if self.is_concrete:
            rows = split_concrete(self.data)
            self.widths, self.criterion = (8, 128, 128, 128, 1), nn.MSELoss()
            self.batch_size, decay, self.n_components = 32, 1e-5, 512
        else:
            rows = split_fashion_mnist(6144, 100, self.data)
            self.widths, self.criterion = (784, 512, 256, 128, 10), nn.CrossEntropyLoss()
            self.batch_size, decay, self.n_components = 64, 1e-3, 4096
        self.X, self.X_test, self.y, self.y_test = rows
        self.steps = {
            "optimizer": "SGD", "lr": 0.03, "batch_size": self.batch_size,
            "optimizer_params": {"momentum": 0.9, "weight_decay": decay},
        }  # fmt: skip

    def network(self, seed: int = 0) -> nn.Sequential:
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for a, b in pairwise(self.widths):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    @cached_property
    def run(self) -> dict[str, Any]:
        """The training of a network on all rows: states, steps and batches."""
        file = self.output / "run.pt"
        if file.exists():
            return torch.load(file)
        network = self.network()
        optimizer = torch.optim.SGD(
            network.parameters(), lr=self.steps["lr"], **self.steps["optimizer_params"]
        )
        X, y = torch.from_numpy(self.X), torch.from_numpy(self.y)
        batches = [b for _ in range(EPOCHS) for b in torch.randperm(len(X)).split(self.batch_size)]
        kept = {len(batches) * k // 6 for k in range(1, 7)}
        if self.is_concrete:  # few enough parameters for Hydra
            kept = set(range(len(batches) + 1))
        states = {0: copy.deepcopy(network.state_dict())} if 0 in kept else {}
        for step, rows in enumerate(batches, 1):
            optimizer.zero_grad()
            self.criterion(network(X[rows]), y[rows]).backward()
            optimizer.step()
            if step in kept:
                states[step] = copy.deepcopy(network.state_dict())
        run = {"states": states, "batches": batches}
        torch.save(run, file)
        return run

    @cached_property
    def final(self) -> nn.Sequential:
        """The network trained on all rows."""
        network = self.network()
        network.load_state_dict(list(self.run["states"].values())[-1])
        return network

    def trajectory(self, every: bool = False) -> Any:
        """Six checkpoints of the run, or all."""
        states, batches = self.run["states"], [rows.numpy() for rows in self.run["batches"]]
        n_steps = len(batches)
        chosen = sorted(states) if every else [n_steps * k // 6 for k in range(1, 7)]
        return fimoda.Trajectory.from_checkpoints(
            [states[step] for step in chosen], chosen, self.steps["lr"], n_steps=n_steps,
            optimizer_params=self.steps["optimizer_params"], batches=batches,
        )  # fmt: skip

    def train(self, subsets: np.ndarray, seeds: int, name: str) -> fimoda.SubsetOutcomes:
        """Outcomes on subsets, kept in the directory `name`."""
        return fimoda.train_on_subsets(
            self.network(), self.X, self.y, subsets, self.X_test, self.y_test, n_seeds=range(seeds),
            n_epochs=EPOCHS, criterion=self.criterion, checkpoint_dir=self.output / name,
            n_jobs=self.n_jobs, **self.steps,
        )  # fmt: skip

    def subsets(self, number: int, seed: int) -> np.ndarray:
        return fimoda.random_subsets(len(self.X), number, 0.5, random_state=seed)

    def truth(self, seconds: float) -> fimoda.SubsetOutcomes:
        """As many subsets and seeds as fit, two seeds at least."""
        file = self.output / "truth.npy"
        if not file.exists():
            start = time.perf_counter()
            self.train(self.subsets(self.n_jobs, 2), 1, "trial")  # starts workers
            start = time.perf_counter()
            trial = 4 * self.n_jobs
            self.train(self.subsets(trial, 3), 1, "trial")
            each = (time.perf_counter() - start) / trial
            number = int(np.clip(seconds / (2 * each), 20, MAX_SUBSETS))
            seeds = int(np.clip(seconds / (number * each), 2, MAX_SEEDS))
            np.save(file, [number, seeds])
        number, seeds = np.load(file)
        return self.train(self.subsets(number, 0), seeds, "truth")

    # ---- methods ----------------------------------------------------------------------------

    def attributor(self, name: str, **settings: Any) -> Callable[[], np.ndarray]:
        """Scores of a class of fimoda's, made from the final network."""

        def scores() -> np.ndarray:
            method = getattr(fimoda, name)(self.final, criterion=self.criterion, **settings)
            return method.fit(self.X, self.y).transform(self.X_test, self.y_test)

        return scores

    def of_subsets(self, name: str, **settings: Any) -> Callable[[], np.ndarray]:
        """Scores from as many trainings as the truth has, on other subsets."""

        def scores() -> np.ndarray:
            number, seeds = np.load(self.output / "truth.npy")
            outcomes = self.train(self.subsets(int(number * seeds), 1), 1, "other subsets")
            return getattr(fimoda, name)(
                random_state=0, n_jobs=self.n_jobs, **settings
            ).score_outcomes(outcomes)

        return scores

    @cached_property
    def methods(self) -> dict[str, Callable[[], np.ndarray]]:
        """All methods, the cheapest first."""
        walk = {**self.steps, "n_epochs": EPOCHS, "n_seeds": [0], "n_jobs": self.n_jobs}
        trak = {"n_components": self.n_components, "random_state": 0}
        found = {
            "Grad-Dot": self.attributor("GradDot"),
            "Grad-Cos": self.attributor("GradCos"),
            "RepSim": self.attributor("RepSim"),
            "DataInf": self.attributor("DataInf"),
            "EK-FAC influence": self.attributor("EKFACInfluence"),
            "exact influence": self.attributor("ExactInfluence"),
            "TRAK": self.attributor("TRAK", **trak, projection="product"),
            "TracIn": self.attributor("TracIn", trajectory=self.trajectory()),
            "SOURCE": self.attributor("SOURCE", trajectory=self.trajectory()),
        }
        if self.is_concrete:
            found["Hydra"] = self.attributor("Hydra", trajectory=self.trajectory(every=True))
        return found | {
            "Downsampling": self.of_subsets("Downsampling"),
            "Datamodel, ridge": self.of_subsets("Datamodel", regression="ridge"),
            "linearised further training": self.attributor("LinearizedFurtherTraining", **walk),
            "Datamodel, lasso": self.of_subsets("Datamodel", regression="lasso"),
            "Arnoldi influence": self.attributor("ArnoldiInfluence", random_state=0),
            "CG influence": self.attributor("CGInfluence"),
            "LiSSA influence": self.attributor("LiSSAInfluence", random_state=0),
            "unrolled, from the final model": self.attributor("UnrolledDifferentiation", **walk),
            "unrolled, from the start": self.attributor(
                "UnrolledDifferentiation", **walk, start=self.network().state_dict()
            ),
            "leave-one-out": self.attributor(
                "LeaveOneOut", **walk, checkpoint_dir=self.output / "leave-one-out"
            ),
            "further training": self.attributor(
                "FurtherTraining", **walk, checkpoint_dir=self.output / "further-training"
            ),
        }

    def scores_file(self, method: str) -> Path:
        return self.output / f"scores {method}.npz"

    def score(self, method: str) -> None:
        """Score by one method and keep the matrix, with the seconds it took."""
        self.final  # noqa: B018
        start = time.perf_counter()
        scores = self.methods[method]()
        seconds = time.perf_counter() - start
        np.savez(self.scores_file(method), scores=scores, seconds=seconds)


def run_methods(problem: Problem, deadline: float) -> dict[str, str]:
    """Score by each method in a process of its own; what became of those that did not finish."""
    missing = {}
    for method in problem.methods:
        if problem.scores_file(method).exists():
            continue
        left = deadline - time.perf_counter()
        if left <= 0:
            missing[method] = "not begun"
            continue
        print(f"{method} ...", flush=True)
        command = [sys.executable, __file__, *sys.argv[1:], "--method", method]
        try:
            subprocess.run(command, timeout=left, check=True, capture_output=True, text=True)
        except subprocess.TimeoutExpired:
            missing[method] = "stopped, the minutes were over"
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip().splitlines() or [f"ended with {error.returncode}"]
            missing[method] = said[-1]
    return missing


def report(problem: Problem, truth: fimoda.SubsetOutcomes, missing: dict[str, str]) -> None:
    """Write table, figure and, for other programs, what was measured."""
    np.savez(problem.output / "outcomes.npz", subsets=truth.subsets, measured=truth.measured)
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["axes.prop_cycle"] = mpl.cycler(color=mpl.colormaps["tab20"].colors)
    found = {m: np.load(problem.scores_file(m)) for m in problem.methods if m not in missing}
    scores = {method: file["scores"] for method, file in found.items()}
    lds = fimoda.linear_datamodeling_score(scores, {0.5: truth}, random_state=0)
    number, n_test, seeds = truth.measured.shape
    lines = [
        f"{problem.name}: {number} subsets of half of the {len(problem.X)} rows, {seeds} seeds, {n_test} "
        f"test rows; noise ceiling {lds.ceiling.mean():.2f}.",
        "",
        "| method | LDS | 95% interval | seconds |",
        "| --- | --- | --- | --- |",
    ]
    order = np.argsort(-lds.mean()[:, 0])
    for k in order:
        (low, high), name = lds.interval()[k, 0], lds.methods[k]
        seconds = float(found[name]["seconds"])
        lines.append(f"| {name} | {lds.mean()[k, 0]:.3f} | {low:.3f}, {high:.3f} | {seconds:.1f} |")
    lines += [f"| {name} | | {reason} | |" for name, reason in missing.items()]
    (problem.output / "lds.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    best = {lds.methods[k]: scores[lds.methods[k]] for k in order}
    display = fimoda.LinearDatamodelingScoreDisplay.from_attributors(
        best, {0.5: truth}, random_state=0
    )
    display.figure_.set_size_inches(9, 5)
    display.ax_.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    display.figure_.savefig(problem.output / "lds.png", dpi=150, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problem", choices=["concrete", "fashion-mnist"], default="concrete")
    parser.add_argument("--data", help="concrete.csv, or the directory of Fashion-MNIST's files")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--output", type=Path, help="by default lds-<problem>")
    parser.add_argument("--jobs", type=int, default=joblib.cpu_count())
    parser.add_argument("--method", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    output = arguments.output or Path(f"lds-{arguments.problem}")
    output.mkdir(parents=True, exist_ok=True)
    problem = Problem(arguments.problem, arguments.data, output, arguments.jobs)
    if arguments.method:
        problem.score(arguments.method)
        return
    start = time.perf_counter()
    seconds = 60 * arguments.minutes
    truth = problem.truth(seconds / 2)
    print(f"truth: {truth.measured.shape[0]} subsets x {truth.measured.shape[2]} seeds", flush=True)
    problem.final  # noqa: B018
    report(problem, truth, run_methods(problem, start + seconds))


if __name__ == "__main__":
    main()
