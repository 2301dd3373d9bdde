"""Methods and the outcomes that judge them, checked against each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .._validation import check_is_fitted
from ..base import BaseAttributor

Method = BaseAttributor | NDArray[np.float64]


class Outcomes(Protocol):
    """Rows that each model was trained on (n_subsets, n_train), and what the test rows measure then.

    The latter (n_subsets, n_test, n_seeds) is NaN where training failed. See `train_on_subsets`.
    """

    @property
    def subsets(self) -> NDArray[np.bool_]: ...

    @property
    def measured(self) -> NDArray[np.float64]: ...


def labelled(methods: Any) -> dict[str, Method]:
    """Return methods by what errors call them; raise ValueError unless they are named, and any."""
    if not isinstance(methods, Mapping):
        raise ValueError(
            "methods must be a dict of names to fitted attributors or score matrices, got "
            f"{type(methods).__name__}. Pass {{'name': scores}}."
        )
    if not methods:
        raise ValueError("methods must name at least one attributor or score matrix, got none.")
    return {f"methods[{name!r}]": method for name, method in methods.items()}


def check_training_rows(label: str, attributor: BaseAttributor, n_train: int) -> None:
    """Raise ValueError if the attributor was fitted on another number of training rows.

    A fold or a sample of them has columns that are other rows.
    """
    check_is_fitted(attributor, "model_")
    found = len(attributor._objective)
    if found != n_train:
        raise ValueError(
            f"{label} must be fitted on the {n_train} training rows that it is judged by, got one "
            f"fitted on {found}. In a search over its parameters pass cv=AllRows(), and no "
            "resource='n_samples'."
        )


def require_unit(attributor: BaseAttributor) -> None:
    """Raise ValueError for a method whose scores are no changes of outputs."""
    if not attributor._in_unit:
        raise ValueError(
            "attributor must estimate what removing a row changes, in the unit of the outputs; the scores of "
            f"{type(attributor).__name__} only rank rows, compare distributions, or share a value among "
            "the rows. Use an influence function, LeaveOneOut or Downsampling."
        )


def attributed(
    label: str,
    attributor: BaseAttributor,
    n_train: int | None,
    X_test: Any,
    y_test: Any,
    epochs: list[float] | None = None,
) -> NDArray[np.float64]:
    """Return an attributor's scores (..., n_test, n_train); NaN for training rows without a score.

    At each of these horizons, if it has them all. Errors name the argument by its `label`.
    """
    if X_test is None:
        raise ValueError("X_test must be given to score with attributors.")
    if n_train is not None:
        check_training_rows(label, attributor, n_train)
    if epochs is None:
        found = np.asarray(attributor.transform(X_test, y_test), dtype=float)
    else:
        found = attributor._at_horizons(X_test, y_test, epochs)
    scores = np.full((*found.shape[:-1], len(attributor._objective)), np.nan)
    scores[..., attributor.train_indices_] = found
    return scores


def score_matrix(
    label: str, method: Any, shape: tuple[int, int], X_test: Any, y_test: Any
) -> NDArray[np.float64]:
    """Return scores of this shape (n_test, n_train); NaN for training rows without a score."""
    n_test, n_train = shape
    if isinstance(method, BaseAttributor):
        scores = attributed(label, method, n_train, X_test, y_test)
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


def largest(label: str, scores: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Return the columns (n_test, k) of the k largest entries, equal ones in their order; NaN is none."""
    known = int(np.isfinite(scores[0]).sum())
    if k > known:
        raise ValueError(f"k must be at most {known}, the rows with a score in {label}, got {k}.")
    return np.argsort(np.nan_to_num(-scores, nan=np.inf), axis=1, kind="stable")[:, :k]
