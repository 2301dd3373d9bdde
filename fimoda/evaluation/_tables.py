"""Results as tables: pandas DataFrames, and plain text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..top_rows import aligned


def tidy(levels: dict[str, Any], **values: NDArray[np.float64]) -> Any:
    """Return a pandas DataFrame, one line for each combination of levels.

    The values have an axis for each level, in their order.
    """
    import pandas as pd

    index = pd.MultiIndex.from_product(levels.values(), names=levels)
    return pd.DataFrame({k: v.ravel() for k, v in values.items()}, index=index).reset_index()


def table(head: Iterable[str], names: Iterable[str], cells: Iterable[Iterable[str]]) -> str:
    """Return a plain-text table with a named line for each row of cells."""
    lines = [[name, *row] for name, row in zip(names, cells, strict=True)]
    return aligned([list(head), *lines])
