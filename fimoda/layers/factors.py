"""Gradients of rows in one layer, as factors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from .matrices import Matrices, rowwise

#: Numbers in a temporary of products of many rows with many vectors.
_BLOCK = 2**24

#: Products that take as long as an entry that is written out.
WRITTEN = 32

#: Rows that are many.
_MANY = 1024

#: Numbers that stay in a processor's cache.
_CACHED = 2**19

#: Second moments of wider vectors have their diagonal alone, and of gradients that are written out.
_WIDEST, _EXACT = 8192, 1024


@dataclass(frozen=True)
class Factors:
    r"""Gradients as factors, :math:`G_{ic} = \sum_t d_{itc} a_{it}^\top` (out, in) of row i.

    With the inputs a (n, T, in) that the layer sees at each position, a last column of ones where it has a
    bias, and the signals d (n, T, C, out): gradients in its output. One number of a row is differentiated
    (C = 1), or several at once; all but `apply`, `combine`, `covariances` and `second_moment` are for one.
    """

    inputs: Tensor
    signals: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: Any) -> Factors:
        return replace(self, inputs=self.inputs[rows], signals=self.signals[rows])

    @property
    def at_one_position(self) -> bool:
        """True if every gradient is one product of vectors that are held."""
        return self.inputs.shape[1] == 1

    # ---- what everybody asks of gradients in a layer ----------------------------------------

    def inner(self, other: Any) -> Tensor:
        """Return the inner products (n, n_other) of all pairs of rows, in float64."""
        if isinstance(other, Matrices):
            return self.apply(other.rows)[:, :, 0].double()
        a, b, d, e = self.inputs, other.inputs, self.signals[:, :, 0], other.signals[:, :, 0]
        if self.at_one_position and other.at_one_position:
            return (a[:, 0] @ b[:, 0].mT).mul_(d[:, 0] @ e[:, 0].mT).double()
        if self._takes_pairs(other, len(self), len(other)):
            return self._by_pairs(other).double()
        return self._blockwise(len(other), lambda at: e[:, :, at].mT @ b).double()

    def inner_rowwise(self, other: Any, metric: Tensor | None = None) -> Tensor:
        """Return the inner products (n,) of row k with row k, float64; entries times `metric` (out, in)."""
        if not (self.at_one_position and isinstance(other, Factors) and other.at_one_position):
            if metric is None and self._takes_pairs(other, 1, 1):
                pairs = (self.inputs @ other.inputs.mT).double()
                pairs *= self.signals[:, :, 0] @ other.signals[:, :, 0].mT
                return pairs.sum((1, 2))
            return Matrices(self.dense()).inner_rowwise(Matrices(other.dense()), metric)
        a, b = self.inputs[:, 0], other.inputs[:, 0]
        d, e = self.signals[:, 0, 0], other.signals[:, 0, 0]
        if metric is None:
            return rowwise(a, b) * rowwise(d, e)
        return (((d * e) @ metric.to(d)) * (a * b)).sum(1).double()

    def _takes_pairs(self, other: Any, n: int, m: int) -> bool:
        """Return whether pairs of positions of n and m rows take less than gradients written out."""
        if type(self) is not Factors or type(other) is not Factors:
            return False
        (_, T, width), S, out = self.inputs.shape, other.inputs.shape[1], self.signals.shape[3]
        written_out = n * T + m * S + n * m + WRITTEN * n
        return n * T * m * S * (width + out) < written_out * width * out

    def _by_pairs(self, other: Factors) -> Tensor:
        """Return the inner products (n, m) of rows, summed over all pairs of positions."""
        (m, S, _), T = other.inputs.shape, self.inputs.shape[1]
        b, e = other.inputs.flatten(0, 1), other.signals[:, :, 0].flatten(0, 1)
        found = []
        size = max(1, _CACHED // (T * len(b)))
        for a, d in zip(self.inputs.split(size), self.signals.split(size), strict=True):
            pairs = (a.flatten(0, 1) @ b.mT).mul_(d[:, :, 0].flatten(0, 1) @ e.mT)
            found.append(pairs.view(len(a), T, m, S).sum((1, 3)))
        return torch.cat(found)

    def apply(self, matrices: Tensor) -> Tensor:
        """Return the inner products (n, k, C) with matrices (k, out, in)."""
        if self.signals.shape[2] == 1 and min(len(matrices), self.inputs.shape[1]) > 1:
            return self._blockwise(len(matrices), lambda at: matrices[:, at]).unsqueeze(2)
        a, d = self.inputs.flatten(0, 1), self.signals.flatten(0, 1)
        if d.shape[1] == 1:
            found = _bilinear(matrices, a, d[:, 0]).unsqueeze(2)
        else:
            found = (a @ matrices.flatten(0, 1).mT).view(len(a), len(matrices), -1) @ d.mT
        return found if self.at_one_position else found.unflatten(0, (len(self), -1)).sum(1)

    def combine(self, coefficients: Tensor) -> Tensor:
        """Return the linear combinations (k, out, in) with coefficients (n, k, C)."""
        (_, T, C, _), k = self.signals.shape, coefficients.shape[1]
        if C == 1 and k * T > T + k + WRITTEN:
            return self._combined_blockwise(coefficients[:, :, 0].mT)
        d, a = self.signals, self.inputs.flatten(0, 1)
        found = []
        for few in coefficients.unsqueeze(1).split(max(1, _BLOCK // d.numel()), dim=2):
            slopes = (few * d if d.shape[2] == 1 else few @ d).flatten(0, 1).flatten(1)
            found.append((slopes.mT @ a).unflatten(0, (few.shape[2], -1)))
        return found[0] if len(found) == 1 else torch.cat(found)

    def dense(self) -> Tensor:
        """Return the gradients themselves, (n, out, in)."""
        d = self.signals[:, :, 0]
        return d.mT * self.inputs if self.at_one_position else d.mT @ self.inputs

    def second_moment(self, weights: Tensor) -> Tensor:
        """Return the sum of the squares of all entries by weights (n,), (out, in) in their dtype."""
        a, d = self.inputs.to(weights), self.signals.to(weights)
        if self.at_one_position:
            return ((d[:, 0] ** 2).sum(1) * weights[:, None]).mT @ a[:, 0] ** 2
        total = weights.new_zeros(d.shape[3], a.shape[2])
        for c in range(d.shape[2]):
            squares = (d[:, :, c].mT @ a).square_().flatten(1)
            total += (weights @ squares).view_as(total)
        return total

    def scaled(self, factors: Tensor) -> Self:
        """Return the gradients times factors (n,)."""
        signals = self.signals * factors[:, None, None, None]
        return replace(self, signals=signals.to(self.signals.dtype))

    def divided(self, metric: Tensor) -> LayerGradients:
        """Return the gradients divided by a matrix (out, in), entry by entry."""
        return Matrices(self.dense()).divided(metric)

    def section(self, outputs: slice, inputs: slice) -> LayerGradients:
        """Return some rows and columns of the gradients as matrices."""
        return Factors(self.inputs[:, :, inputs], self.signals[..., outputs])

    def _blockwise(self, m: int, rows: Callable[[slice], Tensor]) -> Tensor:
        """Return the inner products (n, m) with matrices, both written out some of their rows at a time."""
        gram = self.inputs.new_zeros(len(self), m)
        for at, some in self._blocks():
            gram.addmm_(some.flatten(1), rows(at).flatten(1).mT)
        return gram

    def _combined_blockwise(self, coefficients: Tensor) -> Tensor:
        """Return the linear combinations (k, out, in), the gradients written out some rows at a time."""
        width, out = self.inputs.shape[2], self.signals.shape[3]
        total = self.inputs.new_empty(len(coefficients), out, width)
        for at, some in self._blocks():
            total[:, at] = (coefficients @ some.flatten(1)).unflatten(1, (-1, width))
        return total

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield some rows (n, ..., in) at a time of the gradients as matrices, with which they are."""
        a, d = self.inputs, self.signals[:, :, 0]
        size = max(1, 4 * _CACHED // (len(a) * a.shape[2]))
        for start in range(0, d.shape[2], size):
            at = slice(start, start + size)
            yield at, d[:, :, at].mT @ a

    # ---- what only factors have -------------------------------------------------------------

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the sums of gradients of the same rows, the positions of all parts."""
        inputs, signals = ([getattr(f, k) for f in parts] for k in ("inputs", "signals"))
        return replace(parts[0], inputs=torch.cat(inputs, dim=1), signals=torch.cat(signals, dim=1))

    @classmethod
    def together(cls, parts: Sequence[Self]) -> Self:
        """Return the gradients of the rows of all parts."""
        inputs, signals = ([getattr(f, k) for f in parts] for k in ("inputs", "signals"))
        return replace(parts[0], inputs=torch.cat(inputs), signals=torch.cat(signals))

    def of(self, c: int) -> Self:
        """Return the gradients of one of the C numbers."""
        return replace(self, signals=self.signals[:, :, c : c + 1])

    def each(self) -> Self:
        """Return the gradients of the C numbers of a row as those of C rows."""
        n, T, C, out = self.signals.shape
        signals = self.signals.transpose(1, 2).reshape(n * C, T, 1, out)
        return replace(self, inputs=self.inputs.repeat_interleave(C, dim=0), signals=signals)

    def covariances(self, weights: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the sums of a a' (in, in) and d d' (out, out) over positions by weights (n,), float64.

        None in place of one that is too wide, or that has nothing beside its diagonal.
        """
        return second_moment(self.inputs, weights), second_moment(self.signals, weights)

    def in_use(self) -> Self:
        """Return the gradients with inputs of zero at positions that have no signal."""
        used = (self.signals != 0).flatten(2).any(2, keepdim=True)
        return replace(self, inputs=self.inputs * used)

    def rotated(self, input_basis: Tensor | None, signal_basis: Tensor | None) -> Self:
        """Return the gradients in bases of inputs (in, in) and outputs (out, out); None is their own."""
        return replace(
            self,
            inputs=self.inputs if input_basis is None else self.inputs @ input_basis,
            signals=self.signals if signal_basis is None else self.signals @ signal_basis,
        )

    def compressed(self) -> LayerGradients:
        """Return factors or matrices, whichever are smaller."""
        factors = self.inputs[0].numel() + self.signals[0].numel()
        matrix = self.inputs.shape[2] * self.signals.shape[3]
        return self if factors <= matrix else Matrices(self.dense())

    def written_out(self) -> LayerGradients:
        """Return matrices, where this takes less for products with many others of as many positions."""
        if self.at_one_position or self._takes_pairs(self, _MANY, len(self)):
            return self
        return Matrices(self.dense())

    @property
    def n_bytes(self) -> int:
        """The bytes that the gradients take."""
        return self.inputs.nbytes + self.signals.nbytes

    @property
    def matrix_bytes(self) -> int:
        """The bytes of a row's gradient that is written out."""
        return self.matrix_numbers * self.signals.element_size()

    def row_numbers(self, n_cotangents: int = 1) -> int:
        """Return how many numbers are held of a row, of which so many numbers are differentiated."""
        return self.inputs[0].numel() + n_cotangents * self.signals[0, :, :1].numel()

    @property
    def matrix_numbers(self) -> int:
        """The entries of a row's gradient."""
        return self.inputs.shape[2] * self.signals.shape[3]


@dataclass(frozen=True)
class Vectors(Factors):
    """Gradients written out, (n, 1, C, k) as signals, with inputs of one."""

    @classmethod
    def of_rows(cls, vectors: Tensor) -> Vectors:
        """Return gradients (n, C, k) that are written out."""
        return cls(vectors.new_ones(1, 1, 1).expand(len(vectors), 1, 1), vectors.unsqueeze(1))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the sums of gradients of the same rows."""
        return replace(parts[0], signals=torch.stack([f.signals for f in parts]).sum(0))

    def in_use(self) -> Vectors:
        return self

    def covariances(self, weights: Tensor) -> tuple[Tensor | None, Tensor | None]:
        wide = self.signals.shape[3] > _EXACT
        return None, None if wide else second_moment(self.signals, weights)

    def compressed(self) -> LayerGradients:
        return self


#: Gradients of n rows in the parameters of one layer, as matrices (out, in).
LayerGradients = Factors | Matrices


def _bilinear(matrices: Tensor, a: Tensor, d: Tensor) -> Tensor:
    """Return the products ``d_i M_k a_i`` (n, m) of matrices (m, out, in) with n pairs of vectors."""
    if d.shape[1] > a.shape[1]:
        a, d, matrices = d, a, matrices.mT
    step = max(1, _BLOCK // d.numel())
    result = []
    for few in matrices.split(step):
        pushed = (a @ few.flatten(0, 1).mT).view(len(a), len(few), d.shape[1])
        result.append(pushed.mul_(d.unsqueeze(1)).sum(2))
    return result[0] if len(result) == 1 else torch.cat(result, dim=1)


def second_moment(vectors: Tensor, weights: Tensor) -> Tensor | None:
    """Return the weighted sum of outer products of vectors (n, ..., k), (k, k) float64; None if too wide."""
    if vectors.shape[-1] > _WIDEST:
        return None
    size = max(1, _CACHED * len(vectors) // vectors.numel())
    total = torch.zeros((), dtype=torch.float64)
    for some, w in zip(vectors.split(size), weights.split(size), strict=True):
        flat = some.reshape(-1, vectors.shape[-1])
        each = w.repeat_interleave(len(flat) // len(some))
        total = total + (flat.mT @ (flat * each[:, None])).double()
    return total
