"""A run of further training that is linearised once, in the space of the rows' outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from joblib import delayed
from torch import Tensor

from ..curvature.kernel import OutputKernel
from ..derivatives import push_outputs
from ..measured import Measured
from ..model import FinalModel
from ..objective import Objective
from ..training.linear_steps import LinearSteps, linear_steps
from ..training.recorded import ObservedRun, observe_run
from ..training.run import Run
from ..training.workers import Workers, one_thread
from .linearized import RunOfOutputs, require_memory
from .output_space import adjoint_in_outputs, largest_curvature, outputs_of_full_run
from .quadratic_removal import QuadraticRemoval


class KernelRun(RunOfOutputs):
    """A run linearised once, where it begins; seen there, in its middle and at every horizon (a step).

    Rows are removed exactly or to first order; exactly of a quadratic loss only.
    """

    def __init__(self, run: Run, observed: ObservedRun, horizons: Sequence[int], exact: bool):
        self.run = run
        self.observed = observed
        self.horizons = list(horizons)
        self.steps = _linear_steps(run, observed)
        self._share = run.rows.shares
        objective = replace(run.objective, memory_budget=run.objective.memory_budget // 4)
        self._kernel = OutputKernel(objective, self.steps.preconditioner)
        loss, outputs = run.model.loss, observed.outputs
        self._removal = None
        bend = loss.constant_curvature(outputs.shape[-1])
        if bend is not None:
            self._removal = QuadraticRemoval(self._kernel(), self._share, bend, self.steps, exact)
            largest = float(self._removal.values[-1:].sum())
        else:
            self._gram = self._kernel()
            largest = largest_curvature(self._gram, self._share, self._curvature(0))
        self.steps.check_stable(largest + self.steps.coupled_decay, observed.rates)
        if self._removal is not None:
            self._deviations = self._removal.deviations(observed, horizons)

    def _curvature(self, knot: int) -> Tensor:
        """Return the second derivative (n, C, C) of the rows' losses in their outputs at a knot."""
        outputs = self.observed.outputs[knot]
        return self.run.model.loss.output_hessian(outputs, self.run.rows.targets)

    def scores(
        self, test: Measured, horizons: Sequence[int], own_residuals: Tensor | None = None
    ) -> Tensor:
        inner = [self._inner(test, step) for step in horizons]
        if self._removal is not None:
            places = [self.horizons.index(step) for step in horizons]
            modes = torch.stack(inner).flatten(2) @ self._removal.to_modes
            deviations = self._deviations
            if own_residuals is not None:
                deviations = self._removal.deviations(self.observed, self.horizons, own_residuals)
            return modes @ deviations[places].mT
        return adjoint_in_outputs(
            self._gram,
            self._share,
            self._curvature,
            self.observed,
            self.steps,
            inner,
            horizons,
            own_residuals,
        )

    def reweighted(self, test: Measured, horizon: int, factors: Tensor) -> Tensor:
        if self._removal is None:
            raise TypeError("the loss is not quadratic")
        moved = self._removal.reweighted(self.observed, horizon, factors)
        return self._inner(test, horizon).flatten(1) @ self._removal.to_modes @ moved

    def _inner(self, test: Measured, step: int) -> Tensor:
        """Return inner products (m, n, C) of the measurements' gradients at a horizon with the rows."""
        there = self.run.objective.at(self.run.model.at(self.observed.theta(step)))
        return self._kernel.inner(there.differentiate(test))

    def changes(self, horizons: Sequence[int]) -> tuple[Tensor, Tensor]:
        run, observed = self.run, self.observed
        theta, loss, targets = observed.theta(0), run.model.loss, run.rows.targets
        along = push_outputs(run.model, run.rows.inputs, theta, theta[None])
        decay = self.steps.coupled_decay * along[:, 0]
        if self._removal is not None:
            predicted = self._removal.outputs_of_full_run(observed, decay, horizons)
        else:
            predicted = outputs_of_full_run(
                self._gram,
                self._share,
                lambda outputs: loss.gradient(outputs, targets),
                observed,
                decay,
                self.steps,
                horizons,
            )
        return observed.outputs_after(horizons) - observed.outputs[0], predicted


def has_penalty(model: FinalModel) -> bool:
    """Return whether the objective has an L2 penalty, which outputs do not show."""
    return model.l2 is not None and bool(model.l2.any())


def _linear_steps(run: Run, observed: ObservedRun) -> LinearSteps:
    """Return the optimiser in the space of outputs; ValueError for decay that outputs do not show.

    That is a penalty of the objective, and weight decay in the gradient of an adaptive optimiser.
    """
    steps = linear_steps(run.optimizer, observed.buffers_of(len(observed.rates) // 2))
    if has_penalty(run.model):
        raise ValueError(
            "solver='kernel' needs an objective without an L2 penalty (for scikit-learn's models: "
            "alpha=0 or penalty=None). Use solver='steps', or segments: LinearizedFurtherTraining."
        )
    if steps.coupled_decay and steps.preconditioner is not None:
        raise ValueError(
            "solver='kernel' cannot follow an adaptive optimiser whose weight_decay is part of the "
            "gradient. Use solver='steps', segments (LinearizedFurtherTraining), or AdamW."
        )
    return steps


def _kernel_run(run: Run, seed: int, horizons: Sequence[int], exact: bool) -> KernelRun:
    """Return the run of a seed, by one worker."""
    observed = observe_run(run, seed, horizons, {horizons[-1] // 2})
    with one_thread():
        return KernelRun(run, observed, horizons, exact)


def kernel_runs(
    run: Run, seeds: Sequence[int], horizons: Sequence[int], exact: bool, workers: Workers
) -> list[KernelRun]:
    """Return the runs of all seeds; MemoryError if the kernels do not fit the memory budget."""
    needed = kernel_bytes(run.objective, len(seeds), len(horizons))
    require_memory(
        needed,
        run.objective.memory_budget,
        "raise memory_budget, or use solver='steps' or segments (LinearizedFurtherTraining)",
    )
    jobs = [delayed(_kernel_run)(run, seed, horizons, exact) for seed in seeds]
    return workers.do(workers.shown(jobs))


def kernel_bytes(objective: Objective, n_seeds: int, n_horizons: int) -> int:
    """Return what the kernels of the rows take for all seeds, and their eigenvectors."""
    n = len(objective)
    modes = n * objective.n_outputs
    return 8 * n_seeds * modes * (3 * modes + n * n_horizons)
