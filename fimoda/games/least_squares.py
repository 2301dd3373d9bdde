"""Least squares, with a ridge or without, of many subsets of the rows at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .closed_fits import NUMBERS, Floats, LinearFits


@dataclass(frozen=True)
class LeastSquaresFits(LinearFits):
    r"""Fits of linear regression or ridge regression to many subsets.

    The coefficients solve :math:`(X_S^\top W X_S + \alpha I) w = X_S^\top W y_S`, of rows centred in each
    subset if there is an intercept; without a ridge they are those of smallest norm.
    """

    alpha: float = 0.0
    intercept: bool = True

    def _fits(self, masks: NDArray[np.bool_]) -> Floats:
        X = np.asarray(self.X.values, dtype=np.float64)
        Y = np.asarray(self.y, dtype=np.float64).reshape(len(X), -1)
        shift, level = X.mean(0), Y.mean(0)
        if not self.intercept:
            shift, level = np.zeros_like(shift), np.zeros_like(level)
        n, p = X.shape
        width = p * p if self.alpha else n * p
        parts = np.array_split(masks, -(-len(masks) * width // NUMBERS))
        solve = self._by_products if self.alpha else self._by_decomposition
        found = [solve(X - shift, Y - level, self._weighted(part)) for part in parts]
        coefficients, centres, means = (np.concatenate(part) for part in zip(*found, strict=True))
        bases = means + level - np.einsum("lpc,lp->lc", coefficients, centres + shift)
        return np.concatenate([coefficients, bases[:, None]], axis=1).swapaxes(1, 2)

    def _means(self, X: Floats, Y: Floats, weights: Floats) -> tuple[Floats, Floats]:
        """Return the means (L, p) and (L, C) of the rows of each subset; zeros without an intercept."""
        if not self.intercept:
            return np.zeros((len(weights), X.shape[1])), np.zeros((len(weights), Y.shape[1]))
        share = weights / weights.sum(1, keepdims=True)
        return share @ X, share @ Y

    def _by_products(self, X: Floats, Y: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
        n, p = X.shape
        centres, means = self._means(X, Y, weights)
        total = weights.sum(1)[:, None, None]
        squares = (weights @ (X[:, :, None] * X[:, None]).reshape(n, -1)).reshape(-1, p, p)
        squares -= total * centres[:, :, None] * centres[:, None]
        products = (weights @ (X[:, :, None] * Y[:, None]).reshape(n, -1)).reshape(
            len(weights), p, -1
        )
        products -= total * centres[:, :, None] * means[:, None]
        found = np.linalg.solve(squares + self.alpha * np.eye(p), products)
        return np.asarray(found, dtype=np.float64), centres, means

    def _by_decomposition(
        self, X: Floats, Y: Floats, weights: Floats
    ) -> tuple[Floats, Floats, Floats]:
        centres, means = self._means(X, Y, weights)
        roots = np.sqrt(weights)[:, :, None]
        rows, targets = (X - centres[:, None]) * roots, (Y - means[:, None]) * roots
        smallest = np.finfo(np.float64).eps * max(X.shape)
        found = torch.linalg.lstsq(
            torch.from_numpy(rows), torch.from_numpy(targets), rcond=smallest, driver="gelsd"
        )
        return found.solution.numpy(), centres, means
