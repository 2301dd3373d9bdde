"""Groups of training rows, as users name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .._validation import check_subsets, is_integer, is_missing
from ..base import BaseAttributor

Masks = NDArray[np.bool_]


def as_groups(
    groups: Any, attributor: BaseAttributor, X_train: Any, random_state: Any
) -> tuple[list[Any], Masks]:
    """Return names of groups, and their rows as a mask (n_groups, n_train)."""
    n = len(attributor._objective)
    if is_integer(groups) or hasattr(groups, "fit_predict"):
        groups = _clusters(groups, attributor, random_state)
    elif isinstance(groups, str):
        groups = _column(groups, X_train)
    listed: Any
    if isinstance(groups, Mapping):
        names, listed = list(groups), list(groups.values())
    elif _are_labels(groups):
        names, listed = _by_label(groups, n)
    else:
        listed = groups if isinstance(groups, np.ndarray) else list(groups)
        names = list(range(len(listed)))
    try:
        masks = check_subsets(listed, n)
    except ValueError as error:
        raise ValueError(str(error).replace("subset", "group")) from None
    whole = np.flatnonzero(masks.all(1))
    if whole.size:
        raise ValueError(
            f"groups must leave some row to train on; group {names[whole[0]]!r} has all {n} of them."
        )
    return names, masks


def _are_labels(groups: Any) -> bool:
    """Return whether there is one entry for each row, and not a list of rows for each group."""
    if isinstance(groups, np.ndarray) or hasattr(groups, "to_numpy"):
        array = np.asarray(groups)
        return array.ndim == 1 and not (array.size and np.ndim(array[0]))
    entries = list(groups)
    return bool(entries) and not any(np.ndim(e) or isinstance(e, set | range) for e in entries)


def _by_label(labels: Any, n: int) -> tuple[list[Any], list[NDArray[np.int64]]]:
    """Return the labels that there are, and the rows of each; rows without a label are in no group."""
    given = labels if hasattr(labels, "to_numpy") else np.asarray(labels, dtype=object)
    given = np.asarray(given, dtype=object)
    if len(given) != n:
        raise ValueError(
            f"groups as labels must have one for each of the {n} training rows, got {len(given)}. For "
            "groups by their rows pass a list of lists of indices."
        )
    rows: dict[Any, list[int]] = {}
    for row, label in enumerate(given):
        if not is_missing(label) and label == label:  # NaT is not
            rows.setdefault(label, []).append(row)
    return list(rows), [np.array(found) for found in rows.values()]


def _column(name: str, X_train: Any) -> Any:
    if X_train is None:
        raise ValueError(
            f"X_train must be the training frame where groups={name!r} names a column, got None. Pass it, or "
            "the labels themselves."
        )
    if not hasattr(X_train, "columns") or name not in X_train.columns:
        known = [] if not hasattr(X_train, "columns") else [str(c) for c in X_train.columns]
        raise ValueError(
            f"groups={name!r} must be a column of the frame X_train, got "
            f"{f'one with columns {known[:20]}' if known else f'X_train of {type(X_train).__name__}'}. "
            "Pass X_train, or the labels themselves."
        )
    return X_train[name]


def _clusters(clusterer: Any, attributor: BaseAttributor, random_state: Any) -> NDArray[Any]:
    """Return clusters of the rows by their features, as the model takes them; -1 is none."""
    inputs = attributor._objective.rows.inputs
    if isinstance(inputs, Tensor):
        features = inputs.flatten(1).double().cpu().numpy()
    else:
        try:
            features = np.asarray(getattr(inputs, "values", None), dtype=float)
        except (TypeError, ValueError):
            features = np.full((1, 1), np.nan)
    if features.ndim < 2 or not np.isfinite(features).all():
        raise ValueError(
            "groups must be labels or lists of rows for this model: clusters need rows of numbers without "
            "missing values. Cluster the rows as you see fit, and pass the labels."
        )
    if is_integer(clusterer):
        from sklearn.cluster import KMeans

        if not 2 <= clusterer <= len(features):
            raise ValueError(
                f"groups as a number of clusters must be from 2 to the {len(features)} training rows, got "
                f"{clusterer}."
            )
        clusterer = KMeans(clusterer, n_init=4, random_state=random_state)
    labels = np.asarray(clusterer.fit_predict(features.reshape(len(features), -1)), dtype=object)
    labels[labels == -1] = None
    return labels
