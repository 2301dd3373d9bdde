"""Arrays, frames, sparse matrices and lists that users give: their rows, and whether they hold numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.utils import _safe_indexing, check_array
from sklearn.utils.validation import _num_samples


def native(array: NDArray[Any]) -> NDArray[Any]:
    """Return numbers in a type that torch knows: in this machine's byte order, float64 at most."""
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def is_several(X: Any) -> bool:
    """Return whether X is a dict of arrays, or a tuple of them: what a module of several inputs takes."""
    if isinstance(X, Mapping):
        return not issparse(X)  # one of scipy's is a dict
    return isinstance(X, tuple) and len(X) > 0 and all(getattr(x, "ndim", 0) > 0 for x in X)


def entries(X: Any) -> list[tuple[str, Any]]:
    """Return the arrays of a dict or a tuple, each with a name for messages: ``X["ids"]``, ``X[0]``."""
    pairs = X.items() if isinstance(X, Mapping) else enumerate(X)
    return [(f'["{key}"]' if isinstance(key, str) else f"[{key!r}]", part) for key, part in pairs]


def of_each(function: Callable[[Any], Any], X: Any) -> Any:
    """Return what a function gives for an array, or for each one of a dict or a tuple of arrays."""
    if not is_several(X):
        return function(X)
    found = [function(part) for _, part in entries(X)]
    return dict(zip(X, found, strict=True)) if isinstance(X, Mapping) else tuple(found)


def n_rows(X: Any) -> int:
    """Return the number of rows of an array, a frame, a sparse matrix, a list, or a dict of arrays."""
    return int(_num_samples(entries(X)[0][1] if is_several(X) else X))


def row_names(X: Any) -> Any:
    """Return the names of rows: themselves, if they are texts, or the index of a frame; None without one."""
    index = X.index if hasattr(X, "iloc") else None
    return index if (found := texts(X)) is None else found


def texts(X: Any) -> list[str] | None:
    """Return rows that are a text each, as a list; None for others and where a pandas index names them."""
    index = X.index if hasattr(X, "iloc") else None
    if index is not None and (index.name is not None or index.dtype.kind not in "iu"):
        return None
    if hasattr(X, "ndim") and (X.ndim != 1 or getattr(X.dtype, "kind", "O") not in "OTU"):
        return None
    listed = isinstance(X, list | tuple) or hasattr(X, "ndim")
    return list(X) if listed and len(X) and all(isinstance(row, str) for row in X) else None


def take_rows(X: Any, indices: NDArray[np.int64]) -> Any:
    """Return some rows of an array, a frame, a sparse matrix, a list, or a dict, of its own type."""
    plain = type(X) is np.ndarray  # which takes no look at what it is
    return X[indices] if plain else of_each(lambda part: _safe_indexing(part, indices), X)


def take_columns(X: Any, indices: NDArray[np.int64]) -> Any:
    """Return some columns of an array, a frame or a sparse matrix, of its own type; lists become arrays."""
    return _safe_indexing(np.asarray(X) if isinstance(X, list | tuple) else X, indices, axis=1)


def check_unmasked(values: Any, name: str) -> None:
    """Raise ValueError if a masked array masks anything."""
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ValueError(
            f"{name} is a masked array in which {int(np.ma.count_masked(values))} values are masked, "
            "and a model does not see masks. Fill them with values (filled, or an imputer in a Pipeline), "
            "or drop their rows."
        )


def require_no_dates(X: Any, name: str = "X") -> None:
    """Raise TypeError if rows hold dates or durations, which no model takes as they are."""
    if hasattr(X, "iloc") and hasattr(X, "dtypes"):
        columns = [(f"column {name!r}", dtype) for name, dtype in zip(X, X.dtypes, strict=True)]
    else:
        columns = [("it", getattr(X, "dtype", None))]
    for where, dtype in columns:
        if getattr(dtype, "kind", "") in ("m", "M"):
            raise TypeError(
                f"{name} must hold numbers, but {where} is {dtype}. Convert dates and durations to numbers "
                "in a unit of your choice, such as days since the first, or do so in a Pipeline before "
                "the model."
            )


def dense_rows(X: Any, budget: int) -> Any:
    """Return sparse rows as an array, unless it takes more than `budget` bytes; others as they are."""
    if not issparse(X):
        return X
    n_bytes = X.shape[0] * X.shape[1] * np.dtype(float).itemsize
    if n_bytes > budget:
        raise MemoryError(
            f"X is sparse, of shape {X.shape}, and would take {n_bytes / 2**20:.0f} MiB as an array, "
            f"more than {budget / 2**20:.0f} MiB. Use fewer columns (max_features or min_df of a "
            "vectoriser) or rows, or a method that fits again (LeaveOneOut, Downsampling, Datamodel), "
            "which takes them as they are."
        )
    return X.toarray()


def require_one_shape(X: Any, name: str) -> None:
    """Raise ValueError if rows in a list differ in shape: sentences of different lengths, images of sizes."""
    listed = isinstance(X, list | tuple) or getattr(getattr(X, "dtype", 0), "kind", "") == "O"
    has_shape = ("__len__", "__array_interface__")  # an image of PIL has the second
    if not listed or not all(any(map(partial(hasattr, row), has_shape)) for row in X):
        return
    shapes = sorted({tuple(np.shape(row)) for row in X})
    if len(shapes) < 2:
        return
    if all(len(shape) == 1 for shape in shapes):
        raise ValueError(
            f"{name} must have rows of one length, got lengths from {shapes[0][0]} to {shapes[-1][0]}. Pad "
            'them: a tokenizer of skorch does with return_tensors="pt", one of transformers with '
            "padding=True."
        )
    raise ValueError(
        f"{name} must have rows of one shape, got {', '.join(map(str, shapes[:3]))}"
        f"{', ...' * (len(shapes) > 3)}. Bring them to one size first, in a step of a Pipeline or before."
    )


def check_rows(X: Any, name: str = "X") -> Any:
    """Return rows as the model sees them: dense, numeric, finite, at least one, or several such inputs."""
    if is_several(X):
        return check_inputs(X, name)
    require_one_shape(X, name)
    return _check_part(X, name)


def check_inputs(X: Any, name: str = "X") -> dict[str, Any] | tuple[Any, ...]:
    """Return a dict or a tuple of arrays as arrays of finite numbers, each with a row for every target."""
    if not len(X):
        raise ValueError(
            f"{name} is a {type(X).__name__} without entries. A module of several inputs takes an array of "
            'each, with one row for each target: X = {"ids": ids, "numbers": numbers}.'
        )
    if isinstance(X, Mapping) and not all(isinstance(key, str) for key in X):
        raise TypeError(
            f"{name} as a dict must have the names of the module's arguments as keys, got {list(X)!r}."
        )
    found = [_check_entry(part, name + key) for key, part in entries(X)]
    lengths = {name + key: len(part) for (key, _), part in zip(entries(X), found, strict=True)}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        raise ValueError(
            f"the entries of {name} must have as many rows as each other, but {told}. Give each one row "
            "for every target."
        )
    return dict(zip(X, found, strict=True)) if isinstance(X, Mapping) else tuple(found)


def _check_entry(part: Any, name: str) -> NDArray[Any]:
    """Return one of several inputs as an array (n, ...) of its own type."""
    require_no_dates(part, name)
    require_one_shape(part, name)
    if np.ndim(part) == 0:
        got = type(part).__name__
        raise TypeError(
            f"{name} must be an array or a tensor with one row for each target, got {got}."
        )
    try:
        return native(_check_part(part, name, ensure_2d=False))
    except ValueError as error:
        if name in str(error):
            raise
        raise ValueError(f"{name} must hold numbers, as the module takes them: {error}.") from error


def _check_part(X: Any, name: str, **settings: Any) -> NDArray[Any]:
    check_unmasked(X, name)
    if hasattr(X, "detach"):
        X = X.detach().cpu().numpy()
    return check_array(X, dtype="numeric", allow_nd=True, input_name=name, **settings)
