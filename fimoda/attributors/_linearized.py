"""Runs of further training, linearised: what `LinearizedFurtherTraining` keeps for each seed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..curvature.batch_hessian import batch_hessian
from ..curvature.kernel import OutputKernel
from ..curvature.output_space import (
    adjoint_in_outputs,
    largest_curvature,
    outputs_of_full_run,
)
from ..curvature.outputs import push_outputs
from ..curvature.quadratic_removal import QuadraticRemoval
from ..curvature.segments import Segment, Segmentation
from ..losses import SquaredError
from ..model import FinalModel
from ..row_gradients import Measure, RowDifferentiator
from ..training.linear_steps import LinearSteps, linear_steps
from ..training.observed import ObservedRun, observe
from ..training.products import fast_float32_products
from ..training.runner import one_thread
from ..training.stack import StackTrainer
from ._walks import Walk


class LinearizedRun(ABC):
    """One seed's run, linearised."""

    run: ObservedRun

    @abstractmethod
    def scores(
        self,
        X: Tensor,
        y: Tensor,
        measure: Measure,
        horizons: Sequence[int],
        own_residuals: Tensor | None = None,
    ) -> Tensor:
        """Scores (n_horizons, m, n) of all training rows for test rows.

        `own_residuals` (n_epochs + 1, n, C) are those of each row when it is the one left out, if
        they are others than in the run; its removal is to first order then.
        """

    @abstractmethod
    def changes(self, horizons: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Change of the training rows' outputs (n_horizons, n, C): of the run, and linearised."""


def observe_run(walk: Walk, seed: int, n_epochs: int, steps: set[int]) -> ObservedRun:
    """The run on all rows of a seed, seen at these steps."""
    with one_thread():
        trainer = StackTrainer(walk.model, walk.X, walk.y, walk.optimizer)
        return observe(trainer, seed, walk.row_weights, walk.batch_size, n_epochs, steps)


# ---- many linearisations --------------------------------------------------------------------


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
                off = push_outputs(self.walk.model, self.walk.X, segment.theta, error[None])
                predicted.append(self.run.outputs[segment.end] - self.run.outputs[0] + off[:, 0])
        return self.run.outputs[list(horizons)] - self.run.outputs[0], torch.stack(predicted)


def linearize_segment(
    walk: Walk, segmentation: Segmentation, run: ObservedRun, start: int, end: int
) -> Segment:
    """One segment, on one thread."""
    with one_thread(), fast_float32_products(lambda: trial(walk.model, walk.X)):
        hessian = batch_hessian(walk.model, walk.kink_smoothing)
        return segmentation.linearize(run, hessian, start, end)


def trial(model: FinalModel, X: Tensor) -> Tensor:
    """Outputs of a few rows: products like those that follow."""
    return model.outputs(X[:64])


# ---- one linearisation ----------------------------------------------------------------------


class KernelRun(LinearizedRun):
    """A run linearised once, where it begins.

    Parameters
    ----------
    walk : Walk
    run : ObservedRun
        Seen at its start, in its middle and at every horizon.
    horizons : list of int
    exact : bool
        Whether rows are removed exactly (of a quadratic loss).
    memory_budget : int
        Bytes for Jacobians at a time.
    """

    def __init__(
        self, walk: Walk, run: ObservedRun, horizons: list[int], exact: bool, memory_budget: int
    ):
        self.walk = walk
        self.run = run
        self.horizons = horizons
        self.steps = kernel_steps(walk, run)
        self._share = walk.row_weights.double() / walk.row_weights.double().sum()
        self._kernel = OutputKernel(walk.model, walk.X, memory_budget, self.steps.preconditioner)
        loss = walk.model.loss
        self._removal = None
        if isinstance(loss, SquaredError):
            bend = 2 * loss.factor(run.outputs)
            self._removal = QuadraticRemoval(self._kernel(), self._share, bend, self.steps, exact)
            largest = float(self._removal.values[-1:].sum())
        else:
            self._gram = self._kernel()
            curvature = walk.model.output_hessian(run.outputs[0], walk.y)
            largest = largest_curvature(self._gram, self._share, curvature)
        self.steps.check_stable(largest + self.steps.coupled_decay, run.rates)
        if self._removal is not None:
            self._deviations = self._removal.deviations(*self._course(), horizons)

    def scores(
        self,
        X: Tensor,
        y: Tensor,
        measure: Measure,
        horizons: Sequence[int],
        own_residuals: Tensor | None = None,
    ) -> Tensor:
        inner = [self._inner(X, y, measure, epoch) for epoch in horizons]
        if self._removal is not None:
            places = [self.horizons.index(epoch) for epoch in horizons]
            modes = torch.stack(inner).flatten(2) @ self._removal.to_modes
            deviations = self._deviations
            if own_residuals is not None:
                deviations = self._removal.deviations(*self._course(), self.horizons, own_residuals)
            return modes @ deviations[places].mT
        return adjoint_in_outputs(
            self._gram,
            self._share,
            lambda epoch: self.walk.model.output_hessian(self.run.outputs[epoch], self.walk.y),
            self.run.residuals,
            self.steps,
            self.run.rates,
            self.run.steps_per_epoch,
            inner,
            horizons,
            own_residuals,
        )

    def reweighted(
        self, X: Tensor, y: Tensor, measure: Measure, horizon: int, weights: Tensor
    ) -> Tensor:
        """Change of the measurements (m,) when rows' weights are multiplied, for a quadratic loss."""
        if self._removal is None:
            raise TypeError("the loss is not quadratic")
        moved = self._removal.reweighted(*self._course(), [horizon], weights)[0]
        return self._inner(X, y, measure, horizon).flatten(1) @ self._removal.to_modes @ moved

    def _course(self) -> tuple[Tensor, Tensor, int]:
        return self.run.residuals, self.run.rates, self.run.steps_per_epoch

    def _inner(self, X: Tensor, y: Tensor, measure: Measure, epoch: int) -> Tensor:
        """Inner products of the measurements' gradients at a horizon with the rows, (m, n, C)."""
        model = self.walk.model.at(self.run.theta(epoch))
        return self._kernel.inner(RowDifferentiator(model, self.walk.X[:2])(X, y, measure))

    def changes(self, horizons: Sequence[int]) -> tuple[Tensor, Tensor]:
        run, walk = self.run, self.walk
        marks = [epoch * run.steps_per_epoch for epoch in horizons]
        theta = run.theta(0)
        decay = self.steps.coupled_decay * push_outputs(walk.model, walk.X, theta, theta[None])
        if self._removal is not None:
            predicted = self._removal.outputs_of_full_run(
                run.residuals[0], decay[:, 0], run.rates, marks
            )
        else:
            predicted = outputs_of_full_run(
                self._gram,
                self._share,
                lambda outputs: walk.model.loss.gradient(outputs, walk.y),
                run.outputs[0].double(),
                decay[:, 0],
                self.steps,
                run.rates,
                marks,
            )
        return run.outputs[list(horizons)] - run.outputs[0], predicted


def kernel_steps(walk: Walk, run: ObservedRun) -> LinearSteps:
    """The optimiser in the space of outputs.

    Raises
    ------
    ValueError
        If the objective has a penalty, or an adaptive optimiser a weight decay in its gradient:
        what they do to the parameters cannot be seen in the outputs.
    """
    steps = linear_steps(walk.optimizer, run.buffers_of(len(run.rates) // 2))
    if walk.model.l2 is not None and bool(walk.model.l2.any()):
        raise ValueError(
            "n_segments=1 needs an objective without an L2 penalty (for scikit-learn's models: "
            "alpha=0 or penalty=None). Use n_segments='auto'."
        )
    if steps.coupled_decay and steps.preconditioner is not None:
        raise ValueError(
            "n_segments=1 cannot follow an adaptive optimiser whose weight_decay is part of the "
            "gradient. Use n_segments='auto', or AdamW."
        )
    return steps


def kernel_run(
    walk: Walk, seed: int, horizons: list[int], exact: bool, memory_budget: int
) -> KernelRun:
    """The run of a seed, linearised once."""
    per_epoch = walk.n_steps(1)
    seen = {0, horizons[-1] * per_epoch // 2, *(epoch * per_epoch for epoch in horizons)}
    run = observe_run(walk, seed, horizons[-1], seen)
    with one_thread():
        return KernelRun(walk, run, horizons, exact, memory_budget)
