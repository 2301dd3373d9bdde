"""Models trained with different seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed
from torch import Tensor

from ..trajectory import Trajectory
from .recording import Checkpoints, record
from .run import Run


@dataclass(frozen=True)
class Ensemble:
    """Models trained alike with different seeds.

    Parameters
    ----------
    models : sequence of FinalModel or fitted estimators
        Any attributor takes one of them as its estimator.
    trajectories : sequence of Trajectory
        Their training; empty for models that are not trained by gradient steps.
    seeds : list of int
        Seeds of initial parameters, batch order and dropout.
    """

    models: Sequence[Any]
    trajectories: Sequence[Trajectory]
    seeds: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.models)


def train_members(
    run: Run,
    seeds: list[int],
    starts: Sequence[Tensor],
    before: Sequence[Trajectory] | None,
    n_epochs: int,
    checkpoints: Checkpoints,
    directory: Path | None,
    n_jobs: int | None,
) -> Ensemble:
    """Return the models of a run's seeds, recorded: each from its own initial parameters (p,).

    With the runs `before` the training is a stage that comes next.
    """
    stages = [None] * len(seeds) if before is None else before
    done = Parallel(n_jobs=n_jobs)(
        delayed(record)(replace(run, start=start), seed, n_epochs, checkpoints, directory, stage)
        for seed, start, stage in zip(seeds, starts, stages, strict=True)
    )
    models = [run.model.at(theta) for theta, _ in done]
    return Ensemble(models, [recorded for _, recorded in done], seeds)
