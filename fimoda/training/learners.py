"""Models on their way through training, as a stack or as a module of their own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from ..batch_statistics import statistics_of
from ..model import FinalModel
from ..rows import Rows
from .batches import Batch
from .gradients import Stack, dense
from .images import as_last, channels_last


class Learner(Protocol):
    """Models that take the same steps: `parameters` are what an optimiser moves."""

    parameters: dict[str, Tensor]

    def differentiate(self, batch: Batch) -> None:
        """Give each parameter its gradient on the batch."""

    def gradients(self) -> list[Tensor]:
        """Return the gradient (L, ...) that each parameter has been given, to be changed in place."""

    def gradient(self, batch: Batch) -> Tensor:
        """Return the gradient on the batch, (L, p); neither parameters nor buffers change."""

    def reached(self) -> Tensor:
        """Return the parameters (L, p) as they are now, as a copy."""


class Together:
    """A stack of models: each parameter is a tensor (L, *shape), and `gradient` is that of them all."""

    def __init__(
        self,
        model: FinalModel,
        gradient: Callable[[Stack, Batch, Stack | None], Stack],
        starts: Tensor,
    ):
        self._model, self._gradient = model, gradient
        # a tensor of its own for each parameter: products want them contiguous
        self._stack = {
            name: view.clone(memory_format=torch.contiguous_format)
            for name, view in model.views(starts).items()
        }
        self.parameters = {name: self._stack[name].requires_grad_() for name in model.shapes}
        self._room = {name: torch.empty_like(part) for name, part in self.parameters.items()}

    def differentiate(self, batch: Batch) -> None:
        found = self._gradient(self._stack, batch, self._room)
        for name, part in dense(found, self.parameters).items():
            self.parameters[name].grad = part

    def gradients(self) -> list[Tensor]:
        return [part.grad for part in self.parameters.values() if part.grad is not None]

    def gradient(self, batch: Batch) -> Tensor:
        statistics = {name: self._stack[name].clone() for name in self._model.statistics}
        return self._model.flatten(self._gradient({**self._stack, **statistics}, batch, None))

    def reached(self) -> Tensor:
        return self._model.flatten(self._stack).detach()


class Alone:
    """One model as a module, trained as anybody trains one: it begins at parameters (1, p)."""

    def __init__(self, model: FinalModel, rows: Rows, starts: Tensor):
        self._model, self._rows = model, rows
        self._module = copy.deepcopy(model.training_module)
        named = {**dict(self._module.named_parameters()), **dict(self._module.named_buffers())}
        views = model.views(starts[0])
        self._state = {name: named[name] for name in views}
        with torch.no_grad():
            for name, view in views.items():
                self._state[name].copy_(view)
        self.parameters = {name: named[name] for name in model.shapes}
        self._fixed = [
            (part._buffers, key, value.clone())
            for prefix, part in self._module.named_modules()
            for key, value in part._buffers.items()
            if value is not None and f"{prefix}.{key}".lstrip(".") not in views
        ]
        self._images = as_last(model, rows.inputs[:2])
        self._l2 = {} if model.l2 is None else model.views(model.l2)

    def differentiate(self, batch: Batch) -> None:
        rows, weights = batch.rows.reshape(-1).to(self._rows.device), batch.weights[0]
        x, y = self._rows.inputs[rows], self._rows.targets[rows]
        weights = weights.to(self._model.device, self._model.dtype)
        for part in self.parameters.values():
            part.grad = None
        for buffers, key, value in self._fixed:  # as they were, whatever a step does to them
            buffers[key] = value.clone()
        x = channels_last(x) if self._images else x
        # torch's own layer keeps its statistics itself, where all rows are there
        own = bool(self._model.statistics) and not (weights > 0).all()
        within: Any = statistics_of(weights > 0) if own else nullcontext({})
        with torch.enable_grad(), within as new:
            losses = self._model.loss(self._model.of_module(self._module, x), y)
            losses.dot(weights).backward()
        for name, part in new.items():
            self._state[name].copy_(part.detach())
        for name, part in self.parameters.items():
            if part.grad is None:  # it had no part in the outputs
                part.grad = torch.zeros_like(part)
            elif part.grad.is_sparse:
                part.grad = part.grad.to_dense()
            if self._l2:
                part.grad.addcmul_(self._l2[name], part.detach())

    def gradients(self) -> list[Tensor]:
        return [part.grad[None] for part in self.parameters.values() if part.grad is not None]

    def gradient(self, batch: Batch) -> Tensor:
        before = [buffer.clone() for buffer in self._module.buffers()]
        self.differentiate(batch)
        for buffer, value in zip(self._module.buffers(), before, strict=True):
            buffer.copy_(value)
        found = {name: part.grad for name, part in self.parameters.items() if part.grad is not None}
        return self._model.flatten({name: part[None] for name, part in found.items()})

    def reached(self) -> Tensor:
        state = {name: part.detach()[None] for name, part in self._state.items()}
        return self._model.flatten({k: part.to(self._model.dtype) for k, part in state.items()})
