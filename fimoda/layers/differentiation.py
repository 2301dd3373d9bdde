"""Gradients of rows in every layer, by one pass through the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..measured import Measured
from ..model import FinalModel
from ..rows import Inputs
from .base import Factors
from .by_autograd import pulled_back
from .calls import Axes, Call, Placed, summed, written_out
from .recording import recording
from .truth import Truth

#: Gives the vectors (n, ...) that are pulled back through the network, from its outputs.
Cotangents = Callable[[Tensor], Sequence[Tensor]]


class LayerDifferentiator:
    """Gradients of rows in the parameters, layer by layer.

    On the inputs of a few rows the gradients of each layer are compared with those of autograd, to which all
    other parameters are left. ``places`` are where layers lie, ``samples`` gradients of one row in each;
    ``others`` names the modules that autograd has, with their types.
    """

    def __init__(self, model: FinalModel, inputs: Inputs):
        self.model = model
        if len(inputs) == 1:  # in which rows and positions cannot be told apart
            inputs = inputs[[0, 0]]
        truth, calls = self._by_autograd(inputs)
        self._rows_first: dict[Any, bool] = {}
        layers: dict[Any, list[Placed]] = {}
        for key, own in calls.items():
            for first in (True, False):
                placed = _gradients(own, Axes(len(inputs), first))
                if placed and all(truth.agrees(part, place) for part, place in placed):
                    self._rows_first[key], layers[key] = first, placed
                    break
        #: Parameters of no layer, by the module that owns them.
        self._others: dict[str, list[str]] = {}
        for name in truth.uncovered(layers):
            self._others.setdefault(name.rpartition(".")[0], []).append(name)
        self._rows_first = {key: self._rows_first[key] for key in layers}
        kinds = {name: type(model.module.get_submodule(name)).__name__ for name in self._others}
        self.others = [f"{name or kind} ({kind})" for name, kind in kinds.items()]
        found = [placed for of_layer in layers.values() for placed in of_layer]
        for names in self._others.values():
            found += self._written_out(dict.fromkeys(names, model.theta.new_zeros(1, 1, 1)))
        found.sort(key=lambda placed: placed[1].slices[0].start)
        self.samples = [part[:1] for part, _ in found]
        self.places = [place for _, place in found]

    @property
    def complete(self) -> bool:
        """True if every parameter is in a layer of a known kind."""
        return not self._others

    def __call__(self, measured: Measured) -> list[Factors]:
        """Return the gradients of what is measured, in each layer."""
        outputs, calls, others = self._recorded(measured.inputs)
        with torch.enable_grad():
            total = measured.measure(outputs, measured.targets).sum()
        wanted: list[Any] = [*(call.edge for call in calls), *others.values()]
        if others:
            wanted.append(outputs)
        slopes = torch.autograd.grad(total, wanted, allow_unused=True)
        return self._layers(measured.inputs, calls, [slopes], others, slopes[-1:], len(outputs))

    def pull_back(self, inputs: Inputs, cotangents: Cotangents) -> list[Factors]:
        """Return the gradients of ``(outputs * v).sum(1)`` for each cotangent v."""
        outputs, calls, others = self._recorded(inputs)
        vectors = cotangents(outputs.detach())
        wanted: list[Any] = [*(call.edge for call in calls), *others.values()]
        with torch.enable_grad():
            totals = [(outputs * vector).sum() for vector in vectors]
        slopes = [
            torch.autograd.grad(total, wanted, retain_graph=number < len(totals), allow_unused=True)
            for number, total in enumerate(totals, start=1)
        ]
        return self._layers(inputs, calls, slopes, others, vectors, len(outputs))

    def row_bytes(self, n_cotangents: int = 1) -> int:
        """Return the bytes that the gradients of one row take."""
        numbers = sum(part.row_numbers(n_cotangents) for part in self.samples)
        return self.model.theta.element_size() * numbers

    def _by_autograd(self, inputs: Inputs) -> tuple[Truth, dict[Any, list[tuple[Call, Tensor]]]]:
        """Return gradients of a few rows, and by layer the calls, with the slopes in their outputs."""
        outputs, parameters, calls = _recorded_calls(self.model, inputs)
        # a different number for each output, so that probabilities do not sum to a constant
        v = torch.cos(torch.arange(outputs[0].numel()).to(outputs)).view(outputs.shape[1:])
        with torch.enable_grad():
            values = [(row * v).sum() for row in outputs]
            total = torch.stack(values).sum()
        edges = [call.edge for call in calls]
        slopes = torch.autograd.grad(total, edges, retain_graph=True, allow_unused=True)
        leaves = list(parameters.values())
        of_rows = [
            torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
            for value in values
        ]
        by_layer: dict[Any, list[tuple[Call, Tensor]]] = {}
        for call, slope in zip(calls, slopes, strict=True):
            if slope is not None:  # else the outputs do not depend on it
                by_layer.setdefault(call.key, []).append((call, slope))
        return Truth(self.model.slices, of_rows), by_layer

    def _recorded(self, inputs: Inputs) -> tuple[Tensor, list[Call], dict[str, Tensor]]:
        """Return the outputs with their graph, the calls of layers, and the parameters of no layer."""
        outputs, parameters, every = _recorded_calls(self.model, inputs)
        others = {name: parameters[name] for names in self._others.values() for name in names}
        return outputs, [call for call in every if call.key in self._rows_first], others

    def _layers(
        self,
        inputs: Inputs,
        calls: list[Call],
        slopes: Sequence[Sequence[Tensor | None]],
        others: dict[str, Tensor],
        vectors: Sequence[Tensor],
        n: int,
    ) -> list[Factors]:
        """Return the gradients in each layer from those in the outputs of all calls, by cotangent."""
        found: list[Placed] = []
        for number, call in enumerate(calls):
            own = [s for of_vector in slopes if (s := of_vector[number]) is not None]
            if own:  # else the outputs do not depend on it
                axes = Axes(n, self._rows_first[call.key])
                found += call.kind.gradients(call, own, axes)
        if others:
            used = {
                name
                for of_vector in slopes
                for name, slope in zip(others, of_vector[len(calls) :], strict=False)
                if slope is not None
            }
            gradients = pulled_back(self.model, used, inputs, vectors)
            none = self.model.theta.new_zeros(1, 1, 1).expand(n, len(vectors), 1)
            for names in self._others.values():
                found += self._written_out({name: gradients.get(name, none) for name in names})
        by_place = summed(found)
        return [
            by_place[place.key][0] if place.key in by_place else _zeros(sample, n, len(slopes))
            for place, sample in zip(self.places, self.samples, strict=True)
        ]

    def _written_out(self, gradients: dict[str, Tensor]) -> list[Placed]:
        """Return the gradients (n, C, k) in the parameters of a module, or zeros (n, C, 1)."""
        slices = {name: self.model.slices[name] for name in gradients}
        return written_out(
            [
                (gradients[name].expand(-1, -1, place.stop - place.start), place)
                for name, place in slices.items()
            ]
        )


def _zeros(sample: Factors, n: int, n_cotangents: int) -> Factors:
    """Return gradients of zero of n rows, like a sample of one."""
    signals = torch.zeros_like(sample.signals).expand(n, -1, n_cotangents, -1)
    inputs = sample.inputs.expand(n, *sample.inputs.shape[1:])
    return replace(sample, inputs=inputs, signals=signals)


def _recorded_calls(
    model: FinalModel, inputs: Inputs
) -> tuple[Tensor, dict[str, Tensor], list[Call]]:
    """Return the outputs with their graph, the named parameters in it, and the calls that take them."""
    parameters = {
        name: value.detach().requires_grad_()
        for name, value in model.module.named_parameters()
        if name in model.shapes
    }
    with recording(model.module, parameters, model.slices) as calls, torch.enable_grad():
        return model.call(parameters, inputs), parameters, calls


def _gradients(calls: Sequence[tuple[Call, Tensor]], axes: Axes) -> list[Placed]:
    """Return the gradients in one layer by its calls; none where rows have no axis there."""
    try:
        found = [placed for call, s in calls for placed in call.kind.gradients(call, [s], axes)]
        return list(summed(found).values())
    except (RuntimeError, IndexError):
        return []
