"""BoostIn: the change of a test row's loss by each training row in each round, the others held."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from torch import nn

from ..measured import Measured
from ..measurements import Measurement
from ..model import DEFAULT_BUDGET
from ..trees import BoostingRun, LeafSums, Leaving, Member, Relabelled, RowChange, slopes
from ..trees.ensemble import Leaves
from .families.boosting import BoostingMixin
from .families.trees import BaseTrees, Floats


def boost_in_scores(
    run: BoostingRun, test: Measured, leaves: Leaves, change: RowChange, shrunken: bool = True
) -> Floats:
    """Return the scores (n_test, n) of a change of each row for test rows, which fall into these leaves."""
    each = np.arange(len(test))
    cotangents = slopes(test, run.boosting.stages(leaves, run.first))
    scores = LeafSums(len(run), len(test))
    for round_ in run.backwards():
        pulls = []
        for grown in round_.trees:
            c = np.zeros((len(grown.values), len(test)))
            c[leaves[:, grown.number], each] = cotangents[grown.output, round_.number - run.first]
            pulls.append(c)
        kept = run.boosting.learning_rates[round_.number] if shrunken else 1.0
        for taken, asked in round_.asked(pulls):
            pushes = change.pushes(run, taken)
            for grown, b, (push, curved) in zip(taken.trees, asked, pushes, strict=True):
                scores.add(grown.leaf, push - (1 - kept) * curved, b)
    return scores.total().T


class BoostIn(BoostingMixin, BaseTrees):
    r"""Sum what each training row did for a test row in each round, by the leaf that they shared.

    .. math:: S_{z,i} = \sum_t \nabla m_z(F_{t-1}(z))^\top
              \frac{\eta\, w_i (g_i + v h_i)}{H + \lambda} \, [\text{z and i share a leaf}]

    with :math:`v = \eta u` the value of the leaf after the learning rate :math:`\eta`: what the row did to
    the leaf, times the gradient of the measurement before the round; TracIn for boosting. The first-order
    change of the leaf without the row has :math:`u` in place of :math:`v` (``shrunken=False``). What a row
    has changed for others, which come to share a leaf with z, does not count, nor does the score before the
    first tree move; `LeafInfluence` has both. With several steps in a leaf each of them counts. The sum over
    trees is made in float32, and known to 1e-7 of its largest term.

    Parameters
    ----------
    estimator : object, default=None
        Fitted trees, alone or at the end of a Pipeline; unfitted ones are cloned and fitted. They must be
        boosted; None is a small HistGradientBoosting model.
    shrunken : bool, default=True
        Whether the value of a leaf counts after the learning rate, as the method was published; False is
        the derivative of the leaf. Measured on classifications, the former predicts more.
    n_rounds : int or list of int, default=None
        Look ahead by so many further rounds of boosting from the final model, as `FurtherTraining` does;
        several, increasing, are horizons of one run (`transform_horizons`). None looks back on the whole
        training.
    n_models : int, default=1
        Models over which scores are averaged. 1 is the final model alone; more are grown anew, with seeds
        of their own, so that their splits differ.
    share : float, default=0.7
        Part of the rows that each of several models is grown on, drawn at random.
    measurement : str or callable, default="loss"
        What is attributed: ``"loss"``, ``"margin"``, ``"log_prob"``, ``"output"`` or a callable
        ``m(outputs, targets)`` giving one number per row. Outputs are the trees' raw scores.
    criterion : nn.Module, default=None
        Training criterion of a bare ``nn.Module``. Trees have their own: leave it None.
    memory_budget : int, default=512 MiB
        Bytes that the scores of a block of test rows may take.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator`, and to draw rows and seeds of several models.
    n_jobs : int, default=None
        joblib workers that grow models.

    Attributes
    ----------
    estimator_ : object
        The final model.
    model_ : TreeModel
        Its frozen functional view.
    train_indices_ : ndarray of shape (n_train,)
        Training row of each column: all rows, in order.
    horizons_ : list of int or None
        Rounds looked ahead by; ``[None]`` for the whole training.
    scores_sem_ : ndarray of shape (n_test, n_train)
        Standard error over models of the scores last returned by `transform`; NaN for one model.

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

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BoostingMixin._parameter_constraints,
        "shrunken": ["boolean"],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        shrunken: bool = True,
        n_rounds: int | Iterable[int] | None = None,
        n_models: int = 1,
        share: float = 0.7,
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        memory_budget: int = DEFAULT_BUDGET,
        random_state: Any = None,
        n_jobs: int | None = None,
    ):
        super().__init__(
            estimator,
            n_rounds=n_rounds,
            n_models=n_models,
            share=share,
            measurement=measurement,
            criterion=criterion,
            memory_budget=memory_budget,
            random_state=random_state,
            n_jobs=n_jobs,
        )
        self.shrunken = shrunken

    def _of_member(self, member: Member, test: Measured) -> Floats:
        return self._changed(member, test, Leaving())

    def _relabelled_of_member(self, member: Member, test: Measured, change: Relabelled) -> Floats:
        return self._changed(member, test, change)[:, change.rows]

    def _changed(self, member: Member, test: Measured, change: RowChange) -> Floats:
        """Return the scores (n_test, n) of a change of each row."""
        run, found = member.run, []
        stages = 4 * run.boosting.n_outputs * (run.boosting.n_rounds - run.first)
        for block in test.blocks(self.memory_budget, self._bytes_of_row(run) + 8 * stages):
            leaves = member.leaves(block)
            found.append(boost_in_scores(run, block, leaves, change, self.shrunken))
        return found[0] if len(found) == 1 else np.concatenate(found)
