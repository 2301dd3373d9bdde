"""Jacobians of the outputs as factors, kept for many products with vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import FinalModel
from .layers import Factors, LayerDifferentiator


@dataclass(frozen=True)
class FactoredJacobian:
    r"""Derivatives of the outputs of n rows, :math:`\partial f_{ic}/\partial\theta`.

    In each layer they are :math:`\sum_t d_{itc} a_{it}^\top`. A product with a vector is one
    matrix product a layer, half of what forward and backward mode take, and no pass through the
    network.

    Parameters
    ----------
    inputs : list of Tensor of shape (n, T, in)
        What each layer sees at each position, with a last column of ones where it has a bias.
    signals : list of Tensor of shape (n, T, C, out)
        Gradient of each output in the layer's output at each position.
    places : list of tuple of slice
        Where weight, and bias, of each layer lie in the parameter vector.
    """

    inputs: list[Tensor]
    signals: list[Tensor]
    places: list[tuple[slice, ...]]

    def __getitem__(self, rows: Tensor | slice) -> FactoredJacobian:
        """The Jacobians of some rows."""
        return FactoredJacobian(
            [a[rows] for a in self.inputs], [d[rows] for d in self.signals], self.places
        )

    def push(self, V: Tensor) -> Tensor:
        """Products with the vectors V (k, p), (n, k, C)."""
        total = torch.zeros((), dtype=V.dtype, device=V.device)
        for a, d, place in zip(self.inputs, self.signals, self.places, strict=True):
            parts = [V[:, s].unflatten(1, (d.shape[3], -1)) for s in place]
            matrices = torch.cat(parts, dim=2).flatten(0, 1)  # (k out, in)
            pushed = (a.flatten(0, 1) @ matrices.mT).view(-1, len(V), d.shape[3])
            outputs = pushed @ d.flatten(0, 1).mT
            total = total + outputs.unflatten(0, a.shape[:2]).sum(1)
        return total

    def pull(self, U: Tensor) -> Tensor:
        """Sums over rows and outputs of the derivatives times U (n, k, C), (k, p)."""
        k = U.shape[1]
        vectors = U.new_empty(k, max(s.stop for place in self.places for s in place))
        for a, d, place in zip(self.inputs, self.signals, self.places, strict=True):
            slopes = (U.unsqueeze(1) @ d).flatten(0, 1).flatten(1)  # (n T, k out)
            matrices = (slopes.mT @ a.flatten(0, 1)).unflatten(0, (k, -1))
            widths = [(s.stop - s.start) // d.shape[3] for s in place]
            for s, block in zip(place, matrices.split(widths, dim=2), strict=True):
                vectors[:, s] = block.flatten(1)
        return vectors

    def row_bytes(self, k: int) -> int:
        """Bytes that products with k vectors take for each row."""
        widest = max(d.shape[1] * (d.shape[3] + d.shape[2]) for d in self.signals)
        return 2 * k * widest * self.signals[0].element_size()


def factored_jacobian(model: FinalModel, X: Tensor, memory_budget: int) -> FactoredJacobian | None:
    """The Jacobian of the rows X; None if not every layer factors, or it needs more memory."""
    differentiate = LayerDifferentiator(model, X[:2])
    held = sum(s.stop - s.start for place in differentiate.places for s in place)
    if differentiate.skipped or held != model.n_parameters:
        return None
    n_outputs = model.outputs(X[:1]).shape[1]
    row_bytes = differentiate.row_bytes(X, n_outputs)
    if len(X) * row_bytes > memory_budget:
        return None

    def each_output(outputs: Tensor) -> list[Tensor]:
        return list(torch.eye(n_outputs).to(outputs).unsqueeze(1).expand(-1, len(outputs), -1))

    inputs: list[Tensor] = []
    signals: list[Tensor] = []
    step = max(1, len(X) // 16)  # what it takes to find them stays small beside them
    for start in range(0, len(X), step):
        rows = slice(start, start + step)
        found = list(zip(*differentiate.pull_back(X[rows], each_output), strict=True))
        if not inputs:
            inputs = [_rows(len(X), of_layer[0].inputs) for of_layer in found]
            signals = [_rows(len(X), _stacked(of_layer)) for of_layer in found]
        for k, of_layer in enumerate(found):
            inputs[k][rows] = of_layer[0].inputs
            signals[k][rows] = _stacked(of_layer)
    return FactoredJacobian(inputs, signals, differentiate.places)


def _stacked(of_layer: tuple[Factors, ...]) -> Tensor:
    """Signals of all outputs, (n, T, C, out)."""
    return torch.stack([factors.signals for factors in of_layer], dim=2)


def _rows(n: int, like: Tensor) -> Tensor:
    return like.new_empty(n, *like.shape[1:])
