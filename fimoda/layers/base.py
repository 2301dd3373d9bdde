"""Gradients of rows in one layer, where its parameters lie, and what a kind of layer has to say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

#: Numbers in a temporary of products of many rows with many vectors.
_BLOCK = 2**24

#: Numbers that stay in a processor's cache.
_CACHED = 2**19


class Kind(ABC):
    """A kind of layer in which the gradient of a row is a sum of outer products over positions."""

    #: The class of the modules.
    module: ClassVar[type[nn.Module]]

    #: Whether even a row without a sequence axis meets the layer at several positions.
    many_positions: ClassVar[bool] = False

    def treats(self, layer: Any) -> bool:
        """Return whether this layer, by its settings, has such gradients."""
        return True

    @abstractmethod
    def inputs(self, layer: Any, seen: Tensor, n: int) -> Tensor:
        """Return what n rows that the layer has seen give it at each position, (n, T, in)."""

    @abstractmethod
    def signals(self, layer: Any, slopes: Tensor, n: int) -> Tensor:
        """Return the gradients in the layer's outputs at each position, (n, T, out)."""


@dataclass(frozen=True)
class Place:
    """The place of a layer's weight, and of its bias, in vectors of parameters.

    As a matrix (out, in) they stand side by side, with the bias in the last column.
    """

    slices: tuple[slice, ...]
    n_outputs: int

    def matrices(self, vectors: Tensor) -> Tensor:
        """Return the matrices (k, out, in) in vectors (k, p)."""
        parts = [vectors[:, s].unflatten(1, (self.n_outputs, -1)) for s in self.slices]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def fill(self, vectors: Tensor, matrices: Tensor) -> None:
        """Write matrices (k, out, in) to where they lie in vectors (k, p)."""
        widths = [(s.stop - s.start) // self.n_outputs for s in self.slices]
        for s, block in zip(self.slices, matrices.split(widths, dim=2), strict=True):
            vectors[:, s].unflatten(1, (self.n_outputs, -1)).copy_(block)


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
        return Factors(self.inputs[rows], self.signals[rows])

    @property
    def at_one_position(self) -> bool:
        """True if there is nothing to sum over."""
        return self.inputs.shape[1] == 1

    # ---- what everybody asks of gradients in a layer ----------------------------------------

    def inner(self, other: Any) -> Tensor:
        """Return the inner products (n, n_other) of all pairs of rows, in float64."""
        a, b, d, e = self.inputs, other.inputs, self.signals[:, :, 0], other.signals[:, :, 0]
        if self.at_one_position:
            return (a[:, 0] @ b[:, 0].mT).mul_(d[:, 0] @ e[:, 0].mT).double()
        gram = a.new_zeros(len(a), len(b))
        size = max(1, _BLOCK // (len(a) * a.shape[2]))
        for some, same in zip(d.split(size, dim=2), e.split(size, dim=2), strict=True):
            gram.addmm_((some.mT @ a).flatten(1), (same.mT @ b).flatten(1).mT)
        return gram.double()

    def inner_rowwise(self, other: Any, metric: Tensor | None = None) -> Tensor:
        """Return the inner products (n,) of row k with row k, float64; entries times `metric` (out, in)."""
        if not self.at_one_position:
            return Matrices(self.dense()).inner_rowwise(Matrices(other.dense()), metric)
        a, b = self.inputs[:, 0], other.inputs[:, 0]
        d, e = self.signals[:, 0, 0], other.signals[:, 0, 0]
        if metric is None:
            return _rowwise(a, b) * _rowwise(d, e)
        return (((d * e) @ metric.to(d)) * (a * b)).sum(1).double()

    def apply(self, matrices: Tensor) -> Tensor:
        """Return the inner products (n, k, C) with matrices (k, out, in)."""
        a, d = self.inputs.flatten(0, 1), self.signals.flatten(0, 1)
        if d.shape[1] == 1:
            found = _bilinear(matrices, a, d[:, 0]).unsqueeze(2)
        else:
            found = (a @ matrices.flatten(0, 1).mT).view(len(a), len(matrices), -1) @ d.mT
        return found if self.at_one_position else found.unflatten(0, (len(self), -1)).sum(1)

    def combine(self, coefficients: Tensor) -> Tensor:
        """Return the linear combinations (k, out, in) with coefficients (n, k, C)."""
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

    def scaled(self, factors: Tensor) -> Factors:
        """Return the gradients times factors (n,)."""
        signals = self.signals * factors[:, None, None, None]
        return Factors(self.inputs, signals.to(self.signals.dtype))

    # ---- what only factors have -------------------------------------------------------------

    def of(self, c: int) -> Factors:
        """Return the gradients of one of the C numbers."""
        return Factors(self.inputs, self.signals[:, :, c : c + 1])

    def each(self) -> Factors:
        """Return the gradients of the C numbers of a row as those of C rows."""
        n, T, C, out = self.signals.shape
        signals = self.signals.transpose(1, 2).reshape(n * C, T, 1, out)
        return Factors(self.inputs.repeat_interleave(C, dim=0), signals)

    def covariances(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums of a a' (in, in) and d d' (out, out) over positions by weights (n,), float64."""
        return _second_moment(self.inputs, weights), _second_moment(self.signals, weights)

    def rotated(self, input_basis: Tensor, signal_basis: Tensor) -> Factors:
        """Return the gradients in other bases of inputs (in, in) and outputs (out, out)."""
        return Factors(self.inputs @ input_basis, self.signals @ signal_basis)

    def compressed(self) -> LayerGradients:
        """Return factors or matrices, whichever are smaller."""
        factors = self.inputs[0].numel() + self.signals[0].numel()
        matrix = self.inputs.shape[2] * self.signals.shape[3]
        return self if factors <= matrix else Matrices(self.dense())


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
        return (self._flat @ other._flat.mT).double()

    def inner_rowwise(self, other: Any, metric: Tensor | None = None) -> Tensor:
        if metric is None:
            return _rowwise(self._flat, other._flat)
        return (self.rows * other.rows * metric.to(self.rows)).flatten(1).sum(1).double()

    def apply(self, matrices: Tensor) -> Tensor:
        return (self._flat @ matrices.flatten(1).mT).unsqueeze(2)

    def combine(self, coefficients: Tensor) -> Tensor:
        return (coefficients[:, :, 0].mT @ self._flat).unflatten(1, self.rows.shape[1:])

    def dense(self) -> Tensor:
        return self.rows

    def second_moment(self, weights: Tensor) -> Tensor:
        return (weights @ self._flat.to(weights) ** 2).view(self.rows.shape[1:])

    def scaled(self, factors: Tensor) -> Matrices:
        return Matrices((self.rows * factors[:, None, None]).to(self.rows.dtype))


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


def _rowwise(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b.double()).sum(1)


def _second_moment(vectors: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of outer products of vectors (n, ..., k), (k, k) in float64."""
    size = max(1, _CACHED * len(vectors) // vectors.numel())
    total = torch.zeros((), dtype=torch.float64)
    for some, w in zip(vectors.split(size), weights.split(size), strict=True):
        flat = some.reshape(-1, vectors.shape[-1])
        each = w.repeat_interleave(len(flat) // len(some))
        total = total + (flat.mT @ (flat * each[:, None])).double()
    return total
