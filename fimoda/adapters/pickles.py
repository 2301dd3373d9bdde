"""Pickles of modules with parametrisations, which torch itself refuses."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn
from torch.nn.utils import parametrize


def let_be_pickled(module: nn.Module) -> None:
    """Let a module be sent to workers and stored, also if it has parametrisations.

    Each part with one has a class of its own, which torch makes when it is registered, and which raises in
    pickles. That class is told here how; the module stays as it is.
    """
    for part in module.modules():
        if parametrize.is_parametrized(part):
            of_part: Any = type(part)
            of_part.__reduce_ex__ = _reduced


def _reduced(part: Any, protocol: Any) -> tuple[Any, ...]:
    """Return the function that makes a part again, and what it takes."""
    kind = parametrize.type_before_parametrizations(part)
    # hooks on state dicts of older versions are local functions, which no pickle takes
    state = {**vars(part), "_load_state_dict_pre_hooks": OrderedDict()}
    return _made_again, (kind, state, tuple(part.parametrizations))


def _made_again(kind: Any, state: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Return a part with its parametrisations, in a class of its own again."""
    part = kind.__new__(kind)
    vars(part).update(state)
    parametrize._inject_new_class(part)
    for name in names:
        parametrize._inject_property(part, name)
    let_be_pickled(part)
    return part
