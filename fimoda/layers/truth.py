"""Gradients of a few rows by autograd, with which those of layers are compared."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .calls import Placed
from .factors import Factors
from .place import Place


class Truth:
    """Gradients of a few rows' outputs in the named parameters, by autograd."""

    def __init__(self, slices: Mapping[str, slice], gradients: Sequence[Sequence[Tensor | None]]):
        self.slices = slices
        self._names, self._starts = list(slices), [s.start for s in slices.values()]
        self._gradients = dict(zip(slices, zip(*gradients, strict=True), strict=True))
        sizes = [
            torch.stack([g.abs().amax() for g in of_row if g is not None and g.numel()]).amax()
            for of_row in gradients
        ]
        largest = torch.stack(sizes)
        self._tolerance = 1e-3 * torch.where(largest > 0, largest, 1)

    def within(self, place: slice) -> list[tuple[str, slice]]:
        """Return the parameters in a place, and which of their entries."""
        found, start = [], place.start
        while start < place.stop:
            name = self._names[bisect_right(self._starts, start) - 1]
            whole = self.slices[name]
            stop = min(place.stop, whole.stop)
            found.append((name, slice(start - whole.start, stop - whole.start)))
            start = stop
        return found

    def agrees(self, part: Factors, place: Place) -> bool:
        """Return whether gradients are equal to those of autograd; NaN is equal to NaN."""
        wanted, dense = place.assembled(self._columns), part.dense()
        if dense.shape != wanted.shape:
            return False
        off = (dense - wanted).abs().flatten(1).amax(1)
        return not bool((off > self._tolerance).any())

    def _columns(self, place: slice) -> Tensor:
        """Return the gradients (n, width) in a place."""
        parts = [
            torch.stack([self._flat(g, own) for g in self._gradients[name]])
            for name, own in self.within(place)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _flat(self, gradient: Tensor | None, own: slice) -> Tensor:
        if gradient is None:
            return self._tolerance.new_zeros(own.stop - own.start)
        return gradient.flatten()[own]

    def uncovered(self, layers: dict[Any, list[Placed]]) -> list[str]:
        """Return the parameters that no layer covers; layers that cover a part of one are taken away."""
        while True:
            covered = dict.fromkeys(self.slices, 0)
            owned = {
                key: [own for _, place in placed for s in place.slices for own in self.within(s)]
                for key, placed in layers.items()
            }
            for own in owned.values():
                for name, part in own:
                    covered[name] += part.stop - part.start
            sizes = {name: s.stop - s.start for name, s in self.slices.items()}
            others = [name for name, size in sizes.items() if covered[name] != size]
            parted = [key for key, own in owned.items() if any(name in others for name, _ in own)]
            if not parted:
                return others
            for key in parted:
                del layers[key]
