"""Gradients of rows in all parameters, as factors where the network has them.

For a linear layer with input a and gradient d in its output, the gradient of a row is the outer
product d a^T (and d for the bias), so an inner product of two rows' gradients is
``(d . d') (a . a' + 1)``: the gradients themselves, as large as the model, are never needed. A network
with parameters elsewhere has its gradients formed, a chunk of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .layers import (
    Factors,
    LayerDifferentiator,
    LayerGradients,
    Matrices,
    Place,
    trainable_layers,
)
from .layers.by_autograd import gradients_by_autograd
from .measured import Measured
from .model import FinalModel
from .rows import Inputs


@dataclass(frozen=True)
class RowGradients:
    """Gradients (n, p) of n rows, layer by layer; `push` and `pull` also for C numbers a row."""

    parts: Sequence[LayerGradients]
    places: Sequence[Place]

    @classmethod
    def of(cls, rows: Tensor) -> RowGradients:
        """Return gradients (n, p) that are written out."""
        return cls([Matrices(rows.unsqueeze(1))], [Place((slice(0, rows.shape[1]),), 1)])

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, rows: Any) -> RowGradients:
        return RowGradients([part[rows] for part in self.parts], self.places)

    @property
    def factors(self) -> list[Factors] | None:
        """The parts, if all are factors."""
        found = [part for part in self.parts if isinstance(part, Factors)]
        return found if len(found) == len(self.parts) else None

    def inner(self, other: RowGradients) -> Tensor:
        """Return the inner products (n, n_other) of all pairs of rows, in float64."""
        pairs = zip(self.parts, other.parts, strict=True)
        return sum((a.inner(b) for a, b in pairs), torch.zeros(()))

    def inner_rowwise(self, other: RowGradients) -> Tensor:
        """Return the inner products (n,) of row k with row k of `other`, in float64."""
        pairs = zip(self.parts, other.parts, strict=True)
        return torch.stack([a.inner_rowwise(b) for a, b in pairs]).sum(0)

    def unit(self) -> RowGradients:
        """Return the gradients divided by their lengths; a zero gradient stays zero."""
        length = self.inner_rowwise(self).sqrt()
        factors = 1 / torch.where(length > 0, length, 1)
        return RowGradients([part.scaled(factors) for part in self.parts], self.places)

    def apply(self, vectors: Tensor) -> Tensor:
        """Return the inner products (n, k) with vectors (k, p)."""
        return self.push(vectors)[:, :, 0]

    def combine(self, coefficients: Tensor) -> Tensor:
        """Return linear combinations (k, p) of the gradients with coefficients (n, k)."""
        return self.pull(coefficients.unsqueeze(2))

    def push(self, vectors: Tensor) -> Tensor:
        """Return the derivatives (n, k, C) along vectors (k, p)."""
        total = torch.zeros((), dtype=vectors.dtype, device=vectors.device)
        for part, place in zip(self.parts, self.places, strict=True):
            total = total + part.apply(place.matrices(vectors))
        return total

    def pull(self, coefficients: Tensor) -> Tensor:
        """Return the sums (k, p) over rows and numbers of the gradients times (n, k, C)."""
        vectors = self._vectors(coefficients.shape[1])
        for part, place in zip(self.parts, self.places, strict=True):
            place.fill(vectors, part.combine(coefficients))
        return vectors

    def dense(self) -> Tensor:
        """Return the gradients themselves, (n, p)."""
        if len(self.parts) == 1 and len(self.places[0].slices) == 1:
            return self.parts[0].dense().flatten(1)
        vectors = self._vectors(len(self))
        for part, place in zip(self.parts, self.places, strict=True):
            place.fill(vectors, part.dense())
        return vectors

    def second_moment(self, weights: Tensor) -> Tensor:
        """Return the sum of the squares of all entries by weights (n,), (p,) in their dtype."""
        vectors = self._vectors(1).to(weights)
        for part, place in zip(self.parts, self.places, strict=True):
            place.fill(vectors, part.second_moment(weights)[None])
        return vectors[0]

    def entries(self, size: int) -> Iterator[Tensor]:
        """Yield all entries, `size` parameters at a time, (size, n)."""
        factors = self.factors
        if factors is None:
            yield from self.dense().mT.split(size)
            return
        turned = [
            (f.inputs[:, 0].mT.contiguous(), f.signals[:, 0, 0].mT.contiguous()) for f in factors
        ]
        n_parameters = max(s.stop for place in self.places for s in place.slices)
        for start in range(0, n_parameters, size):
            yield _products(turned, self.places, start, min(start + size, n_parameters))

    def _vectors(self, k: int) -> Tensor:
        """Return vectors (k, p) to be filled."""
        p = max(s.stop for place in self.places for s in place.slices)
        return self.parts[0][:0].dense().new_empty(k, p)


def _products(
    turned: list[tuple[Tensor, Tensor]], places: Sequence[Place], start: int, stop: int
) -> Tensor:
    """Return the entries [start, stop) of products of inputs (in, n) and signals (out, n)."""
    found: list[tuple[int, Tensor]] = []
    for (a, d), place in zip(turned, places, strict=True):
        offset = 0
        for s in place.slices:
            width = (s.stop - s.start) // len(d)
            first, last = max(start, s.start) - s.start, min(stop, s.stop) - s.start
            if first < last:
                top, bottom = first // width, -(-last // width)
                whole = (d[top:bottom, None] * a[offset : offset + width]).flatten(0, 1)
                found.append((s.start + first, whole[first - top * width : last - top * width]))
            offset += width
    return torch.cat([part for _, part in sorted(found, key=lambda pair: pair[0])])


class RowDifferentiator:
    """Computes the gradients of rows in the parameters of a final model.

    On the inputs of a few rows it finds out whether every parameter belongs to a layer with factors that a
    row meets at one position; only then do gradients factor.
    """

    def __init__(self, model: FinalModel, inputs: Inputs):
        self.model = model
        self._layers: LayerDifferentiator | None = None
        kinds = [layer.kind for layer in trainable_layers(model)]
        if all(kind is not None and not kind.many_positions for kind in kinds):
            layers = LayerDifferentiator(model, inputs)
            if layers.complete and all(positions == 1 for positions, *_ in layers.shapes):
                self._layers = layers

    @property
    def factors(self) -> bool:
        """True if inner products go through factors."""
        return self._layers is not None

    def row_bytes(self) -> int:
        """Return the bytes that one row's gradient takes while it is computed."""
        if self._layers is None:
            return 3 * self.model.n_parameters * self.model.theta.element_size()
        return 4 * self._layers.row_bytes()

    def __call__(self, measured: Measured) -> RowGradients:
        """Return the gradients of all rows at once."""
        if self._layers is None:
            return RowGradients.of(gradients_by_autograd(self.model, measured))
        return RowGradients(self._layers(measured), self._layers.places)

    def chunks(self, measured: Measured, chunk_size: int) -> Iterator[tuple[slice, RowGradients]]:
        """Yield the gradients of `chunk_size` rows at a time, with the rows they belong to."""
        for start in range(0, len(measured), chunk_size):
            rows = slice(start, min(start + chunk_size, len(measured)))
            yield rows, self(measured[rows])
