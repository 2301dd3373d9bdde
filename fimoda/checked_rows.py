"""From the rows that a user gives to those that a model takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from scipy.sparse import issparse
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ._arrays import (
    check_inputs,
    check_rows,
    check_unmasked,
    dense_rows,
    is_several,
    require_no_dates,
    require_one_shape,
)
from ._validation import may_miss_values, validate_data
from .adapters import (
    has_earlier_steps,
    require_dense_rows,
    takes_several_inputs,
    takes_sparse_rows,
)
from .rows import Inputs, SeveralInputs, parts

#: Bytes that sparse rows may take as an array, if ``memory_budget`` is not larger.
SPARSE_BUDGET = 2 * 2**30


def checked_rows(attributor: Any, X: Any, reset: bool, raw: bool) -> Any:
    """Return rows that a user gives to an attributor, checked.

    They are an array, or a dict or a tuple of arrays for a module of several inputs; `raw` ones, for the
    earlier steps of a Pipeline, are left to those steps. With `reset` the attributor remembers their columns.
    """
    several = is_several(X) and takes_several_inputs(attributor.estimator)
    strange = isinstance(X, dict | set | str | bytes | Iterator) and not several
    if strange and not issparse(X):  # one of scipy's is a dict
        raise TypeError(
            f"X must be an array, a DataFrame or a list with one entry a row, got a {type(X).__name__}. "
            "Columns in a dict make a frame: pandas.DataFrame(X). Only torch modules take several inputs."
        )
    if isinstance(X, Dataset | DataLoader) and not hasattr(X, "__array__"):
        raise TypeError(
            f"X must be an array, a DataFrame or a list with one entry a row, got a {type(X).__name__}, "
            "which holds targets too. Stack its rows and its targets: X = "
            "numpy.stack([x for x, _ in dataset]) and y = numpy.array([y for _, y in dataset])."
        )
    if several:
        if reset:  # names of columns that an earlier fit has seen
            for name in ("n_features_in_", "feature_names_in_"):
                vars(attributor).pop(name, None)
        return check_inputs(X)
    if isinstance(X, Tensor):
        X = X.detach().cpu().numpy()
    if isinstance(X, tuple):
        X = list(X)
    check_unmasked(X, "X")
    names = None if reset else getattr(attributor, "feature_names_in_", None)
    if names is not None and hasattr(X, "iloc") and X.ndim == 1 and list(X.index) == list(names):
        raise ValueError(
            "X must be a frame of rows, got one row of it as a Series. Take it by a list, as "
            "frame.iloc[[i]], or make it a frame again: X.to_frame().T."
        )
    objective = None if reset else getattr(attributor, "_objective", None)
    known = () if objective is None else tuple(getattr(objective.rows.inputs, "shape", ()))
    if raw:
        kind = getattr(getattr(X, "dtype", None), "kind", "O")
        if (
            not reset
            and getattr(X, "ndim", 2) == 1
            and kind in "fiub"
            and hasattr(attributor, "n_features_in_")
        ):
            raise ValueError(
                f"X must be rows of {attributor.n_features_in_} features, got one vector of shape {X.shape}. "
                "Reshape your data: X.reshape(1, -1) is one row."
            )
        if len(known) <= 2 and (reset or getattr(X, "ndim", 2) <= 2):  # images have no features
            validate_data(attributor, X, reset=reset, skip_check_array=True)
        return X
    require_no_dates(X)
    if len(known) > 2:  # features are not counted along an axis of channels
        return _of_rank(check_rows(X), known)
    require_one_shape(X, "X")
    try:
        return validate_data(
            attributor,
            X,
            reset=reset,
            dtype="numeric",
            allow_nd=True,
            ensure_all_finite="allow-nan" if may_miss_values(attributor) else True,
            accept_sparse="csr" if takes_sparse_rows(attributor.estimator) else False,
        )
    except ValueError as error:
        if "could not convert string" not in str(error):
            raise
        raise ValueError(
            f"X must hold numbers, as the model takes them: {error}. A Pipeline that encodes text "
            "before the model may be passed as the estimator."
        ) from error


def _of_rank(X: Any, known: tuple[int, ...]) -> Any:
    """Return test rows, if they have as many axes as the training rows of a known shape."""
    if X.ndim != len(known):
        raise ValueError(
            f"X must have rows of shape {known[1:]}, as in fit, got rows of shape {X.shape[1:]}."
        )
    return X


def seen_rows(estimator: Any, seen: Any, memory_budget: int) -> Any:
    """Return rows as the last step of a Pipeline sees them, checked: dense, if it takes dense ones."""
    require_dense_rows(estimator, seen)
    seen = dense_rows(seen, max(memory_budget, SPARSE_BUDGET))
    if not has_earlier_steps(estimator):
        return seen
    return check_rows(seen, "X after the Pipeline's earlier steps")


def require_squares(inputs: Inputs) -> None:
    """Raise ValueError if the square of a number, which gradients have in them, overflows."""
    for X in parts(inputs):
        if not isinstance(X, Tensor) or not X.is_floating_point() or not X.numel():
            continue
        largest = max(abs(float(end)) for end in X.detach().aminmax())
        if largest > torch.finfo(X.dtype).max ** 0.5:
            row = int((X.abs().flatten(1).amax(1) == X.abs().max()).nonzero()[0])
            raise ValueError(
                f"X holds {largest:.3g} in row {row}, whose square is more than {X.dtype} can hold, so "
                "that gradients would be infinite. Scale the features, or remove the row."
            )


def require_same_inputs(known: Inputs, inputs: Inputs) -> None:
    """Raise ValueError unless test rows are made as the training rows are."""
    own, new = _structure(known), _structure(inputs)
    if own != new:
        missing = "".join(f" X[{name!r}] is missing." for name in own if name not in new)
        raise ValueError(
            f"X must have the inputs that it had in fit, {_told(own)}, got {_told(new)}.{missing}"
        )
    for name, old, part in zip(own or [""], parts(known), parts(inputs), strict=True):
        if isinstance(part, Tensor) and part.dim() != old.dim():
            where = f"X[{name!r}]" if own else "X"
            raise ValueError(
                f"{where} must have rows of shape {tuple(old.shape[1:])}, as in fit, got rows of shape "
                f"{tuple(part.shape[1:])}."
            )


def _structure(inputs: Inputs) -> list[Any]:
    """Return the names or numbers of several inputs; none of a single one."""
    if not isinstance(inputs, SeveralInputs):
        return []
    return sorted(inputs.given) if isinstance(inputs.given, dict) else [*range(len(inputs.given))]


def _told(structure: list[Any]) -> str:
    """Return names or numbers of inputs for a message."""
    return ", ".join(f"X[{name!r}]" for name in structure) or "one array"
