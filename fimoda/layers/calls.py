"""Calls of functions of torch that take trainable parameters, and what kinds of layers say of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge

from .factors import Factors, Vectors
from .place import Place

#: Gradients of rows in a layer, and where its parameters lie.
Placed = tuple[Factors, Place]


@dataclass(frozen=True)
class Taken:
    """Input, weight and bias of a function, and what else the kind of its layers has to know.

    Weight and bias are tensors, or None where the function has none.
    """

    input: Tensor
    weight: Any
    bias: Any = None
    settings: Any = None


@dataclass(frozen=True)
class Part:
    """A trained parameter, or a part of it that a function takes: their places in the vector.

    A matrix is `turned` where its transpose lies there.
    """

    taken: slice
    whole: slice
    turned: bool = False


@dataclass(frozen=True)
class Call:
    """One call: what it takes, which of it is trained, and its output as it stands in the graph.

    Weight and bias are a `Part` each, or None where they are constants; not both.
    """

    kind: Kind
    taken: Taken
    weight: Any
    bias: Any
    edge: GradientEdge | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """A key that calls of one layer have in common."""
        ends = (
            (s.start, s.stop) if s else s for s in map(self.kind.slice, (self.weight, self.bias))
        )
        return type(self.kind).__name__, *ends


@dataclass(frozen=True)
class Axes:
    """The order in which a layer meets n rows and their positions: rows first, or positions."""

    n: int
    rows_first: bool = True

    def positions(self, vectors: Tensor) -> Tensor:
        """Return vectors (n T, L, k), or (T n, L, k), by row, (n, T L, k)."""
        if self.rows_first:
            return vectors.reshape(self.n, -1, vectors.shape[-1])
        return vectors.unflatten(0, (-1, self.n)).transpose(0, 1).flatten(1, 2)

    def stacked(self, signals: Sequence[Tensor]) -> Tensor:
        """Return C lots of signals (n T, L, k) by row, (n, T L, C, k)."""
        if len(signals) == 1:  # which takes no copy
            return self.positions(signals[0]).unsqueeze(2)
        return torch.stack([self.positions(one) for one in signals], dim=2)


class Kind(ABC):
    """A kind of layer: functions of torch, and the gradients of rows in parameters that these take.

    ``functions`` are those of torch, each with one of the same arguments that returns what it takes, or None
    where the kind does not treat it.
    """

    functions: ClassVar[dict[Callable[..., Any], Callable[..., Taken | None]]]

    @abstractmethod
    def gradients(self, call: Call, slopes: Sequence[Tensor], axes: Axes) -> list[Placed]:
        """Return the gradients of rows, from slopes in the output for each of C numbers."""

    def slice(self, part: Part | None) -> slice | None:
        """Return the place of the parameters in which gradients are returned."""
        return None if part is None else part.taken


class OuterProducts(Kind):
    """A kind in which the gradient of a row in the weight is a sum of outer products over positions."""

    @abstractmethod
    def inputs(self, taken: Taken) -> Tensor:
        """Return the inputs (N, L, in) at L positions of each of N rows, or of parts of rows."""

    @abstractmethod
    def signals(self, taken: Taken, slope: Tensor) -> Tensor:
        """Return the gradients in the outputs there, (N, L, out)."""

    def gradients(self, call: Call, slopes: Sequence[Tensor], axes: Axes) -> list[Placed]:
        signals = axes.stacked([self.signals(call.taken, slope) for slope in slopes])
        if call.weight is None:
            return biases(call, signals)
        inputs = axes.positions(self.inputs(call.taken).detach())
        slices = [call.weight.taken]
        if call.bias is not None:
            inputs = F.pad(inputs, (0, 1), value=1.0)
            slices.append(call.bias.taken)
        place = Place(tuple(slices), signals.shape[3], call.weight.turned)
        return [(Factors(inputs, signals), place)]


def biases(call: Call, signals: Tensor) -> list[Placed]:
    """Return the gradients in a bias alone, from signals (n, T, C, out)."""
    return [(Vectors.of_rows(signals.sum(1)), Place((call.bias.taken,), signals.shape[3]))]


def written_out(parts: Sequence[tuple[Tensor, slice]]) -> list[Placed]:
    """Return gradients (n, C, k) in several parameters; those that lie side by side are one."""
    runs: list[tuple[list[Tensor], slice]] = []
    for vectors, place in sorted(parts, key=lambda part: part[1].start):
        if runs and runs[-1][1].stop == place.start:
            runs[-1] = [*runs[-1][0], vectors], slice(runs[-1][1].start, place.stop)
        else:
            runs.append(([vectors], place))
    return [
        (Vectors.of_rows(torch.cat(vectors, dim=2)), Place((place,), place.stop - place.start))
        for vectors, place in runs
    ]


def summed(found: Sequence[Placed]) -> dict[Any, Placed]:
    """Return the gradients by the key of their place; of several calls of a layer, their sums."""
    by_place: dict[Any, list[Placed]] = {}
    for placed in found:
        by_place.setdefault(placed[1].key, []).append(placed)
    return {
        key: of_calls[0]
        if len(of_calls) == 1
        else (type(of_calls[0][0]).joined([part for part, _ in of_calls]), of_calls[0][1])
        for key, of_calls in by_place.items()
    }
