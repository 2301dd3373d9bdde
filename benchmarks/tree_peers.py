"""Trees beside tree-influence 0.1.7: the same scores, and how long they take; and 100,000 rows.

    benchmarks/tree_peers_install.sh path/to/dir
    python benchmarks/tree_peers.py --peer path/to/dir/venv/bin/python

The peer trains a LightGBM model and scores 20 test rows; here its text is read. Correlations are over
training rows, the mean over test rows. Seconds are those of the core, on one thread.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.datasets import make_classification, make_regression
from sklearn.ensemble import HistGradientBoostingClassifier

import fimoda
from fimoda.trees import Softmax

Scores = NDArray[np.float64]
Kept = dict[str, NDArray[Any]]

N_TEST = 20
HERE = Path(__file__).parent


class Apart(Softmax):
    """A softmax as the peer has it: g and h of a class move with its own score alone, and g by h."""

    def pull(self, outputs: Scores, targets: Scores, values: Scores, vectors: Scores) -> Scores:
        """Return the derivatives, without those across classes."""
        p = np.exp(outputs - outputs.max(0))
        p = p / p.sum(0)
        return (self.factor * p * (1 - p) * (1 + values * (1 - 2 * p)))[..., None] * vectors


def rows(task: str, n: int, n_test: int = N_TEST) -> Kept:
    """Return rows to train on and to look at."""
    if task == "regression":
        X, y = make_regression(n + n_test, 20, n_informative=8, noise=10, random_state=0)
        y = y / 100
    else:
        classes = 3 if task == "multiclass" else 2
        X, y = make_classification(
            n + n_test, 20, n_informative=8, n_classes=classes, flip_y=0.05, random_state=0
        )
    return {"X": X[:n], "y": y[:n], "X_test": X[n:], "y_test": y[n:]}


def peer(args: argparse.Namespace, task: str, data: Kept, *options: str) -> Kept:
    """Return what the peer has found, from the disk if it is there."""
    args.output.mkdir(parents=True, exist_ok=True)
    name = "-".join([task, str(len(data["y"])), str(len(data["y_test"])), *options[1::2]])
    given, out = args.output / f"{name}-rows.npz", args.output / f"{name}.npz"
    if not out.exists() or options:  # seconds are those of the same moment
        np.savez(given, **data)
        command = [args.peer, HERE / "tree_peers_run.py", given, out, "--task", task, *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with np.load(out) as file:
        return {key: file[key] for key in file.files}


def ours(
    kind: str,
    text: str,
    data: Kept,
    moves_start: bool = True,
    shrunken: bool = True,
    apart: bool = False,
) -> Any:
    """Return scores (n_train, n_test) by the text of a model, and their seconds."""
    start = time.process_time()
    booster = lightgbm.Booster(model_str=text)
    given: dict[str, Any] = {"shrunken": shrunken} if kind == "BoostIn" else {}
    given |= {} if moves_start else {"first_score": "held"}
    method = getattr(fimoda, kind)(booster, **given).fit(data["X"], data["y"])
    if apart:
        (member,) = method._members
        boosting = member.run.boosting
        if isinstance(boosting.loss, Softmax):
            loss = Apart(boosting.loss.factor, boosting.loss.is_centred)
            boosting = replace(boosting, loss=loss)
        member = replace(member, run=replace(member.run, boosting=boosting))
        method._members = [member]
    scores = method.transform(data["X_test"], data["y_test"])
    return scores.T, time.process_time() - start


def alike(one: Scores, other: Scores) -> str:
    """Return the rank correlation, and how far scores differ once their size is made the same."""
    ranks = np.mean([spearmanr(a, b)[0] for a, b in zip(one.T, other.T, strict=True)])
    factor = (one * other).sum() / (one * one).sum()
    return f"{ranks:.4f}, {np.abs(factor * one - other).max() / np.abs(other).max():.0e}"


#: Ours and the peer's, and what is set.
PAIRS: list[tuple[str, str, str, dict[str, bool]]] = [
    ("LeafRefit", "as it is", "LeafRefit", {}),
    ("LeafRefit", "corrected", "LeafRefit, corrected", {}),
    ("LeafRefit, first score held", "corrected", "LeafRefit, corrected", {"moves_start": False}),
    ("LeafRefit, first score held", "as it is", "LeafRefit", {"moves_start": False}),
    ("LeafInfluence", "as it is", "LeafInfluence", {}),
    ("LeafInfluence, first score held", "as it is", "LeafInfluence", {"moves_start": False}),
    (
        "LeafInfluence, first score held, each class by itself",
        "as it is",
        "LeafInfluence",
        {"moves_start": False, "apart": True},
    ),
    ("BoostIn, g + u h", "as it is", "BoostIn", {"shrunken": False}),
    ("BoostIn", "as it is", "BoostIn", {}),
    ("TREX", "as it is", "TREX", {}),
    ("TREX", "LeafRefit, corrected", "LeafRefit, corrected", {}),
    ("(the peer's TREX)", "LeafRefit, corrected", "LeafRefit, corrected", {}),
]


def correlations(args: argparse.Namespace) -> None:
    """Print how scores agree."""
    tasks = {task: rows(task, 200) for task in ("binary", "multiclass", "regression")}
    found = {task: peer(args, task, data) for task, data in tasks.items()}
    print("\n| fimoda | peer | " + " | ".join(tasks) + " |\n| --- | --- |" + " --- |" * len(tasks))
    for name, told, theirs, settings in PAIRS:
        kind = name.split(",")[0]
        cells = []
        for task, data in tasks.items():
            if kind.startswith("("):
                scores = found[task]["scores/TREX"]
            else:
                scores, _ = ours(kind, str(found[task]["text"]), data, **settings)
            cells.append(alike(scores, found[task][f"scores/{theirs}"]))
        print(f"| {name} | {told} | {' | '.join(cells)} |", flush=True)


def speed(args: argparse.Namespace, n: int, trees: int, timed: int) -> None:
    """Print seconds at many rows and trees."""
    data = rows("binary", n)
    found = peer(
        args, "binary", data, "--trees", str(trees), "--leaves", "31", "--rows", str(timed)
    )
    text = str(found["text"])
    ours("BoostIn", text, data)  # warm
    print(
        f"\n{n} rows, {trees} trees of 31 leaves, {N_TEST} test rows; {timed} rows of the peer timed\n"
    )
    print("| | fimoda | peer | a row of the peer | times faster |\n| --- | --- | --- | --- | --- |")
    for kind in ("LeafInfluence", "LeafRefit"):
        _, seconds = ours(kind, text, data)
        before, each = found[f"row/{kind}"]
        theirs = before + n * each
        print(
            f"| {kind} | {seconds:.2f} | {theirs:.1f} | {each:.3f} | {theirs / seconds:.0f} |",
            flush=True,
        )


def boost_in(args: argparse.Namespace, n: int, trees: int, times: int = 5) -> None:
    """Print seconds of BoostIn, both in turn, by the number of test rows."""
    print(f"\nBoostIn: {n} rows, {trees} trees of 31 leaves; medians of {times} in turn\n")
    print("| test rows | fimoda | LightGBM's leaves | peer | times faster |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    given = ["--trees", str(trees), "--leaves", "31", "--only", "BoostIn"]
    for n_test in (N_TEST, 100, 1000):
        data, seconds = rows("binary", n, n_test), []
        for _ in range(times):
            found = peer(args, "binary", data, *given)
            text = str(found["text"])
            ours("BoostIn", text, data)  # warm
            _, own = ours("BoostIn", text, data)
            start = time.process_time()
            for part in ("X", "X_test"):
                lightgbm.Booster(model_str=text).predict(data[part], pred_leaf=True)
            leaves = time.process_time() - start
            seconds.append((own, leaves, float(found["seconds/BoostIn"])))
        own, leaves, theirs = np.median(seconds, axis=0)
        ratios = [c / a for a, _, c in seconds]
        print(
            f"| {n_test} | {own:.3f} | {leaves:.3f} | {theirs:.2f} | "
            f"{np.median(ratios):.0f} ({min(ratios):.0f} to {max(ratios):.0f}) |",
            flush=True,
        )


def large(kind: str, n: int) -> None:
    """Print seconds and peak memory at many rows."""
    X, y = make_classification(n + 100, 20, n_informative=8, flip_y=0.05, random_state=0)
    model = HistGradientBoostingClassifier(max_iter=200, early_stopping=False).fit(X[:n], y[:n])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, core = time.perf_counter(), time.process_time()
    getattr(fimoda, kind)(model).fit(X[:n], y[:n]).transform(X[n:], y[n:])
    took, core = time.perf_counter() - start, time.process_time() - core
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"| {kind} | {took:.1f} | {core:.1f} | {peak / 2**20:.2f} | {(peak - before) / 2**20:.2f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--peer", help="Python of the environment with tree-influence")
    parser.add_argument("--output", type=Path, default=Path("tree_peers"))
    parser.add_argument("--parts", nargs="+", default=["correlations", "speed", "large"])
    parser.add_argument("--small", action="store_true", help="smaller, in minutes")
    parser.add_argument("--large", help=argparse.SUPPRESS)  # a method, in a process of its own
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    n_large = 20_000 if args.small else 100_000
    if args.large:
        return large(args.large, n_large)
    if args.peer and "correlations" in args.parts:
        correlations(args)
    if args.peer and "speed" in args.parts:
        boost_in(args, *((1000, 50) if args.small else (5000, 200)))
        speed(args, *((1000, 50, 5) if args.small else (5000, 200, 15)))
    if "large" in args.parts:
        print(f"\nHistGradientBoosting, {n_large} rows x 20 features, 200 trees, 100 test rows\n")
        print("| | seconds | of the core | peak memory, GiB | above that of training |")
        print("| --- | --- | --- | --- | --- |", flush=True)
        for kind in ("BoostIn", "LeafInfluence"):
            small = ["--small"] * args.small
            subprocess.run([sys.executable, __file__, "--large", kind, *small], check=True)


if __name__ == "__main__":
    main()
