"""LeafRefit: the leaves' values computed anew without each row, with the splits held."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from ..measured import Measured
from ..measurements import values
from ..training.subset_outcomes import mean_and_error
from ..trees import CACHED, Member, OtherRows, Relabelled
from ..trials import Trial
from .families.boosting import BoostingMixin
from .families.trees import BaseTrees, Floats

#: Rows that are left out to see how long it takes.
_TRIED = 16


class LeafRefit(BoostingMixin, BaseTrees):
    r"""Run the boosting again without each training row, with the splits held, and compare.

    .. math:: S_{z,i} = m_z(F_T(z; D \setminus i)) - m_z(F_T(z; D))

    F are the raw scores after :math:`T` rounds whose leaves get their values :math:`-\eta\, G / (H +
    \lambda)` anew, each round on the scores of the one before. Exact, where splits do not move, as is
    `relabel`; `LeafInfluence` is its first order, and `LeaveOneOut` lets the splits move.

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
        Bytes that the scores of runs without a row may take.
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
    Takes the number of training rows squared, times rounds. A leaf that loses its last row adds nothing.
    Where rows are drawn for each round (``subsample``), every row takes part with the part that is drawn.

    References
    ----------
    Sharchilev et al., "Finding Influential Training Samples for Gradient Boosted Decision Trees", ICML 2018.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.ensemble import HistGradientBoostingRegressor
    >>> from fimoda import LeafRefit
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = HistGradientBoostingRegressor(max_iter=5).fit(X, y)
    >>> LeafRefit(model).fit(X, y).transform(X[:4], y[:4]).shape
    (4, 442)
    """

    process = "training anew with the splits of the trees held"

    def _expected_seconds(self, trial: Trial) -> float:
        own = trial.prepared(self, n_models=1)
        own._fit()
        member, test = own._members[0], own._test(*trial.test)
        leaves, n = member.leaves(test), len(member.run)
        rows = np.eye(n, min(_TRIED, n), dtype=bool)
        few = trial.timed(lambda: member.run.without(rows, leaves))
        return self.n_models * few * n / rows.shape[1]

    def _of_member(self, member: Member, test: Measured) -> Floats:
        return self._removed(member, test, np.eye(len(member.run), dtype=bool))

    def _group_methods(self) -> tuple[str, ...]:
        return "first-order", "exact"

    def _without(self, test: Measured, groups: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        share = self.share if len(self._members) > 1 else 1.0  # as in the scores of single rows
        each = [
            share * self._removed(member, test, groups[:, member.rows].T)
            for member in self._members
        ]
        return mean_and_error(np.stack(each, axis=-1))

    def _relabelled_of_member(self, member: Member, test: Measured, change: Relabelled) -> Floats:
        run = member.run
        return self._again(member, test, len(change), lambda some: change[some].in_runs(run))

    def _removed(self, member: Member, test: Measured, removed: NDArray[np.bool_]) -> Floats:
        """Return the effects (n_test, k) of leaving out the rows of each column of `removed` (n, k)."""
        others = OtherRows.removed
        return self._again(member, test, removed.shape[1], lambda some: others(removed[:, some]))

    def _again(
        self, member: Member, test: Measured, n_runs: int, others: Callable[[slice], OtherRows]
    ) -> Floats:
        """Return the effects (n_test, n_runs) of running again with other rows, given for some runs."""
        run, leaves = member.run, member.leaves(test)
        C, n = run.boosting.n_outputs, len(run)
        most = self.memory_budget // (8 * run.boosting.arrays_of_a_run * C * (n + len(test)))
        size = int(np.clip(most, 1, max(8, 4 * CACHED // (C * n))))
        found = np.empty((len(test), n_runs))
        for start in range(0, n_runs, size):
            some = slice(start, start + size)
            changed, full = run.with_others(others(some), leaves)
            found[:, some] = self._measured(test, changed) - self._measured(test, full[..., None])
        return found

    def _measured(self, test: Measured, outputs: Floats) -> Floats:
        """Return the measurements (n_test, k) of raw scores (C, n_test, k)."""
        stacked = torch.from_numpy(np.ascontiguousarray(outputs.T))
        return np.stack(
            [values(test.measure, one, test.targets).numpy() for one in stacked], axis=1
        )
