"""Counterfactuals: predictions after the rows that should hold them are removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validation import StrOptions, check_random_state, checks_arguments
from ..base import BaseAttributor
from ..training.outcomes import standard_error
from ..training.subset_outcomes import mean_and_error
from ._retraining import Train, as_train, fitted_weights
from ._scores import Method, labelled, largest, score_matrix
from ._tables import tidy

#: Name of the baseline that removes rows at random.
RANDOM = "Random"


@dataclass(frozen=True)
class SubsetRemovalCurve:
    """Effect of removing the rows that help most, by their number.

    Attributes
    ----------
    methods : list of str
        Names of the methods, ``"Random"`` last.
    k : ndarray of shape (n_k,)
        Numbers of rows removed.
    test_rows : ndarray of shape (n_rows,)
        Indices of the test rows that are judged.
    effects : ndarray of shape (n_methods, n_k, n_rows)
        Classification: 1 if removing at most k rows flips the row's prediction, otherwise 0.
        Regression: change of the absolute error.
    task : {"classification", "regression"}
        What the effects are.
    n_trained : int
        Subsets trained, the full data included.
    n_failed : int
        Of the judgements, those whose trainings all failed; they count as no effect.
    """

    methods: list[str]
    k: NDArray[np.int64]
    test_rows: NDArray[np.int64]
    effects: NDArray[np.float64]
    task: Literal["classification", "regression"]
    n_trained: int
    n_failed: int

    def mean(self) -> NDArray[np.float64]:
        """Return the fraction flipped, or the mean change of the absolute error, (n_methods, n_k)."""
        return self.effects.mean(-1)

    def sem(self) -> NDArray[np.float64]:
        """Return the standard error over test rows, (n_methods, n_k); NaN for one test row."""
        return standard_error(self.effects)

    def to_frame(self) -> Any:
        """Return a tidy pandas DataFrame: one row per method and k, with mean and sem."""
        return tidy({"method": self.methods, "k": self.k}, mean=self.mean(), sem=self.sem())


@checks_arguments(task=[StrOptions({"classification", "regression"})])
def subset_removal_curve(
    methods: Mapping[str, Method],
    train: Any,
    y_train: ArrayLike,
    X_test: Any = None,
    y_test: Any = None,
    *,
    X_train: Any = None,
    sample_weight: ArrayLike | None = None,
    k: Sequence[int] = (1, 2, 5, 10, 20),
    task: Literal["classification", "regression"] = "classification",
    random_baseline: bool = True,
    random_state: Any = None,
) -> SubsetRemovalCurve:
    """Remove the k rows that help a test row most, train again, and see what becomes of it.

    *Classification.* Judged are the test rows that the model trained on all rows classifies correctly
    with every seed. A row flips if, without its k most helpful rows, it is misclassified with half of
    the seeds at least (or in the mean of what a callable `train` measures). The smallest k comes
    first: a row that has flipped stays so and is not trained for again. *Regression.* All test rows
    are judged by the change of their absolute error, for every k.

    The rows removed are those with the largest scores, so scores must be of the loss. The baseline
    removes random rows, of the test row's own class in classification (all of them, if k is more).
    Subsets that several methods or test rows ask for are trained once.

    Parameters
    ----------
    methods : dict of str to fitted attributor or ndarray
        Attributors of the loss fitted on the same training rows, or their scores (n_test, n_train).
    train : estimator, attributor or callable
        What is trained again, by `train_on_subsets`: a model, that of an attributor, or, with its
        settings, that of a retraining method such as ``LeaveOneOut(net, n_epochs=20, n_seeds=3)``; with a
        ``checkpoint_dir`` and its seeds fixed, a call that was ended goes on.
        Or a callable: ``train(subsets)`` trains on each subset, given as a matrix of bool
        (n_subsets, n_train), and returns an object with ``measured`` (n_subsets, n_test, n_seeds).
        Classification: a number that is positive if the test row is classified correctly.
        Regression: the absolute error. A measurement of NaN is left out of the mean over seeds.
    y_train : array-like of shape (n_train,)
        Targets of the training rows.
    X_test, y_test : array-like, default=None
        The test rows and their targets; needed unless all methods are matrices and `train` a
        callable. The baseline of a classification needs `y_test` in any case.
    X_train : array-like, default=None
        The training rows; needed unless `train` is a callable.
    sample_weight : array-like of shape (n_train,), default=None
        Weights of the rows in training; by default those that `train` or one of the attributors was fitted
        with.
    k : sequence of int, default=(1, 2, 5, 10, 20)
        Numbers of rows to remove, increasing.
    task : {"classification", "regression"}, default="classification"
        How test rows are judged.
    random_baseline : bool, default=True
        Also remove rows at random.
    random_state : int, RandomState instance or None, default=None
        Draws the rows of the baseline.

    Returns
    -------
    SubsetRemovalCurve

    Raises
    ------
    ValueError
        If no test row is classified correctly with all seeds, shapes do not match, `k` asks for
        more rows than are scored, or for all rows of one of two classes for the baseline.

    References
    ----------
    Bae et al., "Training Data Attribution via Approximate Unrolled Differentiation", 2024, arXiv
    2405.12186, section B.3.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from fimoda import ExactInfluence, LeaveOneOut, subset_removal_curve
    >>> from fimoda.datasets import split_breast_cancer
    >>> X, X_test, y, y_test = split_breast_cancer()
    >>> X_test, y_test = X_test[:10], y_test[:10]
    >>> model = LogisticRegression().fit(X, y)
    >>> methods, train = {"exact": ExactInfluence(model).fit(X, y)}, LeaveOneOut(model, n_seeds=1)
    >>> settings = {"X_train": X, "k": [20, 80], "random_state": 0}
    >>> curve = subset_removal_curve(methods, train, y, X_test, y_test, **settings)
    >>> curve.mean()[:, 1]  # after 80 rows: by influence, and at random
    array([0.2, 0. ])
    """
    by_label = labelled(methods)
    _check_measurements(by_label)
    n_train = len(np.asarray(y_train))
    sizes = _check_k(k, n_train)
    flips = task == "classification"
    if random_baseline and flips:
        _check_two_classes(y_train, sizes[-1])
    if sample_weight is None:
        sample_weight = fitted_weights([train, *methods.values()])
    trains = as_train(train, X_train, y_train, X_test, y_test, sample_weight, flips)
    retrain = _Retraining(trains, n_train)
    full = retrain.measured(np.ones((1, n_train), dtype=bool))[0]  # (n_test, n_seeds)
    before = _mean(full)
    test_rows = np.flatnonzero((full > 0).all(1) if flips else np.isfinite(before))
    if not test_rows.size:
        wanted = "a positive number (classified correctly) with every seed" if flips else "a number"
        raise ValueError(
            f"train must measure {wanted} for at least one test row after training on all rows; it did "
            f"so for none of {len(full)}."
        )
    orders = []
    for label, method in by_label.items():
        scores = score_matrix(label, method, (len(full), n_train), X_test, y_test)
        orders.append(largest(label, scores, sizes[-1]))
    names = list(methods)
    if random_baseline:
        if RANDOM in methods:
            raise ValueError(
                f"methods must not hold {RANDOM!r}, the name of the baseline. Rename the method, or pass "
                "random_baseline=False."
            )
        names.append(RANDOM)
        rng = check_random_state(random_state)
        orders.append(_random_rows(y_train, y_test, len(full), sizes[-1], flips, rng))
    removed = np.stack(orders)[:, test_rows]  # (n_methods, n_rows, largest k), -1 is no row
    effects, n_failed = _effects(retrain, removed, test_rows, sizes, None if flips else before)
    return SubsetRemovalCurve(names, sizes, test_rows, effects, task, retrain.n_trained, n_failed)


@dataclass
class _Retraining:
    """Trains distinct subsets, and counts them."""

    train: Train
    n_train: int
    n_trained: int = 0

    def measured(self, subsets: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return measurements (n_subsets, n_test, n_seeds); equal subsets are trained once."""
        distinct, place = np.unique(subsets, axis=0, return_inverse=True)
        measured = np.asarray(self.train(distinct).measured, dtype=float)
        if measured.ndim != 3 or len(measured) != len(distinct):
            raise ValueError(
                f"train must measure (n_subsets, n_test, n_seeds) with n_subsets = {len(distinct)}, got "
                f"shape {measured.shape}."
            )
        self.n_trained += len(distinct)
        return measured[place.ravel()]


def _effects(
    retrain: _Retraining,
    removed: NDArray[np.int64],
    test_rows: NDArray[np.int64],
    sizes: NDArray[np.int64],
    before: NDArray[np.float64] | None,
) -> tuple[NDArray[np.float64], int]:
    """Return effects (n_methods, n_k, n_rows) and the number of failures; `before` for a regression."""
    n_methods, n_rows, _ = removed.shape
    effects = np.zeros((n_methods, len(sizes), n_rows))
    n_failed = 0
    for j, size in enumerate(sizes):
        if before is None:
            effects[:, j] = effects[:, max(j - 1, 0)]  # flipped rows stay so
        asked = np.ones((n_methods, n_rows)) if before is not None else effects[:, j] == 0
        method, row = np.nonzero(asked)
        if not method.size:
            continue
        subsets = np.ones((len(method), retrain.n_train + 1), dtype=bool)
        np.put_along_axis(subsets, removed[method, row, :size], False, 1)  # -1: the column too many
        measured = retrain.measured(subsets[:, :-1])
        mean = _mean(measured[np.arange(len(method)), test_rows[row]])
        failed = np.isnan(mean)
        n_failed += int(failed.sum())
        change = mean <= 0 if before is None else mean - before[test_rows[row]]
        effects[method, j, row] = np.where(failed, 0, change)
    return effects, n_failed


def _mean(measured: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the seeds (last axis) that did not fail; NaN if all did."""
    return mean_and_error(np.where(np.isfinite(measured), measured, np.nan))[0]


def _random_rows(
    y_train: Any, y_test: Any, n_test: int, k: int, same_class: bool, rng: Any
) -> NDArray[np.int64]:
    """Return up to k random rows for each test row, (n_test, k); -1 where its class has no more."""
    order = np.array([rng.permutation(len(y_train)) for _ in range(n_test)])
    if not same_class:
        return order[:, :k]
    if y_test is None:
        raise ValueError("y_test must be given for the baseline, which removes rows of its class.")
    classes, wanted = np.asarray(y_train).ravel(), np.asarray(y_test).ravel()
    if len(wanted) != n_test:
        raise ValueError(
            f"y_test must have one entry for each of the {n_test} test rows that train measures, got "
            f"{len(wanted)}."
        )
    other = classes[order] != wanted[:, None]
    first = np.argsort(other, axis=1, kind="stable")[:, :k]
    rows = np.take_along_axis(order, first, 1)
    return np.where(np.take_along_axis(other, first, 1), -1, rows)


def _check_measurements(methods: Mapping[str, Method]) -> None:
    """Raise ValueError for attributors of a measurement that is better when larger."""
    for label, method in methods.items():
        if isinstance(method, BaseAttributor) and method.measurement in ("margin", "log_prob"):
            raise ValueError(
                f"{label} must score the loss, of which rows with the largest scores help, got "
                f"measurement={method.measurement!r}. Pass minus its scores."
            )


def _check_two_classes(y_train: ArrayLike, largest_k: int) -> None:
    """Raise ValueError unless the baseline leaves a row of either class."""
    classes, sizes = np.unique(np.asarray(y_train).ravel(), return_counts=True)
    if len(classes) == 2 and largest_k >= sizes.min():
        raise ValueError(
            f"k must be below {sizes.min()}, the rows of class {classes[sizes.argmin()]!s}: removing "
            f"{largest_k} at random would leave the other class alone. Lower k, or pass "
            "random_baseline=False."
        )


def _check_k(k: Any, n_train: int) -> NDArray[np.int64]:
    """Return increasing numbers of rows that leave one at least."""
    sizes = np.atleast_1d(np.asarray(k))
    fine = sizes.ndim == 1 and sizes.size and sizes.dtype.kind in "iu"
    if not fine or sizes[0] < 1 or (np.diff(sizes) <= 0).any() or sizes[-1] >= n_train:
        raise ValueError(
            f"k must be increasing numbers of rows from 1 to {n_train - 1}, the training rows less one, "
            f"got {k!r}."
        )
    return sizes.astype(np.int64)
