"""Training rows in the order in which they are removed or looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._scores import Method, score_matrix


def most_helpful(
    label: str, method: Method, shape: tuple[int, int], X_test: Any, y_test: Any, k: int
) -> NDArray[np.int64]:
    """The k most helpful rows of each test row, the most helpful first, (n_test, k)."""
    scores = score_matrix(label, method, shape, X_test, y_test)
    scored = int(np.isfinite(scores[0]).sum())
    if k > scored:
        raise ValueError(f"k must be at most the {scored} rows that {label} scores, got {k}.")
    return largest(scores, k)


def largest(scores: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Columns of the k largest entries of each row, equal ones in their order, NaN last."""
    return np.argsort(np.nan_to_num(-scores, nan=np.inf), axis=1, kind="stable")[:, :k]


def random_rows(
    y_train: Any, y_test: Any, n_test: int, k: int, same_class: bool, rng: Any
) -> NDArray[np.int64]:
    """Up to k random rows for each test row, (n_test, k); -1 where its class has no more."""
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
