"""Derivatives of further training, corrected by real training of a few rows: agreement over the horizon.

    python benchmarks/refined.py --problem breast-cancer --optimizer Adam --test-rows 30
    python benchmarks/refined.py --problem concrete --optimizer SGD --data concrete.csv --gold gold.npz

The problems are those of `horizons.py`: further training of five seeds, each of about a hundred rows left
out. Two seeds of a share of these rows, those with the largest gradients, correct one run of
`UnrolledDifferentiation` in the expected order, as `RefinedAttributor` does; the other three seeds are what
scores are compared with. Figures are means over the ten pairs of seeds. One and two seeds of further training
of all left-out rows are compared with the same three. Everything runs on one thread.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from itertools import combinations

import horizons
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from fimoda import GradDot, UnrolledDifferentiation
from fimoda.training.refining import refine

SHARES = 0.05, 0.1, 0.2, 0.4

#: Scores (n_test, n) of a method at a horizon, by the number of the horizon and a pair of seeds.
Scores = Callable[[int, tuple[int, int]], NDArray[np.float64]]


def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the mean over test rows of the cosine of centred scores."""
    a, b = (each - each.mean(1, keepdims=True) for each in (a, b))
    return float(np.mean((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the mean over test rows of the correlation of ranks."""
    return float(np.mean([spearmanr(x, y)[0] for x, y in zip(a, b, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    problems = [*horizons.CONCRETE, *horizons.TRAINED]
    parser.add_argument("--problem", choices=problems, default="breast-cancer")
    parser.add_argument("--data", help="of Concrete: path of the rows")
    parser.add_argument("--gold", help="of Concrete: the file of its final model and gold standard")
    parser.add_argument("--optimizer", choices=["SGD", "Adam"], default="Adam")
    parser.add_argument("--test-rows", type=int, help="score and compare the first so many only")
    parser.add_argument("--checkpoint-dir", help="where further training resumes from")
    arguments = parser.parse_args()
    more = {"lr": None, "epochs": None, "seeds": 5}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    p = horizons.problem(argparse.Namespace(**vars(arguments), **more))
    X, X_test, y, y_test = p.split
    some = slice(arguments.test_rows)
    X_test, y_test = X_test[some], y_test[some]
    left_out, seeds = p.curve.leave_out, range(len(p.curve.seeds))
    per_seed = horizons.part(p.curve, list(seeds), some).corrected("full").per_seed
    n_horizons = len(p.curve.epochs)

    start = time.process_time()
    own = UnrolledDifferentiation(
        p.net, criterion=p.criterion, n_epochs=[int(e) for e in p.curve.epochs],
        n_seeds=[max(p.curve.seeds) + 1], **p.settings,
    ).fit(X, y)  # fmt: skip
    derivative = own.transform_horizons(X_test, y_test)[:, :, left_out]
    seconds = time.process_time() - start
    gradients = GradDot(p.net, criterion=p.criterion).fit(X, y).self_influence()[left_out]

    def refined(share: float) -> Scores:
        rows = np.argsort(-gradients)[: round(share * len(left_out))]
        smaller = np.arange(len(rows) // 2, len(rows))

        def scores(h: int, pair: tuple[int, int]) -> NDArray[np.float64]:
            trained = per_seed[h][:, rows][..., list(pair)]
            errors = trained.std(-1, ddof=1) / np.sqrt(2)
            return refine(derivative[h], rows, trained.mean(-1), errors, smaller).scores

        return scores

    methods: dict[str, Scores] = {"derivative, a run": lambda h, pair: derivative[h]}
    methods |= {f"refined by {share:.0%} of the rows": refined(share) for share in SHARES}
    methods["one seed of all rows"] = lambda h, pair: per_seed[h][..., pair[0]]
    methods["two seeds of all rows"] = lambda h, pair: per_seed[h][..., list(pair)].mean(-1)

    print(f"\n{arguments.problem}, {arguments.optimizer}: {len(left_out)} rows left out", end="")
    print(f", {len(y_test)} test rows; the derivative took {seconds:.0f} s, and", end="")
    print(f" five seeds of all left-out rows {p.seconds or np.nan:.0f} s\n")
    for metric in (cosine, spearman):
        print(f"| {metric.__name__} | " + " | ".join(f"{e:g}" for e in p.curve.epochs) + " |")
        print("|" + " --- |" * (n_horizons + 1))
        for name, scores in methods.items():
            figures = [
                np.mean(
                    [
                        metric(scores(h, pair), np.delete(per_seed[h], pair, -1).mean(-1))
                        for pair in combinations(seeds, 2)
                    ]
                )
                for h in range(n_horizons)
            ]
            print(f"| {name} | " + " | ".join(f"{f:.2f}" for f in figures) + " |")
        print(flush=True)


if __name__ == "__main__":
    main()
