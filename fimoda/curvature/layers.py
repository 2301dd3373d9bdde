"""Gradients layer by layer as factors: linear layers on vectors or sequences, convolutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..measured import Measured
from ..model import FinalModel
from ..row_gradients import _recording

#: Gives the vectors (n, C) that are pulled back through the network, from its outputs.
Cotangents = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Factors:
    r"""Gradients of n rows in one layer, :math:`G_i = \sum_t d_{it} a_{it}^\top` (out, in).

    Parameters
    ----------
    inputs : Tensor of shape (n, T, in)
        What the layer sees at each position, with a last column of ones where it has a bias.
    signals : Tensor of shape (n, T, out)
        Gradient in the layer's output at each position.
    matrices : Tensor of shape (n, out, in), default=None
        The gradients themselves, in place of factors (then without positions).
    """

    inputs: Tensor
    signals: Tensor
    matrices: Tensor | None = None

    def dense(self) -> Tensor:
        """The gradients themselves, (n, out, in)."""
        return self.signals.mT @ self.inputs if self.matrices is None else self.matrices

    def compressed(self) -> Factors:
        """Factors or matrices, whichever are smaller."""
        factors = self.inputs[0].numel() + self.signals[0].numel()
        if self.matrices is not None or factors == self.row_size():
            return self
        return Factors(self.inputs[:, :0].clone(), self.signals[:, :0].clone(), self.dense())

    def row_size(self) -> int:
        """Numbers that a row takes, compressed."""
        matrix = self.inputs.shape[2] * self.signals.shape[2]
        if self.matrices is not None:
            return matrix
        return min(self.inputs[0].numel() + self.signals[0].numel(), matrix)


class LayerDifferentiator:
    """Factors of the gradients of rows in every layer that has them.

    Parameters
    ----------
    model : FinalModel
    X : Tensor of shape (n, ...)
        A few rows on which every layer's factors are compared with its gradient.

    Attributes
    ----------
    names : list of str
        Layers with factors.
    places : list of tuple of slice
        Where weight, and bias, of each lie in the parameter vector.
    skipped : list of str
        Layers with trainable parameters and no factors, with their types.
    """

    def __init__(self, model: FinalModel, X: Tensor):
        self.model = model
        known = {id(p): model.slices.get(k) for k, p in model.module.named_parameters()}
        self.layers: list[nn.Module] = []
        self.names: list[str] = []
        self.places: list[tuple[slice, ...]] = []
        self.skipped: list[str] = []
        own: dict[str, tuple[nn.Module, tuple[slice, ...]]] = {}
        for name, part in model.module.named_modules():
            found = [(k, known[id(p)]) for k, p in part.named_parameters(recurse=False)]
            slices = {k: s for k, s in found if s is not None}
            if not slices:
                continue
            label = name or type(part).__name__
            if isinstance(part, nn.Linear | nn.Conv2d) and "weight" in slices:
                own[label] = (part, tuple(slices.values()))
            else:
                self.skipped.append(f"{label} ({type(part).__name__})")
        for label in own:
            part, place = own[label]
            if _has_factors(model, part, place, X):
                self.layers.append(part)
                self.names.append(label)
                self.places.append(place)
            else:
                self.skipped.append(f"{label} ({type(part).__name__})")

    def __call__(self, measured: Measured) -> list[Factors]:
        """Return the factors of the gradients of what is measured, one a layer."""
        return self.pull_back(measured.inputs, lambda outputs: [measured.slopes(outputs)])[0]

    def pull_back(self, X: Tensor, cotangents: Cotangents) -> list[list[Factors]]:
        """Factors of the gradients of ``(outputs * v).sum(1)`` for each v of the cotangents."""
        return _pull_back(self.model, self.layers, self.places, X, cotangents)

    def row_bytes(self, X: Tensor, n_cotangents: int = 1) -> int:
        """Bytes that the factors of one row take."""
        factors = self.pull_back(X[:1], lambda outputs: [torch.ones_like(outputs)])[0]
        size = self.model.theta.element_size()
        return size * sum(
            f.inputs[0].numel() + n_cotangents * f.signals[0].numel() for f in factors
        )


def _pull_back(
    model: FinalModel,
    layers: list[nn.Module],
    places: list[tuple[slice, ...]],
    X: Tensor,
    cotangents: Cotangents,
) -> list[list[Factors]]:
    theta = model.theta.clone().requires_grad_()
    with _recording(layers) as calls, torch.enable_grad():
        outputs = model.forward(theta, X)
    edges = [edge for layer in layers for _, edge in calls[layer]]
    vectors = cotangents(outputs.detach())
    inputs = [
        torch.cat([_positions(layer, a.detach(), len(X)) for a, _ in calls[layer]], dim=1)
        for layer in layers
    ]
    for k, place in enumerate(places):
        if len(place) > 1:
            inputs[k] = F.pad(inputs[k], (0, 1), value=1.0)
    result = []
    for number, vector in enumerate(vectors, start=1):
        keep = number < len(vectors)
        slopes = iter(torch.autograd.grad(outputs, edges, vector, retain_graph=keep))
        signals = [
            torch.cat([_signals(layer, next(slopes), len(X)) for _ in calls[layer]], dim=1)
            for layer in layers
        ]
        result.append([Factors(a, d) for a, d in zip(inputs, signals, strict=True)])
    return result


def _positions(layer: nn.Module, a: Tensor, n: int) -> Tensor:
    """Inputs of a layer, (n, T, in)."""
    if isinstance(layer, nn.Conv2d):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        a = F.pad(a, layer._reversed_padding_repeated_twice, mode=mode)
        return F.unfold(a, layer.kernel_size, dilation=layer.dilation, stride=layer.stride).mT
    return a.reshape(n, -1, a.shape[-1])


def _signals(layer: nn.Module, d: Tensor, n: int) -> Tensor:
    """Gradients in the outputs of a layer, (n, T, out)."""
    if isinstance(layer, nn.Conv2d):
        return d.flatten(2).mT
    return d.reshape(n, -1, d.shape[-1])


def _has_factors(model: FinalModel, layer: nn.Module, place: tuple[slice, ...], X: Tensor) -> bool:
    """Whether the factors give the layer's gradient, found by trying on the rows X."""
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return False
    with _recording([layer]) as calls:
        model.forward(model.theta.clone().requires_grad_(), X)
    if not calls[layer]:
        return False
    theta = model.theta.clone().requires_grad_()
    outputs = model.forward(theta, X)
    # a different number for each output, so that probabilities do not sum to a constant
    v = torch.cos(torch.arange(outputs.shape[1], dtype=model.dtype, device=model.device))
    try:
        factors = _pull_back(model, [layer], [place], X, lambda f: [v.expand_as(f)])[0][0]
    except RuntimeError:  # not used by the outputs, or without a row axis
        return False
    if factors.inputs.shape[:2] != factors.signals.shape[:2]:
        return False
    width = factors.inputs.shape[2] - (len(place) - 1)
    for row, found in zip(outputs, factors.dense(), strict=True):
        wanted = torch.autograd.grad(row @ v, theta, retain_graph=True)[0]
        parts = [wanted[s].unflatten(0, (len(found), -1)) for s in place]
        error = (torch.cat(parts, 1) - found).abs().max()
        if parts[0].shape[1] != width or float(error) > 1e-3 * float(wanted.abs().max()):
            return False
    return True
