"""A run of further training that is linearised anew in each of its segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from joblib import delayed
from torch import Tensor

from ..curvature.batch_hessian import batch_hessian
from ..curvature.outputs import push_outputs
from ..curvature.segments import Segment, Segmentation
from ..measured import Measure
from ..model import FinalModel
from ..training.observed import ObservedRun
from ..training.products import fast_float32_products
from ..training.workers import one_thread
from ._linearized import LinearizedRun, Workers, observe_run, require_memory
from ._walks import Walk

#: Dimensions of a Krylov space by default, where memory allows.
COMPONENTS = 640


def bytes_per_component(
    model: FinalModel, n: int, n_outputs: int, n_segments: int, n_seeds: int
) -> int:
    """What each dimension of the Krylov spaces takes of memory, of all seeds together."""
    p = model.n_parameters
    numbers = n_segments * (p + 2 * n) + 3 * p + n * n_outputs
    return n_seeds * model.theta.element_size() * numbers


def components_that_fit(model: FinalModel, each: int, memory_budget: int) -> int:
    """The default number of dimensions of a Krylov space."""
    return max(1, min(COMPONENTS, model.n_parameters, memory_budget // each))


def cut(horizons: Sequence[int], n_segments: int) -> tuple[int, ...]:
    """Ends of segments: every horizon, and points that lie further and further apart."""
    last = horizons[-1]
    ideal = [round(last * (k / n_segments) ** 2) for k in range(1, n_segments)]
    return tuple(sorted({0, *horizons, *(max(1, epoch) for epoch in ideal)}))


@dataclass(frozen=True)
class SegmentedRun(LinearizedRun):
    """A run linearised anew in each segment."""

    walk: Walk
    segmentation: Segmentation
    run: ObservedRun
    segments: list[Segment]

    @property
    def n_segments(self) -> int:
        return len(self.segments)

    @property
    def n_components(self) -> int:
        return self.segmentation.n_components

    def scores(
        self,
        X: Tensor,
        y: Tensor,
        measure: Measure,
        horizons: Sequence[int],
        own_residuals: Tensor | None = None,
    ) -> Tensor:
        def gradients(epoch: int) -> Tensor:
            return self.walk.gradients(self.run.theta(epoch), X, y, measure)

        with one_thread(), fast_float32_products(lambda: trial(self.walk.model, X)):
            known = [segment for segment in self.segments if segment.end <= horizons[-1]]
            return self.segmentation.walk_back(known, gradients, horizons, own_residuals)

    def changes(self, horizons: Sequence[int]) -> tuple[Tensor, Tensor]:
        error = torch.zeros_like(self.walk.model.theta)
        predicted = []
        for segment in self.segments:
            error = segment.carry(error)
            if segment.end in horizons:
                off = push_outputs(
                    self.walk.model, self.walk.rows.inputs, segment.theta, error[None]
                )
                predicted.append(self.run.outputs[segment.end] - self.run.outputs[0] + off[:, 0])
        return self.run.outputs[list(horizons)] - self.run.outputs[0], torch.stack(predicted)


def linearize_segment(
    walk: Walk, segmentation: Segmentation, run: ObservedRun, start: int, end: int
) -> Segment:
    """One segment, on one thread."""
    with one_thread(), fast_float32_products(lambda: trial(walk.model, walk.rows.inputs)):
        hessian = batch_hessian(walk.model, walk.kink_smoothing)
        return segmentation.linearize(run, hessian, start, end)


def trial(model: FinalModel, X: Tensor) -> Tensor:
    """Outputs of a few rows: products like those that follow."""
    return model.outputs(X[:64])


def segmented_runs(
    walk: Walk,
    seeds: Sequence[int],
    horizons: Sequence[int],
    n_segments: int,
    n_components: int | None,
    block_size: int,
    memory_budget: int,
    workers: Workers,
) -> list[LinearizedRun]:
    """The runs of all seeds, with their segments."""
    model, n = walk.model, len(walk.rows)
    cuts = cut(horizons, n_segments)
    n_outputs = model.outputs(walk.rows[:1].inputs).shape[1]
    each = bytes_per_component(model, n, n_outputs, len(cuts) - 1, len(seeds))
    if n_components is None:
        modes = components_that_fit(model, each, memory_budget)
    else:
        modes = min(n_components, model.n_parameters)
    require_memory(
        each * modes, memory_budget, "lower n_components or n_segments, or raise memory_budget"
    )
    segmentation = Segmentation(
        model,
        walk.rows.inputs,
        walk.rows.targets,
        walk.weights.to(walk.model.device),
        walk.optimizer,
        cuts,
        modes,
        block_size,
    )
    seen = segmentation.steps_to_see(walk.n_steps(1))
    runs = workers([delayed(observe_run)(walk, seed, horizons[-1], seen) for seed in seeds])
    segments = workers(
        [
            delayed(linearize_segment)(walk, segmentation, run, a, b)
            for run in runs
            for a, b in segmentation.pairs
        ]
    )
    each = len(segmentation.pairs)
    return [
        SegmentedRun(walk, segmentation, run, segments[k * each : (k + 1) * each])
        for k, run in enumerate(runs)
    ]
