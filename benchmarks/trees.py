"""Trees: agreement with training anew, subsets, removal, and wrong labels, method beside method.

    python benchmarks/trees.py --output path/to/folder [--data path/to/data] [--small]

Boosted trees of scikit-learn on six data sets, whose seeds differ by the features that each split may look
at (and, for GradientBoosting, by the rows of each round). `--data` is a directory with Concrete and HELOC,
or FIMODA_DATA names it. What is computed is kept in the folder of `--output`, one file for each part of each
data set: a second call computes what is missing, and prints all tables.

An agreement is that of a method's scores of one test row with those of the truth, both centred over rows,
averaged over test rows. If two seeds agree r on average, the scores of a perfect method would agree
sqrt(n r / (1 + (n - 1) r)) with the mean of n seeds. Intervals are of 95 percent, by drawing test rows with
replacement within each data set; those of the linear datamodeling score draw subsets as well. A plus-minus
is half the width of one. The last column is the mean over the data sets. Targets of regressions are in
standard deviations. "BoostIn, g + v h" is the method as its authors' library has it, with v the value of a
leaf times the learning rate in place of the value before it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, make_friedman1
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.model_selection import cross_val_predict
from sklearn.preprocessing import StandardScaler

import fimoda
from fimoda import (
    Downsampling,
    LeaveOneOut,
    SubsetOutcomes,
    flip_labels,
    further_training_curve,
    linear_datamodeling_score,
    mislabel_detection,
    random_subsets,
    train_on_subsets,
)
from fimoda.datasets import load_heloc, split_concrete

Scores = NDArray[np.float64]
Kept = dict[str, NDArray[Any]]

#: Methods of trees, with their parameters.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "BoostIn": ("BoostIn", {}),
    "BoostIn, g + u h": ("BoostIn", {"shrunken": False}),
    "LeafInfluence": ("LeafInfluence", {}),
    "LeafRefit": ("LeafRefit", {}),
    "TREX": ("TREX", {}),
    "BoostIn, 16 models": ("BoostIn", {"n_models": 16}),
    "BoostIn, g + u h, 16 models": ("BoostIn", {"n_models": 16, "shrunken": False}),
    "LeafInfluence, 16 models": ("LeafInfluence", {"n_models": 16}),
}
#: What a regression of measurements on subsets starts from.
PRIORS = {
    "": None,
    " from LeafInfluence": "LeafInfluence",
    " from LeafInfluence, 16 models": "LeafInfluence, 16 models",
}
#: Of which the second is taken off the first, test row by test row.
COMPARED = [
    ("LeafInfluence", "BoostIn, g + u h"),
    ("LeafRefit", "BoostIn, g + u h"),
    ("BoostIn, g + u h, 16 models", "BoostIn, g + u h"),
    ("LeafInfluence, 16 models", "BoostIn, g + u h"),
    ("LeafInfluence", "BoostIn"),
    ("LeafInfluence, 16 models", "BoostIn"),
    ("LeafInfluence, 16 models", "BoostIn, 16 models"),
    ("LeafInfluence, ahead", "BoostIn, ahead"),
    *(
        (f"Datamodel from LeafInfluence{more}, {fits} fits", f"LeafInfluence{more}")
        for more in ("", ", 16 models")
        for fits in (100, 400)
    ),
    *(
        (f"Datamodel from LeafInfluence{more}, 400 fits", "Downsampling, 400 fits")
        for more in ("", ", 16 models")
    ),
]

N_DRAWS = 2000


@dataclass(frozen=True)
class Sizes:
    """How much is computed."""

    n_train: int = 300
    n_test: int = 100
    seeds: int = 5  # of leaving one out, and of further boosting
    n_further: int = 60  # rows left out of further boosting
    horizons: tuple[int, ...] = (1, 10, 100)
    n_subsets: int = 60
    subset_seeds: int = 3
    fits: tuple[int, ...] = (100, 400)  # of Downsampling
    parts: tuple[float, ...] = (0.05, 0.1, 0.2)  # removed
    wrong: tuple[float, ...] = (0.1, 0.2)
    n_wrong: int = 2  # draws of wrong labels


SMALL = Sizes(
    n_train=100, n_test=15, seeds=2, n_further=20, horizons=(1, 10), n_subsets=20, subset_seeds=2,
    fits=(30,), parts=(0.1,), wrong=(0.2,), n_wrong=1,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A data set, and the model on it."""

    load: Callable[[Any], tuple[NDArray[Any], NDArray[Any]]]
    is_classes: bool
    kind: str = "hist"
    most: int = 300  # training rows

    def model(self, seed: int) -> Any:
        """Return an unfitted model."""
        shared = {
            "max_leaf_nodes": 8,
            "min_samples_leaf": 5,
            "max_features": 0.5,
            "random_state": seed,
        }
        if self.kind == "hist":
            kind = (
                HistGradientBoostingClassifier if self.is_classes else HistGradientBoostingRegressor
            )
            return kind(max_iter=60, early_stopping=False, **shared)
        kind = GradientBoostingClassifier if self.is_classes else GradientBoostingRegressor
        return kind(n_estimators=60, subsample=0.7, **shared)


def concrete(data: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the training rows of Concrete."""
    X, _, y, _ = split_concrete(data)
    return np.asarray(X, dtype=float), np.asarray(y, dtype=float).ravel()


def digits(_: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the digits 3, 5 and 8."""
    X, y = load_digits(return_X_y=True)
    taken = np.isin(y, [3, 5, 8])
    return X[taken], np.searchsorted([3, 5, 8], y[taken])


CASES = {
    "diabetes": Case(lambda _: load_diabetes(return_X_y=True), False),
    "Concrete": Case(concrete, False),
    "Friedman 1": Case(lambda _: make_friedman1(600, noise=1.0, random_state=0), False),
    "breast cancer": Case(lambda _: load_breast_cancer(return_X_y=True), True),
    "digits": Case(digits, True, most=200),
    "HELOC": Case(lambda data: load_heloc(data, return_X_y=True), True),
    "diabetes, rows drawn": Case(lambda _: load_diabetes(return_X_y=True), False, "gradient"),
    "breast cancer, rows drawn": Case(
        lambda _: load_breast_cancer(return_X_y=True), True, "gradient"
    ),
}
SMALL_CASES = ["diabetes", "breast cancer", "breast cancer, rows drawn"]


def fitted(kind: str, params: dict[str, Any], model: Any, X: Scores, y: NDArray[Any]) -> Any:
    """Return a fitted method."""
    several = {"random_state": 0} if "n_models" in params else {}
    return getattr(fimoda, kind)(model, **params, **several).fit(X, y)


class Bench:
    """A case with its rows and its model, and what is computed of it."""

    def __init__(self, name: str, args: argparse.Namespace):
        self.name, self.case, self.sizes, self.args = name, CASES[name], args.sizes, args
        X, y = self.case.load(args.data)
        order = np.random.default_rng(0).permutation(len(X))
        X, y = np.asarray(X, dtype=float)[order], np.asarray(y)[order]
        if not self.case.is_classes:
            y = (y - y.mean()) / y.std()
        n = min(self.sizes.n_train, self.case.most)
        test = slice(n, n + self.sizes.n_test)
        self.X, self.y, self.X_test, self.y_test = X[:n], y[:n], X[test], y[test]

    def path(self, part: str) -> Path:
        """Return where a part is kept."""
        return self.args.output / f"{self.name.replace(', ', '-').replace(' ', '_')}-{part}.npz"

    def kept(self, part: str, compute: Callable[[], Kept]) -> Kept:
        """Return what a file holds, or compute and write it."""
        path = self.path(part)
        if not path.exists():
            start = time.perf_counter()
            found = compute()
            np.savez_compressed(path.with_suffix(".part.npz"), **found)
            path.with_suffix(".part.npz").rename(path)
            print(f"{self.name}, {part}: {time.perf_counter() - start:.0f} s", flush=True)
        with np.load(path) as file:
            return {key: file[key] for key in file.files}

    @cached_property
    def model(self) -> Any:
        """The final model."""
        return self.case.model(0).fit(self.X, self.y)

    # ---- truths ----------------------------------------------------------------------------

    @property
    def left_out(self) -> Scores:
        """Scores (n_seeds, n_test, n) of leaving each row out, by seed."""
        return self.kept("loo", lambda: {"scores": self._left_out(range(1, self.sizes.seeds + 1))})[
            "scores"
        ]

    def _left_out(self, seeds: Any) -> Scores:
        rows = self.X_test, self.y_test
        each = [
            LeaveOneOut(self.model, n_seeds=[s]).fit(self.X, self.y).transform(*rows) for s in seeds
        ]
        return np.stack(each)

    @property
    def further(self) -> Kept:
        """Further boosting, and the methods that look ahead as far."""
        return self.kept("further", self._further)

    def _further(self) -> Kept:
        sizes, rows = self.sizes, (self.X, self.y, self.X_test, self.y_test)
        settings = {
            "n_seeds": list(range(1, sizes.seeds + 1)),
            "leave_out": sizes.n_further,
            "random_state": 0,
        }
        curve = further_training_curve(self.model, *rows, epochs=list(sizes.horizons), **settings)
        found = {"per_seed": curve.per_seed, "rows": curve.leave_out}
        for kind in ("BoostIn", "LeafInfluence"):
            ahead = []
            for n_rounds in sizes.horizons:
                settings = {"n_rounds": n_rounds, "n_models": 5, "share": 1.0, "random_state": 100}
                method = getattr(fimoda, kind)(self.model, **settings).fit(*rows[:2])
                ahead.append(method.transform(*rows[2:])[:, curve.leave_out])
            found[kind] = np.stack(ahead)
        return found

    # ---- methods ---------------------------------------------------------------------------

    @property
    def scores(self) -> dict[str, Scores]:
        """Scores (n_test, n) of all methods."""
        found = {}
        for name in METHODS:
            found[name] = self.scores_of(name)
        for fits in self.sizes.fits:
            name, params = f"Downsampling, {fits} fits", {"n_subsets": fits, "n_seeds": 1}
            found[name] = self.kept(name, lambda p=params: self._scores("Downsampling", p))[
                "scores"
            ]
        for (name, prior), fits in itertools.product(PRIORS.items(), self.sizes.fits):
            told = f"Datamodel{name}, {fits} fits"
            found[told] = self.kept(told, lambda p=prior, f=fits: self._datamodel(p, f))["scores"]
        found["leave one out"] = self.left_out.mean(0)
        found["nearest rows"] = self._nearest()
        shape = len(self.y_test), len(self.y)
        found["random"] = np.random.default_rng(7).standard_normal(shape)
        return found

    def _scores(self, kind: str, params: dict[str, Any]) -> Kept:
        model = self.model
        fimoda.BoostIn(model).fit(self.X, self.y).transform(
            self.X_test[:2], self.y_test[:2]
        )  # warm
        start = time.perf_counter()
        method = fitted(kind, params, model, self.X, self.y)
        scores = method.transform(self.X_test, self.y_test)
        return {"scores": scores, "seconds": np.array(time.perf_counter() - start)}

    def _datamodel(self, prior: str | None, fits: int) -> Kept:
        """Return scores by ridge regression on halves, of so many fits in all."""
        start = None if prior is None else self.scores_of(prior)
        fits -= METHODS[prior][1].get("n_models", 1) if prior else 0
        subsets = random_subsets(len(self.y), max(self.sizes.fits), ratio=0.5, random_state=11)
        measured = self.measured("regressed", subsets, seeds=[1])[:fits]
        outcomes = SubsetOutcomes(subsets[:fits], [0], measured, [])
        method = fimoda.Datamodel(regression="ridge", random_state=0)
        return {"scores": method.score_outcomes(outcomes, start)}

    def scores_of(self, name: str) -> Scores:
        """Return the scores (n_test, n) of a method of trees."""
        kind, params = METHODS[name]
        return self.kept(name, lambda: self._scores(kind, params))["scores"]

    def _nearest(self) -> Scores:
        alike, scaler = (
            _alike(self.y_test, self.y, self.case.is_classes),
            StandardScaler().fit(self.X),
        )
        return alike * _closeness(scaler.transform(self.X_test), scaler.transform(self.X))

    # ---- subsets ---------------------------------------------------------------------------

    def measured(
        self, part: str, subsets: NDArray[np.bool_], seeds: list[int] | None = None
    ) -> Scores:
        """Return the loss (n_subsets, n_test, n_seeds) of models trained on subsets."""

        def trained() -> Kept:
            given = self.case.model(0), self.X, self.y, subsets, self.X_test, self.y_test
            drawn = seeds or list(range(100, 100 + self.sizes.subset_seeds))
            return {
                "subsets": subsets,
                "measured": train_on_subsets(*given, n_seeds=drawn).measured,
            }

        found = self.kept(part, trained)
        if not np.array_equal(found["subsets"], subsets):  # of other methods
            self.path(part).unlink()
            found = self.kept(part, trained)
        return found["measured"]

    def datamodeling(self) -> Any:
        """Return the linear datamodeling score on halves."""
        subsets = random_subsets(len(self.y), self.sizes.n_subsets, ratio=0.5, random_state=5)

        @dataclass
        class Outcomes:
            subsets: NDArray[np.bool_]
            measured: Scores

        outcomes = Outcomes(subsets, self.measured("halves", subsets))
        return linear_datamodeling_score(self.scores, outcomes, n_bootstrap=N_DRAWS, random_state=0)

    def removal(self) -> dict[str, Scores]:
        """Return the rise (n_parts, n_test) of the loss without the rows that help the test rows most."""
        n, scores = len(self.y), self.scores
        masks = [np.ones(n, dtype=bool)]
        for one in scores.values():
            order = np.argsort(-one.mean(0), kind="stable")
            for part in self.sizes.parts:
                masks.append(~np.isin(np.arange(n), order[: round(part * n)]))
        loss = self.measured("removal", np.stack(masks)).mean(-1)
        rise = (loss[1:] - loss[0]).reshape(len(scores), len(self.sizes.parts), -1) / loss[0].mean()
        return dict(zip(scores, rise, strict=True))

    # ---- wrong labels ----------------------------------------------------------------------

    def wrong_labels(self) -> dict[str, Scores]:
        """Return the area (n_levels, n_draws) under the curve of finding wrong labels."""
        levels = []
        for level in self.sizes.wrong:
            draws = [
                self.kept(f"wrong-{level:g}-{draw}", lambda s=level, d=draw: self._wrong(s, d))
                for draw in range(self.sizes.n_wrong)
            ]
            levels.append(draws)
        return {
            name: np.array([[float(d[name]) for d in draws] for draws in levels])
            for name in levels[0][0]
        }

    def _wrong(self, level: float, draw: int) -> Kept:
        y, wrong = flip_labels(self.y, level, random_state=draw)
        model = self.case.model(0).fit(self.X, y)
        found: dict[str, Any] = {}
        for name, (kind, params) in METHODS.items():
            found[name] = fitted(kind, params, model, self.X, y)
        found["Downsampling, 100 fits"] = Downsampling(
            model, n_subsets=100, n_seeds=1, random_state=0
        ).fit(self.X, y)
        found["leave one out, 1 seed"] = LeaveOneOut(model, n_seeds=[1]).fit(self.X, y)
        X = StandardScaler().fit_transform(self.X)
        found["nearest rows"] = -(_alike(y, y, True) * _closeness(X, X)).sum(1)
        found["own loss"] = -np.log(model.predict_proba(self.X)[np.arange(len(y)), y] + 1e-15)
        others = cross_val_predict(self.case.model(0), self.X, y, cv=5, method="predict_proba")
        found["own loss, 5 folds"] = -np.log(others[np.arange(len(y)), y] + 1e-15)
        found["random"] = np.random.default_rng(draw).standard_normal(len(y))
        return {
            name: np.array(mislabel_detection(one, wrong).roc_auc) for name, one in found.items()
        }


def _alike(one: NDArray[Any], other: NDArray[Any], is_classes: bool) -> Scores:
    """Return 1 for rows of the same class, or with targets nearer than the median, and -1 for the others."""
    if is_classes:
        return np.where(one[:, None] == other, 1.0, -1.0)
    far = np.abs(one[:, None] - other)
    return np.where(far < np.median(far), 1.0, -1.0)


def _closeness(one: Scores, other: Scores) -> Scores:
    """Return exp(-d) of rows at a distance d, by the square root of the number of features."""
    return np.exp(-np.sqrt(((one[:, None] - other) ** 2).mean(-1)))


# ---- agreement ------------------------------------------------------------------------------


def cosine(one: Scores, other: Scores) -> Scores:
    """Return the cosine (n_test,) of centred scores."""
    a, b = (each - each.mean(-1, keepdims=True) for each in (one, other))
    size = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.divide((a * b).sum(-1), size, out=np.zeros(len(a)), where=size > 0)


def spearman(one: Scores, other: Scores) -> Scores:
    """Return the rank correlation (n_test,) of scores."""
    return cosine(rankdata(one, axis=-1), rankdata(other, axis=-1))


METRICS = {"Cosine": cosine, "Spearman": spearman}


def of_seeds(per_seed: Scores, metric: Callable[..., Scores]) -> dict[str, Scores]:
    """Return how seeds (n_seeds, n_test, n) agree with each other, test row by test row."""
    n = len(per_seed)
    single = [metric(per_seed[s], np.delete(per_seed, s, 0).mean(0)) for s in range(n)]
    found = {"one seed with the others": np.mean(single, 0)}
    pairs = [metric(per_seed[s], per_seed[t]) for s in range(n) for t in range(s)]
    alike = np.mean(pairs, 0)
    found["one seed with another"] = alike
    r = max(float(alike.mean()), 0.0)
    found["a perfect method"] = np.full(len(alike), np.sqrt(n * r / (1 + (n - 1) * r)))
    return found


# ---- tables ---------------------------------------------------------------------------------


def drawn(values: Scores, rng: np.random.Generator) -> Scores:
    """Return means (N_DRAWS,) of values drawn with replacement."""
    return values[rng.integers(len(values), size=(N_DRAWS, len(values)))].mean(1)


def cell(mean: float, draws: Scores, is_last: bool = False) -> str:
    """Return a mean with its interval, in the last column, or with half the width of it."""
    low, high = np.quantile(draws, [0.025, 0.975])
    if is_last:
        return f"{mean:.2f} [{low:.2f}, {high:.2f}]"
    return f"{mean:.2f} ±{(high - low) / 2:.2f}" if high > low else f"{mean:.2f}"


def show(
    title: str, found: dict[str, dict[str, Scores]], subsets: dict[str, Any] | None = None
) -> dict[str, str]:
    """Print a table of values (n_test,) by data set and method, and of `COMPARED`; return the last column.

    `subsets` has further draws (N_DRAWS,) of the mean, by data set and method.
    """
    sets, last = list(found), {}
    names = list(dict.fromkeys(name for one in sets for name in found[one]))

    def row(name: str, base: str | None = None) -> None:
        cells, means, pooled = [], [], np.zeros(N_DRAWS)
        for k, one in enumerate(sets):
            values, more = found[one][name], (subsets or {}).get(one, {})
            draws = more.get(name, 0.0)
            if base is not None:
                values, draws = values - found[one][base], draws - more.get(base, 0.0)
            draws = drawn(values, np.random.default_rng(k)) + draws
            cells.append(cell(values.mean(), draws))
            means.append(values.mean())
            pooled += draws / len(sets)
        mean, told = cell(float(np.mean(means)), pooled, is_last=True), name
        if base is not None:
            told = f"{name} - {base}"
            last[told] = f"{mean}, {sum(m > 0 for m in means)} of {len(sets)}"
        else:
            last[told] = mean
        print(f"| {told} | {' | '.join(cells)} | {mean} |", flush=True)

    print(f"\n{title}\n\n| | {' | '.join(sets)} | mean |\n| --- |{' --- |' * (len(sets) + 1)}")
    for name in names:
        row(name)
    for name, base in COMPARED:
        if name in names:
            row(name, base)
    return last


def show_wrong_labels(
    found: dict[str, dict[str, Scores]], levels: tuple[float, ...]
) -> dict[str, str]:
    """Print how well wrong labels are found, by data set and share of wrong labels; return the means."""
    means = {}
    print("\nWrong labels found, area under the curve\n")
    heads = [f"{name}, {level:.0%}" for name in found for level in levels]
    print(f"| | {' | '.join(heads)} | mean |\n| --- |{' --- |' * (len(heads) + 1)}")
    for method in next(iter(found.values())):
        areas = np.concatenate([found[name][method].mean(1) for name in found])
        print(f"| {method} | {' | '.join(f'{a:.2f}' for a in areas)} | {areas.mean():.2f} |")
        means[method] = f"{areas.mean():.2f}"
    return means


def show_summary(columns: dict[str, dict[str, str]]) -> None:
    """Print the last columns of all tables side by side."""
    names = dict.fromkeys(name for column in columns.values() for name in column)
    print(
        f"\nMeans over the data sets\n\n| | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}"
    )
    for name in sorted(names, key=lambda one: " - " in one):
        print(f"| {name} | {' | '.join(column.get(name, '') for column in columns.values())} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--data", default=os.environ.get("FIMODA_DATA"), help="directory of the data"
    )
    parser.add_argument("--output", type=Path, required=True, help="a folder for what is computed")
    parser.add_argument("--cases", nargs="+", default=None, choices=CASES, metavar="CASE")
    parser.add_argument("--small", action="store_true", help="smaller, in minutes")
    args = parser.parse_args()
    args.sizes = SMALL if args.small else Sizes()
    args.output = args.output / "small" if args.small else args.output
    args.output.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore")
    benches = {
        name: Bench(name, args) for name in args.cases or (SMALL_CASES if args.small else CASES)
    }

    scores = {name: bench.scores for name, bench in benches.items()}
    truths = {name: bench.left_out for name, bench in benches.items()}
    columns: dict[str, dict[str, str]] = {}
    for metric, measure in METRICS.items():
        found = {}
        for name, truth in truths.items():
            methods = {k: v for k, v in scores[name].items() if k != "leave one out"}
            agreed = {k: measure(v, truth.mean(0)) for k, v in methods.items()}
            found[name] = of_seeds(truth, measure) | agreed
        title = f"{metric} with leaving one out, {args.sizes.seeds} seeds"
        columns[f"leave one out, {metric}"] = show(title, found)

    for h, horizon in enumerate(args.sizes.horizons):
        found = {}
        for name, bench in benches.items():
            kept = bench.further
            truth = np.moveaxis(kept["per_seed"][h], -1, 0)
            found[name] = of_seeds(truth, cosine)
            for method, one in scores[name].items():
                found[name][method] = cosine(one[:, kept["rows"]], truth.mean(0))
            for method in ("BoostIn", "LeafInfluence"):
                found[name][f"{method}, ahead"] = cosine(kept[method][h], truth.mean(0))
        title = f"Cosine with further boosting, {horizon} rounds"
        columns[f"further boosting, {horizon}"] = show(title, found)

    found, subsets = {}, {}
    for name, bench in benches.items():
        lds = bench.datamodeling()
        found[name] = dict(zip(lds.methods, lds.values[:, 0], strict=True)) | {
            "ceiling": lds.ceiling[0]
        }
        draws = lds.bootstrap[:, 0] - lds.mean()
        subsets[name] = dict(zip(lds.methods, draws, strict=True))
    columns["LDS"] = show("Linear datamodeling score on halves", found, subsets)

    removed = {name: bench.removal() for name, bench in benches.items()}
    for k, part in enumerate(args.sizes.parts):
        rises = {name: {m: v[k] for m, v in one.items()} for name, one in removed.items()}
        title = f"Rise of the loss without {part:.0%} of the rows, in parts of it"
        columns[f"removal, {part:.0%}"] = show(title, rises)

    labelled = {
        n: b.wrong_labels()
        for n, b in benches.items()
        if b.case.is_classes and b.case.kind == "hist"
    }
    if labelled:
        columns["wrong labels"] = show_wrong_labels(labelled, args.sizes.wrong)
    show_summary(columns)

    print("\nSeconds of fit and scores of the test rows, the final model given\n")
    for name, bench in benches.items():
        timed = [*METHODS, *(f"Downsampling, {fits} fits" for fits in args.sizes.fits)]
        took = {m: float(bench.kept(m, dict)["seconds"]) for m in timed}
        print(f"{name}: " + ", ".join(f"{m} {s:.2f}" for m, s in took.items()))


if __name__ == "__main__":
    main()
