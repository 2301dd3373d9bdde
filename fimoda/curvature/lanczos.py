"""Leading eigenpairs of a curvature by Lanczos iteration."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from .exact import check_definite
from .operators import Curvature

#: Models of at most this many parameters are decomposed densely: Lanczos would take as long.
_SMALL = 1024


class TopEigenpairs:
    """The leading eigenpairs of a curvature, and solutions in their span.

    Largest eigenvalues of a positive semi-definite curvature; largest in magnitude of the Hessian.
    ``eigenvalues`` (k,) ascend, in float64; ``eigenvectors`` (k, p) are rows, in the model's precision.
    There are fewer than `n_components` if the rows and outputs allow no more that are not zero. From p - 1
    on, and for small models, the dense matrix is decomposed. MemoryError if the vectors, or the matrix,
    take more than the memory budget of the objective.
    """

    def __init__(self, curvature: Curvature, n_components: int, seed: int = 0):
        p, memory_budget = curvature.shape[0], curvature.objective.memory_budget
        signed = curvature.signed
        k = min(n_components, p, _rank_bound(curvature))
        dense = k >= p - 1 or p <= _SMALL
        n_bytes = 8 * p * (3 * p if dense else min(2 * k + 1, p) + k)
        if n_bytes > memory_budget:
            raise MemoryError(
                f"{k} eigenvectors of {p} parameters take {n_bytes / 2**20:.0f} MiB while they are "
                f"found, more than memory_budget={memory_budget / 2**20:.0f} MiB. Lower "
                "n_components, raise memory_budget, or use CGInfluence."
            )
        if dense:
            values, columns = np.linalg.eigh(curvature.double.dense().cpu().numpy())
            size = np.abs(values) if signed else values
            kept = np.sort(np.argsort(size, kind="stable")[-k:])
            values, columns = values[kept], columns[:, kept]
        else:
            start = np.random.default_rng(seed).standard_normal(p)
            operator = curvature.linear_operator()
            values, columns = eigsh(operator, k=k, which="LM" if signed else "LA", v0=start)
        self.eigenvalues = torch.from_numpy(values).to(curvature.model.device)
        rows = torch.from_numpy(np.ascontiguousarray(columns.T))
        self.eigenvectors = rows.to(curvature.model.theta)

    def solve(self, V: Tensor, damping: float, complement: bool = False) -> Tensor:
        r"""Return solutions of :math:`(C + \lambda) u = v` for the rows of V (k, p), as rows.

        The part of v outside the span is dropped, or, with `complement`, solved as if there were no
        curvature: divided by :math:`\lambda`.
        """
        shifted = self.eigenvalues + damping
        check_definite(shifted, self.eigenvalues, damping)
        V = V.to(self.eigenvectors)
        inside = V @ self.eigenvectors.mT
        if not complement:
            return (inside / shifted).to(V.dtype) @ self.eigenvectors
        if damping == 0:
            raise ValueError(
                "complement='damping' divides by the damping, which is zero: raise damping, or use "
                "complement='drop'."
            )
        correction = (inside / shifted - inside / damping).to(V.dtype)
        return V / damping + correction @ self.eigenvectors


def _rank_bound(curvature: Curvature) -> int:
    """Return how many eigenvalues can differ from zero at most; Lanczos would hunt for zeros."""
    penalised = curvature.penalty and curvature.model.penalty is not None
    if penalised or curvature.signed:
        return curvature.shape[0]
    return curvature.objective.n_outputs * len(curvature)


def extreme_eigenvalues(curvature: Curvature, seed: int = 0) -> tuple[float, float]:
    """Return the lowest and largest eigenvalue, to one per cent of the largest in magnitude.

    The lowest is found only for the Hessian, to a tenth of a per cent; the other curvatures are
    positive semi-definite, and get the least entry of the L2 penalty.
    """
    l2 = curvature.model.penalty
    floor = float(l2.min()) if curvature.penalty and l2 is not None else 0.0
    p = curvature.shape[0]
    if p <= _SMALL // 8:  # two eigenvalues take few products
        values = np.linalg.eigvalsh(curvature.dense().double().cpu().numpy())
        return float(values[0]) if curvature.signed else floor, float(values[-1])
    operator = curvature.linear_operator()
    start = np.random.default_rng(seed).standard_normal(p)

    tol = 1e-3 if curvature.signed else 1e-2

    def largest_magnitude(operator: LinearOperator) -> float:
        found = eigsh(operator, k=1, which="LM", v0=start, tol=tol, return_eigenvectors=False)
        return float(found[0])

    first = largest_magnitude(operator)
    if not curvature.signed:
        return floor, first

    def shifted(v: np.ndarray) -> np.ndarray:
        return operator @ v - first * v

    # seen from one end, the other end of the spectrum is the largest in magnitude
    other = first + largest_magnitude(LinearOperator((p, p), matvec=shifted, dtype=np.float64))
    return min(first, other), max(first, other)
