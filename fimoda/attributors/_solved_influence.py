"""Influence functions from vectors of the size of the model, one a test row."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..measured import Measured
from ._influence import BaseInfluence


class BaseSolvedInfluence(BaseInfluence):
    """Influence functions that solve for the test rows' gradients.

    A subclass implements `_prepare_solver` and `_solve`.
    """

    #: Vectors of the size of the model that are alive for each right-hand side of `_solve`.
    _COPIES: ClassVar[int] = 8

    @abstractmethod
    def _solve(self, V: Tensor) -> Tensor:
        """Solutions of ``(C + damping_ I) u = v`` for the rows of V (k, p), as rows."""

    def _vectors(self, copies: int) -> int:
        """Right-hand sides that fit the memory budget, with so many copies of each."""
        vector_bytes = copies * self.model_.n_parameters * self.model_.theta.element_size()
        return int(max(self.memory_budget // vector_bytes, 1))

    def _scores(self, test: Measured) -> NDArray[np.float64]:
        result = np.empty((len(test), len(self._X)))
        n_vectors = min(self._vectors(self._COPIES), len(test))
        for rows, gradients in self._differentiate.chunks(test, n_vectors):
            result[rows] = self._applied(self._solve(gradients.dense()))
        return result

    def _applied(self, solved: Tensor) -> NDArray[np.float64]:
        """Scores (k, n) of the training rows, from solutions (k, p)."""
        pull = self._removal.pull
        pulled = None if pull is None else (solved.double() @ pull.double()).cpu().numpy()
        solved = solved.to(self.model_.dtype)
        result = np.empty((len(solved), len(self._X)))
        for rows, train in self._objective.row_gradients():
            result[:, rows] = train.apply(solved).mT.double().cpu().numpy()
        return self._removal(result * self._share, pulled)
