"""Models of boosting that are grown anew, or in further rounds, each on some of the rows."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..adapters import as_tree_model, continued, refit, with_rounds_held
from ..rows import RawRows
from ..trees import Member
from ..trees.ensemble import Floats


def grown_on(
    model: Any,
    seen: tuple[RawRows, Any, Any],
    n_rounds: int | None,
    rows: NDArray[np.int64],
    seed: int,
) -> Member:
    """Return a model grown anew on some rows, or in further rounds from the final one, with its run.

    In further rounds the others stay with weight zero, so that classes and categories keep their codes.
    """
    X, y, weights = seen
    if n_rounds is None:
        X, y, weights = X[rows], y[rows], None if weights is None else weights[rows]
        model = refit(with_rounds_held(model), X.values, y, weights, seed)
    else:
        if len(rows) < len(y):
            kept = np.isin(np.arange(len(y)), rows)
            weights = kept * (np.ones(len(y)) if weights is None else weights)
        model = continued(model, X, y, weights, n_rounds, seed)
    view = as_tree_model(model, X.values, y, weights)
    first = 0 if n_rounds is None else view.n_rounds - n_rounds
    return Member(view, view.run(view.rows(X, y, weights), first), rows)


def agreement_of_halves(each: Floats) -> float:
    """Return the cosine of the scores of one half of the models with the other's, centred, mean of rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rows that none of a half had
        halves = [np.nanmean(each[k::2], axis=0) for k in (0, 1)]
    known = np.isfinite(halves[0] + halves[1]).all(0)
    a, b = (half[:, known] - half[:, known].mean(1, keepdims=True) for half in halves)
    sizes = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return float(np.mean((a * b).sum(1) / np.maximum(sizes, np.finfo(float).tiny)))
