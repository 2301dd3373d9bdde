"""Rows as they were given, for estimators that are fitted again by their own ``fit``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import issparse
from torch import Tensor

from ._validation import n_rows, take_columns, take_rows


@dataclass(frozen=True, eq=False)
class RawRows:
    """Rows of whatever an estimator takes: an array, a frame, a sparse matrix, a list of texts.

    Parameters
    ----------
    values : object
        The rows, untouched; what numpy knows and scikit-learn cannot index is made an array.

    Raises
    ------
    TypeError
        If it holds no rows, for example a dict.
    """

    values: Any

    def __post_init__(self) -> None:
        values = self.values
        if isinstance(values, Tensor):
            values = values.detach().cpu().numpy()
        elif issparse(values):
            values = values.tocsr()  # rows of others cannot be taken, or slowly
        elif not hasattr(values, "shape") and not isinstance(values, list | tuple):
            if not hasattr(values, "__array__"):
                raise TypeError(
                    "X must be an array, a sparse matrix, a DataFrame or a list with one entry a row, "
                    f"got {type(values).__name__}."
                )
            values = np.asarray(values)
        object.__setattr__(self, "values", values)

    def __len__(self) -> int:
        return n_rows(self.values)

    def __getitem__(self, key: Any) -> RawRows:
        """Rows by a slice, a mask or indices, as arrays or tensors."""
        if isinstance(key, slice):
            key = np.arange(*key.indices(len(self)))
        key = np.asarray(key.cpu() if isinstance(key, Tensor) else key)
        if key.dtype == bool:
            key = np.flatnonzero(key)
        return RawRows(take_rows(self.values, key))

    def columns(self, mask: NDArray[np.bool_]) -> RawRows:
        """Return some columns of all rows."""
        return RawRows(take_columns(self.values, np.flatnonzero(mask)))

    @property
    def device(self) -> torch.device:
        """Where outputs of these rows are."""
        return torch.device("cpu")

    def split(self, size: int) -> list[RawRows]:
        """Return parts of at most `size` rows, in their order."""
        if len(self) <= size:
            return [self]
        return [self[a : a + size] for a in range(0, len(self), size)]

    def dense(self) -> Any:
        """Return the rows, an array in place of a sparse matrix."""
        return self.values.toarray() if issparse(self.values) else self.values
