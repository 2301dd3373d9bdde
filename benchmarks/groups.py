"""Groups of rows removed together: errors of the methods, and greedy choices beside the top rows.

    python benchmarks/groups.py

Groups of 1, 5, 10 and 20 percent of the rows, some random and some of neighbours, are removed from models
of Concrete and digits. The gold standard is named for each model. Then the rows that greedy_removal chooses
for a test row, and as many with the largest scores, are removed, and the models trained again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import pairwise_distances
from sklearn.model_selection import train_test_split
from skorch import NeuralNetClassifier, NeuralNetRegressor
from torch import nn

from fimoda import (
    ExactInfluence,
    FurtherTraining,
    GradDot,
    LeafInfluence,
    LeafRefit,
    LeaveOneOut,
    LinearizedFurtherTraining,
    OnceLinearizedFurtherTraining,
    compare_group_influence,
    greedy_removal,
    train_on_subsets,
)
from fimoda.datasets import split_concrete

SHARES = (0.01, 0.05, 0.1, 0.2)
PER_KIND = 6

#: Influence functions of networks with less damping than "auto", which hides how rows act together.
DAMPED = "ExactInfluence, damping .01"


MODELS = ("linear", "boosting", "networks")


@dataclass
class Case:
    """A model with its rows, methods, and a gold standard."""

    name: str
    rows: tuple[Any, Any, Any, Any]
    methods: dict[str, Any]
    gold: Any  # what is trained from scratch, or a fitted FurtherTraining
    told: str
    greedy: Any = None  # an attributor of the measurement that is to be raised


def groups_of(X: NDArray[Any], share: float, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Return random groups, and groups of neighbours."""
    n, size = len(X), max(1, round(share * len(X)))
    random = [rng.choice(n, size, replace=False) for _ in range(PER_KIND)]
    near = pairwise_distances(X[rng.choice(n, PER_KIND, replace=False)], X).argsort(1)[:, :size]
    return [*random, *near]


def concrete() -> tuple[Any, Any, Any, Any]:
    """Return training and test rows of Concrete, in float32."""
    X, X_test, y, y_test = split_concrete()
    return X[:600], X_test[:20], y[:600], y_test[:20]


def digits(n: int) -> tuple[Any, Any, Any, Any]:
    """Return training and test rows of the digits."""
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X / 16, y, train_size=n, random_state=0, stratify=y)
    return X.astype(np.float32), X_test[:20].astype(np.float32), y, y_test[:20]


def ridge() -> Case:
    X, X_test, y, y_test = concrete()
    X, X_test, y, y_test = (np.asarray(part, dtype=float) for part in (X, X_test, y, y_test))
    y, y_test = y.ravel(), y_test.ravel()
    model = Ridge(alpha=1.0).fit(X, y)
    methods = {"ExactInfluence": ExactInfluence(model).fit(X, y)}
    gold = LeaveOneOut(model, n_seeds=1)
    return Case(
        "Concrete, ridge",
        (X, X_test, y, y_test),
        methods,
        gold,
        "retraining",
        methods["ExactInfluence"],
    )


def logistic() -> Case:
    X, X_test, y, y_test = digits(600)
    X, X_test = X.astype(float), X_test.astype(float)
    model = LogisticRegression(C=1.0, max_iter=1000, tol=1e-8).fit(X, y)
    methods = {"ExactInfluence": ExactInfluence(model).fit(X, y)}
    gold = LeaveOneOut(model, n_seeds=1)
    return Case(
        "digits, logistic regression",
        (X, X_test, y, y_test),
        methods,
        gold,
        "retraining",
        methods["ExactInfluence"],
    )


def net_of(n_inputs: int, n_outputs: int, **own: Any) -> Any:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(n_inputs, 24), nn.Tanh(), nn.Linear(24, n_outputs))
    given: dict[str, Any] = {
        "train_split": None,
        "verbose": 0,
        "batch_size": 64,
        "iterator_train__shuffle": True,
    }
    if n_outputs == 1:
        return NeuralNetRegressor(
            module, criterion=nn.MSELoss, optimizer=torch.optim.SGD, **given, **own
        )
    return NeuralNetClassifier(
        module, criterion=nn.CrossEntropyLoss, optimizer=torch.optim.SGD, **given, **own
    )


def network(name: str, n_seeds: int) -> list[Case]:
    """Return a network with further training and with training from scratch as the gold standard."""
    rows = concrete() if name == "Concrete" else digits(400)
    X, _, y, _ = rows
    net = net_of(
        X.shape[1],
        1 if name == "Concrete" else 10,
        lr=0.1 if name == "Concrete" else 0.3,
        max_epochs=60,
    )
    net.fit(X, y)
    run = {"n_epochs": 20, "random_state": 0}
    ahead = {
        "GradDot": GradDot(net, n_epochs=20).fit(X, y),
        "ExactInfluence": ExactInfluence(net).fit(X, y),
        DAMPED: ExactInfluence(net, damping=0.01).fit(X, y),
        "linearised": LinearizedFurtherTraining(net, **run).fit(X, y),
    }
    if name == "Concrete":
        ahead["linearised once"] = OnceLinearizedFurtherTraining(net, **run).fit(X, y)
    further = FurtherTraining(net, **run, n_seeds=n_seeds, leave_out=[0]).fit(X, y)
    scratch = LeaveOneOut(net, n_seeds=n_seeds, random_state=0)
    told = f"of {n_seeds} seeds"
    influence = {each: ahead[each] for each in ("ExactInfluence", DAMPED)}
    return [
        Case(f"{name}, network", rows, ahead, further, f"20 epochs of further training {told}"),
        Case(
            f"{name}, network",
            rows,
            influence,
            scratch,
            f"retraining {told}",
        ),
    ]


def boosted() -> list[Case]:
    """Return boosting, with its splits held or grown anew in the gold standard."""
    X, X_test, y, y_test = concrete()
    y, y_test = np.ravel(y), np.ravel(y_test)
    model = HistGradientBoostingRegressor(max_iter=50, early_stopping=False, random_state=0).fit(
        X, y
    )
    methods = {
        "LeafInfluence": LeafInfluence(model).fit(X, y),
        "LeafRefit": LeafRefit(model).fit(X, y),
    }
    rows, scratch = (X, X_test, y, y_test), LeaveOneOut(model, n_seeds=1)
    return [
        Case(
            "Concrete, boosting",
            rows,
            methods,
            methods["LeafRefit"],
            "retraining with the splits held",
            methods["LeafRefit"],
        ),
        Case("Concrete, boosting", rows, methods, scratch, "retraining"),
    ]


def errors(case: Case) -> None:
    """Print the median relative error and cosine of each method by the share of rows removed."""
    X, X_test, y, y_test = case.rows
    rng, found = np.random.default_rng(0), {}
    for share in SHARES:
        groups = groups_of(np.asarray(X).reshape(len(X), -1), share, rng)
        given = {"gold": case.gold} if hasattr(case.gold, "model_") else {"train": case.gold}
        found[share] = compare_group_influence(
            case.methods, groups, X_test, y_test, X_train=X, y_train=y, **given
        )
    noise = " ".join(f"{one.noise():7.2f}" for one in found.values())
    print(
        f"\n{case.name}, against {case.told}: relative error at 1, 5, 10, 20 percent; cosine",
        flush=True,
    )
    for name in found[SHARES[0]].methods:
        at = [one.methods.index(name) for one in found.values()]
        error = [
            np.median(one.relative_error()[k]) for one, k in zip(found.values(), at, strict=True)
        ]
        cosine = [np.median(one.cosine()[k]) for one, k in zip(found.values(), at, strict=True)]
        row = " ".join(f"{e:7.2f}" for e in error) + "   " + " ".join(f"{c:5.2f}" for c in cosine)
        print(f"{name:34} {row}", flush=True)
    if "seeds" in case.told:
        print(f"{'(standard error of the gold)':34} {noise}", flush=True)


def trained_again(case: Case, found: Any, n_seeds: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return how far the loss of each test row rises without the greedy rows, and without the top rows."""
    X, X_test, y, y_test = case.rows
    chosen, m = np.concatenate([found.rows, found.top_rows]), len(X_test)
    subsets = np.ones((len(chosen) + 1, len(X)), dtype=bool)
    np.put_along_axis(subsets[1:], chosen, False, 1)
    trained = train_on_subsets(
        case.gold.estimator, X, y, subsets, X_test, y_test, n_seeds=n_seeds, random_state=0
    ).mean
    effect = np.array([trained[1 + z][z] - trained[0][z] for z in range(m)])
    return effect, np.array([trained[1 + m + z][z] - trained[0][z] for z in range(m)])


def greedy(case: Case, n_seeds: int, shares: Sequence[float] = (0.02, 0.05, 0.1)) -> None:
    """Print how far greedy choices and top rows raise the measurement, trained again."""
    X, X_test, _, y_test = case.rows
    for share in shares:
        k, start = round(share * len(X)), time.perf_counter()
        found = greedy_removal(case.greedy, X_test, y_test, n_rows=k)
        seconds = time.perf_counter() - start
        effect, top = found.effects[:, -1], found.top_effects[:, -1]
        if case.gold is not case.greedy:  # which otherwise knows what training says
            effect, top = trained_again(case, found, n_seeds)
        m = len(X_test)
        ahead = effect - top  # NaN: no model without a class
        known = np.isfinite(ahead)
        effect, top, ahead, m = effect[known], top[known], ahead[known], int(known.sum())
        rng = np.random.default_rng(0)
        draws = rng.integers(m, size=(2000, m))
        ratio = np.array([effect[d].mean() / top[d].mean() for d in draws])
        low, high = np.quantile(ratio, [0.025, 0.975])
        print(
            f"{case.name:28} {k:4} rows: greedy raises the loss by {effect.mean():.3g}, the top rows by "
            f"{top.mean():.3g}: {effect.mean() / top.mean():.2f} times [{low:.2f}, {high:.2f}]; ahead for "
            f"{(ahead > 0).mean():.0%} of {m} test rows; {seconds:.1f} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=MODELS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if "linear" in args.models:
        for case in (ridge(), logistic()):
            errors(case)
            greedy(case, 1)
    if "boosting" in args.models:
        held, grown = boosted()
        errors(held)
        errors(grown)
        greedy(held, 1, (0.01, 0.02))
    for name in ("Concrete", "digits") if "networks" in args.models else ():
        cases = network(name, args.seeds)
        for case in cases:
            errors(case)
        for damping, method in cases[-1].methods.items():
            print(f"\nchosen by {damping}")
            greedy(replace(cases[-1], greedy=method), args.seeds)


if __name__ == "__main__":
    main()
