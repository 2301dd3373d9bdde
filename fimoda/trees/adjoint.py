"""The run of boosting walked back: derivatives of test rows in what each training row pushes."""

from __future__ import annotations

import numpy as np

from .ensemble import Floats, Leaves
from .rounds import sums
from .run import CACHED, BoostingRun


def row_derivatives(
    run: BoostingRun,
    cotangents: Floats,
    test: Leaves,
    of_targets: bool = False,
) -> Floats:
    r"""Return the first-order change (n_test, n) of test rows' measurement by each training row.

    One walk back through the rounds. :math:`\lambda` (C, n, n_test) is the derivative of the measurement in
    the scores of the training rows, c that in the values of a round's leaves.

    Parameters
    ----------
    run : BoostingRun
    cotangents : ndarray of shape (C, n_test)
        Gradient of each test row's measurement in its raw scores.
    test : ndarray of shape (n_test, n_trees)
        Leaves of the test rows.
    of_targets : bool
        Whether the change is that of the row's target by 1, of a squared error; otherwise the row's removal.
    """
    n, m, C = len(run), len(test), run.boosting.n_outputs
    adjoint, scores = np.zeros((C, n, m)), np.zeros((n, m))
    each, step = np.arange(m), max(1, CACHED // (C * m))
    for round_ in run.backwards():
        pulls = []
        for tree in round_.trees:
            c = sums(tree.leaf, adjoint[tree.output], len(tree.values))
            c[test[:, tree.number], each] += cotangents[tree.output]
            pulls.append(c)
        for taken, asked in round_.asked(pulls):
            values = taken.values
            for start in range(0, n, step):
                part = slice(start, start + step)
                pulled = np.zeros((C, len(scores[part]), m))
                for tree, b in zip(taken.trees, asked, strict=True):
                    at_rows = b[tree.leaf[part]]
                    pushes = tree.weights if of_targets else tree.pushes
                    scores[part] += pushes[part, None] * at_rows
                    pulled[tree.output] = at_rows * tree.weights[part, None]
                adjoint[:, part] -= run.boosting.loss.pull(
                    taken.outputs[:, part], run.targets[:, part], values[:, part], pulled
                )
    moves = run.start_slopes
    if moves is not None:
        if of_targets:
            moves = np.broadcast_to(run.start_weights / run.start_weights.sum(), moves.shape)
        scores += moves.T @ (cotangents + adjoint.sum(1))
    return scores.T
