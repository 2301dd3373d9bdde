"""BoostIn: the change of a test row's loss by each training row in each round, the others held."""

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


def boost_in_scores(run: BoostingRun, test: Measured, leaves: Leaves) -> Floats:
    """Return the scores (n_test, n) of test rows, which fall into these leaves (n_test, n_trees)."""
    n, m = len(run), len(test)
    scores, each, step = np.zeros((n, m)), np.arange(m), max(1, CACHED // m)
    outputs = run.boosting.outputs(leaves)
    for round_ in run.backwards():
        for t in run.trees(round_.number):
            tree = run.boosting.trees[t]
            outputs[tree.outputs] -= tree.values[leaves[:, t]].T
        cotangents = slopes(test, outputs)
        pulls = []
        for grown in round_.trees:
            c = np.zeros((len(grown.values), m))
            c[leaves[:, grown.number], each] = cotangents[grown.output]
            pulls.append(c)
        for taken, asked in round_.asked(pulls):
            for grown, b in zip(taken.trees, asked, strict=True):
                for start in range(0, n, step):
                    part = slice(start, start + step)
                    scores[part] += grown.pushes[part, None] * b[grown.leaf[part]]
    return scores.T


class BoostIn(BaseBoosting):
    r"""Sum what each training row did for a test row in each round, by the leaf that they shared.

    .. math:: S_{z,i} = \sum_t \nabla m_z(F_{t-1}(z))^\top
              \frac{\eta\, w_i (g_i + u h_i)}{H + \lambda} \, [\text{z and i share a leaf}]

    with :math:`u` the value of the leaf before the learning rate :math:`\eta`. The first-order
    change of the leaf without the row, times the gradient of the measurement before the round: TracIn for
    boosting. What a row has changed for others, which come to share a leaf with z, does not count;
    `LeafInfluence` has it. With several steps in a leaf the fraction is the derivative of their sum.

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
        Bytes that the scores of a block of test rows may take.
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

    References
    ----------
    Brophy, Hammoudeh and Lowd, "Adapting and Evaluating Influence-Estimation Methods for Gradient-Boosted
    Decision Trees", JMLR 2023.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.ensemble import HistGradientBoostingRegressor
    >>> from fimoda import BoostIn
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = HistGradientBoostingRegressor(max_iter=20).fit(X, y)
    >>> BoostIn(model).fit(X, y).transform(X[:4], y[:4]).shape
    (4, 442)
    """

    process = (
        "training anew, to first order, each round on its own, with the splits of the trees held"
    )

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
        blocks = self._blocks(test, self._bytes_of_row)
        return np.concatenate(
            [boost_in_scores(self._run, b, self.model_.leaves(b.inputs)) for b in blocks]
        )
