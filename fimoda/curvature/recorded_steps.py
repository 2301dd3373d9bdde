"""The steps of a recorded run, as linear recursions."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..model import Recipe
from ..objective import Objective
from ..training.clipping import Clipping
from ..training.linear_steps import LinearSteps, linear_steps, second_moment_name
from ..training.optimizers import OptimizerSpec, optimizer_class, resolve_optimizer
from ..trajectory import Trajectory, buffers_at, mean_model, model_at
from .second_moments import batch_second_moment
from .segmentation import Cut
from .stationary import Dynamics, Segment

#: Rows whose gradients are squared at a time.
_ROWS = 1024


def optimizer_of(run: Trajectory) -> OptimizerSpec:
    """Return the optimiser of a run by its settings alone, with a learning rate of one."""
    spec = resolve_optimizer(run.optimizer, 1.0, run.optimizer_params, Recipe())
    return replace(spec, clipping=Clipping(), groups=())


def gain(run: Trajectory) -> float:
    """Return what momentum makes of a gradient, of optimisers whose steps have a unit."""
    if optimizer_class(run.optimizer) is not torch.optim.SGD:
        return 1.0
    return linear_steps(optimizer_of(run), {}).gain


def steps_at(run: Trajectory, k: int, objective: Objective, batch_size: int) -> LinearSteps:
    """Return the optimiser at checkpoint k, with second moments as recorded or estimated."""
    optimizer, buffers = optimizer_of(run), buffers_at(run, k, objective.model)
    name = second_moment_name(optimizer)
    if name is not None and name not in buffers:
        there = objective.at(model_at(run, k, objective.model))
        square = batch_second_moment(there, min(batch_size, len(there)), _ROWS)
        buffers = {name: square * (run.n_steps if name == "sum" else 1), "step": float("inf")}
    return linear_steps(optimizer, buffers)


def segment_of(
    run: Trajectory, cut: Cut, objective: Objective, batch_size: int, mean_parameters: bool
) -> Segment:
    """Return a segment of a run, for the objective of its rows at the final model.

    Its objectives are those of the checkpoints, or one of their mean parameters.
    """
    if mean_parameters:
        models = [mean_model(run, cut.checkpoints, objective.model)]
    else:
        models = [model_at(run, k, objective.model) for k in cut.checkpoints]
    steps = [steps_at(run, k, objective, batch_size) for k in cut.checkpoints]
    given = [one.preconditioner for one in steps if one.preconditioner is not None]
    dynamics = Dynamics(
        steps[0].gain * float(run.learning_rates[cut.start : cut.stop].sum()),
        steps[0].coupled_decay,
        steps[0].decoupled_decay,
        torch.stack(given).mean(0) if given else None,
    )
    return Segment([objective.at(model) for model in models], dynamics)
