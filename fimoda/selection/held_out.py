"""The loss of each row under models that were fitted without it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import is_classifier
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict

from .._validation import MAX_SEED, check_random_state
from ..adapters import weights_name

#: Times that the rows are cut into halves.
N_REPEATS = 5


def held_out_losses(
    estimator: Any, X: Any, y: NDArray[Any], weights: NDArray[Any] | None, random_state: Any
) -> NDArray[np.float64]:
    """Return the mean loss (n_samples,) of each row under models that were fitted without it.

    The rows are cut into random halves `N_REPEATS` times, and each half is predicted by a clone of the
    estimator that is fitted, with weights if there are any, on the other: as many models judge a row
    as there are cuts. The loss of a target is the squared error, summed over outputs. That of a label
    is by how much the best other class is ahead of it, in probabilities or else in values of the
    decision function; of a classifier without both it is 1 where the label is not predicted, else 0.
    """
    rng = check_random_state(random_state)
    is_label = is_classifier(estimator) and y.ndim == 1
    folds = StratifiedKFold if is_label else KFold
    ways = ["predict_proba", "decision_function"] if is_label else []
    way = next((way for way in ways if hasattr(estimator, way)), "predict")
    params = None if weights is None else {weights_name(estimator): weights}
    losses = np.zeros(len(y))
    with warnings.catch_warnings():
        # a class of one row is in one half only: no model without the row knows it
        warnings.filterwarnings("ignore", "The least populated class in y")
        warnings.filterwarnings("ignore", "Number of classes in training fold")
        for _ in range(N_REPEATS):
            halves = folds(2, shuffle=True, random_state=rng.randint(MAX_SEED))
            found = cross_val_predict(estimator, X, y, cv=halves, method=way, params=params)
            if way != "predict":
                losses += _behind(found, y)
            elif is_classifier(estimator):
                losses += (found != y).reshape(len(y), -1).mean(1)
            else:
                losses += ((found.reshape(y.shape) - y) ** 2).reshape(len(y), -1).sum(1)
    return losses / N_REPEATS


def _behind(values: NDArray[np.float64], y: NDArray[Any]) -> NDArray[np.float64]:
    """Return by how much the best other class is ahead of each label, from values (n, C) or (n,)."""
    if values.ndim == 1:
        values = np.stack([-values, values], axis=1) / 2
    known = values > np.finfo(values.dtype).min  # all but those of unknown classes
    values = np.maximum(values, values[known].min())
    own = np.unique(y, return_inverse=True)[1][:, None]
    others = values.copy()
    np.put_along_axis(others, own, -np.inf, axis=1)
    return others.max(1) - np.take_along_axis(values, own, axis=1)[:, 0]
