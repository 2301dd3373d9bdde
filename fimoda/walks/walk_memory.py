"""Memory that walks through a run of further training take."""

from __future__ import annotations

from ..training.differentiable import n_parts
from ..training.run import Run
from ..training.second_moments import SecondMoments


def bytes_back(run: Run, n_steps: int, n_horizons: int) -> tuple[int, int]:
    """Return the bytes of a walk back without its vectors, and for each test row."""
    k = n_parts(run.optimizer)
    squares = SecondMoments.of(run.optimizer) is not None
    # state, adjoints of the gradient, sums over the steps of a block, and what rows are multiplied by
    each = run.bytes_of(n_horizons * (k + 3 + squares))
    # derivatives of the state in itself and in the gradient, squares, the middle of a block; ten of the
    # network and its gradient
    step = run.bytes_of((k * (k + 3) + 2) * (n_horizons if squares else 1) + 10)
    return run.state_bytes(n_steps) + step, each


def bytes_forward(run: Run, n_steps: int, n_horizons: int, n_rows: int) -> int:
    """Return the bytes of a walk forwards with so many left-out rows."""
    return run.state_bytes(n_steps) + run.bytes_of(n_rows * (n_horizons + 6))


def require_memory(needed: int, budget: int, n_steps: int, other: str) -> None:
    """Raise a MemoryError that says what to do, or what `other`, if the bytes are more than the budget."""
    if needed > budget:
        raise MemoryError(
            f"walking through {n_steps} steps takes {needed / 2**20:.0f} MiB, more than "
            f"memory_budget={budget / 2**20:.0f} MiB. Raise memory_budget, lower n_epochs, or {other}."
        )
