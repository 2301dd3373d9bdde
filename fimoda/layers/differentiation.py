"""Gradients of rows in every layer, by one pass through the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..measured import Measured
from ..model import FinalModel
from ..rows import Inputs, mapped
from .by_autograd import pulled_back
from .calls import Axes, Call, Placed, summed, written_out
from .factors import Factors
from .recording import Recording
from .tied import shared_place, tied
from .truth import Truth

#: Layers, at most, for which it is tried whether all rows share their input.
_TRIALS = 3

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
            inputs = mapped(lambda part: torch.cat([part, part]), inputs)
        self._shared: tuple[Any, ...] = ()
        self._known = self._compared(inputs)
        for key in self._known.others[:_TRIALS]:
            self._try_shared(key, inputs)
        layers = self._known.layers
        #: Parameters of no layer, by the module that owns them.
        self._others: dict[str, list[str]] = {}
        for name in self._known.truth.uncovered(layers):
            self._others.setdefault(name.rpartition(".")[0], []).append(name)
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

    def _try_shared(self, key: Any, inputs: Inputs) -> None:
        """Try whether a layer is known where each row has a copy of the input that all rows share."""
        before, known = self._shared, self._known
        self._shared = (*before, key)
        try:
            self._known = self._compared(inputs)
        except Exception:  # what a network does with outputs of another shape
            self._shared = before
        if not (self._known.alike(known) and len(self._known.others) < len(known.others)):
            self._shared, self._known = before, known

    def _compared(self, inputs: Inputs) -> _Known:
        """Compare the gradients of layers on a few rows with those of autograd."""
        outputs, parameters, calls = self._recorded_calls(inputs)
        # a different number for each output, so that probabilities do not sum to a constant
        v = torch.cos(torch.arange(outputs[0].numel()).to(outputs)).view(outputs.shape[1:])
        with torch.enable_grad():
            values = [(row * v).sum() for row in outputs]
            total = torch.stack(values).sum()
        edges: list[Any] = [call.edge for call in calls]
        slopes = torch.autograd.grad(total, edges, retain_graph=True, allow_unused=True)
        leaves = list(parameters.values())
        of_rows = [
            torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
            for value in values
        ]
        known = _Known(outputs.detach(), Truth(self.model.slices, of_rows))
        by_layer: dict[Any, list[tuple[Call, Tensor]]] = {}
        for call, slope in zip(calls, slopes, strict=True):
            if slope is not None:  # else the outputs do not depend on it
                by_layer.setdefault(call.key, []).append((call, slope))
        by_weight: dict[Any, list[Any]] = {}
        for key, own in by_layer.items():
            if not known.add((key,), [own]):
                known.others.append(key)
                by_weight.setdefault(key[1], []).append(key)
        for keys in by_weight.values():
            if len(keys) > 1 and known.add(tuple(keys), [by_layer[key] for key in keys]):
                known.others = [key for key in known.others if key not in keys]
        return known

    def _recorded(self, inputs: Inputs) -> tuple[Tensor, list[Call], dict[str, Tensor]]:
        """Return the outputs with their graph, the calls of layers, and the parameters of no layer."""
        outputs, parameters, every = self._recorded_calls(inputs)
        others = {name: parameters[name] for names in self._others.values() for name in names}
        known = {key for keys in self._known.layers for key in keys}
        return outputs, [call for call in every if call.key in known], others

    def _recorded_calls(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor], list[Call]]:
        """Return the outputs with their graph, the named parameters in it, and the calls that take them."""
        model = self.model
        parameters = {
            name: value.detach().requires_grad_()
            for name, value in model.module.named_parameters()
            if name in model.shapes
        }
        mode = Recording(parameters, model.slices, self._shared, len(inputs))
        with mode.on(model.module), torch.enable_grad():
            return model.call(parameters, inputs), parameters, mode.calls

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
        by_layer: dict[Any, list[Placed]] = {}
        for number, call in enumerate(calls):
            own = [s for of_vector in slopes if (s := of_vector[number]) is not None]
            if own:  # else the outputs do not depend on it
                axes = Axes(n, self._known.rows_first[call.key])
                by_layer.setdefault(call.key, []).extend(call.kind.gradients(call, own, axes))
        found: list[Placed] = []
        for keys, placed in self._known.layers.items():
            found += _together([by_layer[key] for key in keys if key in by_layer], keys, placed)
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


@dataclass
class _Known:
    """Layers whose gradients are right on a few rows: by the keys of their calls, more than one if tied."""

    outputs: Tensor
    truth: Truth
    layers: dict[tuple[Any, ...], list[Placed]] = field(default_factory=dict)
    rows_first: dict[Any, bool] = field(default_factory=dict)
    others: list[Any] = field(default_factory=list)

    def add(self, keys: tuple[Any, ...], calls: Sequence[Sequence[tuple[Call, Tensor]]]) -> bool:
        """Take in a layer, or several that share a weight, if its gradients are right."""
        for first in (True, False):
            placed = _gradients(calls, keys, Axes(len(self.outputs), first))
            if placed and all(self.truth.agrees(part, place) for part, place in placed):
                self.layers[keys] = placed
                self.rows_first |= dict.fromkeys(keys, first)
                return True
        return False

    def alike(self, other: _Known) -> bool:
        """Return whether the outputs are the same."""
        return self.outputs.shape == other.outputs.shape and torch.allclose(
            self.outputs, other.outputs, rtol=1e-3, atol=1e-5, equal_nan=True
        )


def _gradients(
    calls: Sequence[Sequence[tuple[Call, Tensor]]], keys: tuple[Any, ...], axes: Axes
) -> list[Placed]:
    """Return the gradients in a layer by its calls; none where rows have no axis there."""
    try:
        found = [
            [placed for call, s in own for placed in call.kind.gradients(call, [s], axes)]
            for own in calls
        ]
        return _together(found, keys)
    except (RuntimeError, IndexError):
        return []


def _together(
    found: Sequence[list[Placed]], keys: tuple[Any, ...], known: Sequence[Placed] = ()
) -> list[Placed]:
    """Return the sums of the gradients of all calls; of tied layers, in their common place."""
    by_place = [placed for own in found for placed in summed(own).values()]
    if len(keys) == 1 or not by_place:
        return by_place
    places = [place for _, place in known or by_place]
    return [tied(by_place, places[0] if known else shared_place(places))]
