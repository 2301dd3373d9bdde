"""A module's first run on rows: the layer in which it fails, and ids that its embeddings do not have."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._arrays import entries
from ..model import FinalModel
from ..padding import MASK
from ..rows import Inputs, SeveralInputs, mapped, parts
from .private_copy import returned

#: Rows that are run to see where ids come from, and at a time where they are computed.
_FEW, _CHUNK = 32, 256

#: What a module raises that cannot be run on rows.
FAILURES = (RuntimeError, TypeError, IndexError, ValueError, AssertionError)


class UnknownId(ValueError):
    """An embedding is asked for a vector that it does not have."""


@dataclass(frozen=True, eq=False)
class Lookup:
    """One use of an embedding: the ids that it was asked for, and the number of the input that they are."""

    layer: nn.Embedding | nn.EmbeddingBag
    ids: Tensor
    part: int | None


def first_run(module: nn.Module, x: Inputs) -> Any:
    """Return what a module returns for rows, to which it may write.

    ValueError, with the layer and what reached it, if it cannot be run on them; `UnknownId` with the row.
    """
    try:
        with _lookups(module, x):
            return returned(module, x)
    except UnknownId:
        raise
    except FAILURES as error:
        raise ValueError(f"{error}{_place(module, x)}") from error


def _place(module: nn.Module, x: Inputs) -> str:
    """Return the innermost layer in which a module fails, and the shape that reached it, for a message."""
    entered: list[str] = []

    def enter(name: str, part: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            shapes = [tuple(t.shape) for t in (*given, *named.values()) if isinstance(t, Tensor)]
            told = f" (its layer {name}, {part}, was given shape {shapes[0]})"
            entered.append(told if shapes else "")

        return hook

    leaves = [(name, part) for name, part in module.named_modules() if not any(part.children())]
    handles = [
        part.register_forward_pre_hook(enter(name, part), with_kwargs=True)
        for name, part in leaves
        if name
    ]
    try:
        returned(module, x)
    except FAILURES:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return entered[-1] if entered else ""


def check_shapes(model: FinalModel, known: Inputs, x: Inputs) -> None:
    """Raise ValueError for rows that are shaped otherwise than known ones, and that a model cannot take."""
    shapes = [[tuple(part.shape[1:]) for part in parts(rows)] for rows in (known, x)]
    if shapes[0] == shapes[1] or not len(x):
        return
    try:
        with torch.no_grad():
            first_run(model.module, mapped(torch.clone, x[:1]))
    except UnknownId:
        raise
    except ValueError as error:
        was, told = (
            ", ".join(
                f"{name} of shape {shape}" for name, shape in zip(_names(x), each, strict=True)
            )
            for each in shapes
        )
        raise ValueError(
            f"X must have rows that the estimator takes, as in fit, a row of {was}; it could not be run on a "
            f"row of {told}: {error}"
        ) from error


# ---- ids of tokens and categories -----------------------------------------------------------


@contextmanager
def _lookups(module: nn.Module, x: Inputs, start: int = 0) -> Iterator[list[Lookup]]:
    """Yield what embeddings are asked for while a module runs on rows; `UnknownId` for what they lack.

    The first row is called `start` in its message.
    """
    found: list[Lookup] = []
    names, tensors = _names(x), parts(x)

    def look(name: str) -> Callable[..., None]:
        def hook(layer: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            ids = given[0] if given else named["input"]
            places = [k for k, part in enumerate(tensors) if _is_same(part, ids)]
            where = names[places[0]] if places else ""
            _require_known(ids, layer, name, where, len(x), start)
            found.append(Lookup(layer, ids, places[0] if places else None))

        return hook

    handles = [
        part.register_forward_pre_hook(look(name), with_kwargs=True)
        for name, part in _embeddings(module)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _embeddings(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, nn.Embedding | nn.EmbeddingBag)
    ]


def _is_same(part: Tensor, ids: Tensor) -> bool:
    return part.shape == ids.shape and part.data_ptr() == ids.data_ptr() != 0


def _names(x: Inputs) -> list[str]:
    """Return the names of inputs for messages: ``X["ids"]``, or ``X`` for a single one."""
    if isinstance(x, SeveralInputs):
        return [f"X{name}" for name, _ in entries(x.given)]
    return ["X"]


def _require_known(
    ids: Tensor, layer: Any, name: str, where: str, n_rows: int, start: int = 0
) -> None:
    """Raise `UnknownId` unless an embedding has a vector for each id of an input; "" has computed ones."""
    told = f"the estimator's embedding {name!r}" if name else "the estimator"
    if ids.is_floating_point():
        raise UnknownId(f"{where or 'X'} must hold integers, which {told} needs, got {ids.dtype}.")
    n = layer.num_embeddings
    unknown = ((ids < 0) | (ids >= n)).nonzero()
    if not len(unknown):
        return
    first = tuple(unknown[0].tolist())
    row = f" in row {start + first[0]}" if first and len(ids) == n_rows else ""
    origin = (
        "A tokenizer of another vocabulary makes such ids, and so do labels like -100 for what is to be "
        "ignored."
        if where
        else "They are computed from the row; positions are too many where a row is too long."
    )
    raise UnknownId(
        f"{where or 'X'} must hold ids from 0 to {n - 1}, for which {told} has vectors, got "
        f"{int(ids[first])}{row}. {origin}"
    )


def check_ids(model: FinalModel, X: Any) -> None:
    """Raise `UnknownId` if an embedding has no vector for an id in a row, and warn of rows without tokens.

    Rows whose outputs are no numbers for that reason are refused by a ValueError.
    """
    layers = {part: name for name, part in _embeddings(model.module)}
    if not layers:
        return
    x = model.encode_X(X)
    few = mapped(torch.clone, x[:_FEW])
    with torch.no_grad(), _lookups(model.module, few) as found:
        returned(model.module, few)
    names, tensors = _names(x), parts(x)
    for lookup in found:
        if lookup.part is not None:
            ids = tensors[lookup.part]
            _require_known(ids, lookup.layer, layers[lookup.layer], names[lookup.part], len(x))
    if any(lookup.part is None and _differs_by_row(lookup.ids, len(few)) for lookup in found):
        for start in range(0, len(x), _CHUNK):
            chunk = x[start : start + _CHUNK]
            with torch.no_grad(), _lookups(model.module, chunk, start):
                returned(model.module, mapped(torch.clone, chunk))
    _check_tokens(model, x, found)


def _differs_by_row(ids: Tensor, n_rows: int) -> bool:
    """Return whether computed ids depend on the row, as those of positions do not."""
    if ids.dim() == 2 and len(ids) == 1:
        return False
    return ids.dim() == 0 or len(ids) != n_rows or bool((ids != ids[:1]).any())


def _check_tokens(model: FinalModel, x: Inputs, lookups: list[Lookup]) -> None:
    """Warn of rows in which the mask leaves no token, and refuse rows of padding without numbers."""
    names, tensors = _names(x), parts(x)
    for name, part in zip(names, tensors, strict=True):
        if name == f'X["{MASK}"]' and part.dim() == 2:
            _check_rows(model, x, (part != 0).any(1), name, warn=True)
    for lookup in lookups:
        padding = getattr(lookup.layer, "padding_idx", None)
        if lookup.part is not None and padding is not None and lookup.ids.dim() == 2:
            ids = tensors[lookup.part]
            _check_rows(model, x, (ids != padding).any(1), names[lookup.part], warn=False)


def _check_rows(model: FinalModel, x: Inputs, holds: Tensor, name: str, warn: bool) -> None:
    """Raise if outputs of rows that hold no token are no numbers, else warn of them if asked to."""
    empty = (~holds).nonzero()[:, 0]
    if not len(empty):
        return
    row, more = int(empty[0]), len(empty) - 1
    told = f"{name} has no token in row {row}" + f" and {more} more" * bool(more)
    cure = "Drop such rows, or let the tokenizer put a special token into each text."
    outputs = model.outputs(x[empty[:1]])
    if not torch.isfinite(outputs).all():
        raise ValueError(
            f"{told}, padding alone, for which the estimator's outputs are NaN. {cure}"
        )
    if warn:
        warnings.warn(
            f"{told}: an empty text, of which attention makes something without a meaning. {cure}",
            UserWarning,
            stacklevel=3,
        )
