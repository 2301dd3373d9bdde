"""Coverage and width of 90% intervals on ten data sets, beside the exact jackknife+.

    FIMODA_DATA=path/to/data python benchmarks/intervals.py

Exact is the jackknife+ of real refits, `CVPlusRegressor` with a fold for each row. Widths are medians over
test rows, as parts of the exact one. Everything is the mean over draws of 150 training rows and at most 500
others.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_wine,
    make_friedman1,
    make_friedman2,
    make_friedman3,
    make_regression,
    make_sparse_uncorrelated,
)
from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, train_test_split
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler

from fimoda import CVPlusRegressor, JackknifePlusRegressor
from fimoda.datasets import load_heloc, split_concrete

Table = tuple[NDArray[Any], NDArray[Any]]

N_TRAIN, N_TEST, LEVEL = 150, 500, 0.9

#: Draws of training rows for each model.
MODELS: dict[str, tuple[Any, int]] = {
    "ridge": (Ridge(), 20),
    "boosting": (GradientBoostingRegressor(n_estimators=50, random_state=0), 5),
    "forest": (RandomForestRegressor(50, random_state=0), 5),
    "network": (
        MLPRegressor(
            hidden_layer_sizes=(32,),
            alpha=1.0,
            learning_rate_init=0.01,
            max_iter=200,
            random_state=0,
        ),
        5,
    ),
}


def column(X: NDArray[Any], name: str, names: list[str]) -> Table:
    """Return a table whose target is one of its columns."""
    at = list(names).index(name)
    return np.delete(X, at, 1), X[:, at]


def data_sets() -> Iterator[tuple[str, Table]]:
    """Yield ten regressions."""
    yield "diabetes", load_diabetes(return_X_y=True)
    yield "friedman1", make_friedman1(2000, noise=1.0, random_state=0)
    yield "friedman2", make_friedman2(2000, noise=100.0, random_state=0)
    yield "friedman3", make_friedman3(2000, noise=0.1, random_state=0)
    yield "linear", make_regression(2000, 20, n_informative=10, noise=50.0, random_state=0)
    yield "sparse", make_sparse_uncorrelated(2000, random_state=0)
    X, X_test, y, y_test = split_concrete()
    yield "concrete", (np.concatenate([X, X_test]), np.concatenate([y, y_test])[:, 0])
    wine = load_wine()
    yield "wine: alcohol", column(wine.data, "alcohol", wine.feature_names)
    cancer = load_breast_cancer()
    names = [name for name in cancer.feature_names if name.startswith("mean")]
    yield (
        "breast cancer: mean smoothness",
        column(cancer.data[:, : len(names)], "mean smoothness", names),
    )
    heloc = load_heloc()
    yield (
        "HELOC: external risk estimate",
        column(heloc.data, "ExternalRiskEstimate", heloc.feature_names),
    )


def draw(X: NDArray[Any], y: NDArray[Any], seed: int) -> tuple[NDArray[Any], ...]:
    """Return standardised training and test rows."""
    n_train = min(N_TRAIN, int(0.75 * len(X)))
    n_test = min(N_TEST, len(X) - n_train)
    X, X_test, y, y_test = train_test_split(
        X, y, train_size=n_train, test_size=n_test, random_state=seed
    )
    scaler = StandardScaler().fit(X)
    y_test, y = ((part - y.mean()) / y.std() for part in (y_test, y))
    return scaler.transform(X), scaler.transform(X_test), y, y_test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--draws", type=int, default=None)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    heads = ("exact", "jackknife+, default", "unscaled", "CV+, 10 folds")
    for model_name in given.models:
        model, draws = MODELS[model_name]
        ways = [
            CVPlusRegressor(model, cv=LeaveOneOut()),
            JackknifePlusRegressor(model, random_state=0),
            JackknifePlusRegressor(model, cv=None, random_state=0),
            CVPlusRegressor(model, random_state=0),
        ]
        print(f"\n{model_name}, coverage (width of the exact)\n")
        print("| | width | " + " | ".join(heads) + " |")
        print("| --- " * (len(heads) + 2) + "|")
        every = []
        seconds = np.zeros(len(ways))
        for name, table in data_sets():
            found = np.zeros((given.draws or draws, len(ways), 2))
            for seed, one in enumerate(found):
                X, X_test, y, y_test = draw(*table, seed)
                for k, way in enumerate(ways):
                    start = time.process_time()
                    lower, upper = way.fit(X, y).predict_interval(X_test, LEVEL).T
                    seconds[k] += time.process_time() - start
                    inside = (lower <= y_test) & (y_test <= upper)
                    one[k] = inside.mean(), np.median(upper - lower)
            covered, width = found.mean(0).T
            every.append(covered)
            cells = [f"{c:.3f} ({w:.2f})" for c, w in zip(covered, width / width[0], strict=True)]
            print(f"| {name} | {width[0]:.2f} | " + " | ".join(cells) + " |", flush=True)
        inside = [(np.array(every) >= 0.88) & (np.array(every) <= 0.95)][0].sum(0)
        print("| between .88 and .95 | | " + " | ".join(map(str, inside)) + " |")
        print("| seconds | | " + " | ".join(f"{s:.1f}" for s in seconds) + " |", flush=True)


if __name__ == "__main__":
    main()
