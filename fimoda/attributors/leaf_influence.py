"""LeafInfluence: the derivative of the whole run of boosting, with the splits held."""

from __future__ import annotations

import numpy as np

from ..measured import Measured
from ..trees import Leaving, Member, Relabelled, RowChange, row_derivatives, slopes
from .families.boosting import BoostingMixin
from .families.trees import BaseTrees, Floats


class LeafInfluence(BoostingMixin, BaseTrees):
    r"""Differentiate the whole run of boosting in the weight of each training row, with the splits held.

    .. math:: S_{z,i} = -w_i \nabla m_z^\top \frac{d F_T(z)}{d w_i}

    F are the raw scores of :math:`T` rounds, in each of which a leaf has the value
    :math:`-\eta\, G / (H + \lambda)`; a row enters it by itself and by what it has changed in the rounds
    before. This is unrolled differentiation of boosting: one walk back through the rounds gives
    all training rows. `LeafRefit` is the same removal exactly, and slower.

    Parameters
    ----------
    estimator : object, default=None
        Fitted trees, alone or at the end of a Pipeline; unfitted ones are cloned and fitted. They must be
        boosted; None is a small HistGradientBoosting model.
    n_rounds : int or list of int, default=None
        Look ahead by so many further rounds of boosting from the final model, as `FurtherTraining` does;
        several, increasing, are horizons of one run (`transform_horizons`). None looks back on the whole
        training.
    first_score : {"moves", "held"}, default="moves"
        The score before the first tree, if fitted to the rows: ``"moves"`` without one, as in training
        anew; ``"held"`` leaves it, as tree-influence does.
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
        Bytes that the adjoints of a block of test rows may take.
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

    def _of_member(self, member: Member, test: Measured) -> Floats:
        return self._derivatives(member, test, Leaving())

    def _relabelled_of_member(self, member: Member, test: Measured, change: Relabelled) -> Floats:
        return self._derivatives(member, test, change)[:, change.rows]

    def _derivatives(self, member: Member, test: Measured, change: RowChange) -> Floats:
        """Return the effects (n_test, n) of a change of each row."""
        run = member.run
        found = []
        for block in test.blocks(self.memory_budget, self._bytes_of_row(run)):
            leaves = member.leaves(block)
            cotangents = slopes(block, run.boosting.outputs(leaves))
            found.append(row_derivatives(run, cotangents, leaves, change))
        return np.concatenate(found)
