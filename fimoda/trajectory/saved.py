"""Checkpoints that a training loop has saved, checked and brought into a run's form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from .store import OptimizerState, cloned


def check_steps(
    steps: list[int],
    n_steps: int | None,
    state_dicts: Sequence[Any],
    optimizer_states: Sequence[Any] | None,
) -> int:
    """Return the number of steps of a run with checkpoints after these, one state for each.

    ValueError if there is no checkpoint, numbers do not match, or steps do not increase.
    """
    if not steps:
        raise ValueError("state_dicts must hold at least one checkpoint, got none.")
    for name, given in (("state_dicts", state_dicts), ("optimizer_states", optimizer_states)):
        if given is not None and len(given) != len(steps):
            raise ValueError(
                f"{name} must have one state for each of the {len(steps)} steps, got {len(given)}."
            )
    if steps[0] < 0 or any(b <= a for a, b in pairwise(steps)):
        raise ValueError(f"steps must not be negative and must increase, got {steps}.")
    total = steps[-1] if n_steps is None else int(n_steps)
    if total < max(steps[-1], 1):
        raise ValueError(
            f"n_steps must be at least 1 and that of the last checkpoint ({steps[-1]}), got {total}."
        )
    return total


def check_factors(given: Mapping[str, float]) -> dict[str, float]:
    """Return parts of the learning rate by name of the parameter; ValueError unless all are positive."""
    factors = {name: float(part) for name, part in given.items()}
    for name, part in factors.items():
        if not 0 < part < math.inf:
            raise ValueError(f"lr_factors must be positive numbers, got {part} for {name!r}.")
    return factors


def rates_of_steps(lrs: float | ArrayLike, steps: list[int], n_steps: int) -> list[float]:
    """Return the learning rate of each step."""
    rates = np.asarray(lrs, dtype=float)
    if not (np.isfinite(rates).all() and (rates >= 0).all() and rates.any()):
        raise ValueError(f"lrs must be finite, not negative and not all zero, got {lrs!r}.")
    if rates.ndim == 0:
        return [float(rates)] * n_steps
    if rates.shape == (n_steps,):
        return rates.tolist()
    if rates.shape != (len(steps),):
        raise ValueError(
            f"lrs must be one number, one for each of the {n_steps} steps or one for each of the "
            f"{len(steps)} checkpoints, got shape {rates.shape}."
        )
    return np.repeat(rates, np.diff([0, *steps[:-1], n_steps])).tolist()


def buffers_by_name(
    state: Mapping[str, Any], module: Mapping[str, Tensor], names: Sequence[str]
) -> OptimizerState:
    """Return the state of an optimiser (its ``state_dict``) by the names of its parameters."""
    numbers = [i for group in state["param_groups"] for i in group["params"]]
    if len(numbers) != len(names):
        raise ValueError(
            f"optimizer_states are of {len(numbers)} parameters and state_dicts have {len(names)} "
            "entries. Name the optimiser's parameters, in its order, with optimizer_names."
        )
    found: OptimizerState = {}
    for i, name in zip(numbers, names, strict=True):
        kept = {key: cloned(value) for key, value in state["state"].get(i, {}).items()}
        for value in kept.values():
            if isinstance(value, Tensor) and value.dim() and value.shape != module[name].shape:
                raise ValueError(
                    f"optimizer_states have shape {tuple(value.shape)} for {name!r}, which has shape "
                    f"{tuple(module[name].shape)}. Give its parameters in the optimiser's order with "
                    "optimizer_names."
                )
        if kept:
            found[name] = kept
    return found
