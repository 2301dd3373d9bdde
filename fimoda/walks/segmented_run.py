"""A run of further training that is linearised anew in each of its segments."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from joblib import delayed
from torch import Tensor

from ..derivatives import push_outputs
from ..layers.by_autograd import gradients_by_autograd
from ..measured import Measured
from ..objective import Objective
from ..rows import Rows
from ..training.products import fast_float32_products
from ..training.recorded import ObservedRun, observe_run
from ..training.run import Run
from ..training.workers import Workers, one_thread
from .leaving_out import leaving_out
from .linearized import RunOfOutputs, require_memory
from .segments import LOAD, Segment, linearize, middle

#: Dimensions of a Krylov space by default, where memory allows.
COMPONENTS = 640


def bytes_per_component(objective: Objective, n_segments: int, n_seeds: int) -> int:
    """Return what each dimension of the Krylov spaces takes of memory, of all seeds together."""
    p, n = objective.model.n_parameters, len(objective)
    numbers = n_segments * (p + 2 * n) + 3 * p
    return int(n_seeds * objective.model.theta.element_size() * numbers / (1 - LOAD))


def components_that_fit(objective: Objective, each: int, memory_budget: int) -> int:
    """Return the default number of dimensions of a Krylov space."""
    return max(1, min(COMPONENTS, objective.model.n_parameters, memory_budget // each))


def cut(horizons: Sequence[int], n_segments: int, per_epoch: int) -> tuple[int, ...]:
    """Return the ends of segments: every horizon, and points that lie further and further apart.

    All in steps; where every horizon is a whole number of epochs, so are the points.
    """
    unit = per_epoch if all(step % per_epoch == 0 for step in horizons) else 1
    last = horizons[-1] // unit
    ideal = [round(last * (k / n_segments) ** 2) for k in range(1, n_segments)]
    return tuple(sorted({0, *horizons, *(max(1, point) * unit for point in ideal)}))


@dataclass(frozen=True, eq=False)
class SegmentedRun(RunOfOutputs):
    """A run linearised anew in each segment."""

    run: Run
    observed: ObservedRun
    segments: list[Segment]

    def scores(
        self, test: Measured, horizons: Sequence[int], own_residuals: Tensor | None = None
    ) -> Tensor:
        with one_thread(), fast_float32_products(lambda: _trial(self.run, test.rows)):
            return self._walked_back(test, horizons, own_residuals)

    def _walked_back(
        self, test: Measured, horizons: Sequence[int], own_residuals: Tensor | None
    ) -> Tensor:
        """Return the scores of all horizons by one walk back through the segments."""
        objective, share = self.run.objective, self.run.rows.shares
        of_own, of_mean = leaving_out(share)
        adjoints: list[Tensor] = []
        scores = share.new_zeros(0, len(share))
        known = [segment for segment in self.segments if segment.end <= horizons[-1]]
        for segment in reversed(known):
            n_parts = len(segment.load.inside)
            if segment.end in horizons:
                model = objective.model.at(self.observed.theta(segment.end))
                fresh = gradients_by_autograd(model, test)
                added = [fresh, torch.zeros_like(fresh)][:n_parts]
                adjoints = adjoints or [fresh[:0]] * n_parts
                adjoints = [torch.cat(pair) for pair in zip(added, adjoints, strict=True)]
                scores = torch.cat([scores.new_zeros(len(fresh), len(share)), scores])
            real, own, adjoints = segment.pass_back(objective, adjoints, own_residuals)
            scores += (real @ share)[:, None] * of_mean - own * of_own
        return scores.unflatten(0, (len(horizons), -1))

    def changes(self, horizons: Sequence[int]) -> tuple[Tensor, Tensor]:
        model, inputs = self.run.model, self.run.rows.inputs
        error = torch.zeros_like(model.theta)
        change = self.observed.outputs_after(horizons) - self.observed.outputs[0]
        predicted: list[Tensor] = []
        for segment in self.segments:
            error = segment.carry(error)
            if segment.end in horizons:
                off = push_outputs(model, inputs, segment.theta, error[None])
                predicted.append(change[len(predicted)] + off[:, 0])
        return change, torch.stack(predicted)


def _linearized(
    run: Run, observed: ObservedRun, a: int, b: int, size: tuple[int, int], kinks: float | None
) -> Segment:
    """Return one segment, by one worker."""
    with one_thread(), fast_float32_products(lambda: _trial(run, run.rows)):
        return linearize(run, observed, a, b, *size, kinks)


def _trial(run: Run, rows: Rows) -> Tensor:
    """Return outputs of a few rows: products like those that follow."""
    return run.model.outputs(rows[:64].inputs)


def segmented_runs(
    run: Run,
    seeds: Sequence[int],
    horizons: Sequence[int],
    n_segments: int,
    n_components: int | None,
    block_size: int,
    kinks: float | None,
    workers: Workers,
) -> tuple[list[SegmentedRun], int]:
    """Return the runs of all seeds with their segments, and the dimensions of the Krylov spaces.

    MemoryError if these do not fit the memory budget of the objective.
    """
    objective, budget = run.objective, run.objective.memory_budget
    ends = cut(horizons, n_segments, run.steps_per_epoch)
    pairs = list(itertools.pairwise(ends))
    each = bytes_per_component(objective, len(pairs), len(seeds))
    if n_components is None:
        n_components = components_that_fit(objective, each, budget)
    n_components = min(n_components, objective.model.n_parameters)
    advice = "lower n_components or n_segments, or raise memory_budget"
    require_memory(each * n_components, budget, advice)
    size = n_components, block_size
    middles = [middle(a, b) for a, b in pairs]
    jobs = [delayed(observe_run)(run, seed, ends, middles) for seed in seeds]
    observed = workers.do(workers.shown(jobs))
    jobs = [delayed(_linearized)(run, one, a, b, size, kinks) for one in observed for a, b in pairs]
    segments = workers.do(workers.shown(jobs))
    own = [segments[k : k + len(pairs)] for k in range(0, len(segments), len(pairs))]
    return [SegmentedRun(run, *parts) for parts in zip(observed, own, strict=True)], n_components
