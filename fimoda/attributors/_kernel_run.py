"""A run of further training that is linearised once, in the space of the rows' outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from joblib import delayed
from torch import Tensor

from ..curvature.kernel import OutputKernel
from ..curvature.output_space import (
    adjoint_in_outputs,
    largest_curvature,
    outputs_of_full_run,
)
from ..curvature.outputs import push_outputs
from ..curvature.quadratic_removal import QuadraticRemoval
from ..measured import Measure, Measured
from ..row_gradients import RowDifferentiator
from ..rows import Rows
from ..training.linear_steps import LinearSteps, linear_steps
from ..training.observed import ObservedRun
from ..training.workers import one_thread
from ._linearized import LinearizedRun, Workers, observe_run, require_memory
from ._walks import Walk


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
        self._share = walk.rows.shares
        self._kernel = OutputKernel(
            walk.model, walk.rows.inputs, memory_budget, self.steps.preconditioner
        )
        loss = walk.model.loss
        self._removal = None
        bend = loss.constant_curvature(run.outputs.shape[-1])
        if bend is not None:
            self._removal = QuadraticRemoval(self._kernel(), self._share, bend, self.steps, exact)
            largest = float(self._removal.values[-1:].sum())
        else:
            self._gram = self._kernel()
            curvature = loss.output_hessian(run.outputs[0], walk.rows.targets)
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
            lambda epoch: self.walk.model.loss.output_hessian(
                self.run.outputs[epoch], self.walk.rows.targets
            ),
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
        return self._kernel.inner(
            RowDifferentiator(model, self.walk.rows[:2].inputs)(Measured(Rows(X, y), measure))
        )

    def changes(self, horizons: Sequence[int]) -> tuple[Tensor, Tensor]:
        run, walk = self.run, self.walk
        marks = [epoch * run.steps_per_epoch for epoch in horizons]
        theta = run.theta(0)
        decay = self.steps.coupled_decay * push_outputs(
            walk.model, walk.rows.inputs, theta, theta[None]
        )
        if self._removal is not None:
            predicted = self._removal.outputs_of_full_run(
                run.residuals[0], decay[:, 0], run.rates, marks
            )
        else:
            predicted = outputs_of_full_run(
                self._gram,
                self._share,
                lambda outputs: walk.model.loss.gradient(outputs, walk.rows.targets),
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


def kernel_runs(
    walk: Walk,
    seeds: Sequence[int],
    horizons: list[int],
    exact: bool,
    memory_budget: int,
    workers: Workers,
) -> list[LinearizedRun]:
    """The runs of all seeds."""
    n_outputs = walk.model.outputs(walk.rows[:1].inputs).shape[1]
    require_memory(
        kernel_bytes(len(walk.rows), n_outputs, len(seeds), len(horizons)),
        memory_budget,
        "raise memory_budget, or use solver='steps' or n_segments='auto'",
    )
    return workers(
        [delayed(kernel_run)(walk, seed, horizons, exact, memory_budget // 4) for seed in seeds]
    )


def kernel_bytes(n: int, n_outputs: int, n_seeds: int, n_horizons: int) -> int:
    """What the kernels of n rows take for all seeds, and their eigenvectors."""
    modes = n * n_outputs
    return 8 * n_seeds * modes * (3 * modes + n * n_horizons)
