"""The least core of a game: shares with which no set of rows is much worse off than alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog, nnls

#: Tolerance of the linear programme, and slack that its solution is given for the shares of smallest norm.
_TOLERANCE, _SLACK = 1e-10, 1e-9


def least_core(
    sets: NDArray[np.bool_], utilities: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    r"""Return the shares (n,) of smallest norm in the least core, and the subsidy e.

    .. math:: \min e \text{ so that } \sum_{i \in S} \phi_i + e \ge v(S) - v(\emptyset),
              \quad \sum_i \phi_i = v(N) - v(\emptyset)

    for the given sets S (M, n) with utilities (M,), the empty set and that of all rows among them.
    """
    n, sizes = sets.shape[1], sets.sum(1)
    gains = utilities - utilities[sizes == 0][0]
    total = float(gains[sizes == n][0])
    scale = float(np.abs(gains).max()) or 1.0
    some = (sizes > 0) & (sizes < n)
    inside, needed = sets[some].astype(float), gains[some] / scale
    if not len(inside):
        return np.full(n, total / n), 0.0
    found = linprog(
        np.append(np.zeros(n), 1.0),
        A_ub=-np.column_stack([inside, np.ones(len(inside))]),
        b_ub=-needed,
        A_eq=np.append(np.ones(n), 0.0)[None],
        b_eq=[total / scale],
        bounds=(None, None),
        options={
            "primal_feasibility_tolerance": _TOLERANCE,
            "dual_feasibility_tolerance": _TOLERANCE,
        },
    )
    if not found.success:
        raise FloatingPointError(f"the least core has not been found: {found.message}")
    subsidy = float(found.fun)
    mean = total / scale / n  # the part that the sum fixes; the rest sums to zero
    centred = inside - inside.mean(1, keepdims=True)
    rest = _shortest(centred, needed - subsidy - _SLACK - inside.sum(1) * mean)
    return scale * (mean + rest), scale * subsidy


def _shortest(rows: NDArray[np.float64], needed: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the vector x (n,) of smallest norm with ``rows @ x >= needed``, by its dual.

    It is least distance programming (Lawson and Hanson, "Solving Least Squares Problems", 1974, chapter 23).
    """
    if (needed <= 0).all():
        return np.zeros(rows.shape[1])
    dual = np.vstack([rows.T, needed])
    goal = np.append(np.zeros(rows.shape[1]), 1.0)
    weights, _ = nnls(dual, goal, maxiter=50 * dual.shape[1])
    residual = dual @ weights - goal
    return -residual[:-1] / residual[-1]
