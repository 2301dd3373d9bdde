"""Further training without groups of rows, from the model and with the seeds of runs without single ones."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from ..measured import Measured
from .batches import LeaveOutMode
from .further import Trained
from .retraining import Retraining
from .subsets import StackedRetraining


def without_groups(
    trained: Trained, n_epochs: float, test: Measured, groups: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how measurements (n_test, k) change without groups (k, n), and standard errors over seeds.

    Rows are left out in place, or batches are cut anew in mode "drop".
    """
    runs = trained.runs
    mode: LeaveOutMode = "drop" if runs.leave_out_mode == "drop" else "mask"
    start, kept = runs.run.first, runs.checkpoint_dir
    starts = dict.fromkeys(trained.seeds, start)
    retraining = Retraining(
        StackedRetraining(runs.run, n_epochs, starts, start, runs.chunk_size, mode),
        list(trained.seeds),
        runs.run.objective.n_outputs,
        runs.compile,
        runs.engine,
        None if kept is None else os.path.join(kept, "groups"),
        runs.memory_budget,
        None,
        runs.n_jobs,
        runs.verbose,
    )
    subsets = np.concatenate([np.ones((1, groups.shape[1]), dtype=bool), ~groups])
    return retraining.differences(subsets, test)
