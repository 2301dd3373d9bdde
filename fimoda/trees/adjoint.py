"""The run of boosting walked back: derivatives of test rows in what each training row pushes."""

from __future__ import annotations

import numpy as np

from .changes import RowChange
from .ensemble import Floats, Leaves
from .rounds import sums
from .run import CACHED, BoostingRun


def row_derivatives(
    run: BoostingRun,
    cotangents: Floats,
    test: Leaves,
    change: RowChange,
) -> Floats:
    r"""Return the first-order change (n_test, n) of test rows' measurement by a change of each training row.

    One walk back through the rounds. :math:`\lambda` (C, n, n_test) is the derivative of the measurement in
    the scores of the training rows, c that in the values of a round's leaves.

    Parameters
    ----------
    run : BoostingRun
    cotangents : ndarray of shape (C, n_test)
        Gradient of each test row's measurement in its raw scores.
    test : ndarray of shape (n_test, n_trees)
        Leaves of the test rows.
    change : RowChange
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
            values, pushes = taken.values, change.pushes(run, taken)
            for start in range(0, n, step):
                part = slice(start, start + step)
                pulled = np.zeros((C, len(scores[part]), m))
                for tree, b, (push, _) in zip(taken.trees, asked, pushes, strict=True):
                    at_rows = b[tree.leaf[part]]
                    scores[part] += push[part, None] * at_rows
                    pulled[tree.output] = at_rows * tree.weights[part, None]
                adjoint[:, part] -= run.boosting.loss.pull(
                    taken.outputs[:, part], run.targets[:, part], values[:, part], pulled
                )
    moves = change.of_start(run)
    if moves is not None:
        scores += moves.T @ (cotangents + adjoint.sum(1))
    return scores.T
