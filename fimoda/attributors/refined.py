"""Any approximation, corrected where it matters most by real training."""

from __future__ import annotations

import warnings
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from .._validation import POSITIVE_INTEGER, Interval, check_row_indices, is_integer
from ..adapters import last_step
from ..base import BaseAttributor
from ..last_call import of_last_call
from ..measured import Measured
from ..measurements import Measurement
from ..training.refining import SCALES, refine
from ..trials import Trial
from ..views import TreeView
from .ensemble import fit_member
from .families.around import AroundMixin
from .further_training import FurtherTraining
from .grad_dot import GradDot
from .leave_one_out import LeaveOneOut
from .of_trees import method_of_trees
from .unrolled_differentiation import UnrolledDifferentiation

#: Parameters of further training that its derivative shares.
_SHARED = ("n_epochs", "optimizer", "lr", "batch_size", "optimizer_params", "batch_statistics")


class RefinedAttributor(AroundMixin, BaseAttributor):
    r"""Approximate the effect of every row, and train without the few that matter most.

    Derivatives rank rows well, and are worst for the few of large effect: what the model does without a row
    that it has learned by heart, they cannot know. So these rows, a tenth by default, are left out for real
    by a few seeds of the gold standard, and the approximation is scaled to what comes of it:

    .. math:: S_{z,i} = c_z a_{z,i} + 1[i \in T] \, \omega_z (g_{z,i} - c_z a_{z,i}), \qquad
              c_z = \frac{\sum_{i \in T'} a_{z,i} g_{z,i}}{\sum_{i \in T'} a_{z,i}^2}, \qquad
              \omega_z = \frac{d_z}{d_z + v_z}

    with :math:`a` the approximation, :math:`T` the rows that are trained without, :math:`T'` the half of them
    with the smaller gradients, :math:`g` the gold standard's scores of them and :math:`v_z` the mean square
    of their standard errors. What the derivatives of the largest rows miss, their scale, is not missed by
    the others, which are more like :math:`T'`.
    :math:`d_z = \max(\mathrm{mean}_{i \in T} (g_{z,i} - c_z a_{z,i})^2 - v_z, 0)` is how far the two differ
    beyond that noise: where the approximation is as good as the seeds can tell, it keeps its word. With one
    seed, whose noise is not known, :math:`\omega_z = 1`; :math:`c_z` lies between 0.05 and 20.

    Parameters
    ----------
    estimator : object, default=None
        Fitted model; an unfitted scikit-learn or skorch estimator is cloned and fitted. None is a
        small MLP.
    approximation : attributor, default=None
        What scores all rows, unfitted; its ``estimator``, ``measurement`` and ``criterion`` are set here.
        By default `UnrolledDifferentiation` of the gold standard's further training; for trees
        `LeafInfluence` or `LeafKernel`.
    gold_standard : attributor, default=None
        What trains without rows (it has a parameter ``leave_out``), unfitted, and what the approximation
        speaks of. By default `FurtherTraining` with two seeds; for trees `LeaveOneOut` with two.
    trained_rows : float, int or list of int, default=0.1
        Rows that are trained without: this share of them or so many, those with the largest gradients (for
        models without gradients the largest `self_influence` of the approximation), or these.
    measurement : str or callable, default="loss"
        What is attributed: ``"loss"``, ``"margin"``, ``"log_prob"``, ``"output"`` or a callable
        ``m(outputs, targets)`` giving one number per row.
    criterion : nn.Module, default=None
        Training criterion of a bare ``nn.Module``.
    random_state : int, RandomState or None, default=None
        Used to fit an unfitted `estimator` and to draw the seeds of the default methods.

    Attributes
    ----------
    estimator_ : object
        The final model.
    model_ : FinalModel
        Its frozen functional view.
    approximation_ : attributor
        The fitted approximation.
    gold_standard_ : attributor
        The gold standard, fitted to leave out the rows ``gold_standard_.train_indices_``.
    train_indices_ : ndarray of shape (n_columns,)
        Training row of each column.
    scale_ : ndarray of shape (n_test,)
        Factors c of the approximation in the scores last returned by `transform`.
    weight_ : ndarray of shape (n_test,)
        Weights :math:`\omega` of the training there.
    agreement_ : float
        Cosine of approximation and training over the rows of both, mean over the test rows of the scores
        last returned.
    scores_sem_ : ndarray of shape (n_test, n_columns)
        Standard error over seeds of the scores last returned by `transform`, as far as they are of training:
        NaN for the rows that were not trained without, and for one seed.

    Raises
    ------
    ValueError
        If the approximation does not score all rows, or the gold standard cannot leave out some.

    Warns
    -----
    UserWarning
        If ``scale_`` is at 0.05 or 20 for some test rows, where approximation and training disagree.

    See Also
    --------
    FurtherTraining : Trains without every row.
    UnrolledDifferentiation : Approximates it for every row.

    References
    ----------
    fimoda's own. The weight is that of empirical Bayes: Efron and Morris, "Stein's Estimation Rule and Its
    Competitors", 1973.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.neural_network import MLPRegressor
    >>> from fimoda import FurtherTraining, RefinedAttributor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> y = y / 100
    >>> net = MLPRegressor(hidden_layer_sizes=(8,), max_iter=20, random_state=0).fit(X, y)
    >>> refined = RefinedAttributor(
    ...     net,
    ...     gold_standard=FurtherTraining(n_epochs=2, n_seeds=2, random_state=0),
    ...     trained_rows=5,
    ... )
    >>> refined.fit(X, y).transform(X[:4], y[:4]).shape
    (4, 442)
    >>> len(refined.gold_standard_.train_indices_)
    5
    """

    process = "that of the gold standard, approximated for most rows"

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseAttributor._parameter_constraints,
        "approximation": [BaseAttributor, None],
        "gold_standard": [BaseAttributor, None],
        "trained_rows": [Interval(Real, 0, 1, closed="right"), POSITIVE_INTEGER, "array-like"],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        approximation: BaseAttributor | None = None,
        gold_standard: BaseAttributor | None = None,
        trained_rows: Any = 0.1,
        measurement: Measurement = "loss",
        criterion: nn.Module | None = None,
        random_state: Any = None,
    ):
        super().__init__(
            estimator, measurement=measurement, criterion=criterion, random_state=random_state
        )
        self.approximation = approximation
        self.gold_standard = gold_standard
        self.trained_rows = trained_rows

    # ---- fit --------------------------------------------------------------------------------

    def _inner(self, estimator: Any) -> BaseAttributor:
        gold = self._gold(estimator)
        if self.approximation is not None:
            return self.approximation
        if of_trees := method_of_trees(estimator):
            return of_trees
        if not isinstance(gold, FurtherTraining):
            raise ValueError(
                f"approximation must be given where gold_standard is {type(gold).__name__}: a method that "
                "speaks of the same, for example SOURCE() or LeafInfluence() for LeaveOneOut()."
            )
        known = {name: getattr(gold, name) for name in _SHARED}
        return UnrolledDifferentiation(random_state=self.random_state, **known)

    def _gold(self, estimator: Any) -> BaseAttributor:
        """Return the method that trains, unfitted."""
        gold = self.gold_standard
        if gold is None:
            kind = LeaveOneOut if method_of_trees(estimator) else FurtherTraining
            return kind(n_seeds=2, random_state=self.random_state)
        if "leave_out" not in gold.get_params(deep=False):
            raise ValueError(
                f"gold_standard must be able to leave out some rows, which {type(gold).__name__} is not. Set "
                "FurtherTraining() or LeaveOneOut()."
            )
        return gold

    def _fit(self) -> None:
        model, n = last_step(self.estimator_), len(self._objective)
        self.approximation_ = fit_member(self, self._inner(model), model)
        if not np.array_equal(self.approximation_.train_indices_, np.arange(n)):
            raise ValueError(
                f"approximation must score all {n} training rows, got a {type(self.approximation_).__name__} "
                "that scores some. Set its leave_out=None."
            )
        gold = self._gold(model)
        sizes = self._sizes(model)
        rows = self._chosen(sizes)
        self._smaller = np.argsort(sizes[rows], kind="stable")[: (len(rows) + 1) // 2]
        changes: dict[str, Any] = {"leave_out": rows}
        if isinstance(gold, FurtherTraining):
            changes["correction"] = "full"  # the mean over a few rows is not that over all
        self.gold_standard_ = fit_member(self, gold, model, **changes)

    def _sizes(self, model: Any) -> NDArray[np.float64]:
        """Return how much each row matters (n,): squared gradients, or effects on itself."""
        of_trees = self.approximation_._sees is TreeView or self.approximation_._retrains
        judge = self._inner(model) if of_trees else GradDot()
        return np.abs(fit_member(self, judge, model, measurement="loss").self_influence())

    def _chosen(self, sizes: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the rows to train without."""
        asked, n = self.trained_rows, len(sizes)
        if np.ndim(asked):
            return np.sort(check_row_indices(asked, n, "trained_rows"))
        count = int(asked) if is_integer(asked) else max(1, round(asked * n))
        if count > n:
            raise ValueError(
                f"trained_rows must be at most the number of training rows ({n}), got {count}."
            )
        return np.sort(np.argsort(-sizes, kind="stable")[:count])

    # ---- transform --------------------------------------------------------------------------

    def _scores(self, test: Measured) -> NDArray[np.float64]:
        scores = self.approximation_._scores(test)
        trained = self.gold_standard_._scores(test)
        rows, errors = self.gold_standard_.train_indices_, self.gold_standard_._standard_errors()
        if errors is None:
            errors = np.full(trained.shape, np.nan)
        found = refine(scores, rows, trained, errors, self._smaller)
        sem = np.full(scores.shape, np.nan)
        sem[:, rows] = found.weight[:, None] * errors
        self._seen.update(scale_=found.scale, weight_=found.weight, agreement_=found.agreement)
        self._seen["scores_sem_"] = sem
        if n_bounded := self._n_bounded():
            warnings.warn(
                f"{self._told_bounds(n_bounded)}: it disagrees with training there, and its scores of the "
                "rows that were not trained without mean little. Set trained_rows to more, or another "
                "approximation.",
                UserWarning,
                stacklevel=2,
            )
        return found.scores

    def _n_bounded(self) -> int:
        """Return for how many of the test rows last scored the scale is at one of its bounds."""
        return int(np.isin(self.scale_, SCALES).sum())

    def _told_bounds(self, n_bounded: int) -> str:
        name, low, high = type(self.approximation_).__name__, *SCALES
        return (
            f"scale_ of {name} is at its bounds, {low:g} or {high:g}, for {n_bounded} of {len(self.scale_)} "
            "test rows"
        )

    def _n_runs(self) -> int:
        return self.gold_standard_._n_runs()

    def _process(self) -> str:
        k, name = len(self.gold_standard_.train_indices_), type(self.approximation_).__name__
        return f"{self.gold_standard_._process()}, without {k} rows, and by {name} for the others"

    def _known_error(self, scores: NDArray[np.float64]) -> list[str]:
        k, name = len(self.gold_standard_.train_indices_), type(self.approximation_).__name__
        known = f"{name} agrees {self.agreement_:.2f} with training without {k} rows (cosine)"
        lines = [known, *super()._known_error(scores)]
        if n_bounded := self._n_bounded():
            lines.append(self._told_bounds(n_bounded))
        if self._n_runs() == 1:
            lines.append(
                "one seed: its noise is not known, and goes into the scores of those rows as it is"
            )
        return lines

    def _expected_seconds(self, trial: Trial) -> float:
        asked = self.trained_rows
        count = (
            asked if is_integer(asked) else len(asked) if np.ndim(asked) else asked * trial.n_rows
        )
        shared = {
            "estimator": self.estimator,
            "measurement": self.measurement,
            "criterion": self.criterion,
        }
        parts = self._inner(self.estimator), self._gold(self.estimator)
        own, gold = (one.__sklearn_clone__().set_params(**shared) for one in parts)
        gold.set_params(leave_out=range(max(1, round(count))))
        return own._expected_seconds(trial) + gold._expected_seconds(trial)

    scale_ = of_last_call(
        "scale_", "Factors of the approximation in the scores last returned, (n_test,)."
    )
    weight_ = of_last_call("weight_", "Weights of training in the scores last returned, (n_test,).")
    agreement_ = of_last_call(
        "agreement_",
        "Cosine of approximation and training over the rows of both, for the scores last returned.",
    )
    scores_sem_ = of_last_call(
        "scores_sem_",
        "Standard error over seeds of the scores last returned, as far as they are of training.",
    )
