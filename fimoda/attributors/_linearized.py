"""A seed's run of further training, linearised: what `LinearizedFurtherTraining` keeps of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..measured import Measure
from ..training.observed import ObservedRun, observe
from ..training.workers import one_thread
from ._walks import Walk

#: Runs jobs of joblib, and gives their results in order.
Workers = Callable[[list[Any]], list[Any]]


class LinearizedRun(ABC):
    """One seed's run, linearised."""

    run: ObservedRun

    @property
    def n_segments(self) -> int:
        return 1

    @property
    def n_components(self) -> int:
        """Dimensions of its Krylov spaces; none without segments."""
        return 0

    @abstractmethod
    def scores(
        self,
        X: Tensor,
        y: Tensor,
        measure: Measure,
        horizons: Sequence[int],
        own_residuals: Tensor | None = None,
    ) -> Tensor:
        """Scores (n_horizons, m, n) of all training rows for test rows.

        `own_residuals` (n_epochs + 1, n, C) are those of each row when it is the one left out, if
        they are others than in the run; its removal is to first order then.
        """

    @abstractmethod
    def changes(self, horizons: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Change of the training rows' outputs (n_horizons, n, C): of the run, and linearised."""


def observe_run(walk: Walk, seed: int, n_epochs: int, steps: set[int]) -> ObservedRun:
    """The run on all rows of a seed, seen at these steps."""
    with one_thread():
        return observe(walk, seed, n_epochs, steps)


def require_memory(needed: int, budget: int, advice: str) -> None:
    """Raise a MemoryError that says what to do if the bytes are more than the budget."""
    if needed > budget:
        raise MemoryError(
            f"linearised runs take {needed / 2**20:.0f} MiB, more than memory_budget="
            f"{budget / 2**20:.0f} MiB: {advice}."
        )
