"""Which damping an influence function should have by default: linear models and small networks.

    python benchmarks/damping.py linear
    python benchmarks/damping.py networks

Exact influence functions on scikit-learn's own data, standardised, a fifth of the rows as test rows, by
damping as a part of the trace of the Gauss-Newton matrix, beside "1000", which is 1,000 times the mean
squared entry of the gradients whatever the size of the model, the default, and Grad-Dot. Linear models
are judged by leaving 60 rows out for real, networks by five seeds of further training without 40 rows
(cosine over the left-out rows, both centred) and by training on 60 random halves, five seeds (linear
datamodeling score).
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import scale

from fimoda import (
    ExactInfluence,
    FurtherTraining,
    GradDot,
    LeaveOneOut,
    linear_datamodeling_score,
    random_subsets,
    train_on_subsets,
)
from fimoda.curvature.damping import curvature_trace

PARTS = (0.3, 0.1, 0.05, 0.02, 0.005, 0.001, 1e-6)
HORIZONS = (5, 50, 300)
N_TEST = 40

Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def split(load: Callable[..., Any]) -> Rows:
    X, y = load(return_X_y=True)
    regression = load is load_diabetes
    X, X_test, y, y_test = train_test_split(
        scale(X), scale(y) if regression else y, test_size=0.2, random_state=0
    )
    return X, y, X_test[:N_TEST], y_test[:N_TEST]


def by_damping(model: Any, rows: Rows) -> dict[str, np.ndarray]:
    """Scores for every damping, and of Grad-Dot."""
    X, y, X_test, y_test = rows
    influence = ExactInfluence(model).fit(X, y)
    found = {"default": influence.transform(X_test, y_test)}
    dampings = {"1000": 1000 * influence._objective.mean_squared_gradient}
    dampings |= {
        f"{part:g}": part * curvature_trace(influence._objective, influence.curvature)
        for part in PARTS
    }
    for name, damping in dampings.items():
        influence.damping_ = damping
        found[name] = influence.transform(X_test, y_test)
    return {**found, "Grad-Dot": GradDot(model).fit(X, y).transform(X_test, y_test)}


def cosine(scores: np.ndarray, truth: np.ndarray) -> float:
    a, b = (s - s.mean(1, keepdims=True) for s in (scores, truth))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(1) / lengths).mean())


def line(name: str, values: dict[str, float]) -> None:
    print(f"| {name} | {' | '.join(f'{v:.2f}' for v in values.values())} |", flush=True)


def head() -> None:
    names = ["model", "default", "1000", *(f"{part:g}" for part in PARTS), "Grad-Dot"]
    print(f"| {' | '.join(names)} |\n{'| --- ' * len(names)}|", flush=True)


def linear() -> None:
    head()
    problems = [
        ("diabetes", load_diabetes, LinearRegression()),
        ("diabetes, ridge 10", load_diabetes, Ridge(10.0)),
        *(
            (f"{name}, logistic, C = {C:g}", load, LogisticRegression(C=C, max_iter=2000))
            for name, load in (
                ("breast cancer", load_breast_cancer),
                ("wine", load_wine),
                ("digits", load_digits),
            )
            for C in (1.0, 0.01)
        ),
    ]
    for name, load, model in problems:
        X, y, X_test, y_test = rows = split(load)
        model.fit(X, y)
        left_out = LeaveOneOut(model, leave_out=60, random_state=0).fit(X, y)
        truth, columns = left_out.transform(X_test, y_test), left_out.train_indices_
        found = by_damping(model, rows)
        line(name, {key: cosine(scores[:, columns], truth) for key, scores in found.items()})


def networks() -> None:
    head()
    for name, load in (
        ("diabetes", load_diabetes),
        ("breast cancer", load_breast_cancer),
        ("wine", load_wine),
    ):
        network = MLPRegressor if load is load_diabetes else MLPClassifier
        for widths in ((16,), (64, 64)):
            for n_epochs in (30, 300):
                rows = split(load)
                net = network(
                    hidden_layer_sizes=widths, solver="sgd", learning_rate_init=0.01,
                    max_iter=n_epochs, n_iter_no_change=n_epochs, random_state=0,
                ).fit(*rows[:2])  # fmt: skip
                judge(f"{name}, {widths}, {n_epochs} epochs", net, rows, n_epochs)


def judge(name: str, net: Any, rows: Rows, n_epochs: int) -> None:
    X, y, X_test, y_test = rows
    found = by_damping(net, rows)
    for horizon in HORIZONS:
        gold = FurtherTraining(net, n_epochs=horizon, n_seeds=5, leave_out=40, random_state=0)
        truth = gold.fit(X, y).transform(X_test, y_test)
        values = {k: cosine(scores[:, gold.train_indices_], truth) for k, scores in found.items()}
        line(f"{name}: further training, {horizon}", values)
    subsets = random_subsets(len(X), 60, 0.5, random_state=0)
    outcomes = train_on_subsets(
        net, X, y, subsets, X_test, y_test, n_seeds=5, n_epochs=n_epochs, random_state=0
    )
    result = linear_datamodeling_score(found, outcomes, X_test, y_test, random_state=0)
    means = dict(zip(found, result.mean()[:, 0], strict=True))
    line(f"{name}: LDS (ceiling {result.ceiling.mean():.2f})", means)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["linear", "networks"])
    warnings.simplefilter("ignore")
    {"linear": linear, "networks": networks}[parser.parse_args().what]()


if __name__ == "__main__":
    main()
