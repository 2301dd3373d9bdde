"""The places of a layer's parameters in vectors of all parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """The place of a layer's weight, and of its bias, in vectors of parameters.

    As a matrix (out, in) they stand side by side, with the bias in the last column; the weight lies in the
    vector as (out, in), or `transposed` as (in, out).
    """

    slices: tuple[slice, ...]
    n_outputs: int
    transposed: bool = False

    @property
    def key(self) -> tuple[tuple[int, int], ...]:
        """The ends of the slices, by which places are told from one another."""
        return tuple((s.start, s.stop) for s in self.slices)

    def matrices(self, vectors: Tensor) -> Tensor:
        """Return the matrices (k, out, in) in vectors (k, p)."""
        return self.assembled(lambda s: vectors[:, s])

    def assembled(self, columns: Callable[[slice], Tensor]) -> Tensor:
        """Return the matrices (k, out, in) of the columns (k, width) that belong to a slice."""
        parts = [self._matrix(columns(s)) for s in self.slices]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def fill(self, vectors: Tensor, matrices: Tensor) -> None:
        """Write matrices (k, out, in) to where they lie in vectors (k, p)."""
        for own, block in self._blocks(vectors, matrices):
            own.copy_(block)

    def add(self, vectors: Tensor, matrices: Tensor) -> None:
        """Add matrices (k, out, in) to what lies there in vectors (k, p)."""
        for own, block in self._blocks(vectors, matrices):
            own.add_(block)

    def _blocks(self, vectors: Tensor, matrices: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the parts of vectors in each slice as matrices, with those of matrices that belong there."""
        widths = [(s.stop - s.start) // self.n_outputs for s in self.slices]
        for s, block in zip(self.slices, matrices.split(widths, dim=2), strict=True):
            yield self._matrix(vectors[:, s]), block

    def _matrix(self, columns: Tensor) -> Tensor:
        """Return columns (k, width) as matrices (k, out, width / out)."""
        if self.transposed:
            return columns.unflatten(1, (-1, self.n_outputs)).mT
        return columns.unflatten(1, (self.n_outputs, -1))
