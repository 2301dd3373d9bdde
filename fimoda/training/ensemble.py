"""Models trained with different seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..trajectory import Trajectory


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
