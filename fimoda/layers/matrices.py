"""Gradients of rows in one layer, written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Matrices:
    """Gradients written out, (n, out, in), that answer as `Factors` do."""

    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> Matrices:
        return Matrices(self.rows[rows])

    @property
    def _flat(self) -> Tensor:
        return self.rows.flatten(1)

    def inner(self, other: Any) -> Tensor:
        if not isinstance(other, Matrices):
            return other.inner(self).mT
        return (self._flat @ other._flat.mT).double()

    def inner_rowwise(self, other: Any, metric: Tensor | None = None) -> Tensor:
        rows = other.dense()
        if metric is None:
            return rowwise(self._flat, rows.flatten(1))
        return (self.rows * rows * metric.to(self.rows)).flatten(1).sum(1).double()

    def apply(self, matrices: Tensor) -> Tensor:
        return (self._flat @ matrices.flatten(1).mT).unsqueeze(2)

    def combine(self, coefficients: Tensor) -> Tensor:
        return (coefficients[:, :, 0].mT @ self._flat).unflatten(1, self.rows.shape[1:])

    def dense(self) -> Tensor:
        return self.rows

    def second_moment(self, weights: Tensor) -> Tensor:
        return (weights @ self._flat.to(weights) ** 2).view(self.rows.shape[1:])

    def compressed(self) -> Matrices:
        return self

    def written_out(self) -> Matrices:
        return self

    @property
    def n_bytes(self) -> int:
        return self.rows.nbytes

    @property
    def matrix_bytes(self) -> int:
        return self.rows[:1].numel() * self.rows.element_size()

    def scaled(self, factors: Tensor) -> Matrices:
        return Matrices((self.rows * factors[:, None, None]).to(self.rows.dtype))

    def divided(self, metric: Tensor) -> Matrices:
        return Matrices(self.rows / metric.to(self.rows))

    def rotated(self, input_basis: Tensor | None, signal_basis: Tensor | None) -> Matrices:
        return Matrices(turned(self.rows, input_basis, signal_basis))

    def section(self, outputs: slice, inputs: slice) -> Matrices:
        return Matrices(self.rows[:, outputs, inputs])


def turned(matrices: Tensor, inputs: Tensor | None, signals: Tensor | None) -> Tensor:
    """Return ``signals' M inputs`` for matrices M (..., out, in); None is the identity."""
    left = matrices if signals is None else signals.mT @ matrices
    return left if inputs is None else left @ inputs


def rowwise(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products (n,) of the rows of two matrices, in float64."""
    return (a.double() * b.double()).sum(1)
