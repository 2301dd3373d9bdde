"""Rows with the same features."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from ..plotting._row_table import as_frame


def repeated(X_train: Any, X_test: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows that share all features with another row, and the number of their group.

    Positions are those of training rows, then test rows. Values are compared exactly; missing ones equal
    each other.
    """
    import pandas as pd

    train, test = _compared(X_train), _compared(X_test)
    frame = pd.concat([train, test[list(train.columns)]], ignore_index=True)
    rows = np.arange(len(frame))
    groups = np.zeros(len(frame), dtype=np.int64)
    for name in frame:
        codes = _codes(frame[name].iloc[rows])
        groups = pd.factorize(groups * (codes.max() + 1) + codes)[0]
        shared = np.bincount(groups)[groups] > 1
        rows, groups = rows[shared], groups[shared]
        if not rows.size:
            break
    return rows, np.unique(groups, return_inverse=True)[1]


def _compared(X: Any) -> Any:
    """Return rows as a frame; those of a sparse matrix as one column of what they hold beside zeros."""
    if not issparse(X):
        return as_frame(X)
    import pandas as pd

    rows = X.tocsr(copy=True)
    rows.sum_duplicates()
    rows.eliminate_zeros()
    indices, data = rows.indices.astype(np.int64), rows.data.astype(np.float64)
    parts = (
        (indices[start:end].tobytes(), data[start:end].tobytes())
        for start, end in zip(rows.indptr[:-1], rows.indptr[1:], strict=True)
    )
    return pd.DataFrame({"row": list(parts)})


def _codes(column: Any) -> NDArray[np.int64]:
    """Return whole numbers from 0 that are equal where the values of a column are."""
    import pandas as pd

    try:
        return pd.factorize(column, use_na_sentinel=False)[0].astype(np.int64)
    except TypeError:  # cells that have no hash, such as lists
        return _codes(column.map(repr))
