"""Gradients of rows in a table of vectors that the rows look up: sparse in the entries that occur."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .factors import Factors, LayerGradients, second_moment
from .matrices import Matrices

#: Positions on one side whose products are computed together.
_POSITIONS = 256


@dataclass(frozen=True)
class Lookups(Factors):
    r"""Gradients :math:`G_{ic} = \sum_t d_{itc} e_{k_{it}}^\top` (out, size) of row i.

    The inputs e are unit vectors, held as the entries k (n, T) of the table that each position looks up;
    -1 where it looks up none. The signals d are (n, T, C, out).
    """

    size: int

    @property
    def at_one_position(self) -> bool:
        return False

    def inner(self, other: Any) -> Tensor:
        if not isinstance(other, Lookups):
            return self.apply(other.dense())[:, :, 0].double()
        gram = self.signals.new_zeros(len(other), len(self))
        for some, same in _matched(self._sorted(), other._sorted()):
            products = (same.signals @ some.signals.mT) * (same.entries[:, None] == some.entries)
            found = gram.new_zeros(len(products), len(self)).index_add_(1, some.rows, products)
            gram.index_add_(0, same.rows, found)
        return gram.mT.double()

    def inner_rowwise(self, other: Any, metric: Tensor | None = None) -> Tensor:
        if not isinstance(other, Lookups):
            return Matrices(self.dense()).inner_rowwise(other, metric)
        d = self.signals if metric is None else self._times(metric).signals
        products = d[:, :, 0] @ other.signals[:, :, 0].mT
        same = self.inputs[:, :, None] == other.inputs[:, None]
        same = same & (self.inputs >= 0)[:, :, None]
        return (products * same).double().sum((1, 2))

    def apply(self, matrices: Tensor) -> Tensor:
        some = matrices.permute(0, 2, 1)[:, self.inputs.clamp(min=0)]  # (k, n, T, out)
        return torch.einsum("knto,ntco->nkc", some, self._used)

    def combine(self, coefficients: Tensor) -> Tensor:
        slopes = torch.einsum("nkc,ntco->ntko", coefficients, self._used).flatten(0, 1)
        total = slopes.new_zeros(self.size, *slopes.shape[1:])
        return total.index_add_(0, self.inputs.clamp(min=0).flatten(), slopes).permute(1, 2, 0)

    def dense(self) -> Tensor:
        n, _, _, out = self.signals.shape
        total = self.signals.new_zeros(n * self.size, out)
        starts = torch.arange(n, device=total.device)[:, None] * self.size
        places = (starts + self.inputs.clamp(min=0)).flatten()
        return (
            total.index_add_(0, places, self._used[:, :, 0].flatten(0, 1))
            .view(n, self.size, out)
            .mT
        )

    def second_moment(self, weights: Tensor) -> Tensor:
        row, entry, signals = self._merged()
        squares = signals.to(weights).square().sum(1) * weights[row, None]
        return squares.new_zeros(self.size, squares.shape[1]).index_add_(0, entry, squares).mT

    def divided(self, metric: Tensor) -> Lookups:
        return self._times(1 / metric)

    def section(self, outputs: slice, inputs: slice) -> Lookups:
        start, stop, _ = inputs.indices(self.size)
        inside = (self.inputs >= start) & (self.inputs < stop)
        entries = torch.where(inside, self.inputs - start, -1)
        return Lookups(entries, self.signals[..., outputs], stop - start)

    def in_use(self) -> Lookups:
        return self

    def covariances(self, weights: Tensor) -> tuple[None, Tensor | None]:
        return None, second_moment(self._used, weights)

    def compressed(self) -> LayerGradients:
        return self

    def written_out(self) -> LayerGradients:
        return self

    @property
    def matrix_numbers(self) -> int:
        # written out they never are but for the entries that occur
        return self.signals[0, :, :1].numel()

    # ---- what they are made of --------------------------------------------------------------

    @property
    def _used(self) -> Tensor:
        """The signals, zero where no entry is looked up."""
        return self.signals * (self.inputs >= 0)[:, :, None, None]

    def _times(self, metric: Tensor) -> Lookups:
        """Return the gradients times a matrix (out, size), entry by entry."""
        factors = metric.mT[self.inputs.clamp(min=0)].to(self.signals)
        return replace(self, signals=self.signals * factors.unsqueeze(2))

    def _merged(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows (m,), entries (m,) and signals (m, C, out), each pair of row and entry once."""
        row = torch.arange(len(self), device=self.inputs.device)[:, None]
        pairs = row * self.size + self.inputs
        used = self.inputs >= 0
        pair, number = torch.unique(pairs[used], return_inverse=True)
        signals = self.signals.new_zeros(len(pair), *self.signals.shape[2:])
        signals.index_add_(0, number, self.signals[used])
        return pair // self.size, pair % self.size, signals

    def _sorted(self) -> Positions:
        """Return the positions, with signals of the first number, by entries."""
        n, T = self.inputs.shape
        order = torch.argsort(self.inputs.flatten())[int((self.inputs < 0).sum()) :]
        d = self.signals[:, :, 0].reshape(n * T, -1)[order]
        return Positions(order // T, self.inputs.flatten()[order], d)


class Positions(NamedTuple):
    """Rows (m,), entries (m,) and signals (m, out) of some positions."""

    rows: Tensor
    entries: Tensor
    signals: Tensor

    def at(self, which: Tensor | slice) -> Positions:
        """Return some of the positions."""
        return Positions(self.rows[which], self.entries[which], self.signals[which])


def _matched(a: Positions, b: Positions) -> Iterator[tuple[Positions, Positions]]:
    """Yield stretches of positions, sorted by entries, that hold all pairs with the same entry."""
    in_both = torch.isin(a.entries, b.entries), torch.isin(b.entries, a.entries)
    a, b = a.at(in_both[0]), b.at(in_both[1])
    counts = [torch.unique_consecutive(side.entries, return_counts=True)[1] for side in (a, b)]
    stretch = (torch.maximum(*counts).cumsum(0) - 1) // _POSITIONS
    last = (stretch.diff(append=stretch.new_full((1,), -1)) != 0).nonzero()[:, 0]
    ends = [[0, *count.cumsum(0)[last].tolist()] for count in counts]
    for (start, stop), (other_start, other_stop) in zip(*map(pairwise, ends), strict=True):
        yield a.at(slice(start, stop)), b.at(slice(other_start, other_stop))
