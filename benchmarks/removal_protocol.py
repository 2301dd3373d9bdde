"""What the benchmarks of images and of text share: a gold standard of many seeds, the methods, and a table.

A case is a trained network with its rows and the ways in which it is trained further. The gold standard is
further training without each of some rows, by many seeds, read at several horizons. Everything is kept in
the folder of `--output`: the trained network, the runs of the gold standard as they end, and each method's
scores, so that a second call computes only what is missing. `--gold` is a file that a first call has left
there: it brings the network, the horizons and the scores of the gold standard, and only methods are run.

A figure of the table is the cosine of a method's scores with the mean over the seeds of the gold standard,
both centred over the left-out rows, averaged over test rows. "Two halves" is that of one half of the seeds
with the other, r; a perfect method would have sqrt(2 r / (1 + r)).
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import fimoda
from fimoda import further_training_curve

#: Methods and their parameters; those of `AT_HORIZONS` have scores at every horizon.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "Grad-Dot": ("GradDot", {}),
    "Grad-Cos": ("GradCos", {}),
    "DataInf": ("DataInf", {}),
    "LiSSA": ("LiSSAInfluence", {}),
    "CG with EK-FAC": ("CGInfluence", {"preconditioner": "ekfac"}),
    "EK-FAC": ("EKFACInfluence", {}),
    "TRAK": ("TRAK", {}),
    "SOURCE": ("SOURCE", {"trajectory": "final"}),
    "RepSim": ("RepSim", {}),
    "linearised once": ("OnceLinearizedFurtherTraining", {}),
    "linearised": ("LinearizedFurtherTraining", {}),
    "own order, a run": ("UnrolledDifferentiation", {"order": "own"}),
    "expected order, a run": ("UnrolledDifferentiation", {"order": "expected"}),
}
#: Methods that the small setting leaves out: each takes longer there than all others together.
SLOW = frozenset({"LiSSA", "linearised once", "linearised"})

AT_HORIZONS = {"linearised once", "linearised", "own order, a run", "expected order, a run"}

#: A seed that the gold standard does not have.
OTHER_SEED = 1000


@dataclass(frozen=True)
class Rows:
    """Rows to train on and to look at."""

    X: Any
    y: NDArray[np.int64]
    X_test: Any
    y_test: NDArray[np.int64]


@dataclass(frozen=True)
class Case:
    """A network, its rows, and how it is trained and trained further."""

    rows: Callable[[argparse.Namespace], Rows]
    network: Callable[[argparse.Namespace], nn.Module]
    train: Callable[[argparse.Namespace, nn.Module, Rows], None]
    #: optimiser, rate and batch of further training, by name
    further: dict[str, dict[str, Any]]
    #: parameters of methods that differ from those of `METHODS`
    params: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: test rows of methods whose time is theirs alone: the first ones
    few: dict[str, int] = field(default_factory=dict)
    #: methods that the small setting leaves out
    slow: frozenset[str] = SLOW


@dataclass(frozen=True)
class Gold:
    """Scores (n_horizons, n_test, n_left_out, n_seeds) of further training, and what they are of."""

    scores: NDArray[np.float32]
    epochs: NDArray[np.float64]
    left_out: NDArray[np.int64]
    state: dict[str, NDArray[Any]]

    def save(self, path: Path) -> None:
        """Write a file that needs nothing beside it."""
        state = {f"state/{name}": array for name, array in self.state.items()}
        kept = {"scores": self.scores, "epochs": self.epochs, "left_out": self.left_out}
        np.savez_compressed(path, **kept, **state)

    @classmethod
    def load(cls, path: Path) -> Gold:
        """Read such a file."""
        with np.load(path) as file:
            names = [name for name in file.files if name.startswith("state/")]
            state = {name.removeprefix("state/"): file[name] for name in names}
            return cls(file["scores"], file["epochs"], file["left_out"], state)


# ---- agreement ------------------------------------------------------------------------------


def cosine(scores: NDArray[Any], gold: NDArray[Any]) -> float:
    """Return the mean over test rows of the cosine of centred scores (n_test, n)."""
    a, b = (each - each.mean(1, keepdims=True) for each in (scores, gold))
    return float(np.mean((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))


def with_the_rest(scores: NDArray[Any], size: int, n_draws: int = 50) -> float:
    """Return the mean agreement of random groups of seeds with all others, from scores (n_test, n, n_seeds).

    Single seeds are each taken once.
    """
    n_seeds, rng = scores.shape[2], np.random.default_rng(0)
    groups = [[s] for s in range(n_seeds)]
    if size > 1:
        groups = [list(rng.permutation(n_seeds)[:size]) for _ in range(n_draws)]
    means = [
        cosine(scores[..., each].mean(-1), np.delete(scores, each, -1).mean(-1)) for each in groups
    ]
    return float(np.mean(means))


def halves(scores: NDArray[Any]) -> float:
    """Return the agreement of one half of the seeds with the other, the mean over ways to part them."""
    return with_the_rest(scores, scores.shape[2] // 2)


# ---- what is computed -----------------------------------------------------------------------


def trained(name: str, case: Case, args: argparse.Namespace, rows: Rows) -> nn.Module:
    """Return the network of the gold standard's file, or one that is trained once."""
    module, path = case.network(args), args.output / f"{name}-model.pt"
    if args.gold is not None and (state := Gold.load(args.gold).state):
        module.load_state_dict({key: torch.from_numpy(array) for key, array in state.items()})
    elif path.exists():
        module.load_state_dict(torch.load(path))
    else:
        start = time.perf_counter()
        case.train(args, module, rows)
        torch.save(module.state_dict(), path)
        print(f"{name}: trained in {time.perf_counter() - start:.0f} s", flush=True)
    return module.eval().to(args.device)


def gold_standard(
    name: str, further: str, case: Case, args: argparse.Namespace, module: nn.Module, rows: Rows
) -> Gold:
    """Return the gold standard of a way to train further, from the disk as far as it is there."""
    path = args.gold or args.output / f"{name}-{further}-gold.npz"
    if path.exists():
        return Gold.load(path)
    start = time.perf_counter()
    chosen = np.random.default_rng(1).choice(len(rows.y), args.left_out, replace=False)
    curve = further_training_curve(
        module, rows.X, rows.y, rows.X_test, rows.y_test,
        epochs=args.epochs, n_seeds=list(range(args.seeds)), leave_out=[int(i) for i in sorted(chosen)],
        criterion=nn.CrossEntropyLoss(), checkpoint_dir=args.output / f"{name}-{further}-runs",
        engine=args.engine, chunk_size=args.stack, compile=False, n_jobs=args.jobs, verbose=1,
        **case.further[further],
    )  # fmt: skip
    state = {key: part.cpu().numpy() for key, part in module.state_dict().items()}
    small = sum(part.nbytes for part in state.values()) < 4 * 2**20
    scores = curve.per_seed.astype(np.float32)
    gold = Gold(scores, curve.epochs.astype(float), curve.leave_out, state if small else {})
    gold.save(path)
    took = time.perf_counter() - start
    print(f"{name}, {further}: gold standard of {args.seeds} seeds in {took:.0f} s", flush=True)
    return gold


def scores_of(
    method: str, further: str, name: str, args: argparse.Namespace, module: nn.Module, rows: Rows
) -> tuple[NDArray[Any], float]:
    """Return scores (n_horizons or 1, n_test, n) and the seconds that they took, once."""
    case, at_horizons = args.case[name], method in AT_HORIZONS
    path = args.output / (
        f"{name}-{further}-{method}.npz" if at_horizons else f"{name}-{method}.npz"
    )
    if path.exists():
        with np.load(path) as file:
            return file["scores"], float(file["seconds"])
    kind, params = METHODS[method]
    params = {**params, **case.params.get(method, {}), "criterion": nn.CrossEntropyLoss()}
    if "memory_budget" not in params:
        params["memory_budget"] = int(args.memory * 2**30)
    if at_horizons:
        settings = dict(case.further[further])
        if kind != "UnrolledDifferentiation":  # which alone knows of trained statistics
            settings.pop("batch_statistics", None)
        params |= {"n_epochs": list(args.epochs), "n_seeds": [OTHER_SEED], **settings}
    most = case.few.get(method) if args.device == "cpu" else None
    few = slice(min(most, 2) if most and args.small else most)
    some = (
        {k: part[few] for k, part in rows.X_test.items()}
        if isinstance(rows.X_test, dict)
        else rows.X_test[few]
    )
    start = time.perf_counter()
    attributor = getattr(fimoda, kind)(module, **params).fit(rows.X, rows.y)
    if at_horizons:
        scores = attributor.transform_horizons(some, rows.y_test[few])
    else:
        scores = attributor.transform(some, rows.y_test[few])[None]
    seconds = time.perf_counter() - start
    np.savez_compressed(path, scores=scores.astype(np.float32), seconds=seconds)
    return scores, seconds


def row(name: str, figures: list[float], seconds: float | None = None) -> None:
    """Print a row of the table."""
    told = "" if seconds is None else f"{seconds:.0f}"
    print(f"| {name} | {' | '.join(f'{f:.2f}' for f in figures)} | {told} |", flush=True)


def table(name: str, further: str, args: argparse.Namespace) -> None:
    """Compute what is missing, and print the table of a case and a way to train further."""
    case = args.case[name]
    rows = case.rows(args)
    module = trained(name, case, args, rows)
    gold = gold_standard(name, further, case, args, module, rows)
    args.epochs = [float(epochs) for epochs in gold.epochs]
    scores = gold.scores.astype(np.float64)
    n_seeds, settings = (
        scores.shape[3],
        ", ".join(f"{k} {v}" for k, v in case.further[further].items()),
    )
    print(f"\n{name}, {further} ({settings}), {n_seeds} seeds\n")
    print("| | " + " | ".join(f"{epochs:g}" for epochs in args.epochs) + " | seconds |")
    print("| --- |" + " --- |" * (len(args.epochs) + 1))
    agreements = [halves(one) for one in scores]
    row("two halves of the seeds", agreements)
    row("a perfect method", [(2 * max(r, 0) / (1 + max(r, 0))) ** 0.5 for r in agreements])
    for size in (1, 5, 10):
        if 2 * size <= n_seeds:
            row(f"{size} of the seeds", [with_the_rest(one, size) for one in scores])
    mean = scores.mean(-1)
    chosen = [name for name in METHODS if not (args.small and name in case.slow)]
    for method in args.methods or chosen:
        try:
            found, seconds = scores_of(method, further, name, args, module, rows)
        except Exception as error:  # the others go on
            print(
                f"| {method} | {type(error).__name__}: {str(error).splitlines()[0]} |", flush=True
            )
            continue
        found = np.broadcast_to(found, (len(mean), *found.shape[1:]))[:, :, gold.left_out]
        told = (
            method if found.shape[1] == mean.shape[1] else f"{method}, {found.shape[1]} test rows"
        )
        row(told, [cosine(a, b[: len(a)]) for a, b in zip(found, mean, strict=True)], seconds)


def main(description: str, cases: dict[str, Case]) -> None:
    """Read the arguments, and print the tables that they ask for."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=None, help="the folder of the files, or FIMODA_DATA")
    parser.add_argument("--output", type=Path, required=True, help="a folder for what is computed")
    parser.add_argument("--gold", type=Path, help="a file of a gold standard, of one case")
    parser.add_argument("--cases", nargs="*", default=list(cases), choices=list(cases))
    parser.add_argument("--further", nargs="*", help="ways to train further; all by default")
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), help="all by default")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--test", type=int, default=60)
    parser.add_argument("--left-out", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--epochs", type=float, nargs="*", default=[0.25, 1, 5])
    parser.add_argument(
        "--small",
        action="store_true",
        help="a setting of less than 15 minutes, without the slowest methods",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--engine", default="auto", help="of the gold standard")
    parser.add_argument("--stack", type=int, help="models of the gold standard trained together")
    parser.add_argument("--jobs", type=int, default=2, help="processes of the gold standard")
    parser.add_argument("--threads", type=int, default=2, help="threads of the methods")
    parser.add_argument("--memory", type=float, default=2.0, help="budget of a method, in GiB")
    args = parser.parse_args()
    if args.small:
        args.rows, args.test, args.left_out, args.seeds, args.epochs = 200, 6, 6, 4, [1.0]
        args.memory = max(args.memory, 3.0)
    args.case = cases
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False
    warnings.simplefilter("ignore")
    for name in args.cases:
        for further in args.further or cases[name].further:
            table(name, further, args)
