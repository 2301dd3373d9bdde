"""Further training with other targets of some rows, each alone, by the batches of the run as it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from joblib import delayed
from numpy.typing import NDArray

from ..measured import Measured
from ..rows import Rows
from .batches import FULL_DATA
from .further import Trained, Unit, train_unit
from .workers import Workers


def relabelled(
    trained: Trained, rows: NDArray[np.int64], changed: Rows, test: Measured, workers: Workers
) -> NDArray[np.float64]:
    """Return the changes (n_test, n_rows, n_seeds) of measurements when rows are as in `changed`."""
    runs = trained.runs
    objective = runs.run.objective
    jobs = [
        delayed(train_unit)(
            replace(runs.run, objective=objective.of_rows(objective.rows.replaced(row, other))),
            runs.horizons[-1:],
            runs.leave_out_mode,
            test.of_stack,
            Unit(seed, (FULL_DATA,)),
        )
        for row, other in zip(rows.tolist(), changed.split(1), strict=True)
        for seed in trained.seeds
    ]
    after = np.stack(workers.do(workers.shown(jobs)))[:, 0, 0]
    after = after.reshape(len(rows), len(trained.seeds), len(test)).transpose(2, 0, 1)
    return after - trained.outcomes(test).full[0][:, None]
