"""The calls of functions of torch that take trainable parameters, in one pass through a network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from ..formulas import RECURRENCES
from .calls import Call, Part
from .kinds import FUNCTIONS


def _seen_through(function: Any) -> Callable[..., Any]:
    """Return a function of torch that shows a mode which functions it calls, in place of itself."""
    names = {**function.__globals__, "has_torch_function": lambda tensors: False}
    copy = FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


#: Functions that take parameters to others.
_COMPOSITE: dict[Any, Callable[..., Any]] = {
    F.multi_head_attention_forward: _seen_through(F.multi_head_attention_forward),
    **RECURRENCES,
}


class Recording(TorchFunctionMode):
    """Records every call of a function of `FUNCTIONS` that takes one of some named parameters.

    The output is recorded as it stands in the graph: an activation may overwrite the tensor in place. Layers
    are `shared`, by the keys of their calls, whose input n rows have in common: it is repeated for each row.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        slices: Mapping[str, slice],
        shared: Collection[Any],
        n: int,
    ):
        super().__init__()
        self.calls: list[Call] = []
        self._places = {id(tensor): slices[name] for name, tensor in parameters.items()}
        self._shared, self._n = shared, n

    @contextmanager
    def on(self, module: nn.Module) -> Iterator[None]:
        """Record while the module is called."""

        def start(*_: Any) -> None:
            self.__enter__()

        def stop(*_: Any) -> None:
            self.__exit__(None, None, None)

        handles = [
            module.register_forward_pre_hook(start),
            module.register_forward_hook(stop, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _COMPOSITE:
            with self:
                return _COMPOSITE[func](*args, **kwargs)
        call = self._read(func, args, kwargs) if func in FUNCTIONS else None
        if call is None:
            return func(*args, **kwargs)
        if self._shared and call.key in self._shared:
            args = (self._repeated(args[0]), *args[1:])
            call = self._read(func, args, kwargs) or call
        output = func(*args, **kwargs)
        self.calls.append(replace(call, edge=get_gradient_edge(output)))
        return output

    def _repeated(self, shared: Tensor) -> Tensor:
        """Return what n rows share, with or without an axis for them, once for each row."""
        one = shared.dim() > 1 and len(shared) == 1
        return shared.expand(self._n, *(shared.shape[1:] if one else shared.shape))

    def _read(self, func: Any, args: Any, kwargs: Any) -> Call | None:
        """Return a call with the parameters that it takes; None if it is of no kind, or takes none."""
        kind, read = FUNCTIONS[func]
        try:
            taken = read(*args, **kwargs)
        except TypeError:  # with arguments that the kind does not treat
            return None
        if taken is None:
            return None
        weight, bias = self._part(taken.weight), self._part(taken.bias)
        neither = weight is None and bias is None
        return None if neither else Call(kind, taken, weight, bias)

    def _part(self, tensor: Tensor | None) -> Part | None:
        """Return where a tensor lies that is a parameter, or a contiguous part of one."""
        if tensor is None:
            return None
        whole = self._places.get(id(tensor))
        if whole is not None:
            return Part(whole, whole)
        base = tensor._base
        whole = None if base is None else self._places.get(id(base))
        if base is None or whole is None or not base.is_contiguous():
            return None
        turned = not tensor.is_contiguous()
        if turned and not (tensor.dim() == 2 and tensor.mT.is_contiguous()):
            return None
        start = whole.start + tensor.storage_offset() - base.storage_offset()
        return Part(slice(start, start + tensor.numel()), whole, turned)
