"""Gradients in a weight that several layers share, as an embedding and the last layer of a language model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .calls import Placed
from .factors import Factors
from .lookups import Lookups
from .place import Place


def shared_place(places: Sequence[Place]) -> Place:
    """Return the place of a weight and of the biases of all layers that share it."""
    first = places[0]
    biases = [s for place in places for s in place.slices[1:]]
    weight = first.slices[0]
    n_outputs = first.n_outputs
    if first.transposed:
        n_outputs = (weight.stop - weight.start) // n_outputs
    return Place((weight, *biases), n_outputs)


def tied(found: Sequence[Placed], shared: Place) -> Placed:
    """Return the sum of layers' gradients in the weight, with those in their biases: positions of all."""
    inputs, signals = [], []
    for part, place in found:
        a, d = _factors(part)
        if place.transposed:
            a, d = _turned(a, d)
        weights, own = a.split([(a.shape[2] - len(place.slices) + 1), len(place.slices) - 1], dim=2)
        columns = own.new_zeros(*own.shape[:2], len(shared.slices) - 1)
        for k, bias in enumerate(place.slices[1:]):
            columns[:, :, shared.slices.index(bias) - 1] = own[:, :, k]
        inputs.append(torch.cat([weights, columns], dim=2))
        signals.append(d)
    return Factors(torch.cat(inputs, dim=1), torch.cat(signals, dim=1)), shared


def _factors(part: Factors) -> tuple[Tensor, Tensor]:
    """Return inputs (n, T, in) and signals (n, T, C, out), unit vectors in place of entries."""
    if not isinstance(part, Lookups):
        return part.inputs, part.signals
    units = F.one_hot(part.inputs.clamp(min=0), part.size)
    return (units * (part.inputs >= 0).unsqueeze(2)).to(part.signals), part.signals


def _turned(inputs: Tensor, signals: Tensor) -> tuple[Tensor, Tensor]:
    """Return inputs and signals of the transposed gradients; each of the C numbers has its own positions."""
    own = torch.eye(signals.shape[2]).to(inputs)
    turned = inputs[:, :, None, None] * own[:, :, None]  # (n, T, C, C, in)
    return signals.flatten(1, 2), turned.flatten(1, 2)
