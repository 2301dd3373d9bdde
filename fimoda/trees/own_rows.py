"""Check that a run of boosting is that of the rows given: leaves have the values that these ask for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .rounds import given_and_asked
from .run import BoostingRun

#: Relative error of recomputed leaf values from which on rows are not those of the training.
_ALIKE = 1e-2

#: Cosine of recomputed leaf values below which rows are others, where some were drawn for each round.
_ALONG = 0.2

#: Relative error of leaf values up to which steps in leaves may have been shortened.
_SHORTENED = 0.2

#: Relative rounding of scores that a library adds up in float32.
_SINGLE = float(np.finfo(np.float32).eps)

#: Relative error of the first tree's sum of second derivatives from which on rows are others.
_AS_MUCH = 1e-3

#: Largest part of the curvature in leaves that constraints may have kept from what their rows ask for.
_KEPT = 0.9


def require_own_rows(run: BoostingRun) -> None:
    """Raise ValueError if the values of the leaves do not come from these rows.

    Where rows were drawn, and it is not known which, the values must go along with those of all rows.
    """
    boosting = run.boosting
    if not boosting.loss.is_smooth:
        return
    known, n_given = boosting.n_trained, int((run.weights_in(0) > 0).sum())
    if boosting.rows_are_known and run.first == 0 and known not in (None, n_given):
        raise ValueError(
            f"X must be all rows that the model was trained on: its first tree was grown from {known} of "
            f"them, and of those given {n_given} can have been in it. Pass all of its training rows with "
            "the targets and weights of its fit."
        )
    of_leaves: list[tuple[NDArray[Any], ...]] = [(*np.zeros((3, 0)), np.zeros(0, dtype=bool))]
    noise = 0.0
    for round_ in run.backwards():
        eta, last_step = boosting.learning_rates[round_.number], round_.steps[-1]
        rounding = _SINGLE * (np.abs(last_step.outputs).max() + last_step.steepest)
        for trees in zip(*(step.trees for step in round_.steps), strict=True):
            of_tree = given_and_asked(trees)
            H = eta**2 * trees[-1].curvatures
            noise += H.sum() * rounding**2
            of_leaves.append((*of_tree, H, run.free(*of_tree)))
    given, asked, H, free = map(np.concatenate, zip(*of_leaves, strict=True))
    wrong, size = (H * (given - asked) ** 2)[free].sum(), (H * given**2).sum()
    size_asked, along = (H * asked**2).sum(), (H * given * asked).sum()
    kept, whole = H[~free].sum(), H.sum()
    if not boosting.rows_are_known:
        differ = along < _ALONG * np.sqrt(size * size_asked)
    else:
        differ = wrong > _ALIKE**2 * size + noise
    if differ or (boosting.rows_are_known and kept > _KEPT * whole):
        far = f" by {np.sqrt(wrong / size):.0%}" if differ else ""
        if boosting.n_steps > 1 and wrong < _SHORTENED**2 * size:
            raise TypeError(
                "estimator must have leaves that follow from its training rows, but their values differ"
                f"{far} from those of the rows given: steps in leaves may have been shortened. Train it "
                "with leaf_estimation_backtracking='No' or leaf_estimation_iterations=1, or use methods "
                "that fit it again (LeaveOneOut, Downsampling, Datamodel)."
            )
        raise ValueError(
            "X, y and sample_weight must be the rows that the model was trained on, in the order of its "
            f"fit if some were held out: from these the values of its leaves would differ{far}. Pass all "
            "of its training rows with the targets and weights of its fit. " + boosting.doubts
        )
    _require_own_curvature(run)


def _require_own_curvature(run: BoostingRun) -> None:
    """Raise ValueError if the first tree tells that it was grown from other rows than these.

    Leaves that are pure, and without a penalty, have the same values from a part of their rows.
    """
    known, boosting = run.boosting.curvature, run.boosting
    if known is None or run.first or not boosting.rows_are_known or not boosting.n_rounds:
        return
    start = np.repeat(boosting.start[:, None], len(run), axis=1)
    _, h = boosting.loss.derivatives(start, run.targets)
    found = float((run.weights_in(0) * h[0]).sum())
    if abs(found - known) > _AS_MUCH * abs(known):
        raise ValueError(
            "X must be all rows that the model was trained on: second derivatives of their loss, by "
            f"weight, had the sum {known:.5g} in its first tree, and have {found:.5g} in the rows given. "
            "Pass all of its training rows with the targets and weights of its fit. "
            + boosting.doubts
        )
