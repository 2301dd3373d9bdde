"""The warning of further training that diverges, since batch normalisation stands still in it."""

from __future__ import annotations

import warnings

from ..batch_statistics import statistics_in
from .run import Run
from .workers import one_thread


def warn_of_divergence(run: Run, seed: int) -> None:
    """Warn if the first epoch raises the training loss because batch normalisation stands still in it."""
    if run.model.statistics or not statistics_in(run.model.module):
        return
    with one_thread():
        theta = run.train(run.plan(seed), (run.steps_per_epoch,), require_finite=False)[0]
    before, after = run.objective.value(), run.objective.value(theta)
    if not after <= 2 * before + 0.05:
        warnings.warn(
            f"batch_statistics='frozen' lets further training diverge: its first epoch takes the "
            f"training objective from {before:.3g} to {after:.3g}. Use 'update', as the model was "
            "trained, or lower lr.",
            RuntimeWarning,
            stacklevel=4,
        )
