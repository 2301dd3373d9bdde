"""Cuts of a training run into segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..objective import Objective
from ..trajectory import Stage, Trajectory, model_at
from .projection import Projection

#: Share of the variation between checkpoints that ``segments="auto"`` explains.
EXPLAINED = 0.75

#: Rows whose gradients are compared, and components of each.
_ROWS, _COMPONENTS = 256, 256


@dataclass(frozen=True)
class Cut:
    """A segment of a run: its steps, and the numbers of its checkpoints and its stage."""

    start: int
    stop: int
    checkpoints: list[int]
    stage: int


def cut_run(run: Trajectory, segments: int | Sequence[int]) -> list[Cut]:
    """Cut a run into so many segments, or at these steps, and where stages change.

    A number is shared out among stages, and within a stage the checkpoints are cut into groups of
    nearly equal size; a segment ends at the last checkpoint of its group. ValueError if a stage or a
    segment has no checkpoint.
    """
    stages = run.stages
    inside = [_checkpoints(run, stage) for stage in stages]
    for stage, ks in zip(stages, inside, strict=True):
        if not ks:
            raise ValueError(
                f"{stage.name!r} (steps {stage.start} to {stage.stop}) has no checkpoint; the run has "
                f"some after steps {run.steps}. Record one at least at the end of each stage."
            )
    if isinstance(segments, int | np.integer):
        groups = [
            [list(map(int, part)) for part in np.array_split(ks, n)]
            for ks, n in zip(inside, _shared_out(int(segments), inside), strict=True)
        ]
        return [cut for s, parts in enumerate(groups) for cut in cuts_of(run, s, parts)]
    ends = sorted({int(e) for e in segments} | {stage.stop for stage in stages})
    if ends[0] < 1 or ends[-1] > run.n_steps:
        raise ValueError(
            f"segments as a list must hold numbers of steps between 1 and {run.n_steps}, where "
            f"segments end, got {list(segments)}."
        )
    cuts = []
    for start, stop in zip([0, *ends], ends, strict=False):
        s = next(s for s, stage in enumerate(stages) if start < stage.stop)
        ks = [k for k in inside[s] if start < run.steps[k] <= stop or run.steps[k] == start == 0]
        if not ks:
            raise ValueError(
                f"the segment of steps {start} to {stop} has no checkpoint; the run has some after "
                f"steps {run.steps}. Cut elsewhere, or record more."
            )
        cuts.append(Cut(start, stop, ks, s))
    return cuts


def cuts_of(run: Trajectory, stage: int, groups: Sequence[list[int]]) -> list[Cut]:
    """Return the segments of a stage, from groups of its checkpoints."""
    bounds = run.stages[stage]
    ends = [*(run.steps[group[-1]] for group in groups[:-1]), bounds.stop]
    starts = [bounds.start, *ends[:-1]]
    return [Cut(a, b, ks, stage) for a, b, ks in zip(starts, ends, groups, strict=True)]


def auto_cut(run: Trajectory, objectives: Sequence[Objective]) -> list[Cut]:
    r"""Cut a run where gradients change, given the objective of each stage at the final model.

    The gradients of some rows of each stage at its checkpoints, randomly projected, are cut into
    contiguous groups of least squared deviation from the groups' means: as few as explain three
    quarters of their variation over the stage.
    """
    cut_run(run, len(run.stages))  # a stage without a checkpoint shows now
    cuts = []
    for s, (stage, objective) in enumerate(zip(run.stages, objectives, strict=True)):
        ks = _checkpoints(run, stage)
        n, model = len(objective), objective.model
        some = objective.losses[torch.linspace(0, n - 1, min(_ROWS, n)).long()]
        features = []
        project = Projection(model.n_parameters, _COMPONENTS, "sparse")
        for k in ks:
            differentiate = objective.at(model_at(run, k, model)).differentiate
            features.append(project(differentiate(some)).flatten())
        found = contiguous_groups(torch.stack(features).double().cpu().numpy(), EXPLAINED)
        cuts += cuts_of(run, s, [[ks[k] for k in group] for group in found])
    return cuts


def contiguous_groups(points: NDArray[np.float64], explained: float) -> list[list[int]]:
    """Return the fewest contiguous groups of points (n, k) that explain a share of their variation."""
    n = len(points)
    cost = np.full((n, n + 1), np.inf)
    for a in range(n):
        for b in range(a + 1, n + 1):
            cost[a, b] = ((points[a:b] - points[a:b].mean(0)) ** 2).sum()
    best = [np.append(0.0, np.full(n, np.inf))]
    last: list[NDArray[np.int64]] = []
    for _ in range(n):
        options = best[-1][:n, None] + cost
        best.append(options.min(0))
        last.append(options.argmin(0))
        if best[-1][n] <= (1 - explained) * cost[0, n]:
            break
    groups: list[list[int]] = []
    stop = n
    for starts in reversed(last):
        groups.insert(0, list(range(int(starts[stop]), stop)))
        stop = int(starts[stop])
    return groups


def _checkpoints(run: Trajectory, stage: Stage) -> list[int]:
    """Return the numbers of a stage's checkpoints."""
    return [
        k
        for k, step in enumerate(run.steps)
        if stage.start < step <= stage.stop or step == stage.start == 0
    ]


def _shared_out(segments: int, inside: Sequence[Sequence[int]]) -> list[int]:
    """Return the number of segments of each stage, by its number of checkpoints."""
    total = sum(map(len, inside))
    if segments > total or segments < len(inside):
        raise ValueError(
            f"segments must be between the number of stages ({len(inside)}) and that of checkpoints "
            f"({total}), got {segments}. Record more checkpoints, or set segments={len(inside)}."
        )
    counts = [1] * len(inside)
    for _ in range(segments - len(inside)):
        counts[int(np.argmax([len(ks) / c for ks, c in zip(inside, counts, strict=True)]))] += 1
    return counts
