"""A test row and its top training rows as a pandas table, and its style."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..top_rows import as_text

#: Colours of values above and below the test row's, and of another category.
_ABOVE, _BELOW, _OTHER = "214,39,40", "31,119,180", "255,193,7"

#: Difference of the full colour, in standard deviations of the training rows.
_FULL = 2.0


def as_frame(X: Any) -> Any:
    """Return rows as a pandas DataFrame; columns without a name are x0, x1, ..."""
    import pandas as pd

    if isinstance(X, dict | tuple):  # parts of rows
        parts = X.items() if isinstance(X, dict) else enumerate(X)
        return pd.concat([as_frame(part).add_prefix(f"{name} ") for name, part in parts], axis=1)
    if isinstance(X, pd.Series):
        X = X.to_frame("x0" if X.name is None else X.name)
    if hasattr(X, "iloc"):
        return X.set_axis(_single(list(X.columns)), axis=1)
    if hasattr(X, "columns"):  # another kind of frame
        return pd.DataFrame({name: np.asarray(X[name]) for name in X.columns})
    if hasattr(X, "toarray"):
        X = X.toarray()
    flat = np.asarray(X).reshape(len(X), -1)
    return pd.DataFrame(flat, columns=[f"x{j}" for j in range(flat.shape[1])])


def _single(names: list[Any]) -> list[Any]:
    """Return names of columns that differ: levels are joined, repeated names numbered."""
    found = [as_text(one) if isinstance(one, tuple) else one for one in names]
    if len(set(found)) == len(found):
        return found
    return [f"{name} ({j})" for j, name in enumerate(found)]


def with_values(facts: dict[str, Any], test: Any, train: Any, indices: NDArray[np.int64]) -> Any:
    """Return facts of each row, its values, and their differences from the test row's (first row)."""
    import pandas as pd

    values = pd.concat([test[train.columns], train.iloc[indices]], ignore_index=True)
    parts = {(fact, ""): column for fact, column in facts.items()}
    parts |= {("value", name): values[name] for name in values}
    parts |= {("difference", name): _difference(values[name]) for name in values}
    return pd.DataFrame(parts)


def _difference(values: Any) -> Any:
    """Return the differences from the first value; of categories, True for another one."""
    if is_number(values):
        sizes = values.astype(np.float64)  # small integers would wrap around
        return sizes - sizes.iloc[0]
    missing = values.isna().to_numpy()
    texts = values.astype(object).map(str).to_numpy()  # whatever a cell holds can be compared so
    return np.where(missing | missing[0], missing != missing[0], texts != texts[0])


def is_number(values: Any) -> bool:
    """Return whether differences of a column are numbers."""
    from pandas.api import types

    other = types.is_bool_dtype(values) or types.is_complex_dtype(values)
    return types.is_numeric_dtype(values) and not other


def styled(frame: Any, train: Any, caption: str) -> Any:
    """Return the table with each value's difference in brackets and as colour."""
    import pandas as pd

    shown = frame.drop(columns="difference", level=0)
    colours = pd.DataFrame("", index=shown.index, columns=shown.columns)
    for name in train.columns:
        cell, differences = ("value", name), frame["difference", name]
        if is_number(train[name]):
            unit = float(train[name].astype(np.float64).std())
            sizes = differences.fillna(0) / (unit if unit > 0 else np.inf)
            shown[cell] = list(map(_text, frame[cell].astype(np.float64), differences))
            colours[cell] = list(map(_colour, sizes))
        else:
            colours[cell] = [_background(_OTHER, 0.5) if other else "" for other in differences]
    scores = [cell for cell in shown if cell[0] in ("score", "error")]
    return (
        shown.style.apply(lambda _: colours, axis=None)
        .format(_cell, na_rep="missing")
        .format("{:+.3g}", subset=scores, na_rep="")
        .format_index(_cell, axis=0)
        .format_index(_cell, axis=1)
        .set_caption(escape(caption))
    )


def _cell(value: Any) -> str:
    """Return what a cell or a header holds, as text that is no HTML."""
    return f"{value:.10g}" if isinstance(value, float) else escape(as_text(value))


def _text(value: float, change: float) -> str:
    if np.isnan(value):
        return "missing"
    return f"{value:.4g}" if np.isnan(change) or change == 0 else f"{value:.4g} ({change:+.3g})"


def _colour(size: float) -> str:
    if size == 0:
        return ""
    return _background(_ABOVE if size > 0 else _BELOW, 0.6 * min(abs(size) / _FULL, 1))


def _background(colour: str, strength: float) -> str:
    return f"background-color: rgba({colour},{strength:.2f})"
