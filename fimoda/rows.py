"""Rows: what a model is given, with targets and weights. Nothing else knows what a row is made of.

The inputs of rows are a tensor, `SeveralInputs` of a module that takes several, or `RawRows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import issparse
from torch import Tensor
from torch.utils import _pytree

from ._arrays import entries, n_rows, take_columns, take_rows
from ._identity import identity_of

#: A tensor, `SeveralInputs` or `RawRows`: what is as long as it has rows, and is indexed by them.
Inputs = Any


@dataclass(frozen=True)
class Padding:
    """The end of rows of different lengths: the input that tells it, and the value that it has behind.

    `shared` are the inputs that have a value for each position of a row, by name or number.
    """

    tells: str | int
    value: int
    shared: tuple[str | int, ...]


@dataclass(frozen=True, eq=False)
class SeveralInputs:
    """The tensors that a module of several inputs takes, with one first axis, and indexed by it.

    They are given by the names of the module's arguments, or in their order: as one argument, a list, as
    skorch has it, or each `apart`. With a `padding` a network may be given less of it (`padding.py`).
    """

    given: dict[str, Any] | tuple[Any, ...]
    apart: bool = False
    padding: Padding | None = None

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, key: Any) -> SeveralInputs:
        """Return the inputs of some rows, by a slice, a mask or indices."""
        return self.mapped(lambda part: part[key])

    @property
    def tensors(self) -> list[Any]:
        """The inputs, in their order."""
        return [part for _, part in entries(self.given)]

    @property
    def keys(self) -> list[Any]:
        """The names of the inputs, or their numbers."""
        return list(self.given) if isinstance(self.given, dict) else [*range(len(self.given))]

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        device: torch.device = self.tensors[0].device
        return device

    def split(self, size: int) -> list[SeveralInputs]:
        """Return the inputs of at most `size` rows at a time, in their order."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    def mapped(self, function: Callable[[Any], Any]) -> SeveralInputs:
        """Return the same structure, with a function applied to each of the inputs."""
        return self.of(map(function, self.tensors))

    def of(self, tensors: Iterable[Any]) -> SeveralInputs:
        """Return the same structure with these inputs in it."""
        if isinstance(self.given, dict):
            return replace(self, given=dict(zip(self.given, tensors, strict=True)))
        return replace(self, given=tuple(tensors))


# maps of torch's go through them as through a dict or a tuple
_pytree.register_pytree_node(
    SeveralInputs,
    lambda inputs: (inputs.tensors, inputs),
    lambda tensors, inputs: inputs.of(iter(tensors)),
)


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a module, positional and by name, as skorch hands it these inputs."""
    if not isinstance(inputs, SeveralInputs):
        return (inputs,), {}
    if isinstance(inputs.given, dict):
        return (), inputs.given
    return (inputs.given if inputs.apart else (list(inputs.given),)), {}


def mapped(function: Callable[[Any], Any], inputs: Inputs) -> Inputs:
    """Return inputs of the same structure, with a function applied to each of their tensors."""
    return inputs.mapped(function) if isinstance(inputs, SeveralInputs) else function(inputs)


def parts(inputs: Inputs) -> list[Any]:
    """Return the tensors of which inputs consist."""
    return inputs.tensors if isinstance(inputs, SeveralInputs) else [inputs]


def doubled(values: Tensor) -> Tensor:
    """Return floating point numbers in float64, others as they are."""
    return values.double() if values.is_floating_point() else values


@dataclass(frozen=True, eq=False)
class Rows:
    r"""Rows of a model: inputs, encoded targets (n, ...) and weights (n,) in the objective, ones by default.

    Shares are parts of the `total` weight: that of these rows by default, and that of all rows where these
    are some of them.
    """

    inputs: Inputs
    targets: Tensor
    weights: Tensor | None = None
    total: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def _arrays(self) -> list[Any]:
        """The fields as arrays, the same ones for all workers, so that joblib maps them into each."""

        def array(part: Any) -> Any:
            is_array = isinstance(part, Tensor) and part.dtype != torch.bfloat16
            return part.cpu().numpy() if is_array and not part.requires_grad else part

        return [mapped(array, getattr(self, field.name)) for field in fields(self)]

    def __getstate__(self) -> dict[str, Any]:
        return {"arrays": self._arrays, "device": self.targets.device}

    def __setstate__(self, state: dict[str, Any]) -> None:
        def tensor(part: Any) -> Any:
            is_array = isinstance(part, np.ndarray)
            return torch.tensor(part, device=state["device"]) if is_array else part

        names = (field.name for field in fields(self))
        found = (mapped(tensor, part) for part in state["arrays"])
        self.__dict__.update(zip(names, found, strict=True))

    def __getitem__(self, key: slice | Tensor | NDArray[Any] | list[int]) -> Rows:
        """Return some of the rows, each with the share that it has among all."""
        if not isinstance(key, slice):
            key = torch.as_tensor(key, device=self.targets.device)
        weights = None if self.weights is None else self.weights[key]
        return Rows(self.inputs[key], self.targets[key], weights, self._total)

    @property
    def alone(self) -> Rows:
        """The same rows as an objective of their own: their shares sum to one."""
        return Rows(self.inputs, self.targets, self.weights)

    def replaced(self, row: int, other: Rows) -> Rows:
        """Return all rows with another target, and its weight, for one of them."""
        targets, weights = self.targets.clone(), self.weights
        targets[row] = other.targets[0]
        if weights is not None and other.weights is not None:
            weights = weights.clone()
            weights[row] = other.weights[0]
        return Rows(self.inputs, targets, weights)

    def scaled(self, factor: float) -> Rows:
        """Return the same rows with shares so many times as large."""
        return replace(self, total=self._total / factor)

    def split(self, size: int) -> list[Rows]:
        """Return parts of at most `size` rows, in their order."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    @cached_property
    def _total(self) -> Tensor:
        if self.total is not None:
            return self.total
        if self.weights is None:
            return torch.tensor(len(self), dtype=torch.float64, device=self.targets.device)
        return self.weights.double().sum()

    @cached_property
    def shares(self) -> Tensor:
        r"""Parts of the rows in the mean of the objective, :math:`w_i / \sum_j w_j` (n,), float64."""
        if self.weights is None:
            return torch.ones(len(self), device=self._total.device).double() / self._total
        return self.weights.double() / self._total

    @property
    def device(self) -> torch.device:
        """The device of the inputs."""
        device: torch.device = self.inputs.device
        return device

    @property
    def double(self) -> Rows:
        """The same rows in float64, where they are floating point numbers; made anew each time."""
        weights = None if self.weights is None else self.weights.double()
        return Rows(mapped(doubled, self.inputs), doubled(self.targets), weights, self.total)

    def identity(self) -> dict[str, str]:
        """Return digests of what the rows are, for a directory that keeps results."""
        return {
            "X": identity_of(self.inputs),
            "y": identity_of(self.targets),
            "sample_weight": identity_of(self.weights),
        }


@dataclass(frozen=True, eq=False)
class RawRows:
    """Rows of whatever an estimator takes: an array, a frame, a sparse matrix, a list of texts, a dict.

    They stay as they are; what numpy knows and scikit-learn cannot index is made an array.
    """

    values: Any

    def __post_init__(self) -> None:
        values = self.values
        if isinstance(values, Tensor):
            values = values.detach().cpu().numpy()
        elif issparse(values):
            values = values.tocsr()  # rows of others cannot be taken, or slowly
        elif isinstance(values, Mapping):
            values = dict(values)
        elif not hasattr(values, "shape") and not isinstance(values, list | tuple):
            if not hasattr(values, "__array__"):
                raise TypeError(
                    "X must be an array, a sparse matrix, a DataFrame or a list with one entry a row, "
                    f"got {type(values).__name__}."
                )
            values = np.asarray(values)
        object.__setattr__(self, "values", values)

    def __len__(self) -> int:
        return n_rows(self.values)

    def __getitem__(self, key: Any) -> RawRows:
        """Return rows by a slice, a mask or indices, as arrays or tensors."""
        if isinstance(key, slice):
            key = np.arange(*key.indices(len(self)))
        key = np.asarray(key.cpu() if isinstance(key, Tensor) else key)
        if key.dtype == bool:
            key = np.flatnonzero(key)
        return RawRows(take_rows(self.values, key))

    def columns(self, mask: NDArray[np.bool_]) -> RawRows:
        """Return some columns of all rows."""
        return RawRows(take_columns(self.values, np.flatnonzero(mask)))

    @property
    def device(self) -> torch.device:
        """The device of outputs of these rows."""
        return torch.device("cpu")

    def split(self, size: int) -> list[RawRows]:
        """Return parts of at most `size` rows, in their order."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    def dense(self) -> Any:
        """Return the rows, an array in place of a sparse matrix."""
        return self.values.toarray() if issparse(self.values) else self.values
