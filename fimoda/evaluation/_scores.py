"""Score matrices of attributors and arrays, checked against what they are judged by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._validation import check_is_fitted
from ..base import BaseAttributor

Method = BaseAttributor | NDArray[np.float64]


def check_methods(methods: Any) -> Mapping[str, Method]:
    """The methods, if they are named and at least one."""
    if not isinstance(methods, Mapping):
        raise ValueError(
            "methods must be a dict of names to fitted attributors or score matrices, got "
            f"{type(methods).__name__}. Pass {{'name': scores}}."
        )
    if not methods:
        raise ValueError("methods must name at least one attributor or score matrix, got none.")
    return methods


def check_training_rows(label: str, attributor: BaseAttributor, n_train: int) -> None:
    """Raise if the attributor was fitted on another number of training rows.

    A fold or a sample of them has columns that are other rows.
    """
    check_is_fitted(attributor, "model_")
    found = len(attributor._y)
    if found != n_train:
        raise ValueError(
            f"{label} must be fitted on the {n_train} training rows that it is judged by, got one "
            f"fitted on {found}. In a search over its parameters pass cv=AllRows(), and no "
            "resource='n_samples'."
        )


def score_matrix(
    label: str, method: Any, shape: tuple[int, int], X_test: Any, y_test: Any
) -> NDArray[np.float64]:
    """Scores of the given shape (n_test, n_train); NaN for training rows that are not scored.

    Errors name the argument by its `label`.
    """
    n_test, n_train = shape
    if isinstance(method, BaseAttributor):
        if X_test is None:
            raise ValueError("X_test must be given to score with attributors.")
        check_training_rows(label, method, n_train)
        found = np.asarray(method.transform(X_test, y_test), dtype=float)
        columns = np.asarray(method.train_indices_)
        scores = np.full((len(found), n_train), np.nan)
        scores[:, columns] = found
    else:
        scores = np.asarray(method, dtype=float)
        if scores.ndim != 2 or scores.shape[1] != n_train:
            raise ValueError(
                f"{label} must be a fitted attributor or a matrix (n_test, n_train) with a "
                f"column for each of the {n_train} training rows, got {type(method).__name__} of shape "
                f"{scores.shape}."
            )
        if not np.isfinite(scores).all():
            raise ValueError(f"{label} has scores that are NaN or infinite.")
    if len(scores) != n_test:
        raise ValueError(
            f"{label} has {len(scores)} test rows, {n_test} were measured. Score the same "
            "test rows."
        )
    return scores
