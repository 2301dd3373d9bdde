"""Linear datamodeling scores and mislabel detection beside dattri's metrics, on the same matrices.

    pip install -r benchmarks/requirements.txt
    python benchmarks/metrics_peers.py [lds-concrete lds-fashion-mnist]

Breast cancer with a tenth of the labels flipped, a logistic regression: scores of three methods, models
retrained on 60 random subsets, and self-influence against the flipped rows. Directories that
`benchmarks/lds.py` has written are compared as well. dattri's LDS sums the scores of the rows that are in
a subset, so its sign is the other one; where scores are constant it has no value. A peer that is missing
is skipped.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

import fimoda
from fimoda.datasets import split_breast_cancer

try:
    from dattri import metric
except ImportError:
    metric = None


def largest_difference(scores: dict[str, np.ndarray], outcomes: Any) -> float:
    """Between fimoda's and dattri's LDS, over methods and test rows."""
    lds = fimoda.linear_datamodeling_score(scores, outcomes, n_bootstrap=1, random_state=0)
    rows = torch.from_numpy(np.stack([np.flatnonzero(s) for s in outcomes.subsets]))
    measured = torch.from_numpy(outcomes.measured.mean(-1))
    theirs = [
        metric.lds(torch.from_numpy(S.T.copy()), (measured, rows))[0] for S in scores.values()
    ]
    return float(np.nanmax(np.abs(lds.values[:, 0] + torch.stack(theirs).numpy())))


def breast_cancer() -> None:
    X, X_test, y, y_test = split_breast_cancer()
    y, wrong = fimoda.flip_labels(y, 0.1, random_state=0)
    model = LogisticRegression(C=0.1).fit(X, y)
    methods = {
        "Grad-Dot": fimoda.GradDot(model).fit(X, y),
        "exact influence": fimoda.ExactInfluence(model).fit(X, y),
        "EK-FAC influence": fimoda.EKFACInfluence(model).fit(X, y),
    }
    subsets = fimoda.random_subsets(len(X), 60, 0.5, random_state=0)
    outcomes = fimoda.train_on_subsets(model, X, y, subsets, X_test, y_test, n_seeds=1)
    scores = {name: method.transform(X_test, y_test) for name, method in methods.items()}
    print(f"| breast cancer | LDS | {largest_difference(scores, outcomes):.1e} |")
    found = [
        float(
            metric.mislabel_detection_auc(torch.tensor(one.self_influence()), torch.tensor(wrong))[
                0
            ]
        )
        for one in methods.values()
    ]
    ours = [fimoda.mislabel_detection(one, wrong).roc_auc for one in methods.values()]
    print(f"| breast cancer | mislabel AUC | {np.abs(np.subtract(found, ours)).max():.1e} |")


def directory(path: Path) -> None:
    """A directory of `benchmarks/lds.py`; sparse scores apart, whose sums tie up to rounding."""
    truth = SimpleNamespace(**np.load(path / "outcomes.npz"))
    files = {file.stem.removeprefix("scores "): file for file in path.glob("scores *.npz")}
    scores = {name: np.load(file)["scores"] for name, file in files.items()}
    sparse = {name: S for name, S in scores.items() if (S == 0).mean() > 0.1}
    dense = {name: S for name, S in scores.items() if name not in sparse}
    for kind, some in (("dense", dense), ("sparse", sparse)):
        if some:
            worst = largest_difference(some, truth)
            print(f"| {path.name}, {len(some)} methods with {kind} scores | LDS | {worst:.1e} |")


def main() -> None:
    if metric is None:
        print("dattri is not installed; see benchmarks/requirements.txt. Nothing compared.")
        return
    print("| problem | metric | largest difference from dattri's |\n| --- | --- | --- |")
    breast_cancer()
    for path in map(Path, sys.argv[1:]):
        directory(path)


if __name__ == "__main__":
    main()
