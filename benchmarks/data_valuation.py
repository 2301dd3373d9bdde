"""What values of rows are good for: OpenDataVal's tasks on five data sets, with every method that applies.

    OMP_NUM_THREADS=1 python benchmarks/data_valuation.py --seeds 2

A logistic regression is trained on 200 rows (wine: 80), valued by 100 others (wine: 40) and tested on
the rest. A fifth of the rows has a flipped label, or noise of a standard deviation in all features. Noise
is found by cutting the values in two by 2-means: F1 of the lower part. Points are removed from the most
valuable on, or added from the least valuable on, until half of them are, and the test accuracy is averaged
over the course: lower is better in both.
Tasks as in Jiang et al., "OpenDataVal: a Unified Benchmark for Data Valuation", NeurIPS 2023.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

import fimoda as fm
from fimoda.datasets import load_heloc, split_concrete

warnings.simplefilter("ignore")

Rows = tuple[NDArray[Any], NDArray[Any]]
SHARE, STEPS = 0.2, 20


#: Of methods that train the final model further, or say what that would do.
FURTHER: dict[str, Any] = {"n_epochs": 20, "lr": 0.1, "batch_size": 64}


def data_sets() -> dict[str, Rows]:
    """Return rows and classes of five data sets, as they are."""
    digits = load_digits()
    heloc = load_heloc(n_rows=2000, return_X_y=True)
    X_train, X_test, y_train, y_test = split_concrete()
    strength = np.concatenate([y_train, y_test]).ravel()
    return {
        "breast cancer": load_breast_cancer(return_X_y=True),
        "digits, even or odd": (
            PCA(20, random_state=0).fit_transform(digits.data),
            digits.target % 2,
        ),
        "HELOC": (np.asarray(heloc[0]), np.asarray(heloc[1])),
        "concrete, strong": (
            np.concatenate([X_train, X_test]),
            (strength > np.median(strength)).astype(int),
        ),
        "wine": load_wine(return_X_y=True),
    }


def parts(X: Any, y: Any, seed: int) -> tuple[Rows, Rows, Rows]:
    """Return rows to train on, to value by and to test on."""
    order = np.random.default_rng(seed).permutation(len(X))
    n, n_valid = (200, 100) if len(X) > 400 else (80, 40)
    train, valid, test = order[:n], order[n : n + n_valid], order[n + n_valid :][:1000]
    X = StandardScaler().fit(X[train]).transform(X)
    return (X[train], y[train]), (X[valid], y[valid]), (X[test], y[test])


def mean_score(method: Any) -> Callable[..., NDArray[np.float64]]:
    """Return values that are means of scores over the rows to value by."""
    return lambda train, valid: method.fit(*train).transform(*valid).mean(0)


def game(method: Any) -> Callable[..., NDArray[np.float64]]:
    """Return values of a game."""
    return lambda train, valid: method.fit(*train).values(*valid)


def fitted(train: Rows) -> LogisticRegression:
    return LogisticRegression(max_iter=1000).fit(*train)


def methods(train: Rows, seed: int) -> dict[str, Callable[..., NDArray[np.float64]]]:
    """Return how each method values rows."""
    model = fitted(train)
    drawn: dict[str, Any] = {"random_state": seed}
    by_accuracy = {"scoring": "accuracy", **drawn}
    return {
        "random": lambda train, valid: np.random.default_rng(seed).normal(size=len(train[0])),
        "DataShapley": game(fm.DataShapley(model, n_samples=40, **drawn)),
        "DataShapley, accuracy": game(fm.DataShapley(model, n_samples=40, **by_accuracy)),
        "BetaShapley(16, 1)": game(fm.BetaShapley(model, n_samples=40, **drawn)),
        "BetaShapley, accuracy": game(fm.BetaShapley(model, n_samples=40, **by_accuracy)),
        "DataBanzhaf": game(fm.DataBanzhaf(model, n_samples=1500, **drawn)),
        "DataBanzhaf, accuracy": game(fm.DataBanzhaf(model, n_samples=1500, **by_accuracy)),
        "LeastCore, accuracy": game(fm.LeastCore(model, n_samples=1500, **by_accuracy)),
        "KNNShapley": mean_score(fm.KNNShapley(model)),
        "DataOOB": mean_score(fm.DataOOB(model, n_samples=200, **drawn)),
        "DataOOB, tree": mean_score(
            fm.DataOOB(DecisionTreeClassifier(random_state=0), n_samples=200, **drawn)
        ),
        "LeaveOneOut": mean_score(fm.LeaveOneOut(model, n_seeds=1)),
        "Downsampling": mean_score(fm.Downsampling(model, n_subsets=300, n_seeds=1, **drawn)),
        "Datamodel": mean_score(
            fm.Datamodel(
                model, n_subsets=300, n_seeds=1, regression="ridge", n_bootstrap=1, **drawn
            )
        ),
        "ExactInfluence": mean_score(fm.ExactInfluence(model, damping=1e-6)),
        "GradDot": mean_score(fm.GradDot(model)),
        "GradCos": mean_score(fm.GradCos(model)),
        "TRAK": mean_score(fm.TRAK(model, **drawn)),
        "LinearizedFurtherTraining": mean_score(
            fm.LinearizedFurtherTraining(model, **FURTHER, **drawn)
        ),
        "EKFACInfluence": mean_score(fm.EKFACInfluence(model, **drawn)),
        "DataInf": mean_score(fm.DataInf(model)),
        "CGInfluence": mean_score(fm.CGInfluence(model)),
        "LiSSAInfluence": mean_score(fm.LiSSAInfluence(model, **drawn)),
        "ArnoldiInfluence": mean_score(fm.ArnoldiInfluence(model, **drawn)),
        "SOURCE": mean_score(fm.SOURCE(model, trajectory="final", **FURTHER)),
        "OnceLinearizedFurtherTraining": mean_score(
            fm.OnceLinearizedFurtherTraining(model, **FURTHER, **drawn)
        ),
        "UnrolledDifferentiation": mean_score(
            fm.UnrolledDifferentiation(model, **FURTHER, **drawn)
        ),
        "RefinedAttributor": mean_score(
            fm.RefinedAttributor(
                model, gold_standard=fm.FurtherTraining(n_seeds=2, **FURTHER, **drawn), **drawn
            )
        ),
        "FurtherTraining": mean_score(fm.FurtherTraining(model, n_seeds=2, **FURTHER, **drawn)),
        "self-influence": lambda train, valid: (
            -fm.ExactInfluence(model, damping=1e-6).fit(*train).self_influence()
        ),
    }


def found_noise(values: NDArray[np.float64], noisy: NDArray[np.bool_]) -> float:
    """Return the F1 of the lower of two clusters of values."""
    labels = KMeans(2, n_init=5, random_state=0).fit_predict(values[:, None])
    low = int(values[labels == 1].mean() < values[labels == 0].mean())
    return float(f1_score(noisy, labels == low))


def course(order: NDArray[np.int64], train: Rows, test: Rows, first: bool) -> float:
    """Return the mean test accuracy while the first rows of an order are removed, or added."""
    X, y = train
    accuracies = []
    for k in np.linspace(0, len(X) // 2, STEPS // 2 + 1).astype(int):
        rows = order[k:] if first else order[: max(k, 2)]
        if len(np.unique(y[rows])) < 2:
            accuracies.append(float((test[1] == y[rows][0]).mean()))
        else:
            accuracies.append(fitted((X[rows], y[rows])).score(*test))
    return float(np.mean(accuracies))


def measure(
    X: Any, y: Any, seed: int, seconds: dict[str, float], only: list[str] | None
) -> dict[str, list[float]]:
    """Return F1 of labels and features, and accuracies of removal and addition, by method."""
    train, valid, test = parts(X, y, seed)
    rng = np.random.default_rng(100 + seed)
    noisy = rng.permutation(len(train[0])) < SHARE * len(train[0])
    classes = np.unique(y)
    shift = rng.integers(1, len(classes), size=len(noisy))
    flipped = classes[(np.searchsorted(classes, train[1]) + shift * noisy) % len(classes)]
    disturbed = train[0] + rng.normal(size=train[0].shape) * noisy[:, None]
    found: dict[str, list[float]] = {}
    for case, rows in {"labels": (train[0], flipped), "features": (disturbed, train[1])}.items():
        for name, value in methods(rows, seed).items():
            if only and name not in only:
                continue
            start = time.perf_counter()
            values = value(rows, valid)
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
            found.setdefault(name, []).append(found_noise(values, noisy))
            if case == "labels":
                order = np.argsort(values)
                found[name].append(course(order[::-1], rows, test, True))
                found[name].append(course(order, rows, test, False))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="names of data sets")
    parser.add_argument("--methods", nargs="*", help="names of methods")
    given = parser.parse_args()
    n_seeds = given.seeds
    seconds: dict[str, float] = {}
    everything = {}
    for name, (X, y) in data_sets().items():
        if given.only and name not in given.only:
            continue
        runs = [measure(X, y, seed, seconds, given.methods) for seed in range(n_seeds)]
        everything[name] = {m: np.mean([run[m] for run in runs], axis=0) for m in runs[0]}
        print(
            f"\n{name}: F1 of labels, accuracy of removal, of addition, F1 of features, seconds so far",
            flush=True,
        )
        for method, numbers in everything[name].items():
            cells = "".join(f"{number:8.3f}" for number in (*numbers, seconds[method]))
            print(f"  {method:28}{cells}", flush=True)
    print("\n| method | labels, F1 | features, F1 | removal | addition | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    runs_in_all = 2 * n_seeds * len(everything)
    for method in next(iter(everything.values())):
        mean = np.mean([of[method] for of in everything.values()], axis=0)
        labels, removal, addition, features = mean
        print(
            f"| {method} | {labels:.2f} | {features:.2f} | {removal:.3f} | {addition:.3f} | "
            f"{seconds[method] / runs_in_all:.2f} |"
        )


if __name__ == "__main__":
    main()
