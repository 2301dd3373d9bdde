"""LeafInfluence: the derivative of the whole run of boosting, with the splits held."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from ..measured import Measured
from ..measurements import Measurement
from ..model import DEFAULT_BUDGET
from ..trees import CACHED, BoostingRun
from ..trees.ensemble import Leaves
from ._trees import BaseBoosting, Floats, slopes


def leaf_influence_scores(run: BoostingRun, cotangents: Floats, test: Leaves) -> Floats:
    r"""Return the first-order change (n_test, n) of test rows' measurement without each training row.

    One walk back through the rounds. :math:`\lambda` (C, n, n_test) is the derivative of the measurement in
    the scores of the training rows, c that in the values of a round's leaves.

    Parameters
    ----------
    run : BoostingRun
    cotangents : ndarray of shape (C, n_test)
        Gradient of each test row's measurement in its raw scores.
    test : ndarray of shape (n_test, n_trees)
        Leaves of the test rows.
    """
    n, m, C = len(run), len(test), run.boosting.n_outputs
    adjoint, scores = np.zeros((C, n, m)), np.zeros((n, m))
    each, step = np.arange(m), max(1, CACHED // (C * m))
    for round_ in run.backwards():
        pulls = []
        for tree in round_.trees:
            c = tree.members @ adjoint[tree.output]
            c[test[:, tree.number], each] += cotangents[tree.output]
            pulls.append(c)
        for taken, asked in round_.asked(pulls):
            values = taken.values
            for start in range(0, n, step):
                part = slice(start, start + step)
                pulled = np.zeros((C, len(scores[part]), m))
                for tree, b in zip(taken.trees, asked, strict=True):
                    at_rows = b[tree.leaf[part]]
                    scores[part] += tree.pushes[part, None] * at_rows
                    pulled[tree.output] = at_rows * tree.weights[part, None]
                adjoint[:, part] -= run.boosting.loss.pull(
                    taken.outputs[:, part], run.targets[:, part], values[:, part], pulled
                )
    moves = run.start_slopes
    if moves is not None:
        scores += moves.T @ (cotangents + adjoint.sum(1))
    return scores.T


class LeafInfluence(BaseBoosting):
    r"""Differentiate the whole run of boosting in the weight of each training row, with the splits held.

    .. math:: S_{z,i} = -w_i \nabla m_z^\top \frac{d F_T(z)}{d w_i}

    F are the raw scores of :math:`T` rounds, in each of which a leaf has the value
    :math:`-\eta\, G / (H + \lambda)`; a row enters it by itself and by what it has changed in the rounds
    before. This is unrolled differentiation of boosting: one walk back through the rounds gives
    all training rows. `LeafRefit` is the same removal exactly, and slower.

    Parameters
    ----------
    estimator : object, default=None
        Fitted boosted trees, alone or at the end of a Pipeline; unfitted ones are cloned and fitted. None
        is a small HistGradientBoosting model.
    measurement : str or callable, default="loss"
        What is attributed: ``"loss"``, ``"margin"``, ``"log_prob"``, ``"output"`` (a raw score) or a
        callable ``m(outputs, targets)`` of raw scores giving one number per row.
    criterion : None
        Trees have their own.
    memory_budget : int, default=512 MiB
        Bytes that the adjoints of a block of test rows may take.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator`.

    Attributes
    ----------
    estimator_ : object
        The final model.
    model_ : TreeModel
        Its frozen view.
    train_indices_ : ndarray of shape (n_train,)
        Training row of each column: all rows, in order.

    Raises
    ------
    TypeError
        If the model is no boosting of trees, or its loss has no second derivative.
    ValueError
        If the values of its leaves do not come from the rows given.

    Notes
    -----
    Where rows are drawn for each round (``subsample``), every row takes part with the part that is drawn:
    the mean over the draws. Rows that were held out for early stopping have the score 0. Splits do not move.

    References
    ----------
    Sharchilev et al., "Finding Influential Training Samples for Gradient Boosted Decision Trees", ICML 2018.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.ensemble import HistGradientBoostingRegressor
    >>> from fimoda import LeafInfluence
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = HistGradientBoostingRegressor(max_iter=20).fit(X, y)
    >>> LeafInfluence(model).fit(X, y).transform(X[:4], y[:4]).shape
    (4, 442)
    """

    process = "training anew, to first order, with the splits of the trees held"

    def __init__(
        self,
        estimator: Any = None,
        *,
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        memory_budget: int = DEFAULT_BUDGET,
        random_state: Any = None,
    ):
        super().__init__(
            estimator, measurement=measurement, criterion=criterion, random_state=random_state
        )
        self.memory_budget = memory_budget

    def _scores(self, test: Measured) -> Floats:
        return np.concatenate([self._of_block(b) for b in self._blocks(test, self._bytes_of_row)])

    def _of_block(self, test: Measured) -> Floats:
        leaves = self.model_.leaves(test.inputs)
        return leaf_influence_scores(
            self._run, slopes(test, self._run.boosting.outputs(leaves)), leaves
        )
