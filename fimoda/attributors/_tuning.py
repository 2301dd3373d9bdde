"""``damping="tuned"``: the damping that agrees best with a small gold standard."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._validation import check_random_state
from .further_training import FurtherTraining

#: Candidates, in multiples of the mean squared entry of the rows' gradients.
FACTORS = tuple(10.0**k for k in np.arange(-1, 5.5, 0.5))

#: Training rows that stand in for test rows.
N_PROBES = 50

GOLD = {"n_epochs": 10, "n_seeds": 5, "leave_out": 30, "correction": "mean"}


def tuned_damping(
    influence: Any, unit: float, gold: dict[str, Any] | None
) -> tuple[float, dict[float, float]]:
    """The candidate whose scores agree best with further training, and the agreement of each.

    Further training leaves out a few training rows; up to 50 others stand in for test rows. The
    agreement is the cosine over left-out rows, both centred, averaged over those rows.

    Parameters
    ----------
    influence : BaseInfluence
        Its model, training rows and solver are prepared; its damping is changed on the way.
    unit : float
        Mean squared entry of the rows' gradients.
    gold : dict or None
        Parameters of `FurtherTraining` that differ from 10 epochs, 5 seeds and 30 left-out rows.

    Returns
    -------
    damping : float
    agreement : dict of float to float
        Mean cosine by damping; dampings at which the solver fails are left out.

    Raises
    ------
    ValueError
        If no candidate can be solved, or there are no rows besides the left-out ones.
    """
    n = len(influence._X)
    settings = {**GOLD, "random_state": influence.random_state, **(gold or {})}
    if settings["leave_out"] == GOLD["leave_out"]:
        settings["leave_out"] = min(30, max(n // 2, 1))
    truth = FurtherTraining(influence.estimator_, criterion=influence.criterion, **settings)
    truth._validate_params()
    truth._adopt(influence)
    truth._fit()
    others = np.setdiff1d(np.arange(n), truth.train_indices_)
    if len(others) == 0 or len(truth.train_indices_) < 2:
        raise ValueError(
            "damping='tuned' needs at least two left-out rows and one other training row; it has "
            f"{len(truth.train_indices_)} and {len(others)}. Set leave_out in `tuning`, or give "
            "damping as a number."
        )
    rng = check_random_state(influence.random_state)
    probes = np.sort(rng.choice(others, min(N_PROBES, len(others)), replace=False))
    at = influence._own[probes]
    wanted = _centred(truth._scores(at))
    agreement = {}
    dampings = [factor * unit for factor in FACTORS]
    for damping, scores in influence._scores_by_damping(dampings, at):
        found = _centred(scores[:, truth.train_indices_])
        agreement[damping] = float((found * wanted).sum(1).mean())
    if not agreement:
        raise ValueError(
            "damping='tuned' found no damping at which the solver succeeds; give damping as a number."
        )
    return max(agreement, key=lambda damping: agreement[damping]), agreement


def _centred(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows with mean zero and length one (zero if all entries are equal)."""
    centred = scores - scores.mean(1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 0)
