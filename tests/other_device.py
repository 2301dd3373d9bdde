"""A device beside the CPU, pretended on the CPU: whatever mixes the two fails, and numbers are right.

Tensors "on" the device say that they are on "meta" and hold a tensor of the CPU, on which every
operation runs. Unlike fake tensors they have values, so that an attributor can be followed from end
to end, and they do what fake tensors cannot: forward differentiation, `Tensor.item`, the way back.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")

#: Operations that move numbers between devices.
_MOVES = ("aten::_to_copy", "aten::copy_")

#: Operations that take indices from the CPU.
_INDEXING = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")


class Remote(Tensor):
    """A tensor of the pretended device."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Remote:
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )

    def __init__(self, inner: Tensor):
        self.inner = inner

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    remote = any(isinstance(t, Remote) for t in tensors)
    local = any(not isinstance(t, Remote) and t.dim() > 0 for t in tensors)
    if remote and local and name not in (*_MOVES, *_INDEXING):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")
    place = kwargs.get("device")
    if place is not None:
        remote = torch.device(place) == DEVICE
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if name == "aten::_efficientzerotensor":  # has no memory
        func = torch.ops.aten.zeros.default
    out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if not func._schema.returns:
        return None
    if func._schema.is_mutable:
        return kwargs.get("out", args[0])
    return tree_map(_remote, out) if remote else out


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Remote) else value


def _remote(value: Any) -> Any:
    return Remote(value) if isinstance(value, Tensor) and not isinstance(value, Remote) else value


class _Operations(TorchDispatchMode):
    """Sees what makes tensors from nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Makes tensors of numbers on the CPU and moves them: torch drops numbers meant for "meta"."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and "device" in kwargs:
            place = kwargs.pop("device")
            made = func(*args, **kwargs)
            return made if place is None else made.to(place)
        if func is Tensor.new_tensor and isinstance(args[0], Remote):
            return torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)).to(DEVICE)
        if func is Tensor.__getitem__ and isinstance(args[1], list):
            return func(args[0], torch.tensor(args[1]))
        return func(*args, **kwargs)


@contextmanager
def other_device(monkeypatch: Any) -> Iterator[torch.device]:
    """The pretended device."""
    generator = types.SimpleNamespace(
        get_rng_state=lambda device=None: torch.get_rng_state(),
        set_rng_state=lambda state, device=None: torch.set_rng_state(state),
        manual_seed_all=lambda seed: None,
        _is_in_bad_fork=lambda: False,
        device_count=lambda: 1,
    )
    optimizer = sys.modules[torch.optim.Optimizer.__module__]
    fused = optimizer._get_fused_kernels_supported_devices()
    with monkeypatch.context() as patch, _Operations(), _Functions():
        patch.setattr(torch, "meta", generator, raising=False)
        patch.setattr(
            optimizer, "_get_fused_kernels_supported_devices", lambda: [*fused, DEVICE.type]
        )
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            yield DEVICE
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(before)
