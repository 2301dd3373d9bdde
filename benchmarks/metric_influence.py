"""Influence on metrics beside refits: of single rows, and of groups of a tenth of the rows.

    FIMODA_DATA=path/to/data python benchmarks/metric_influence.py

400 training and 988 test rows of HELOC. Half of the 60 groups are random, half are the nearest rows of one
label. Printed is the correlation of estimated with real changes of the metric over rows, and over groups; of
these also the factor by which the estimates would have to be multiplied (least squares).
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import get_scorer
from sklearn.neural_network import MLPClassifier

from fimoda import EKFACInfluence, ExactInfluence, metric_influence
from fimoda.datasets import load_heloc

METRICS = ["accuracy", "balanced_accuracy", "f1", "roc_auc", "neg_log_loss", "neg_brier_score"]
NETWORK = MLPClassifier((8,), alpha=3.0, solver="lbfgs", max_iter=5000, tol=1e-9, random_state=0)

MODELS: dict[str, tuple[Any, Any]] = {
    "logistic": (LogisticRegression(C=0.1, tol=1e-8, max_iter=5000), ExactInfluence),
    "network": (NETWORK, EKFACInfluence),
}


def groups_of(X: NDArray[Any], y: NDArray[Any], rng: Any) -> list[NDArray[np.int64]]:
    """Return random groups, and the rows of one label that are nearest to a row."""
    found = [rng.permutation(len(X))[: len(X) // 10] for _ in range(30)]
    for row in rng.permutation(len(X))[:30]:
        away = ((X - X[row]) ** 2).sum(1) + 1e6 * (y != y[row])
        found.append(np.argsort(away)[: len(X) // 10])
    return found


def changes(model: Any, removed: list[Any], data: tuple[Any, ...]) -> NDArray[np.float64]:
    """Return the changes (n_removals, n_metrics) of the metrics after refits."""
    X, X_test, y, y_test = data
    scorers = [get_scorer(name) for name in METRICS]

    def of(rows: Any) -> list[float]:
        one = clone(model).fit(np.delete(X, rows, 0), np.delete(y, rows))
        return [scorer(one, X_test, y_test) for scorer in scorers]

    return np.array([of(rows) for rows in removed]) - of([])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    X, y = load_heloc(return_X_y=True)
    X_test, y_test = load_heloc(subset="test", return_X_y=True)
    some = rng.permutation(len(X))[:400]
    data = X[some].astype(float), X_test.astype(float), y[some], y_test
    X, X_test, y, y_test = data
    groups = groups_of(X, y, rng)
    print(
        "| model | metric | how | rows | groups | factor |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name in given.models:
        model, method = MODELS[name]
        of_rows = changes(model, list(range(len(X))), data)
        of_groups = changes(model, groups, data)
        settings = {"newton_step": True} if method is ExactInfluence else {}
        attributor = method(clone(model).fit(X, y), **settings).fit(X, y)
        for metric, row_changes, group_changes in zip(METRICS, of_rows.T, of_groups.T, strict=True):
            for how in ("difference", "derivative"):
                scores = metric_influence(attributor, X_test, y_test, metric, how=how).scores
                sums = np.array([scores[rows].sum() for rows in groups])
                rows = np.corrcoef(scores, row_changes)[0, 1]
                together = np.corrcoef(sums, group_changes)[0, 1]
                factor = sums @ group_changes / (sums @ sums)
                cells = f"{rows:.2f} | {together:.2f} | {factor:.2f}"
                print(f"| {name} | {metric} | {how} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
