"""A run of further training that is linearised once, and followed step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from joblib import delayed
from torch import Tensor

from ..layers.by_autograd import StateGradients
from ..measured import Measured
from ..training.recorded import ObservedRun, RecordedRun, observe_run
from ..training.run import Run
from ..training.workers import Workers, one_thread
from .ends import Ends
from .frozen_jacobians import FrozenJacobians, LinearizedModule
from .linearized import LinearizedRun, require_memory
from .row_changes import LeftOut, Relabelled, RowChange
from .unrolled import OwnOrder, adjoint_scores


@dataclass(frozen=True, eq=False)
class SteppedRun(LinearizedRun):
    """The minibatches and the optimiser of a run, with Jacobians that stand still."""

    run: Run
    seed: int
    observed: ObservedRun
    linear: ObservedRun  # the run of the network's first-order expansion
    kinks: float | None  # sharpness of the loss's

    def scores(self, test: Measured, horizons: Sequence[int]) -> Tensor:
        return self._changed(test, horizons, LeftOut(len(self.run.rows)))

    def relabelled(self, test: Measured, horizon: int, change: Relabelled) -> Tensor:
        return self._changed(test, [horizon], change)[0]

    def _changed(self, test: Measured, horizons: Sequence[int], change: RowChange) -> Tensor:
        """Return the effects (n_horizons, m, n_columns) of a change of rows."""
        with one_thread():
            recorded = RecordedRun(self.run, self.seed, horizons[-1])
            frozen = FrozenJacobians(self.run.model, self.kinks)
            order = OwnOrder(recorded, frozen, change)
            return adjoint_scores(
                recorded, frozen, StateGradients(test), Ends({}), horizons, order
            ).values

    def changes(self, horizons: Sequence[int]) -> tuple[Tensor, Tensor]:
        real, linear = (
            run.outputs_after(horizons) - run.outputs[0] for run in (self.observed, self.linear)
        )
        return real, linear


def _stepped_run(run: Run, seed: int, horizons: Sequence[int], kinks: float | None) -> SteppedRun:
    """Return the run of a seed, by one worker."""
    model = replace(run.model, module=LinearizedModule(run.model.module))
    expanded = replace(run, objective=run.objective.at(model))
    observed, linear = (observe_run(each, seed, horizons) for each in (run, expanded))
    return SteppedRun(run, seed, observed, linear, kinks)


def stepped_runs(
    run: Run, seeds: Sequence[int], horizons: Sequence[int], kinks: float | None, workers: Workers
) -> list[SteppedRun]:
    """Return the runs of all seeds; MemoryError if the states of one do not fit the memory budget."""
    needed, budget = run.state_bytes(horizons[-1]), run.objective.memory_budget
    require_memory(needed, budget, "raise memory_budget, or lower n_epochs")
    jobs = [delayed(_stepped_run)(run, seed, horizons, kinks) for seed in seeds]
    return workers.do(workers.shown(jobs))
