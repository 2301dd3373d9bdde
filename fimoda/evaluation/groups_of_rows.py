"""Groups of test rows by a sensitive attribute."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arrays import take_columns
from .._validation import check_targets, is_integer


def sensitive_values(sensitive: Any, X: Any, n: int) -> NDArray[Any]:
    """Return the value (n,) of the sensitive attribute in each row: a column of X, or values themselves.

    Raises
    ------
    ValueError
        If X has no such column, or values are missing or not one for each row.
    """
    if isinstance(sensitive, str) or is_integer(sensitive):
        try:
            if isinstance(sensitive, str):
                sensitive = X[sensitive]
            else:
                column = take_columns(X, np.array([sensitive]))
                sensitive = getattr(column, "toarray", lambda: np.asarray(column))()[:, 0]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(
                f"sensitive must be a column of X or a value for each row, got {sensitive!r}."
            ) from error
    values = check_targets(sensitive, n, "sensitive")
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise ValueError(f"sensitive must have one value for each row, got shape {values.shape}.")
    return values


def group_rows(sensitive: Any, X: Any, n: int) -> dict[Any, NDArray[np.int64]]:
    """Return the rows of each group, by its value; ValueError if there are fewer than two."""
    values = sensitive_values(sensitive, X, n)
    found, place = np.unique(values, return_inverse=True)
    if len(found) < 2:
        raise ValueError(
            f"sensitive must tell two groups or more apart, but is {found[0]!s} in all test rows."
        )
    return {value: np.flatnonzero(place == k) for k, value in enumerate(found.tolist())}
