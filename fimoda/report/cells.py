"""Cells of a report: a number, a text or an image for each feature of a row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from .._arrays import texts
from ..plotting._row_table import as_frame, is_number
from ..plotting._thumbnails import as_images, data_uris
from ..top_rows import shortened

#: Characters of a text that are shown, and words from which on a column holds sentences.
_LENGTH, _SENTENCE = 500, 4

#: Cells that an image counts for, and the longest side of its thumbnail in pixels.
_IMAGE, _SIDE = 64, 64

#: Whole numbers below it are exact in a browser.
_EXACT = 2**53


class Cells:
    """Features of training and test rows, as JSON has them.

    Attributes
    ----------
    features : list of dict
        ``name`` and ``kind`` of each feature: "number" (with ``unit``, the standard deviation over training
        rows), "category", "sentence" or "image".
    n_left_out : int
        Features behind the last one that is shown.
    per_row : int
        Size of a row in the page, in cells.
    """

    def __init__(self, X_train: Any, X_test: Any, image_shape: Any, max_features: int):
        self._shape = _image_shape(X_train) if image_shape is None else tuple(image_shape)
        self.n_left_out, self.per_row = 0, _IMAGE
        if self._shape is not None:
            self._train: Any = np.asarray(X_train)
            self._test: Any = np.asarray(X_test)
            for rows in (self._train, self._test):
                as_images(rows[:1], self._shape)  # raises for what is no shape of theirs
            self.features: list[dict[str, Any]] = [{"name": "image", "kind": "image"}]
            return
        n_features = X_train.shape[1] if issparse(X_train) else None
        if n_features is not None:  # the others are never written out
            X_train, X_test = X_train.tocsr()[:, :max_features], X_test.tocsr()[:, :max_features]
        train, test = as_frame(X_train), as_frame(X_test)
        names = list(train.columns)[:max_features]
        self._train, self._test = train[names], test[names]
        self.features = [_feature(name, train[name]) for name in names]
        if texts(X_train) is not None:
            self.features[0]["name"] = "text"
        self.n_left_out = (n_features or train.shape[1]) - len(names)
        self.per_row = len(names)

    def of(
        self, train: NDArray[np.int64], test: NDArray[np.int64]
    ) -> tuple[list[list[Any]], list[list[Any]]]:
        """Return the cells of the training and the test rows at these positions."""
        if self._shape is not None:
            parts = [as_images(self._train[train], self._shape)]
            parts.append(as_images(self._test[test], self._shape))
            found = [[uri] for uri in data_uris(np.concatenate(parts), _SIDE)]
            return found[: len(train)], found[len(train) :]
        return self._values(self._train.iloc[train]), self._values(self._test.iloc[test])

    def _values(self, frame: Any) -> list[list[Any]]:
        kinds = [feature["kind"] for feature in self.features]
        columns = [_cells(frame.iloc[:, j], kind) for j, kind in enumerate(kinds)]
        return [list(row) for row in zip(*columns, strict=True)] or [[] for _ in range(len(frame))]


def _image_shape(X: Any) -> tuple[int, ...] | None:
    """Return the shape of rows that can only be images: three axes, the first or last of 1 or 3 channels."""
    shape = tuple(getattr(X, "shape", ()))
    return shape[1:] if len(shape) == 4 and {shape[1], shape[3]} & {1, 3} else None


def _feature(name: Any, column: Any) -> dict[str, Any]:
    """Return name and kind of a feature."""
    told = label(name)
    if is_number(column):
        sizes = column.astype(np.float64)
        if not sizes.abs().max() >= _EXACT:
            return {"name": told, "kind": "number", "unit": number(sizes.std()) or None}
    words = [len(value.split()) for value in column if isinstance(value, str)]
    is_sentence = bool(words) and np.median(words) >= _SENTENCE
    return {"name": told, "kind": "sentence" if is_sentence else "category"}


def _cells(column: Any, kind: str) -> list[Any]:
    """Return the values of a column, None for missing ones."""
    if kind == "number":
        return numbers(column.astype(np.float64), 10)
    missing = column.isna()
    return [None if gone else label(one) for one, gone in zip(column, missing, strict=True)]


def labels(y: Any, rows: NDArray[np.int64]) -> list[Any]:
    """Return the targets of rows: numbers, or texts."""
    if y is None:
        return [None] * len(rows)
    values = np.asarray(y)[rows]
    if values.ndim == 1 and values.dtype.kind in "iuf":
        return numbers(values, 10)
    return [label(tuple(one) if np.ndim(one) else one) for one in values]


def label(value: Any) -> str:
    """Return a text of one line, of at most `_LENGTH` characters."""
    return shortened(f"{value:.10g}" if isinstance(value, float) else value, _LENGTH)


def number(value: Any, digits: int = 6) -> float | int | None:
    """Return a number as JSON has it: whole, or rounded to some digits; None for NaN and infinity."""
    if not np.isfinite(value := float(value)):
        return None
    return (
        int(value) if value.is_integer() and abs(value) < _EXACT else float(f"{value:.{digits}g}")
    )


def numbers(values: Any, digits: int = 6) -> list[float | int | None]:
    """Return numbers, each as `number` has it."""
    return [number(value, digits) for value in values]
