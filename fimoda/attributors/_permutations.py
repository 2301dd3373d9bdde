"""Values of rows by what they add to the rows before them, along random orders."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .._validation import NON_NEGATIVE_REAL, POSITIVE_REAL, StrOptions
from ..games.estimates import Estimate, RunningMean
from ..games.exact import semivalues
from ..games.marginals import by_row, marginals
from ..games.permutations import GROUP_SIZES, draw_orders
from ..games.utility import Utility
from ._games import BaseGame

#: Orders of the first round of n_samples="auto", and most of them in all.
FIRST, MOST = 32, 4096


class BasePermutations(BaseGame):
    """Base of the semivalues that are sampled along permutations, by their `_probabilities` of sizes."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseGame._parameter_constraints,
        "sampling": [StrOptions(set(GROUP_SIZES))],
        "truncation": [NON_NEGATIVE_REAL],
        "max_seconds": [POSITIVE_REAL, None],
    }

    sampling: str
    truncation: float

    @abstractmethod
    def _probabilities(self, n: int) -> NDArray[np.float64]:
        """Hook: return the part (n,) of each number of other rows, which sum to one."""

    def _exactly(self, utilities: NDArray[np.float64]) -> NDArray[np.float64]:
        return semivalues(utilities, self._probabilities(len(self._objective)))

    def _sampled(self, utility: Utility, random_state: np.random.RandomState) -> Estimate:
        n, size = utility.n_rows, GROUP_SIZES[self.sampling]
        importance = n * self._probabilities(n)
        at_once = self._groups_at_once(utility)
        mean = RunningMean()

        def take(n_orders: int) -> Estimate:
            n_groups = -(-n_orders // size)
            for start in range(0, n_groups, at_once):
                orders = draw_orders(n, min(at_once, n_groups - start), self.sampling, random_state)
                flat = orders.reshape(-1, n)
                added = marginals(utility, flat, self.truncation) * importance[:, None]
                samples = by_row(added, flat)
                groups = samples.reshape(*orders.shape[:2], *samples.shape[1:])
                mean.add(np.concatenate([groups, groups.mean(2, keepdims=True)], 2).mean(1))
            return mean.estimate(size)

        return self._settled(FIRST, MOST, take)

    def _groups_at_once(self, utility: Utility) -> int:
        """Return how many groups of orders fit the memory budget."""
        n, size = utility.n_rows, GROUP_SIZES[self.sampling]
        each = size * n * (n + 40 * len(utility.measured))
        return int(max(1, self.memory_budget // each))
