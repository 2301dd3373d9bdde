"""Models with the parameters of a run's checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..model import FinalModel
from .run import Trajectory


def check_architecture(run: Trajectory, model: FinalModel) -> None:
    """Raise ValueError if the checkpoints are of another architecture than the model."""
    state = run.state(0)
    for name, shape in model.shapes.items():
        for prefix in ("module.", "_orig_mod."):
            if name not in state and prefix + name in state:
                raise ValueError(
                    f"trajectory has checkpoints of a wrapped model (DataParallel, torch.compile): "
                    f"{prefix + name!r} in place of {name!r}. Take the state_dict of the model inside, "
                    f"model.{prefix}state_dict(), or strip {prefix!r} from the names."
                )
        if name not in state or state[name].shape != shape:
            found = tuple(state[name].shape) if name in state else None
            raise ValueError(
                f"trajectory has checkpoints of another architecture than estimator: {name!r} must "
                f"have shape {tuple(shape)}, got {found}. Record the run that trained this estimator."
            )


def model_at(run: Trajectory, k: int, model: FinalModel) -> FinalModel:
    """Return the final model with parameters and buffers of checkpoint k."""
    return _with_state(model, run.state(k))


def lr_factors_of(run: Trajectory, model: FinalModel) -> Tensor | None:
    """Return the parts (p,) of the learning rate that parameters have, or None where all have it."""
    factors = run.lr_factors
    if not factors:
        return None
    missing = [name for name in model.shapes if name not in factors]
    if missing:
        raise ValueError(
            f"trajectory has learning rates of parameters, but none of {missing[0]!r}. Name them all."
        )
    given = {n: torch.full(tuple(s), factors[n]) for n, s in model.shapes.items()}
    return model.flatten(given).to(model.theta)


def mean_model(run: Trajectory, ks: Sequence[int], model: FinalModel) -> FinalModel:
    """Return the final model with the means of parameters and buffers of some checkpoints."""
    states = [run.state(k) for k in ks]
    mean = {
        name: torch.stack([one[name] for one in states]).mean(0)
        if value.is_floating_point()
        else value
        for name, value in states[-1].items()
    }
    return _with_state(model, mean)


def _with_state(model: FinalModel, state: dict[str, Tensor]) -> FinalModel:
    """Return the model with another state; the run's optimiser, not the model's, has the weight decay."""
    module = copy.deepcopy(model.module)
    known = {name: state[name] for name in module.state_dict() if name in state}
    module.load_state_dict(known, strict=False)
    return replace(model, module=module, decay=None)


def buffers_at(run: Trajectory, k: int, model: FinalModel) -> dict[str, Any]:
    """Return what the optimiser kept at checkpoint k, by its own names.

    One vector (p,) or one number each; nothing where it was not recorded for all parameters.
    """
    known = run.optimizer_state(k)
    if not all(name in known for name in model.shapes):
        return {}
    found: dict[str, Any] = {}
    for key, value in known[next(iter(model.shapes))].items():
        parts: list[Any] = [known[name].get(key) for name in model.shapes]
        if not isinstance(value, Tensor) or value.dim() == 0:
            if value is not None:
                found[key] = float(value)
        elif all(isinstance(p, Tensor) for p in parts):
            found[key] = torch.cat([p.reshape(-1) for p in parts]).to(model.theta)
    return found
