"""What influence functions with an iterative solver have in common."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .._validation import (
    MAX_SEED,
    ConvergenceWarning,
    StrOptions,
    check_is_fitted,
    check_random_state,
)
from ..curvature.krylov import shifted_solutions
from ..curvature.operators import CURVATURES
from ..measured import Measured
from ..training.products import fast_float32_products
from ._solved_influence import BaseSolvedInfluence

#: Relative residual, and most iterations, at which dampings are compared.
TRIAL_TOL = 1e-3
TRIAL_ITERATIONS = 1000


class BaseIterativeInfluence(BaseSolvedInfluence):
    """Influence functions that solve for the test rows by products with the curvature.

    A subclass implements `_iterate`.
    """

    _COPIES = 16  # iterates are float64

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseSolvedInfluence._parameter_constraints,
        "curvature": [StrOptions(set(CURVATURES))],
    }

    curvature: str

    @abstractmethod
    def _iterate(self, V: Tensor) -> tuple[Tensor, int, str | None]:
        """Solutions of ``(C + damping_) u = v``, iterations, and what to warn of."""

    def _prepare_solver(self) -> None:
        self._seed = int(check_random_state(self.random_state).randint(MAX_SEED))
        self._matrix = self._curvature(self.curvature)
        self._iterations: dict[str, int] = {"last": 0}

    def _fast_products(self, V: Tensor) -> AbstractContextManager[None]:
        """The faster of two libraries for products like those with V, if it is as exact."""
        return fast_float32_products(lambda: self._matrix.matmat(V.to(self.model_.dtype)))

    def _solve(self, V: Tensor) -> Tensor:
        with self._fast_products(V):
            u, n_iter, trouble = self._iterate(V)
        self._iterations["last"] = max(self._iterations["last"], n_iter)
        if trouble is not None:
            warnings.warn(f"{type(self).__name__}: {trouble}", ConvergenceWarning, stacklevel=2)
        return u

    def _scores(self, test: Measured) -> NDArray[np.float64]:
        self._iterations["last"] = 0
        return super()._scores(test)

    def _scores_by_damping(
        self, dampings: Sequence[float], test: Measured
    ) -> Iterator[tuple[float, NDArray[np.float64]]]:
        """One Krylov space serves all dampings, whatever the solver of a single one."""
        result = np.empty((len(dampings), len(test), len(self._X)))
        n_vectors = min(self._vectors(6 * len(dampings) + self._COPIES), len(test))
        for rows, gradients in self._differentiate.chunks(test, n_vectors):
            V = gradients.dense()
            with self._fast_products(V):
                solved = shifted_solutions(self._matrix, V, dampings, TRIAL_TOL, TRIAL_ITERATIONS)
            for scores, u in zip(result, solved, strict=True):
                scores[rows] = self._applied(u)
        for damping, scores in zip(dampings, result, strict=True):
            if np.isfinite(scores).all():
                yield damping, scores

    @property
    def n_iter_(self) -> int:
        """Iterations of the right-hand side that took most, in the last solution."""
        check_is_fitted(self, "model_")
        return self._iterations["last"]
