"""Factors of the gradients of rows in every layer that has them, by one pass through the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ..measured import Measured
from ..model import FinalModel
from ..rows import Inputs
from .base import Factors, Kind, Place
from .kinds import kind_of

#: Gives the vectors (n, C) that are pulled back through the network, from its outputs.
Cotangents = Callable[[Tensor], Sequence[Tensor]]

#: Input and output of every call of each layer.
Calls = dict[nn.Module, list[tuple[Tensor, GradientEdge]]]


@dataclass(frozen=True)
class Layer:
    """A module with trainable parameters, its kind, if any has factors, and where they lie."""

    name: str
    module: nn.Module
    kind: Kind | None
    slices: tuple[slice, ...]

    def __str__(self) -> str:
        return f"{self.name} ({type(self.module).__name__})"

    @property
    def place(self) -> Place:
        """The places of the parameters of a layer with factors."""
        return Place(self.slices, len(self.module.get_parameter("weight")))

    def factors(self, calls: Calls, slopes: list[list[Tensor]], n: int) -> Factors:
        """Return the factors of n rows, from slopes in the outputs by call and cotangent."""
        kind, module = self.kind, self.module
        if kind is None:
            raise TypeError(f"{self} has no factors")
        inputs = _joined([kind.inputs(module, a.detach(), n) for a, _ in calls[module]])
        if len(self.slices) > 1:
            inputs = F.pad(inputs, (0, 1), value=1.0)
        signals = [
            _joined([kind.signals(module, of_call[c], n) for of_call in slopes])
            for c in range(len(slopes[0]))
        ]
        one = len(signals) == 1  # which takes no copy
        return Factors(inputs, signals[0].unsqueeze(2) if one else torch.stack(signals, dim=2))


def _joined(parts: list[Tensor]) -> Tensor:
    """Return the positions of all calls, (n, T, ...)."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def trainable_layers(model: FinalModel) -> list[Layer]:
    """Return the modules that own trainable parameters."""
    known = {id(p): model.slices.get(k) for k, p in model.module.named_parameters()}
    layers = []
    for name, module in model.module.named_modules():
        owned = [(k, known[id(p)]) for k, p in module.named_parameters(recurse=False)]
        slices = {k: s for k, s in owned if s is not None}
        if slices:
            kind = kind_of(module) if "weight" in slices else None
            layers.append(
                Layer(name or type(module).__name__, module, kind, tuple(slices.values()))
            )
    return layers


class LayerDifferentiator:
    """Factors of the gradients of rows in every layer that has them.

    On the inputs of a few rows the factors of each layer are compared with its gradient. ``layers`` are
    those with factors, ``places`` where their parameters lie, ``shapes`` their positions, inputs (that of
    the bias included) and outputs; ``skipped`` names the layers without factors, with their types.
    """

    def __init__(self, model: FinalModel, inputs: Inputs):
        self.model = model
        every = trainable_layers(model)
        found = _checked(model, [layer for layer in every if layer.kind is not None], inputs)
        self.layers = [layer for layer in every if layer.name in found]
        self.places = [layer.place for layer in self.layers]
        self.shapes = [found[layer.name] for layer in self.layers]
        others = [layer for layer in every if layer.name not in found]
        others.sort(key=lambda layer: layer.kind is not None)  # those of no kind come first
        self.skipped = [str(layer) for layer in others]

    @property
    def complete(self) -> bool:
        """True if every parameter is in a layer with factors."""
        return not self.skipped

    def __call__(self, measured: Measured) -> list[Factors]:
        """Return the factors of the gradients of what is measured, one a layer."""
        _, outputs, calls = _recorded(self.model, self.layers, measured.inputs)
        with torch.enable_grad():
            total = measured.measure(outputs, measured.targets).sum()
        return self._factors(calls, [torch.autograd.grad(total, self._edges(calls))], len(outputs))

    def pull_back(self, inputs: Inputs, cotangents: Cotangents) -> list[Factors]:
        """Return the factors of the gradients of ``(outputs * v).sum(1)`` for each cotangent v."""
        _, outputs, calls = _recorded(self.model, self.layers, inputs)
        edges, vectors = self._edges(calls), cotangents(outputs.detach())
        with torch.enable_grad():
            totals = [(outputs * vector).sum() for vector in vectors]
        by_vector = [
            torch.autograd.grad(total, edges, retain_graph=number < len(totals))
            for number, total in enumerate(totals, start=1)
        ]
        return self._factors(calls, by_vector, len(outputs))

    def _edges(self, calls: Calls) -> list[GradientEdge]:
        """Return the outputs of all calls."""
        return [edge for layer in self.layers for _, edge in calls[layer.module]]

    def _factors(
        self, calls: Calls, by_vector: Sequence[Sequence[Tensor]], n: int
    ) -> list[Factors]:
        """Return the factors of n rows from the gradients in the outputs of all calls."""
        slopes = [list(of_edge) for of_edge in zip(*by_vector, strict=True)]
        own = ([slopes.pop(0) for _ in calls[layer.module]] for layer in self.layers)
        return [layer.factors(calls, one, n) for layer, one in zip(self.layers, own, strict=True)]

    def row_bytes(self, n_cotangents: int = 1) -> int:
        """Return the bytes that the factors of one row take."""
        numbers = sum(T * (a + n_cotangents * d) for T, a, d in self.shapes)
        return self.model.theta.element_size() * numbers


def _checked(
    model: FinalModel, layers: list[Layer], inputs: Inputs
) -> dict[str, tuple[int, int, int]]:
    """Return the shapes of the factors by layer, where they are found to give its gradient."""
    theta, outputs, calls = _recorded(model, layers, inputs)
    layers = [layer for layer in layers if calls[layer.module]]
    edges = [edge for layer in layers for _, edge in calls[layer.module]]
    if not edges:
        return {}
    # a different number for each output, so that probabilities do not sum to a constant
    v = torch.cos(torch.arange(outputs.shape[1], dtype=model.dtype, device=model.device))
    with torch.enable_grad():
        total = (outputs @ v).sum()
    slopes = list(torch.autograd.grad(total, edges, retain_graph=True, allow_unused=True))
    of_rows = [torch.autograd.grad(row @ v, theta, retain_graph=True)[0] for row in outputs]
    wanted = torch.stack(of_rows)
    largest = wanted.abs().amax(1)
    tolerance = 1e-3 * torch.where(largest > 0, largest, 1)
    found = {}
    for layer in layers:
        own = [[slopes.pop(0)] for _ in calls[layer.module]]
        if any(slope is None for [slope] in own):  # not used by the outputs
            continue
        try:
            factors = layer.factors(calls, own, len(outputs))
        except RuntimeError:  # without a row axis
            continue
        if factors.inputs.shape[:2] != factors.signals.shape[:2]:
            continue
        if _agree(factors.dense(), layer.place.matrices(wanted), tolerance):
            found[layer.name] = (*factors.inputs.shape[1:], factors.signals.shape[3])
    return found


def _agree(some: Tensor, others: Tensor, tolerance: Tensor) -> bool:
    """Return whether two lots of matrices (n, out, in) are equal up to a tolerance (n,), NaN to NaN."""
    if some.shape != others.shape:
        return False
    off = (some - others).abs().flatten(1).amax(1)
    return not bool((off > tolerance).any())


def _recorded(
    model: FinalModel, layers: list[Layer], inputs: Inputs
) -> tuple[Tensor, Tensor, Calls]:
    """Return parameters, the outputs with their graph, and every call of the layers."""
    theta = model.theta.clone().requires_grad_()
    with _recording([layer.module for layer in layers]) as calls, torch.enable_grad():
        return theta, model.forward(theta, inputs), calls


@contextmanager
def _recording(modules: Sequence[nn.Module]) -> Iterator[Calls]:
    """Record input and output of every call of the modules.

    The output as it stands in the graph: an activation may overwrite the tensor in place.
    """
    calls: Calls = {module: [] for module in modules}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[module].append((inputs[0], get_gradient_edge(output)))

    handles = [module.register_forward_hook(record) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
