"""Random numbers of the forward pass: whatever draws them, the caller's generators stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..model import FinalModel


def noise_state(model: FinalModel) -> Tensor:
    """Return the state of the generator that the forward pass draws from, that of the model's device."""
    if model.device.type == "cpu":
        return torch.get_rng_state()
    return torch.get_device_module(model.device).get_rng_state(model.device)


def set_noise(model: FinalModel, start: int | Tensor) -> None:
    """Let the forward pass draw from `start` on, a seed or a `noise_state`."""
    on_cpu = model.device.type == "cpu"
    if isinstance(start, Tensor):
        if on_cpu:
            torch.set_rng_state(start)
        else:
            torch.get_device_module(model.device).set_rng_state(start, model.device)
    elif on_cpu:
        torch.default_generator.manual_seed(start)
    else:
        torch.manual_seed(start)


@contextmanager
def seeded(model: FinalModel, start: int | Tensor) -> Iterator[None]:
    """Draw the random numbers of the forward pass from `start`, a seed or a `noise_state`.

    The caller's generators stay as they are.
    """
    devices = [] if model.device.type == "cpu" else [model.device]
    with torch.random.fork_rng(devices, device_type=model.device.type):
        set_noise(model, start)
        yield
