"""Solutions by an iteration on products with a curvature."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from .._validation import ConvergenceWarning
from ..training.products import fast_float32_products
from .krylov import shifted_solutions
from .operators import Curvature

#: Relative residual, and most iterations, at which dampings are compared.
TRIAL_TOL = 1e-3
TRIAL_ITERATIONS = 1000


class IterativeSolver:
    """Solves by products with a matrix, counts the iterations and warns of what is not solved."""

    def __init__(self, matrix: Curvature, caller: Any):
        self.matrix = matrix
        self.name = type(caller).__name__
        self.n_iter = 0

    def solve(
        self, V: Tensor, iterate: Callable[[Tensor], tuple[Tensor, int, str | None]]
    ) -> Tensor:
        """Return what `iterate` finds for V (k, p): solutions, iterations, and what to warn of."""
        with self._fast_products(V):
            u, n_iter, trouble = iterate(V)
        self.n_iter = max(self.n_iter, n_iter)
        if trouble is not None:
            warnings.warn(f"{self.name}: {trouble}", ConvergenceWarning, stacklevel=2)
        return u

    def solve_all(self, V: Tensor, dampings: Sequence[float]) -> Tensor:
        """Return solutions (n_dampings, k, p) from one Krylov space, roughly; NaN where not definite."""
        with self._fast_products(V):
            return shifted_solutions(self.matrix, V, dampings, TRIAL_TOL, TRIAL_ITERATIONS)

    def _fast_products(self, V: Tensor) -> AbstractContextManager[None]:
        """Return the context with the faster of two libraries for products, if it is as exact."""
        return fast_float32_products(lambda: self.matrix.matmat(V.to(self.matrix.model.dtype)))
