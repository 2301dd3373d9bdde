"""Attribution of a metric of the whole test set, and of its difference between groups."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .._arrays import n_rows
from .._validation import (
    POSITIVE_INTEGER,
    POSITIVE_REAL,
    StrOptions,
    check_is_fitted,
    check_targets,
    checks_arguments,
)
from ..adapters import Answers, check_answers
from ..base import BaseAttributor
from ..gradient_mode import with_gradients
from ..measured import Measured
from ..training.subset_outcomes import mean_and_error
from ._scores import require_unit
from ._tables import table
from .groups_of_rows import group_rows
from .metrics import SMALL, Gap, Judged, Metric, blocks, metric_of

Floats = NDArray[np.float64]

#: Test rows whose derivatives are attributed at a time.
_ROWS = 1024

#: Training rows of each end that are printed.
_SHOWN = 5


@dataclass(frozen=True, repr=False)
class MetricInfluence:
    """Effect of each training row on a metric of the test set.

    Printed, it is a table of the rows without which the metric would be highest and lowest.

    Attributes
    ----------
    scores : ndarray of shape (n_columns,)
        Estimated change of the metric when the row is removed, in the unit of the metric.
    sem : ndarray of shape (n_columns,)
        Standard error of the scores over the runs behind them (seeds, models); NaN for a single one.
    value : float
        The metric of the final model: of all test rows, or the difference between the groups.
    train_indices : ndarray of shape (n_columns,)
        Training row of each score.
    of_groups : dict or None
        The metric of each group, by its value of `sensitive`.
    """

    scores: Floats
    sem: Floats
    value: float
    train_indices: NDArray[np.int64]
    of_groups: dict[Any, float] | None = None

    def to_frame(self) -> Any:
        """Return a tidy pandas DataFrame: one row per training row, with its score and standard error."""
        import pandas as pd

        return pd.DataFrame({"row": self.train_indices, "score": self.scores, "sem": self.sem})

    def table(self) -> str:
        """Return a plain-text table: the rows with the largest and the smallest scores."""
        order = np.argsort(-self.scores, kind="stable")
        shown = order if len(order) <= 2 * _SHOWN else np.r_[order[:_SHOWN], order[-_SHOWN:]]
        cells = [[f"{self.scores[i]:+.3g}", f"{self.sem[i]:.2g}"] for i in shown]
        head = ["training row", "change without it", "standard error"]
        return table(head, map(str, self.train_indices[shown]), cells)

    def __repr__(self) -> str:
        by = [f"{value:.3g} of {group!s}" for group, value in (self.of_groups or {}).items()]
        groups = f", the difference between groups: {', '.join(by)}" if by else ""
        return (
            f"{self.table()}\n(of {len(self.scores)} rows; the metric is {self.value:.3g}{groups})"
        )


@with_gradients
@checks_arguments(
    attributor=[BaseAttributor],
    how=[StrOptions({"derivative", "difference"})],
    bandwidth=[POSITIVE_REAL, None],
    memory_budget=[POSITIVE_INTEGER],
)
def metric_influence(
    attributor: BaseAttributor,
    X_test: Any,
    y_test: ArrayLike,
    scoring: Any = None,
    *,
    sensitive: Any = None,
    how: Literal["derivative", "difference"] = "difference",
    bandwidth: float | None = None,
    memory_budget: int = 2 * 2**30,
    n_jobs: int | None = None,
) -> MetricInfluence:
    r"""Estimate the change of a metric of the whole test set when each training row is removed.

    A score is the metric M without the row minus with all: for an accuracy, an R2 or any other score
    of scikit-learn (greater is better) a positive number says that the row hurts, for an error or a
    difference between groups that it helps to keep it low. With outputs :math:`f_z` of the model and
    an attributor whose scores :math:`S^c_{z,i}` are of output c,

    .. math:: \text{derivative: } \sum_{z,c} \frac{\partial M}{\partial f_{z,c}} S^c_{z,i}
              \qquad
              \text{difference: } M(f + S_{\cdot,i}) - M(f).

    The difference is what a single removal does. With an attributor that trains again (`LeaveOneOut`) it is
    the metric of the real outputs, run by run. The derivative adds up over rows: the sum of the scores of
    a group is the effect of removing it, to first order. Metrics of predicted classes or ranks (accuracy,
    ROC-AUC, F1) are step functions of the outputs, which one row seldom moves. Their derivative is a
    central difference in each output by `bandwidth` b,

    .. math:: \frac{\partial M}{\partial f_{z,c}} \approx
              \frac{M(f + b\, e_{z,c}) - M(f - b\, e_{z,c})}{2 b},

    the derivative of the metric in the mean over shifts of that output by up to b: what counts are test rows
    within b of the decision boundary, or of a row of the other class.

    Parameters
    ----------
    attributor : BaseAttributor
        Fitted, of any measurement, which is not looked at: its outputs are attributed.
    X_test : array-like of shape (n_test, n_features) or (n_test, ...)
        Test rows.
    y_test : array-like of shape (n_test,) or (n_test, n_targets)
        Their targets.
    scoring : str or callable, default=None
        The metric: a name of ``sklearn.metrics.get_scorer_names()``, a scorer of
        ``sklearn.metrics.make_scorer``, or any ``scorer(estimator, X, y)`` that asks the estimator for
        predictions of all rows of X. For classifiers of two classes also the share of rows that are
        predicted to be of the second class, ``"selection_rate"`` (of all rows), ``"true_positive_rate"``
        and ``"false_positive_rate"`` (of those of the second and of the first class), and
        ``"calibration"``, the mean predicted probability of the second class less its share. None is
        accuracy or R2.
    sensitive : str, int or array-like of shape (n_test,), default=None
        Groups of the test rows: a column of `X_test`, or a value for each row. The metric is then the largest
        less the smallest of the groups' metrics: with ``"selection_rate"`` demographic parity,
        ``"true_positive_rate"`` equal opportunity, ``"accuracy"`` the difference in error rates.
    how : {"difference", "derivative"}, default="difference"
        From the metric of the changed outputs, for rows one by one, or from its derivative, for sums over
        groups of rows.
    bandwidth : float, default=None
        Of step functions, in units of the outputs (log-odds for logits): by default
        :math:`1.84\, \sigma n^{-1/5}` with the standard deviation of each output over the n test rows,
        Silverman's rule for a uniform kernel. Ignored by smooth metrics and differences.
    memory_budget : int, default=2 GiB
        Bytes that all outputs of the changed models may take, for ``how="difference"``.
    n_jobs : int, default=None
        joblib workers for scorers that have to be called for each changed model.

    Returns
    -------
    MetricInfluence

    Raises
    ------
    ValueError
        If the metric is not defined for the test rows or a group of them, groups are fewer than two,
        lengths differ, the attributor only ranks, or the estimator's predictions are not those of
        the outputs that are attributed.
    FloatingPointError
        If a score is not finite.
    MemoryError
        If `memory_budget` is too small.

    References
    ----------
    Koh and Liang, "Understanding Black-box Predictions via Influence Functions", ICML 2017. Silverman,
    "Density Estimation for Statistics and Data Analysis", 1986, section 3.4. Hardt, Price and Srebro,
    "Equality of Opportunity in Supervised Learning", NeurIPS 2016.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from fimoda import ExactInfluence, metric_influence
    >>> from fimoda.datasets import split_breast_cancer
    >>> X, X_test, y, y_test = split_breast_cancer()
    >>> influence = ExactInfluence(LogisticRegression().fit(X, y)).fit(X, y)
    >>> found = metric_influence(influence, X_test, y_test, "roc_auc")
    >>> found.scores.shape, round(found.value, 3)
    ((512,), 0.993)
    """
    check_is_fitted(attributor, "model_")
    require_unit(attributor)
    test = attributor._test(X_test, check_targets(y_test, n_rows(X_test), "y_test"))
    model = attributor.model_
    outputs = model.outputs(test.inputs)
    known = outputs.double().cpu().numpy()
    check_answers(attributor.estimator_, X_test, Answers(model, known))
    rows = Judged(model, X_test, np.asarray(y_test), test.targets.cpu().numpy())
    metric = _metric(scoring, sensitive, rows, n_jobs)
    value = float(metric.values(known[None])[0])
    if how == "derivative":
        slopes = metric.slopes(known, _steps(metric, known, bandwidth))
        per_run = _by_derivative(attributor, test, torch.from_numpy(slopes).to(outputs))
    else:
        per_run = _by_difference(attributor, test, metric, outputs, memory_budget)
    if not np.isfinite(per_run).all():
        raise FloatingPointError(
            f"{type(attributor).__name__} gave scores of outputs that are NaN or infinite."
        )
    scores, sem = mean_and_error(per_run.T)
    of_groups = None
    if isinstance(metric, Gap):
        each = metric.of_groups(known[None])[:, 0].tolist()
        of_groups = dict(zip(metric.groups, each, strict=True))
    return MetricInfluence(scores, sem, value, attributor.train_indices_, of_groups)


def _metric(scoring: Any, sensitive: Any, rows: Judged, n_jobs: int | None) -> Metric:
    """Return the metric of all test rows, or the gap between groups of them."""
    if sensitive is None:
        return metric_of(scoring, rows, n_jobs)
    groups = group_rows(sensitive, rows.X, len(rows))
    return Gap(
        {g: (part, metric_of(scoring, rows.take(part), n_jobs)) for g, part in groups.items()}
    )


def _steps(metric: Metric, outputs: Floats, bandwidth: float | None) -> Floats:
    """Return the step (C,) of the central difference in each output (n, C)."""
    deviation = outputs.std(0)
    spread = np.where(deviation > 0, deviation, 1.0)
    if metric.moves(outputs, float(spread.max())):
        return SMALL * spread
    if bandwidth is not None:
        return np.full(len(spread), float(bandwidth))
    return 1.84 * spread * len(outputs) ** -0.2


# ---- the two ways ---------------------------------------------------------------------------


def weighted_sum(outputs: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of each row's outputs (..., C) by weights, which are in the place of its targets."""
    return (outputs * weights).sum(-1)


def _weighted(test: Measured, weights: Tensor) -> Measured:
    """Return test rows, measured by sums of their outputs with weights (n, C)."""
    return Measured(replace(test.rows, targets=weights), weighted_sum)


def _by_derivative(attributor: BaseAttributor, test: Measured, slopes: Tensor) -> Floats:
    """Return changes of the metric (n_runs, n_columns), as sums over test rows."""
    weighted = _weighted(test, slopes)
    # each call of a method that trains again trains
    parts = [weighted] if attributor._retrains else weighted.split(_ROWS)
    return np.sum([attributor._coupled(part)[1].sum(1) for part in parts], axis=0)


def _by_difference(
    attributor: BaseAttributor, test: Measured, metric: Metric, outputs: Tensor, budget: int
) -> Floats:
    """Return changes of the metric (n_runs, n_columns), from the outputs of each changed model."""
    (n, C), n_columns = outputs.shape, len(attributor.train_indices_)
    needed = 8 * n * C * n_columns * attributor._n_runs()
    if needed > budget:
        raise MemoryError(
            f"memory_budget must hold the outputs of {n_columns} changed models, which take "
            f"{needed / 2**20:.0f} MiB, got {budget / 2**20:.0f} MiB. Raise it, pass fewer test rows, or "
            "how='derivative'."
        )
    each = torch.arange(n).repeat_interleave(C)  # a test row for each of its outputs
    weights = torch.eye(C).to(outputs).repeat(n, 1)
    full, scores = attributor._coupled(_weighted(test[each], weights))
    full, scores = full.reshape(-1, n, C), scores.reshape(len(full), n, C, n_columns)
    found = np.empty((len(full), n_columns))
    for run, (before, change) in enumerate(zip(full, scores, strict=True)):
        value = metric.values(before[None])[0]
        for block in blocks(n_columns, before.nbytes):
            after = before + np.moveaxis(change[..., block], -1, 0)
            found[run, block] = metric.values(after) - value
    return found
