"""Models of bags: rows that are drawn with replacement, so that some come twice and some not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..adapters import takes_pairs
from ..training.refits import Refits
from ..training.subsets import StackedRetraining, SubsetUnit, cut_units
from .closed_fits import LinearFits
from .ways import fast_way


def draw_bags(n: int, n_bags: int, random_state: np.random.RandomState) -> NDArray[np.int64]:
    """Return how often each row is in each bag (n_bags, n) of n draws with replacement."""
    draws = random_state.randint(n, size=(n_bags, n))
    return np.stack([np.bincount(draw, minlength=n) for draw in draws])


@dataclass(frozen=True)
class BaggedRefits(Refits):
    """Refits of an estimator to bags, in which a row comes as often as it was drawn."""

    def _fitted(self, fresh: Any, mask: NDArray[Any], seed: int) -> Any:
        return super()._fitted(fresh, np.repeat(np.arange(len(mask)), mask), seed)


@dataclass(frozen=True)
class BaggedStacks(StackedRetraining):
    """Retraining of a network on bags: a row that was drawn twice has twice the weight in its batch."""

    def units(self, subsets: NDArray[Any], seeds: Sequence[int]) -> list[SubsetUnit]:
        """Cut seeds x bags into stacks: all have the same batches."""
        size = self.chunk_size or self.run.stack_size()
        return cut_units(subsets, seeds, np.zeros(len(subsets)), size)


def bagged(way: StackedRetraining | Refits, n_outputs: int) -> StackedRetraining | Refits:
    """Return the same training, of bags in place of subsets."""
    own = {field.name: getattr(way, field.name) for field in fields(way)}
    if isinstance(way, StackedRetraining):
        return BaggedStacks(**{**own, "mode": "mask"})
    if takes_pairs(way.estimator):
        raise ValueError(
            f"estimator {type(way.estimator).__name__} takes a column for each row (a precomputed kernel), "
            "and a bag has rows twice. Give it a kernel that it computes."
        )
    fast = fast_way(way, n_outputs)  # where a row that comes twice is one of twice the weight
    return fast if isinstance(fast, LinearFits) else BaggedRefits(**own)
