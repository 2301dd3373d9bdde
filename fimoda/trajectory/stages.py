"""Parts of a training run with rows of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Stage:
    """A part of a training run with rows of its own.

    Parameters
    ----------
    name : str
    start, stop : int
        Steps of the whole run that were done before the stage, and at its end.
    n_rows : int, default=None
        Number of rows it was trained on.
    rows : ndarray of int, default=None
        Those rows, as indices into the rows that are attributed to. By default all of them if every
        stage has as many; if the stages' rows are as many together, they follow one another.

    Examples
    --------
    >>> from fimoda import Stage
    >>> Stage("pretraining", 0, 100, n_rows=500).stop
    100
    """

    name: str
    start: int
    stop: int
    n_rows: int | None = None
    rows: NDArray[np.int64] | None = None


def stage_rows(stages: Sequence[Stage], n_rows: int) -> list[NDArray[np.int64]]:
    """Return the rows of each stage among the rows at hand; ValueError if their numbers do not match."""
    if all(stage.n_rows in (None, n_rows) and stage.rows is None for stage in stages):
        return [np.arange(n_rows) for _ in stages]
    if all(stage.rows is not None for stage in stages):
        found = [np.asarray(stage.rows, dtype=np.int64) for stage in stages]
    else:
        sizes = [stage.n_rows or 0 for stage in stages]
        if sum(sizes) != n_rows:
            raise ValueError(
                f"X must hold the rows of the recorded run: its stages were trained on {sizes} rows, X "
                f"has {n_rows}. Pass them all, one stage after the other, or say which rows belong to "
                "which stage with Trajectory.name_rows."
            )
        found = list(np.split(np.arange(n_rows), np.cumsum(sizes)[:-1]))
    for stage, rows in zip(stages, found, strict=True):
        if not len(rows) or rows.min() < 0 or rows.max() >= n_rows:
            raise ValueError(
                f"trajectory names rows of {stage.name!r} outside the {n_rows} rows of X. Pass the rows "
                "that it was trained on."
            )
    return found


def check_stages(stages: list[Stage], n_steps: int) -> None:
    """Raise ValueError unless stages, if any, make up a run of so many steps."""
    ends = [0, *(stage.stop for stage in stages)]
    if stages and (ends[:-1] != [stage.start for stage in stages] or ends[-1] != n_steps):
        raise ValueError(
            f"stages must follow one another from step 0 to step {n_steps}, got "
            f"{[(stage.start, stage.stop) for stage in stages]}."
        )
