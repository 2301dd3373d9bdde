"""A ridge regression on leaves that rows share, by the modes of its features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array, hstack, issparse

from .ensemble import Floats

#: Ridges that are tried, in parts of a row's mean product with itself.
_GRID = np.logspace(-6, 2, 33)

#: Modes U (n, k) and squares (k,) of the singular values of a matrix.
Modes = tuple[Floats, Floats]


@dataclass(frozen=True, eq=False)
class LeafRidge:
    """A ridge regression of one output, with what changes of rows do.

    `roots` are the square roots of the rows' weights, `left` the errors at rows left out, times them.
    """

    modes: Modes
    roots: Floats
    alpha: float
    wanted: Floats
    fitted: Floats
    left: Floats

    @classmethod
    def of(
        cls, modes: Modes, weights: Floats, wanted: Floats, outputs: Floats, alpha: float | str
    ) -> LeafRidge:
        """Return the regression of `wanted` (n,) by weights; `outputs` (n,) are the model's."""
        roots, (U, squares) = np.sqrt(weights), modes
        centre = (weights * wanted).sum() / weights.sum()
        r, f = roots * (wanted - centre), roots * (outputs - centre)

        def solved(ridge: float) -> tuple[Floats, Floats]:
            kept = squares / (squares + ridge)
            fitted = U @ (kept * (U.T @ r))
            return fitted, (r - fitted) / np.maximum(1 - U**2 @ kept, 1e-10)

        if isinstance(alpha, str):
            # the first mode is the constant, about
            size = float(np.delete(squares, squares.argmax()).sum()) / len(r)
            grid = _GRID * max(size, 1e-300)
            tried = [solved(one) for one in grid]
            errors = [
                float(((fitted - f) ** 2).sum() if alpha == "model" else (left**2).sum())
                for fitted, left in tried
            ]
            alpha = float(grid[int(np.argmin(errors))])
        fitted, left = solved(float(alpha))
        back = np.divide(fitted, roots, out=np.zeros_like(fitted), where=roots > 0)
        return cls(modes, roots, float(alpha), wanted, back + centre, left)

    def relabelled(self, rows: NDArray[np.int64], wanted: Floats, weights: Floats) -> Floats:
        """Return by what numbers (k,) the `changes` go where rows want something else, by other weights.

        As `left` does, with its sign turned, where rows are left out.
        """
        U, squares = self.modes
        known, error = self.roots[rows] ** 2, self.wanted[rows] - self.fitted[rows]
        own = U[rows] ** 2 @ (squares / (squares + self.alpha))
        moved = (wanted - self.wanted[rows]) * weights - (known - weights) * error
        others = weights + (known - weights) * np.maximum(1 - own, 1e-10)
        found = np.divide(moved, others, out=np.zeros(len(rows)), where=others > 0)
        return self.roots[rows] * found

    def changes(self, kernel: Floats, rows: NDArray[np.int64], numbers: Floats) -> Floats:
        """Return the changes (m, k) of outputs by rows, by these numbers (k,), from the kernel (m, n)."""
        U, squares = self.modes
        seen = (kernel * self.roots) @ U
        return ((seen / (squares + self.alpha)) @ U[rows].T) * numbers


def modes_of(features: csr_array | Floats, constant: float, weights: Floats) -> Modes:
    """Return the modes of weighted features and a constant, by rows or by leaves, whichever are fewer.

    Dense features have the constant in them.
    """
    roots = np.sqrt(weights)
    if not isinstance(features, csr_array):
        return _by_columns(roots[:, None] * features)
    scaled = csr_array(diags_array(roots) @ features)
    scaled = scaled[:, np.flatnonzero(abs(scaled).sum(0))]
    if scaled.shape[0] <= scaled.shape[1]:
        products = (scaled @ scaled.T).toarray() + constant * np.outer(roots, roots)
        squares, U = np.linalg.eigh(products)
        kept = squares > 1e-12 * squares.max()
        return U[:, kept], squares[kept]
    return _by_columns(csr_array(hstack([scaled, np.sqrt(constant) * roots[:, None]])))


def _by_columns(scaled: csr_array | Floats) -> Modes:
    """Return the modes by the products of the columns."""
    products: Any = scaled.T @ scaled
    squares, V = np.linalg.eigh(products.toarray() if issparse(products) else products)
    kept = squares > 1e-12 * squares.max()
    return (scaled @ V[:, kept]) / np.sqrt(squares[kept]), squares[kept]
