"""``damping="tuned"``: the damping that agrees best with a small gold standard."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._validation import check_horizons, check_random_state
from ..measured import Measured
from ..objective import Objective
from .further import further_runs

#: Candidates, in multiples of the mean squared entry of the rows' gradients.
FACTORS = tuple(10.0**k for k in np.arange(-1, 5.5, 0.5))

#: Training rows that stand in for test rows.
N_PROBES = 50

#: Parameters of `FurtherTraining` unless told otherwise.
GOLD = {"n_epochs": 10, "n_seeds": 5, "leave_out": 30, "correction": "mean"}

#: Yields dampings at which a solver succeeds, with the scores of some rows (m, n).
ByDamping = Callable[[list[float], Measured], Iterable[tuple[float, NDArray[np.float64]]]]


def tuned_damping(
    objective: Objective,
    own: Measured,
    scores_by_damping: ByDamping,
    unit: float,
    random_state: Any,
    settings: dict[str, Any],
) -> tuple[float, dict[float, float]]:
    """Return the candidate whose scores agree best with further training, and the agreement of each.

    Further training leaves out a few training rows; up to 50 others stand in for test rows. The
    agreement is the cosine over left-out rows, both centred, averaged over those rows. Candidates
    are multiples of `unit`; `own` are the training rows, measured, and `settings` parameters of
    `FurtherTraining`.

    Raises
    ------
    ValueError
        If no candidate can be solved, or there are no rows besides the left-out ones.
    """
    n = len(own)
    if settings["leave_out"] == GOLD["leave_out"]:
        settings = {**settings, "leave_out": min(30, max(n // 2, 1))}
    epochs = check_horizons(settings["n_epochs"], "n_epochs")
    given = {name: value for name, value in settings.items() if name != "n_epochs"}
    gold = further_runs(objective, epochs, "n_epochs", **given).trained(own)
    left_out = gold.runs.leave_out
    others = np.setdiff1d(np.arange(n), left_out)
    if len(others) == 0 or len(left_out) < 2:
        raise ValueError(
            "damping='tuned' needs at least two left-out rows and one other training row; it has "
            f"{len(left_out)} and {len(others)}. Set leave_out in `tuning`, or give damping as a number."
        )
    rng = check_random_state(random_state)
    probes = own[np.sort(rng.choice(others, min(N_PROBES, len(others)), replace=False))]
    wanted = _centred(gold.outcomes(probes).scores(settings["correction"])[0].mean(-1))
    agreement = {}
    for damping, scores in scores_by_damping([factor * unit for factor in FACTORS], probes):
        agreement[damping] = float((_centred(scores[:, left_out]) * wanted).sum(1).mean())
    if not agreement:
        raise ValueError(
            "damping='tuned' found no damping at which the solver succeeds; give damping as a number."
        )
    return max(agreement, key=lambda damping: agreement[damping]), agreement


def _centred(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rows with mean zero and length one (zero if all entries are equal)."""
    centred = scores - scores.mean(1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 0)
