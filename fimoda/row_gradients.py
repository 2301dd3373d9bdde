"""Gradients of rows in all parameters, as factors where the network has them.

For a linear layer with input a and gradient d in its output, the gradient of a row is the outer
product d a^T (and d for the bias), so an inner product of two rows' gradients is
``(d . d') (a . a' + 1)``: the gradients themselves, as large as the model, are never needed. A network
with parameters elsewhere has its gradients formed, a chunk of rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .layers import (
    Factors,
    LayerDifferentiator,
    LayerGradients,
    Matrices,
    Place,
)
from .measured import Measured
from .model import FinalModel
from .padding import chunks
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
    def n_bytes(self) -> int:
        """The bytes that the gradients take."""
        return sum(part.n_bytes for part in self.parts)

    @property
    def factors(self) -> list[Factors] | None:
        """The parts, if all are single products of vectors."""
        found = [p for p in self.parts if isinstance(p, Factors) and p.at_one_position]
        return found if len(found) == len(self.parts) else None

    def inner(self, other: RowGradients) -> Tensor:
        """Return the inner products (n, n_other) of all pairs of rows, in float64."""
        pairs = zip(self.parts, other.parts, strict=True)
        return sum((a.inner(b) for a, b in pairs), torch.zeros(()))

    def written_out(self, n_bytes: int) -> RowGradients:
        """Return the same gradients for products with many others: written out as far as the bytes go."""
        parts: list[LayerGradients] = []
        for part in self.parts:
            fits = len(self) * part.matrix_bytes <= n_bytes
            kept = part.written_out() if fits else part
            n_bytes -= kept.n_bytes if kept is not part else 0
            parts.append(kept)
        return RowGradients(parts, self.places)

    def of_layers(self, layers: Sequence[Sequence[slice]]) -> list[LayerGradients]:
        """Return the gradients in layers by the places of their parameters.

        As they are held, or written out where a layer has several parts; the order of entries is any.
        """
        found: list[LayerGradients] = []
        for slices in layers:
            inside = [
                (part, place)
                for part, place in zip(self.parts, self.places, strict=True)
                if min(s.start for s in place.slices) >= slices[0].start
                and max(s.stop for s in place.slices) <= slices[-1].stop
            ]
            sizes = [sum(s.stop - s.start for s in place.slices) for _, place in inside]
            if sum(sizes) != sum(s.stop - s.start for s in slices):  # in parts with other layers
                columns = torch.cat([self.dense()[:, s] for s in slices], dim=1)
                found.append(Matrices(columns.unsqueeze(1)))
            elif len(inside) == 1:
                found.append(inside[0][0])
            else:
                columns = torch.cat([part.dense().flatten(1) for part, _ in inside], dim=1)
                found.append(Matrices(columns.unsqueeze(1)))
        return found

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
        first = self.places[0]
        if len(self.parts) == 1 and len(first.slices) == 1 and not first.transposed:
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
        blocks: list[tuple[slice, Callable[[int, int], Tensor]]] = []
        for part, place in zip(self.parts, self.places, strict=True):
            blocks += zip(place.slices, _rows(part, place), strict=True)
        blocks.sort(key=lambda block: block[0].start)
        for start in range(0, blocks[-1][0].stop, size):
            stop = start + size
            yield torch.cat(
                [
                    entries(max(start, s.start) - s.start, min(stop, s.stop) - s.start)
                    for s, entries in blocks
                    if s.start < stop and start < s.stop
                ]
            )

    def _vectors(self, k: int) -> Tensor:
        """Return vectors (k, p) to be filled."""
        p = max(s.stop for place in self.places for s in place.slices)
        return self.parts[0][:0].dense().new_empty(k, p)


def _rows(part: LayerGradients, place: Place) -> list[Callable[[int, int], Tensor]]:
    """Return functions of the entries' first and last number, one a slice, that give them, (k, n)."""
    widths = [(s.stop - s.start) // place.n_outputs for s in place.slices]
    offsets = [sum(widths[:k]) for k in range(len(widths))]
    products = part.at_one_position if isinstance(part, Factors) else False
    if isinstance(part, Factors) and products:
        a, d = part.inputs[:, 0].mT.contiguous(), part.signals[:, 0, 0].mT.contiguous()

    def entries(first: int, last: int, offset: int, width: int) -> Tensor:
        across = place.n_outputs if place.transposed else width
        top, bottom = first // across, -(-last // across)
        rows, columns = slice(top, bottom), slice(offset, offset + width)
        if place.transposed:
            rows, columns = slice(None), slice(offset + top, offset + bottom)
        if products:
            left, right = (a[columns], d) if place.transposed else (d[rows], a[columns])
            whole = (left[:, None] * right).flatten(0, 1)
        else:
            dense = part.section(rows, columns).dense()
            whole = (dense.mT if place.transposed else dense).flatten(1).mT
        return whole[first - top * across : last - top * across]

    return [partial(entries, offset=o, width=w) for o, w in zip(offsets, widths, strict=True)]


class RowDifferentiator:
    """Computes the gradients of rows in the parameters of a final model, layer by layer.

    On the inputs of a few rows it finds out which layers' gradients are known.
    """

    def __init__(self, model: FinalModel, inputs: Inputs):
        self.model = model
        self._layers = LayerDifferentiator(model, inputs)
        samples = self._layers.samples
        #: True if all gradients are single products of vectors, and so inner products cheap.
        self.factors = all(part.at_one_position for part in samples)

    def row_bytes(self) -> int:
        """Return the bytes that one row's gradient takes while it is computed."""
        written_out = max(
            min(part.matrix_numbers, 2 * part.row_numbers()) for part in self._layers.samples
        )
        return 4 * self._layers.row_bytes() + self.model.theta.element_size() * written_out

    def __call__(self, measured: Measured) -> RowGradients:
        """Return the gradients of all rows at once."""
        parts: Sequence[LayerGradients] = self._layers(measured)
        if not self.factors:
            parts = [part.compressed() for part in parts]
        return RowGradients(parts, self._layers.places)

    def chunks(
        self, measured: Measured, n_whole: int, most: int
    ) -> Iterator[tuple[slice, RowGradients]]:
        """Yield the gradients of rows that take what `n_whole` whole ones do, with the rows themselves."""
        for rows in chunks(measured.inputs, n_whole, most):
            yield rows, self(measured[rows])
