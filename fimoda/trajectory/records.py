"""What is recorded of a run beside its states, in the form in which files hold it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .stages import Stage


@dataclass(frozen=True)
class Progress:
    """A moment of a run: numbers of steps and of stages that are recorded before it."""

    steps: int = 0
    stages: int = 0


@dataclass(frozen=True)
class Record:
    """A run up to some step."""

    optimizer: tuple[str, dict[str, Any]]
    rates: list[float]
    batches: list[NDArray[np.int64]] | None
    stages: list[Stage]


def encoded(
    since: Progress,
    optimizer: tuple[str, dict[str, Any]],
    rates: Sequence[float],
    batches: Sequence[NDArray[np.int64]] | None,
    stages: Sequence[Stage],
) -> dict[str, Any]:
    """Return what was recorded since a moment as tensors, numbers and text."""
    name, settings = optimizer
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in settings.items()}
    rows = None
    if batches is not None:
        flat = np.concatenate([np.empty(0, np.int64), *batches])
        rows = torch.from_numpy(flat), torch.tensor([len(one) for one in batches])
    return {
        "since": (since.steps, since.stages),
        "optimizer": (name, plain),
        "rates": torch.tensor(rates, dtype=torch.float64),
        "batches": rows,
        "stages": [
            (s.name, s.start, s.stop, s.n_rows, None if s.rows is None else torch.tensor(s.rows))
            for s in stages
        ],
    }


def decoded(records: Sequence[dict[str, Any]], directory: str) -> Record:
    """Return the run that these records, one after another, tell of.

    Raises
    ------
    FileNotFoundError
        If one is missing.
    """
    rates: list[float] = []
    batches: list[NDArray[np.int64]] | None = None
    stages: list[Stage] = []
    for record in records:
        steps, known = record["since"]
        if steps > len(rates):
            raise FileNotFoundError(
                f"directory {directory!r} lacks the checkpoint of step {steps}, without which the steps "
                "after it are not known."
            )
        rates = rates[:steps] + record["rates"].tolist()
        if record["batches"] is not None:
            flat, sizes = (part.numpy() for part in record["batches"])
            cut = np.split(flat.copy(), np.cumsum(sizes)[:-1]) if len(sizes) else []
            batches = (batches or [])[:steps] + cut
        stages = stages[:known] + [
            Stage(name, start, stop, n_rows, None if rows is None else rows.numpy().copy())
            for name, start, stop, n_rows, rows in record["stages"]
        ]
    stages = [stage for stage in stages if stage.start <= len(rates)]  # none that was to come
    ends = [*(stage.start for stage in stages[1:]), len(rates)]
    stages = [replace(stage, stop=stop) for stage, stop in zip(stages, ends, strict=True)]
    return Record(records[-1]["optimizer"], rates, batches, stages)
