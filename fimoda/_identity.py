"""Digests that tell one object from another, in every process: by values, settings and code."""

from __future__ import annotations

import copyreg
import dis
import functools
import hashlib
import inspect
import sys
import sysconfig
import types
import weakref
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array, issparse
from torch import Tensor, nn

#: Settings that change how an estimator works and not what it gives.
_NO_MATTER = ("n_jobs", "verbose")

#: Folders of the standard library and of installed packages, whose code is known by its version.
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


def identity_of(thing: Any, fitted: bool = True) -> str:
    """Return a digest that tells this object from any other that acts in another way.

    The same object has the same digest in every process, also after pickling. Arrays, tensors and
    scalars are known by type and value; functions and classes by their code, defaults, closures, and
    the global names that they read, installed ones by name and version; all else by class and
    state, as pickle would keep it. What an estimator has learned belongs to it if `fitted`; otherwise it is
    known as ``clone`` would copy it, by class and parameters, ``n_jobs`` and ``verbose`` apart. Cached
    properties, which may be there or not, are no part of it. ValueError if some part has no value that could
    be compared: an open file, a lock, ...

    Examples
    --------
    >>> from functools import partial
    >>> identity_of({"power": partial(pow, 2)}) == identity_of({"power": partial(pow, 2)})
    True
    >>> identity_of(lambda x: x + 0.1) == identity_of(lambda x: x + 0.2)
    False
    """
    try:
        walk = _Walk()
        return (walk.digest if fitted else walk.unfitted)(thing).hex()
    except RecursionError:
        raise _unknown(thing, "it is nested too deeply") from None


def versions() -> dict[str, str]:
    """Return the versions of what computes: bits may change with each of them."""
    return {name: _version(name) for name in ("fimoda", "torch", "numpy")}


@functools.cache
def _version(package: str) -> str:
    """Return the version of a package, without its build; empty if it has none."""
    known = getattr(sys.modules.get(package), "__version__", None)
    if not isinstance(known, str):
        try:
            known = version(package)
        except PackageNotFoundError:
            return ""
    return known.split("+")[0]


@functools.cache
def _is_installed(module: str) -> bool:
    """Return whether code is fimoda's, another package's or the language's, and not the user's."""
    top = module.split(".")[0]
    if top == "__main__":
        return False
    if top in sys.stdlib_module_names or top == "fimoda":
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and str(Path(file).resolve()).startswith(_INSTALLED)


def _unknown(thing: Any, reason: object) -> ValueError:
    kind = type(thing)
    return ValueError(
        f"an object of {kind.__module__}.{kind.__qualname__} has no value that would tell this run "
        f"from another ({reason}). Give it a `__reduce__` or leave checkpoint_dir out."
    )


def _hash(*parts: bytes) -> bytes:
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.digest()


class _Walk:
    """A walk over an object and its parts; each is looked at once."""

    def __init__(self) -> None:
        # keeps each object, so that its id stays its own
        self._known: dict[int, tuple[Any, bytes]] = {}
        self._above: dict[int, int] = {}

    def digest(self, thing: Any) -> bytes:
        """Return the digest of an object."""
        kind = type(thing)
        if thing is None or thing is Ellipsis or thing is NotImplemented:
            return _hash(repr(thing).encode())
        if kind in (bool, int, complex, str, bytes, float):
            plain = thing.hex() if kind is float else repr(thing)
            return _hash(kind.__name__.encode(), plain.encode())
        if id(thing) in self._known:
            return self._known[id(thing)][1]
        if id(thing) in self._above:  # a circle
            return _hash(b"circle", str(self._above[id(thing)]).encode())
        self._above[id(thing)] = len(self._above)
        try:
            found = self._compound(thing)
        finally:
            del self._above[id(thing)]
        self._known[id(thing)] = thing, found
        return found

    def unfitted(self, thing: Any) -> bytes:
        """Return the digest of an estimator without what it has learned, or of anything else."""
        kind = type(thing)
        if _is_made_by_parameters(thing):
            given = thing.get_params(deep=False)
            known = sorted(name for name in given if name.split("__")[-1] not in _NO_MATTER)
            parts = [_hash(name.encode(), self.unfitted(given[name])) for name in known]
            return _hash(b"estimator", self.digest(kind), *parts)
        if kind in (list, tuple):
            return _hash(kind.__name__.encode(), *map(self.unfitted, thing))
        if kind is dict:
            pairs = (_hash(self.digest(k), self.unfitted(v)) for k, v in thing.items())
            return _hash(b"dict", *sorted(pairs))
        return self.digest(thing)

    def _all(self, name: str, *parts: Any) -> bytes:
        return _hash(name.encode(), *(self.digest(part) for part in parts))

    def _unordered(self, name: str, pairs: Iterable[tuple[Any, Any]]) -> bytes:
        found = (_hash(self.digest(k), self.digest(v)) for k, v in pairs)
        return _hash(name.encode(), *sorted(found))

    def _compound(self, thing: Any) -> bytes:
        kind = type(thing)
        if kind in (list, tuple):
            return self._all(kind.__name__, *thing)
        if kind in (set, frozenset):
            return _hash(kind.__name__.encode(), *sorted(map(self.digest, thing)))
        if kind is dict:
            return self._unordered("dict", thing.items())
        for known, digest in _KINDS.items():
            if isinstance(thing, known):
                return digest(self, thing)
        if issparse(thing):
            return self._sparse(thing)
        if kind.__module__.split(".")[0] == "pandas" and hasattr(thing, "iloc"):
            return self._frame(thing)
        original = getattr(thing, "__wrapped__", None)
        if callable(original) and _is_installed(kind.__module__):  # functools.cache and the like
            return self._all("wrapper", kind, original)
        return self._state(thing)

    def _array(self, array: np.ndarray[Any, Any]) -> bytes:
        if array.dtype.hasobject:
            if array.dtype.names:
                return self._all("records", *(array[name] for name in array.dtype.names))
            return self._all("objects", array.shape, array.ravel().tolist())
        mask = array.mask if isinstance(array, np.ma.MaskedArray) else None
        data = np.ascontiguousarray(np.asarray(array))
        about = repr((array.shape, array.dtype.descr)).encode()
        return _hash(b"array", about, self.digest(mask), data.tobytes())

    def _sparse(self, matrix: Any) -> bytes:
        """Return the digest of a sparse matrix, whatever the order in which it holds its entries."""
        rows = csr_array(matrix, copy=True)
        rows.sum_duplicates()
        parts = rows.indptr.astype(np.int64), rows.indices.astype(np.int64), rows.data
        return self._all("sparse", type(matrix), rows.shape, *parts)

    def _frame(self, frame: Any) -> bytes:
        """Return the digest of a frame or series, however pandas has laid out its columns."""
        wide = frame.ndim == 2
        columns = [frame.iloc[:, k] for k in range(frame.shape[1])] if wide else [frame]
        arrays = [c.to_numpy() if isinstance(c.dtype, np.dtype) else c.array for c in columns]
        names = frame.columns if wide else frame.name
        return self._all("frame", type(frame), frame.index, names, arrays)

    def _tensor(self, tensor: Tensor) -> bytes:
        dense = tensor.detach()
        if dense.layout is not torch.strided:
            dense = dense.to_dense()
        dense = dense.cpu().resolve_conj().resolve_neg().contiguous()
        about = repr((tuple(tensor.shape), tensor.dtype, tensor.layout, tensor.requires_grad))
        return _hash(
            b"tensor", about.encode(), dense.reshape(-1).view(torch.uint8).numpy().tobytes()
        )

    def _module(self, module: types.ModuleType) -> bytes:
        name = module.__name__
        if not _is_installed(name):
            file = getattr(module, "__file__", None)
            if file is not None and Path(file).is_file():
                return _hash(b"module", Path(file).read_bytes())
        return _hash(b"module", name.encode(), _version(name.split(".")[0]).encode())

    def _cell(self, cell: types.CellType) -> bytes:
        try:
            return self._all("cell", cell.cell_contents)
        except ValueError as error:
            if str(error) != "Cell is empty":
                raise
            return _hash(b"empty cell")

    def _named(self, thing: Any, name: str) -> bytes:
        """Return the digest of what is known by its name and the version of its package."""
        module = getattr(thing, "__module__", None) or ""
        known = module, name, _version(module.split(".")[0])
        return _hash(b"named", *(part.encode() for part in known))

    def _class(self, cls: type) -> bytes:
        if _is_installed(cls.__module__):
            return self._named(cls, cls.__qualname__)
        own = {
            name: value
            for name, value in vars(cls).items()
            if not isinstance(value, types.GetSetDescriptorType | types.MemberDescriptorType)
            and not name.startswith("_abc_")
            and (not name.startswith("__") or callable(value) or hasattr(value, "__get__"))
        }
        return self._all("class", cls.__qualname__, cls.__bases__, own)

    def _function(self, function: types.FunctionType) -> bytes:
        compiled = getattr(function, "_torchdynamo_orig_callable", None)
        if compiled is not None:
            return self.digest(compiled)
        around, closure = function.__globals__, function.__closure__
        installed = _is_installed(around.get("__name__", ""))
        if installed and not closure and "<" not in function.__qualname__:
            return self._named(function, function.__qualname__)
        names = () if installed else _globals_of(function.__code__)
        read = {name: self._if_known(around[name]) for name in names if name in around}
        settings = (function.__defaults__, function.__kwdefaults__)
        return self._all("function", function.__code__, settings, closure, read)

    def _if_known(self, value: Any) -> Any:
        """Return the value of a global name, or its type if it cannot be compared."""
        try:
            self.digest(value)
        except (ValueError, RecursionError):
            return type(value)
        return value

    def _code(self, code: types.CodeType) -> bytes:
        arguments = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
        names = (code.co_names, code.co_freevars, arguments, code.co_flags)
        return self._all("code", code.co_code, code.co_consts, names, code.co_exceptiontable)

    def _network(self, module: nn.Module) -> bytes:
        """Return that of class, state and settings, parts in their order, and what hooks do."""
        if isinstance(module, torch.fx.GraphModule | torch.jit.ScriptModule):  # without a class
            return self._all(
                "graph", module.code, [*module.named_children()], [*module.state_dict().items()]
            )
        state = _without_caches(type(module), dict(vars(module)))
        state.pop("_compiled_call_impl", None)
        parts = ("_parameters", "_buffers", "_modules")
        ordered = [list(state.pop(name).items()) for name in parts]
        # the keys of hooks count all hooks of the process
        own = [name for name in state if "_hooks" in name and isinstance(state[name], dict)]
        hooks = {name: list(state.pop(name).values()) for name in own}
        return self._all("network", type(module), ordered, hooks, state)

    def _state(self, thing: Any) -> bytes:
        """Return the digest of what pickle would keep, without pickling."""
        try:
            by_hand = copyreg.dispatch_table.get(type(thing))
            reduced = thing.__reduce_ex__(4) if by_hand is None else by_hand(thing)
        except Exception as error:  # what objects raise has no class in common
            raise _unknown(thing, error) from error
        if isinstance(reduced, str):
            return self._named(thing, reduced)
        make, arguments, state, *iterators = (*reduced, *(None,) * (5 - len(reduced)))[:5]
        items = (None if one is None else list(one) for one in iterators)
        own = _without_caches(type(thing), state)
        return self._all("object", type(thing), make, arguments, own, *items)


#: Digests of objects by their class, the first that fits.
_KINDS: dict[Any, Callable[[_Walk, Any], bytes]] = {
    np.ndarray: _Walk._array,
    Tensor: _Walk._tensor,
    torch.Generator: lambda walk, thing: walk._all("generator", thing.get_state()),
    types.ModuleType: _Walk._module,
    type: _Walk._class,
    types.FunctionType: _Walk._function,
    types.CodeType: _Walk._code,
    types.CellType: _Walk._cell,
    staticmethod: lambda walk, thing: walk._all("staticmethod", thing.__func__),
    classmethod: lambda walk, thing: walk._all("classmethod", thing.__func__),
    property: lambda walk, thing: walk._all("property", thing.fget, thing.fset, thing.fdel),
    types.MappingProxyType: lambda walk, thing: walk._unordered("mapping", thing.items()),
    weakref.ref: lambda walk, thing: _hash(b"weak reference"),  # belongs to somebody else
    nn.Module: _Walk._network,
}


def _without_caches(kind: type, state: Any) -> Any:
    """Return a state without cached properties, which follow from the rest and may not be there yet."""
    if type(state) is not dict:
        return state
    return {
        name: value
        for name, value in state.items()
        if not isinstance(inspect.getattr_static(kind, name, None), functools.cached_property)
    }


def _is_made_by_parameters(thing: Any) -> bool:
    """Return whether ``clone`` makes an object from its parameters; a frozen estimator is kept as it is."""
    made = hasattr(thing, "set_params") and callable(getattr(thing, "get_params", None))
    if isinstance(thing, type) or not made:
        return False
    cloned = getattr(type(thing), "__sklearn_clone__", None)
    return cloned is None or cloned.__qualname__ == "BaseEstimator.__sklearn_clone__"


@functools.cache
def _globals_of(code: types.CodeType) -> tuple[str, ...]:
    """Return the global names that a code reads, also in the functions that it makes."""
    loads = ("LOAD_GLOBAL", "LOAD_NAME")
    found = {str(step.argval) for step in dis.get_instructions(code) if step.opname in loads}
    return tuple(sorted(found.union(*map(_globals_of, filter(inspect.iscode, code.co_consts)))))
