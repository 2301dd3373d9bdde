"""``damping="auto"``: how much is added to the curvature where the user does not say."""

from __future__ import annotations

from collections.abc import Callable

from ..objective import Objective
from .checks import is_solved
from .trace import gauss_newton_trace

#: Times the mean squared entry of the rows' gradients, at most this part of the trace of the curvature.
DAMPING_FACTOR, MOST_OF_TRACE = 1000.0, 0.05


def automatic_damping(
    objective: Objective,
    curvature: str,
    at_minimum: Callable[[float], float],
    trace_of: Callable[[], float],
) -> float:
    """Return the damping of a curvature with a trace, at a minimum from it by `at_minimum`."""
    solved = is_solved(objective)
    if curvature == "hessian" and not solved:  # may not be definite
        return DAMPING_FACTOR * damping_unit(objective, "auto")
    trace = trace_of()
    if solved and trace > 0:
        return at_minimum(trace)
    by_gradients = DAMPING_FACTOR * damping_unit(objective, "auto")
    return min(by_gradients, MOST_OF_TRACE * trace) if trace > 0 else by_gradients


def damping_unit(objective: Objective, damping: str) -> float:
    """Return the mean squared entry of the training rows' gradients."""
    mean = objective.mean_squared_gradient
    if mean == 0:
        raise ValueError(
            f"damping={damping!r} needs a training row with a gradient; all are zero at this model "
            f"(n_samples={len(objective)}). Give damping as a number."
        )
    return mean


def curvature_trace(objective: Objective, curvature: str) -> float:
    """Return the trace of a curvature, for the Hessian that of the Gauss-Newton matrix.

    The penalty is part of it, unless the loss has no curvature at all.
    """
    model = objective.model
    if curvature == "empirical-fisher":
        trace = model.n_parameters * damping_unit(objective, "auto")
    else:
        trace = gauss_newton_trace(objective)
    if trace > 0 and model.l2 is not None:
        trace += float(model.l2.double().sum())
    return trace
