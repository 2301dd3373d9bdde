"""The smallest sets that turn a prediction, beside the top rows, random rows, and dattri's brittleness.

    python -m venv path/to/venv && path/to/venv/bin/pip install torch dattri
    python benchmarks/flips.py --peer path/to/venv/bin/python

Looked at are test rows that are predicted right with a probability below .9. Medians count a row without a
set as one that needs more than the rows that were tried.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from skorch import NeuralNetClassifier
from torch import nn

from fimoda import ExactInfluence, GradDot, LeaveOneOut, SmallestFlips, smallest_flip
from fimoda.datasets import load_heloc

HERE = Path(__file__).parent


def digits() -> tuple[Any, Any, Any, Any]:
    X, y = load_digits(return_X_y=True)
    split = train_test_split(
        (X / 16).astype(np.float32), y, train_size=600, random_state=0, stratify=y
    )
    return split[0], split[1], split[2], split[3]


def heloc() -> tuple[Any, Any, Any, Any]:
    X, y = load_heloc(return_X_y=True, n_rows=1000)
    X_test, y_test = load_heloc(return_X_y=True, subset="test")
    return X, X_test, y, y_test


def near(model: Any, X_test: Any, y_test: Any, n: int) -> np.ndarray:
    """Return test rows that are predicted right, but not for sure."""
    P = model.predict_proba(X_test)
    unsure = np.flatnonzero((P.argmax(1) == y_test) & (P.max(1) < 0.9))
    return np.sort(np.random.default_rng(0).choice(unsure, min(n, len(unsure)), replace=False))


def network(X: Any, y: Any) -> Any:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(X.shape[1], 16), nn.Tanh(), nn.Linear(16, int(y.max()) + 1))
    return NeuralNetClassifier(
        module, criterion=nn.CrossEntropyLoss, optimizer=torch.optim.SGD, lr=0.2, batch_size=64,
        max_epochs=30, train_split=None, verbose=0, iterator_train__shuffle=True,
    ).fit(X, y)  # fmt: skip


def median(sizes: Any, max_rows: int) -> str:
    """Return the median, with "none" above all numbers."""
    found = float(np.median(np.nan_to_num(sizes, nan=np.inf)))
    return f"{found:5.1f}" if np.isfinite(found) else f">{max_rows:4}"


def told(name: str, found: SmallestFlips, seconds: float, max_rows: int) -> None:
    """Print what was found for the test rows whose prediction training again does not turn."""
    stays = found.before <= 0.5
    n, has = int(stays.sum()), ~np.isnan(found.size[stays])
    verified = found.verified[stays][has].mean() if has.any() else np.nan
    sizes = {"smallest": found.size, **found.sizes}
    cells = " ".join(f"{key} {median(one[stays], max_rows)}," for key, one in sizes.items())
    none = {key: int(np.isnan(one[stays]).sum()) for key, one in sizes.items()}
    print(
        f"{name:38} {n:3} rows (of {len(stays)}): a set for {has.mean():.0%}, verified {verified:.0%}; "
        f"medians: {cells} none up to {max_rows}: {none}; {found.n_trained} trainings, {seconds:.0f} s",
        flush=True,
    )


def peer(args: Any, X: Any, y: Any, X_test: Any, predicted: Any, model: Any) -> dict[str, Any]:
    """Return what dattri finds for the same logistic regression."""
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "given.npz", Path(folder) / "out.npz"
        own = {"X": X.astype(float), "y": y, "X_test": X_test.astype(float), "predicted": predicted}
        P = model.predict_proba(X_test.astype(float))
        np.savez(given, **own, P=P, C=model.C, max_rows=args.max_rows)
        command = [args.peer, HERE / "flips_peer.py", given, out]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        with np.load(out) as file:
            return {key: file[key] for key in file.files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer")
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--max-rows", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, (X, X_test, y, y_test) in (("digits", digits()), ("HELOC", heloc())):
        C = 1.0 if name == "digits" else 0.1
        model = LogisticRegression(C=C, max_iter=2000, tol=1e-8).fit(X.astype(float), y)
        rows = near(model, X_test.astype(float), y_test, args.rows)
        given = {
            "X_train": X.astype(float),
            "y_train": y,
            "max_rows": args.max_rows,
            "random_state": 0,
        }
        influence = ExactInfluence(model).fit(X.astype(float), y)
        for relabel in (False, True):
            start = time.perf_counter()
            found = smallest_flip(
                influence, X_test[rows].astype(float), **given, n_seeds=1, relabel=relabel
            )
            what = "relabelled" if relabel else "removed"
            told(
                f"{name}, logistic regression, {what}",
                found,
                time.perf_counter() - start,
                args.max_rows,
            )
            if args.peer and not relabel:
                start = time.perf_counter()
                theirs = peer(args, X, y, X_test[rows], found.predicted, model)
                size, best = theirs["fine"], np.nan_to_num(found.size, nan=np.inf)
                least = np.nan_to_num(size, nan=np.inf)
                smaller, same, larger = (
                    (best < least).mean(),
                    (best == least).mean(),
                    (best > least).mean(),
                )
                default = median(theirs["default"], 200)
                print(
                    f"{'  dattri, brittleness':38} medians: sizes 1 to {args.max_rows} "
                    f"{median(size, args.max_rows)}, its default grid {default}; ours is smaller for "
                    f"{smaller:.0%}, as large for {same:.0%}, larger for {larger:.0%}; "
                    f"{time.perf_counter() - start:.0f} s",
                    flush=True,
                )
    for name, (X, X_test, y, y_test) in (("digits", digits()), ("HELOC", heloc())):
        net = network(X, y)
        rows = near(net, X_test, y_test, args.rows)
        given = {"X_train": X, "y_train": y, "max_rows": args.max_rows, "random_state": 0}
        train = LeaveOneOut(net, compile=False)
        methods = {"ExactInfluence": ExactInfluence(net, damping=0.01), "GradDot": GradDot(net)}
        for label, method in methods.items():
            start = time.perf_counter()
            found = smallest_flip(
                method.fit(X, y),
                X_test[rows],
                **given,
                train=train,
                random_baseline=label == "ExactInfluence",
            )
            told(f"{name}, network, {label}", found, time.perf_counter() - start, args.max_rows)


if __name__ == "__main__":
    main()
