"""Products with the Gauss-Newton matrix of a chain of linear layers and pointwise functions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..model import FinalModel
from ..objective import Objective
from ..training.chains import Affine, Dropout, Link, Pointwise, chain_forward, read_chain

#: Outputs from which on it is faster than products with the factors of each output's gradient.
MANY_OUTPUTS = 8

#: Numbers in one activation of all vectors: what stays in a processor's cache.
_BLOCK = 2**20


@dataclass(frozen=True, eq=False)
class ChainGaussNewton:
    r"""Products :math:`J^\top W J v` layer by layer, forwards along vectors and back.

    Each is a matrix product a layer and direction for all rows and vectors at once, whatever the number of
    outputs. ``kept`` holds for all rows what goes into a linear link, and the derivative of a pointwise one.
    """

    model: FinalModel
    links: tuple[Link, ...]
    kept: list[Tensor]

    @classmethod
    def of(cls, objective: Objective, most: int) -> ChainGaussNewton | None:
        """Return the products of an objective whose model is such a chain, if that keeps `most` bytes."""
        model, links = objective.model, read_chain(objective.model)
        if links is None:
            return None
        # dropout is off where the final model is differentiated
        links = tuple(link for link in links if not isinstance(link, Dropout))
        shapes = [model.shapes[link.weight] for link in links if isinstance(link, Affine)]
        numbers = 2 * sum(sum(shape) for shape in shapes) + objective.n_outputs**2
        if len(objective) * numbers * model.theta.element_size() > most:
            return None
        parameters = {name: value.unsqueeze(0) for name, value in model.views(model.theta).items()}
        inputs = objective.rows.inputs.flatten(1).unsqueeze(0)
        _, tape = chain_forward(links, parameters, inputs, training=False)
        kept = [
            link.backward(torch.ones_like(h[0]), h[0]) if isinstance(link, Pointwise) else h[0]
            for link, h in zip(links, tape, strict=True)
        ]
        return cls(model, links, kept)

    def __getitem__(self, rows: Tensor) -> ChainGaussNewton:
        """Return the products of some rows."""
        return replace(self, kept=[h[rows] for h in self.kept])

    def chunk_size(self, n_vectors: int) -> int:
        """Return how many rows go through a product with so many vectors together."""
        widest = max(h.shape[1] for h in self.kept)
        return max(1, _BLOCK // (n_vectors * widest))

    def __call__(self, V: Tensor, at: slice, curvature: Tensor) -> Tensor:
        """Return products (k, p) with V (k, p) of some rows, whose W are (b, C, C)."""
        kept = [h[at] for h in self.kept]
        parameters, vectors = self.model.views(self.model.theta), self.model.views(V)
        pushed = self._push(parameters, vectors, kept, len(V))
        return self._pull(parameters, kept, pushed @ curvature)

    def _push(
        self, parameters: dict[str, Tensor], vectors: dict[str, Tensor], kept: list[Tensor], k: int
    ) -> Tensor:
        """Return the derivatives (b, k, C) of the outputs along the vectors."""
        moved: Tensor | None = None
        for link, h in zip(self.links, kept, strict=True):
            if isinstance(link, Affine):
                dz = (h @ vectors[link.weight].flatten(0, 1).mT).unflatten(1, (k, -1))
                if link.bias is not None:
                    dz = dz.add_(vectors[link.bias])
                if moved is not None:
                    dz = dz.add_(moved @ parameters[link.weight].mT)
                moved = dz
            elif moved is not None:
                moved = moved.mul_(h.unsqueeze(1))
        if moved is None:
            raise RuntimeError("a chain has at least one affine link")
        return moved

    def _pull(self, parameters: dict[str, Tensor], kept: list[Tensor], signal: Tensor) -> Tensor:
        """Return the sums (k, p) over rows of derivatives of the outputs times signals (b, k, C)."""
        out = signal.new_empty(signal.shape[1], self.model.n_parameters)
        results = self.model.views(out)
        first = next(k for k, link in enumerate(self.links) if isinstance(link, Affine))
        for number in range(len(self.links) - 1, first - 1, -1):
            link, h = self.links[number], kept[number]
            if isinstance(link, Affine):
                product = signal.flatten(1).mT @ h
                results[link.weight].copy_(product.unflatten(0, (len(out), -1)))
                if link.bias is not None:
                    results[link.bias].copy_(signal.sum(0))
                if number > first:
                    signal = signal @ parameters[link.weight]
            else:
                signal = signal * h.unsqueeze(1)
        return out
