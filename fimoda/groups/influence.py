"""Effects of removing groups of training rows, each group together."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._validation import StrOptions, check_is_fitted, checks_arguments
from ..base import BaseAttributor
from ..evaluation._retraining import retraining_method
from ..evaluation._tables import table
from ..gradient_mode import with_gradients
from ._groups import Masks, as_groups
from ._training_rows import check_training_rows

#: From the sum of scores to training itself.
METHODS = ("first-order", "second-order", "exact", "retraining")

#: Test rows and groups that are printed.
_TESTS, _GROUPS = 5, 8


@dataclass(frozen=True, repr=False)
class GroupInfluence:
    """Effects of removing groups of training rows, each group together.

    Printed, it is a table of the first test rows and groups.

    Attributes
    ----------
    effects : ndarray of shape (n_test, n_groups)
        Measurement without the group, minus with all rows, in the unit of the measurement. For a loss
        positive: the group helps.
    sem : ndarray of shape (n_test, n_groups)
        Standard errors over seeds; NaN where there are none.
    names : list of length n_groups
        Labels of the groups, or their numbers.
    groups : list of ndarray of int
        Their rows.
    method : str
        How the effects were found.
    """

    effects: NDArray[np.float64]
    sem: NDArray[np.float64]
    names: list[Any]
    groups: list[NDArray[np.int64]]
    method: str

    def to_frame(self) -> Any:
        """Return a tidy pandas DataFrame: one row per test row and group, with its size and effect."""
        import pandas as pd

        m, k = self.effects.shape
        return pd.DataFrame(
            {
                "test_row": np.repeat(np.arange(m), k),
                "group": self.names * m,
                "n_rows": [len(rows) for rows in self.groups] * m,
                "effect": self.effects.ravel(),
                "sem": self.sem.ravel(),
            }
        )

    def table(self) -> str:
        """Return a plain-text table: groups by test rows, each with the number of its rows."""
        shown = self.effects[:_TESTS, :_GROUPS]
        cells = [
            [str(len(rows)), *(f"{effect:+.3g}" for effect in column)]
            for rows, column in zip(self.groups, shown.T, strict=False)
        ]
        head = ["group", "rows", *(f"test row {z}" for z in range(len(shown)))]
        return table(head, [str(name) for name in self.names[:_GROUPS]], cells)

    def __repr__(self) -> str:
        m, k = self.effects.shape
        left = f"{m} test rows, {k} groups, by {self.method}"
        return f"{self.table()}\n({left})"


@with_gradients
@checks_arguments(attributor=[BaseAttributor], method=[StrOptions({"auto", *METHODS})])
def group_influence(
    attributor: BaseAttributor,
    groups: Any,
    X_test: Any,
    y_test: Any = None,
    *,
    method: str = "auto",
    X_train: Any = None,
    y_train: Any = None,
    train: Any = None,
    random_state: Any = None,
) -> GroupInfluence:
    r"""Return the effect of removing each of some groups of training rows together.

    A group of rows U that leaves a mean makes the others count :math:`1 + \rho = 1 / (1 - \pi)` times as
    much, :math:`\pi = \sum_{i \in U} s_i` being its share (in a sum of losses :math:`\rho = 0`). With
    :math:`g_i` the gradients of rows, :math:`C_i` their curvature, H that of the objective, and

    .. math:: f = (1 + \rho) \sum_{i \in U} s_i g_i - \rho \bar g, \qquad
              E = (1 + \rho) \sum_{i \in U} s_i C_i - \rho \sum_i s_i C_i,

    the parameters move by :math:`(H - E)^{-1} f`, exactly so for a quadratic objective.

    - "first-order": :math:`H^{-1} f`, the sum of the rows' scores, with the weight that the group leaves
      to the others counted once for all of it. Every attributor knows it.
    - "second-order": :math:`H^{-1} f + H^{-1} E H^{-1} f`, the interaction of each pair of rows with it.
      Influence functions know it.
    - "exact": as the attributor itself would remove the rows. `ExactInfluence` takes
      :math:`(H - E)^{-1} f` with the Gauss-Newton matrix; ``OnceLinearizedFurtherTraining(removal=
      "exact")`` trains the linearised network without them, `LeafRefit` boosts without them with the splits
      held, `FurtherTraining` trains further without them, and `LeaveOneOut` trains from scratch.
    - "retraining": train the model from scratch without the group, with `train`.

    Influence functions measure the test rows where the linearised outputs have moved to, in "second-order"
    and "exact": a loss that bends is followed.

    Parameters
    ----------
    attributor : BaseAttributor
        Fitted.
    groups : list of lists of int, dict, array-like of labels, str, int or clusterer
        The rows of each group (a dict names them); or a label for each training row, None or NaN for
        rows in no group; or the name of a column of `X_train` that has these labels; or a number of
        k-means clusters, or a clusterer of scikit-learn, of the rows' features as the model takes them.
        Groups may overlap.
    X_test : array-like of shape (n_test, n_features)
        Test rows.
    y_test : array-like of shape (n_test,), default=None
        Their targets, as in `transform`.
    method : {"auto", "first-order", "second-order", "exact", "retraining"}, default="auto"
        How effects are found; "auto" is the last of the first three that the attributor knows.
    X_train, y_train : array-like, default=None
        The training rows and their targets; needed for "retraining", and `X_train` for a column's name.
        Training has the weights that `attributor` was fitted with.
    train : estimator or attributor, default=None
        What "retraining" trains: a model, or, with its settings, that of a retraining method such as
        ``LeaveOneOut(net, n_epochs=20, n_seeds=3)``. By default the model of `attributor`, with the
        settings of `LeaveOneOut`. What it measures is the attributor's.
    random_state : int, RandomState instance or None, default=None
        Used by k-means.

    Returns
    -------
    GroupInfluence

    Raises
    ------
    TypeError
        If the attributor does not know the method.
    ValueError
        If a group is empty, has all rows or rows that do not exist or are not scored, its removal
        leaves a curvature that is singular, or the training rows are others than those of the attributor.

    References
    ----------
    Koh et al., "On the Accuracy of Influence Functions for Measuring Group Effects", NeurIPS 2019.
    Basu et al., "On Second-Order Group Influence Functions for Black-Box Predictions", ICML 2020.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from fimoda import ExactInfluence, group_influence
    >>> X, y = load_diabetes(return_X_y=True, as_frame=True)
    >>> influence = ExactInfluence(Ridge(alpha=0.1).fit(X, y)).fit(X, y)
    >>> effects = group_influence(influence, "sex", X[:3], y[:3], X_train=X)
    >>> effects.method, effects.effects.shape
    ('exact', (3, 2))
    """
    check_is_fitted(attributor, "model_")
    names, masks = as_groups(groups, attributor, X_train, random_state)
    known = attributor._group_methods()
    if method == "auto":
        method = known[-1]
    if method == "retraining":
        effects, errors = _retrained(attributor, masks, X_test, y_test, X_train, y_train, train)
    elif method not in known:
        raise TypeError(
            f"method must be one of {[*known, 'retraining']} for {type(attributor).__name__}, got "
            f"{method!r}."
        )
    else:
        effects, errors = _attributed(attributor, masks, X_test, y_test, method)
    failed = [names[j] for j in np.flatnonzero(np.isnan(effects).any(0))]
    if failed:
        others = f" and of {len(failed) - 1} others" if len(failed) > 1 else ""
        warnings.warn(
            f"no training succeeded without group {failed[0]!r}: its effects{others} are NaN. It may have "
            "all rows of a class.",
            UserWarning,
            stacklevel=2,
        )
    listed = [np.flatnonzero(mask) for mask in masks]
    return GroupInfluence(effects, errors, names, listed, method)


def _attributed(
    attributor: BaseAttributor, masks: Masks, X_test: Any, y_test: Any, method: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return effects (n_test, n_groups) as an attributor knows them, and standard errors."""
    test = attributor._test(X_test, y_test)
    if method == "exact":
        return attributor._without(test, masks)
    if method == "second-order":
        effects = attributor._finite(attributor._second_order(test, masks))
    else:
        scored = attributor.train_indices_
        others = np.ones(masks.shape[1], dtype=bool)
        others[scored] = False
        missing = np.flatnonzero(masks[:, others].any(1))
        if missing.size:
            raise ValueError(
                f"groups must hold rows that {type(attributor).__name__} scores, got others in group "
                f"{missing[0]}. Fit it with leave_out=None, or take another method than 'first-order'."
            )
        effects = attributor._summed(attributor._scores(test), (~masks[:, scored]).astype(float))
    return effects, np.full_like(effects, np.nan)


def _retrained(
    attributor: BaseAttributor,
    masks: Masks,
    X_test: Any,
    y_test: Any,
    X_train: Any,
    y_train: Any,
    train: Any,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return effects (n_test, n_groups) of training from scratch, and standard errors over seeds."""
    if X_train is None or y_train is None:
        raise ValueError("X_train and y_train must be given for method='retraining'.")
    check_training_rows(attributor, X_train, y_train)
    method = retraining_method(attributor if train is None else train)
    method.set_params(measurement=attributor.measurement)
    trainer = method.trainer(X_train, y_train, X_test, y_test, attributor._sample_weight)
    subsets = np.concatenate([np.ones((1, masks.shape[1]), dtype=bool), ~masks])
    return trainer.retraining.differences(subsets, trainer.measured)
