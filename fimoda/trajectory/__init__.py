"""Training runs as they went: checkpoints, learning rates, batches and stages."""

from .models import buffers_at, check_architecture, lr_factors_of, mean_model, model_at
from .run import Trajectory
from .stages import Stage, stage_rows
from .store import OptimizerState, cloned

__all__ = [
    "OptimizerState",
    "Stage",
    "Trajectory",
    "buffers_at",
    "check_architecture",
    "cloned",
    "lr_factors_of",
    "mean_model",
    "model_at",
    "stage_rows",
]
