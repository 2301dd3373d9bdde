"""Agreement with further training over the horizon: approximations of every kind, side by side.

    python benchmarks/horizons.py --problem breast-cancer [--optimizer Adam]
    python benchmarks/horizons.py --problem concrete --data concrete.csv --gold concrete_gold.npz
    python benchmarks/horizons.py --problem heloc --data path/to/data --epochs 1 5 20 50

The gold standard is further training with ``mask``, mean-corrected. Concrete's final model is that of
the file, and with SGD so is its gold standard; the other final models are trained here (ReLU, SGD
0.05, 30 epochs), and further trained here unless ``--gold`` is a pickled curve. HELOC is as in the first
paper: 8,883 rows, 23-128-128-2, SGD 1e-3 for 1,000 epochs; further training by SGD 1e-4 or Adam 1e-6, 101
left-out rows, up to 200 epochs. Everything runs on one thread. Seconds are those of the core for ``fit`` and
the scores of all training rows at all horizons; where further training ran here, "times faster" compares
them with its own, scaled to all training rows. Dampings are multiples of the mean squared entry of the
training rows' gradients. Scores and further training are centred over the left-out rows, except in "truth
centred".
"""

from __future__ import annotations

import argparse
import pickle
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from influence import Split, read
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn

from fimoda import (
    TRAK,
    CGInfluence,
    DataInf,
    EKFACInfluence,
    ExactInfluence,
    FurtherTrainingCurve,
    GradCos,
    GradDot,
    LinearizedFurtherTraining,
    OnceLinearizedFurtherTraining,
    UnrolledDifferentiation,
    agreement_curve,
    further_training_curve,
)
from fimoda.datasets import load_heloc, split_concrete
from fimoda.training.outcomes import Outcomes

METRICS = {"cosine_centred": "Cosine", "cosine": "Cosine, truth centred", "spearman": "Spearman"}
CONCRETE = {"concrete": nn.ReLU, "concrete-tanh": nn.Tanh}
#: The other problems: rows, widths of the layers, criterion, batch size, horizons.
TRAINED: dict[str, tuple[Any, list[int], nn.Module, int, list[int]]] = {
    "breast-cancer": (
        load_breast_cancer, [30, 64, 64, 1], nn.BCEWithLogitsLoss(), 64, [1, 5, 20, 50, 100, 200],
    ),
    "digits": (load_digits, [64, 64, 64, 10], nn.CrossEntropyLoss(), 64, [1, 5, 20, 50, 100]),
    "wine": (
        load_wine, [13, 32, 32, 3], nn.CrossEntropyLoss(), 32, [1, 5, 20, 50, 100, 200],
    ),
}  # fmt: skip
#: Of HELOC: widths of the layers, criterion, batch size, horizons.
HELOC = [23, 128, 128, 2], nn.CrossEntropyLoss(), 128, [1, 5, 20, 50, 100, 200]
#: Outputs of all rows, or parameters, up to which an influence function is solved exactly.
DENSE = 6000


@dataclass
class Problem:
    """A final model, how it is trained further, and what came of it."""

    net: nn.Sequential
    criterion: nn.Module
    split: Split
    settings: dict[str, Any]  # optimizer, lr, batch_size
    curve: FurtherTrainingCurve
    seconds: float | None = None  # of further training, if it ran here


# ---- problems -------------------------------------------------------------------------------


def split_rows(load: Any) -> Split:
    """Standardised rows: four fifths to train, at most 100 to test."""
    X, y = load(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.2, random_state=0, stratify=y)
    scaler = StandardScaler().fit(X)
    X, X_test = (scaler.transform(a).astype(np.float32) for a in (X, X_test[:100]))
    return X, X_test, y, y_test[:100]


def heloc(data: str | None) -> Split:
    """The rows as the first paper has them, with the first 100 test rows."""
    X, y = load_heloc(data, return_X_y=True)
    X_test, y_test = load_heloc(data, subset="test", n_rows=100, return_X_y=True)
    return X, X_test, y, y_test


def trained(
    X: np.ndarray,
    y: np.ndarray,
    widths: list[int],
    criterion: nn.Module,
    batch_size: int,
    lr: float = 0.05,
    n_epochs: int = 30,
) -> nn.Sequential:
    """A ReLU network after so many epochs of SGD."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o), nn.ReLU()]
    net = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    rows, targets = torch.from_numpy(X), torch.from_numpy(y)
    if widths[-1] == 1:
        targets = targets.float()[:, None]
    for _ in range(n_epochs):
        for batch in torch.randperm(len(X)).split(batch_size):
            optimizer.zero_grad()
            criterion(net(rows[batch]), targets[batch]).backward()
            optimizer.step()
    return net


def problem(arguments: argparse.Namespace) -> Problem:
    """The final model and its further training, read or run."""
    curve = None
    if arguments.problem in CONCRETE:
        net, known = read(arguments.gold, CONCRETE[arguments.problem])
        split: Split = split_concrete(arguments.data)
        criterion: nn.Module = nn.MSELoss()
        batch_size, horizons, leave_out = 128, [int(e) for e in known.epochs], range(0, 900, 9)
        sgd, adam = 0.03, 1e-4
        if arguments.optimizer == "SGD":
            curve = known
    else:
        if arguments.problem == "heloc":
            widths, criterion, batch_size, horizons = HELOC
            split, sgd, adam = heloc(arguments.data), 1e-4, 1e-6
            recipe: dict[str, Any] = {"lr": 1e-3, "n_epochs": 1000}
        else:
            load, widths, criterion, batch_size, horizons = TRAINED[arguments.problem]
            split, sgd, adam, recipe = split_rows(load), 0.02, 3e-4, {}
        n = len(split[0])
        net = trained(*split[::2], widths, criterion, batch_size, **recipe)
        leave_out = range(0, n, n // 100)
        if arguments.gold:
            curve = pickle.loads(Path(arguments.gold).read_bytes()).corrected("mean")
            curve = part(curve, list(range(len(curve.seeds))), slice(len(split[1])))
    horizons = arguments.epochs or horizons
    lr = arguments.lr or (adam if arguments.optimizer == "Adam" else sgd)
    settings = {"optimizer": arguments.optimizer, "lr": lr, "batch_size": batch_size}
    if curve is not None:
        return Problem(net, criterion, split, settings, curve)
    X, X_test, y, y_test = split
    directory = arguments.checkpoint_dir
    resumed = directory is not None and Path(directory).exists() and any(Path(directory).iterdir())
    start = time.process_time()
    curve = further_training_curve(
        net, X, y, X_test, y_test, criterion=criterion, epochs=horizons, n_seeds=range(arguments.seeds),
        leave_out=leave_out, correction="mean", checkpoint_dir=directory, verbose=1, **settings,
    )  # fmt: skip
    seconds = None if resumed else time.process_time() - start
    return Problem(net, criterion, split, settings, curve, seconds)


def part(
    curve: FurtherTrainingCurve, seeds: list[int], rows: slice = slice(None)
) -> FurtherTrainingCurve:
    """The same with some of its seeds, by their place, and some of its test rows."""
    of = curve.outcomes
    outcomes = Outcomes(of.left_out[:, rows, :, seeds], of.full[:, rows, seeds], of.final[rows])
    return replace(curve, seeds=[curve.seeds[k] for k in seeds], outcomes=outcomes)


# ---- methods --------------------------------------------------------------------------------


class InExpectation:
    """Further training that leaves rows out in expectation, with scores of those rows alone."""

    def __init__(self, p: Problem, seeds: list[int]):
        self._p, self._seeds = p, seeds

    def fit(self, X: Any, y: Any) -> InExpectation:
        """Keep the rows."""
        self._rows = X, y
        return self

    def transform(self, X_test: Any, y_test: Any) -> np.ndarray:
        """Train, and return scores (n_horizons, n_test, n), zero for rows that are not left out."""
        p = self._p
        curve = further_training_curve(
            p.net, *self._rows, X_test, y_test, epochs=[int(e) for e in p.curve.epochs],
            n_seeds=self._seeds, leave_out=[int(i) for i in p.curve.leave_out],
            leave_out_mode="expected", criterion=p.criterion, **p.settings,
        )  # fmt: skip
        scores = np.zeros((*curve.scores.shape[:2], len(self._rows[1])))
        scores[..., curve.leave_out] = curve.scores
        return scores


def methods(p: Problem) -> dict[str, Callable[[], Any]]:
    """Every method by the name of its row."""
    X, _, y, _ = p.split
    model: dict[str, Any] = {"estimator": p.net, "criterion": p.criterion}
    n_outputs = len(X) * p.net[-1].out_features
    n_parameters = sum(q.numel() for q in p.net.parameters())
    solved = ExactInfluence if min(n_outputs, n_parameters) <= DENSE else CGInfluence
    unit = EKFACInfluence(random_state=0, **model).fit(X, y).damping_ / 1000
    run = {**model, **p.settings, "n_epochs": [int(e) for e in p.curve.epochs]}
    one, three = {**run, "n_seeds": p.curve.seeds[:1]}, {**run, "n_seeds": p.curve.seeds[:3]}
    found: dict[str, Callable[[], Any]] = {
        "Grad-Dot": partial(GradDot, **model),
        "Grad-Cos": partial(GradCos, **model),
        "DataInf": partial(DataInf, **model),
        "TRAK, 512": partial(TRAK, n_components=512, random_state=0, **model),
    }
    for k in (10, 100, 1000):
        found[f"influence, {k}"] = partial(solved, damping=k * unit, **model)
    for k in (100, 1000):
        found[f"EK-FAC, {k}"] = partial(EKFACInfluence, damping=k * unit, random_state=0, **model)
    once = partial(OnceLinearizedFurtherTraining, **one)
    found["linearised once"] = once
    if isinstance(p.criterion, nn.MSELoss) and p.settings["optimizer"] == "SGD":
        found["linearised once, exact removal"] = partial(once, removal="exact")
    kinks = any(isinstance(module, nn.ReLU) for module in p.net)
    for more, given in (("", one), (", 3 seeds", three)):
        found["linearised" + more] = partial(LinearizedFurtherTraining, **given)
        unrolled = partial(UnrolledDifferentiation, mode="adjoint", **given)
        if kinks:
            found["unrolled, no kinks" + more] = partial(unrolled, kink_smoothing=None)
        found["unrolled" + more] = unrolled
    # of seeds that the gold standard does not have
    fresh = [max(p.curve.seeds) + 1 + k for k in range(3)]
    for more, seeds in (("", fresh[:1]), (", 3 seeds", fresh)):
        given = {**run, "n_seeds": seeds, "order": "expected"}
        expected = partial(UnrolledDifferentiation, mode="adjoint", **given)
        if kinks:
            found["expected order, no kinks" + more] = partial(expected, kink_smoothing=None)
        found["expected order" + more] = expected
    for more, seeds in (("a seed", fresh[:1]), ("2 seeds", fresh[:2])):
        found["further training in expectation, " + more] = partial(InExpectation, p, seeds)
    return found


def scored(attributor: Any, split: Split) -> tuple[float, np.ndarray]:
    """Seconds of fit and scores, and the scores of all horizons."""
    X, X_test, y, y_test = split
    start = time.process_time()
    transform = attributor.fit(X, y).transform
    scores = getattr(attributor, "transform_horizons", transform)(X_test, y_test)
    return time.process_time() - start, scores


# ---- tables ---------------------------------------------------------------------------------


def line(name: str, values: np.ndarray, *more: str) -> str:
    """A row of a Markdown table."""
    cells = [f"{v:.2f}".replace("0.", ".", 1) for v in values]
    return "| " + " | ".join([name, *cells, *more]) + " |"


def head(p: Problem, first: str, *more: str) -> str:
    names = [first, *(str(int(e)) for e in p.curve.epochs), *more]
    return "| " + " | ".join(names) + " |\n|" + " --- |" * len(names)


def report(p: Problem, scores: dict[str, np.ndarray], seconds: dict[str, float]) -> None:
    """Tables against all seeds, one for each metric; and against the run that was differentiated."""
    n_seeds = len(p.curve.seeds)
    rest = [[k for k in range(n_seeds) if k != seed] for seed in range(n_seeds)]
    one_seed = [
        agreement_curve({"": p.curve.per_seed[..., k]}, part(p.curve, others))
        for k, others in enumerate(rest)
    ]
    found = agreement_curve(scores, p.curve)
    share = len(p.split[0]) / len(p.curve.leave_out)
    last = ["seconds"] + ["times faster"] * (p.seconds is not None)
    for metric, title in METRICS.items():
        print(f"\n{title}:\n\n{head(p, 'method', *last)}")
        for name, values in zip(scores, found.mean(metric), strict=True):
            more = [f"{seconds[name]:.2f}"]
            if p.seconds is not None:
                more.append(f"{p.seconds * share / seconds[name]:.0f}")
            print(line(name, values, *more))
        values = np.mean([one.mean(metric)[0] for one in one_seed], 0)
        print(line("one seed of further training against the others", values, *[""] * len(last)))
    single = {n: scores[n] for n in ("linearised", "unrolled, no kinks", "unrolled") if n in scores}
    if single:
        print(f"\nCosine of one seed:\n\n{head(p, 'method, gold standard')}")
        for which, places in (("own seed", [0]), ("other seeds", rest[0])):
            means = agreement_curve(single, part(p.curve, places)).mean("cosine_centred")
            for name, values in zip(single, means, strict=True):
                print(line(f"{name}, {which}", values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--problem", choices=[*CONCRETE, *TRAINED, "heloc"], default="breast-cancer"
    )
    parser.add_argument("--data", help="path of the rows, or the directory that holds them")
    parser.add_argument("--gold", help="Concrete: the npz file; else a pickled curve")
    parser.add_argument("--optimizer", choices=["SGD", "Adam"], default="SGD")
    parser.add_argument("--lr", type=float, help="learning rate of further training")
    parser.add_argument("--epochs", type=int, nargs="+", help="horizons of further training here")
    parser.add_argument("--seeds", type=int, default=5, help="of further training, if it runs here")
    parser.add_argument("--methods", nargs="+", help="names of rows; all by default")
    parser.add_argument("--test-rows", type=int, help="score and compare the first so many only")
    parser.add_argument("--checkpoint-dir", help="where further training resumes from")
    arguments = parser.parse_args()
    if arguments.problem in CONCRETE and not arguments.gold:
        parser.error("Concrete needs --gold, the file of its final model and gold standard.")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    p = problem(arguments)
    if arguments.test_rows:
        first = slice(arguments.test_rows)
        p.split = (p.split[0], p.split[1][first], p.split[2], p.split[3][first])
        p.curve = part(p.curve, list(range(len(p.curve.seeds))), first)
    said = ", ".join(f"{k} {v}" for k, v in p.settings.items())
    print(
        f"\n## {arguments.problem}: {said}, {len(p.curve.seeds)} seeds, {len(p.split[1])} test rows"
    )
    if p.seconds is not None:
        print(f"\nfurther training of {len(p.curve.leave_out)} rows: {p.seconds:.0f} s")
    scores: dict[str, np.ndarray] = {}
    seconds: dict[str, float] = {}
    for name, make in methods(p).items():
        if arguments.methods and name not in arguments.methods:
            continue
        attributor = make()
        try:
            seconds[name], scores[name] = scored(attributor, p.split)
        except (MemoryError, ValueError, FloatingPointError) as error:
            print(f"\n{name}: {type(error).__name__}: {error}")
            continue
        for warning in ("discrepancy_", "growth_"):
            if hasattr(attributor, warning):
                print(
                    f"\n{name}: {warning} {np.round(getattr(attributor, warning), 3)}", flush=True
                )
    if scores:
        report(p, scores, seconds)


if __name__ == "__main__":
    main()
