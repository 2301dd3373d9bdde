"""A run of further training that is linearised once, and followed step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from joblib import delayed
from torch import Tensor

from ..curvature.frozen_jacobians import FrozenJacobians, LinearizedModule
from ..curvature.unrolled import adjoint_scores
from ..measured import Measure
from ..training.observed import ObservedRun
from ..training.recorded import RecordedRun
from ..training.workers import one_thread
from ._linearized import LinearizedRun, Workers, observe_run, require_memory
from ._walks import Walk


@dataclass(frozen=True)
class SteppedRun(LinearizedRun):
    """The minibatches and the optimiser of the run, with Jacobians that stand still.

    Parameters
    ----------
    walk : Walk
    seed : int
    run, linear : ObservedRun
        Of the network, and of its first-order expansion.
    """

    walk: Walk
    seed: int
    run: ObservedRun
    linear: ObservedRun

    def scores(
        self,
        X: Tensor,
        y: Tensor,
        measure: Measure,
        horizons: Sequence[int],
        own_residuals: Tensor | None = None,
    ) -> Tensor:
        if own_residuals is not None:
            raise ValueError("relabel needs solver='kernel', or more than one segment.")
        frozen = FrozenJacobians(self.walk.model, self.walk.kink_smoothing)
        with one_thread():
            run = RecordedRun(self.walk, self.seed, horizons[-1])
            return adjoint_scores(
                run, frozen, lambda theta: self.walk.gradients(theta, X, y, measure), horizons
            ).values

    def changes(self, horizons: Sequence[int]) -> tuple[Tensor, Tensor]:
        real, linear = (
            run.outputs[list(horizons)] - run.outputs[0] for run in (self.run, self.linear)
        )
        return real, linear


def stepped_run(walk: Walk, seed: int, n_epochs: int) -> SteppedRun:
    """The run of a seed."""
    module = LinearizedModule(walk.model.module)
    expanded = replace(walk, objective=walk.objective.at(replace(walk.model, module=module)))
    per_epoch = walk.n_steps(1)
    ends = {0, n_epochs * per_epoch}
    run, linear = (observe_run(each, seed, n_epochs, ends) for each in (walk, expanded))
    return SteppedRun(walk, seed, run, linear)


def stepped_runs(
    walk: Walk, seeds: Sequence[int], horizons: Sequence[int], memory_budget: int, workers: Workers
) -> list[LinearizedRun]:
    """The runs of all seeds."""
    require_memory(
        walk.state_bytes(horizons[-1]), memory_budget, "raise memory_budget, or lower n_epochs"
    )
    return workers([delayed(stepped_run)(walk, seed, horizons[-1]) for seed in seeds])
