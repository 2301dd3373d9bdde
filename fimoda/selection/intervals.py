"""Prediction intervals from predictions without each training row."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from math import ceil
from typing import Any, ClassVar

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy.optimize import brentq
from sklearn.base import RegressorMixin
from sklearn.model_selection import KFold, check_cv
from sklearn.utils import Tags, gen_batches, get_tags

from .._arrays import n_rows, take_rows
from .._validation import (
    MAX_SEED,
    OPEN_SHARE,
    StrOptions,
    check_is_fitted,
    check_random_state,
    is_integer,
)
from ..adapters import Answers, check_answers
from ..attributors.exact_influence import ExactInfluence
from ..attributors.of_trees import method_of_trees
from ..base import BaseAttributor
from ..evaluation._scores import require_unit
from ._base import BaseSelection, Sample

Floats = NDArray[np.float64]

#: Predictions without a training row that are held at a time.
_BLOCK = 2**23


class BaseIntervals(RegressorMixin, BaseSelection):
    """Base of regressors whose intervals come from predictions without each training row.

    A subclass implements `_fit_without` and `_without`.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseSelection._parameter_constraints,
        "method": [StrOptions({"plus", "minmax"})],
    }

    method: str

    # ---- hooks ------------------------------------------------------------------------------

    @abstractmethod
    def _fit_without(self, sample: Sample) -> Floats:
        """Hook of `fit`: return the prediction (n,) of each training row by a model without it."""

    @abstractmethod
    def _without(self, X: Any) -> Floats:
        """Hook of `predict_interval`: return predictions (n_test, n) without each training row."""

    def _blocks(self, X: Any) -> Iterator[Any]:
        """Hook of `predict_interval`: yield rows in parts whose predictions fit the memory."""
        size = max(1, _BLOCK // len(self.residuals_))
        for part in gen_batches(n_rows(X), size):
            yield take_rows(X, np.arange(part.start, part.stop))

    # ---- fit --------------------------------------------------------------------------------

    def _is_classification(self, y: NDArray[Any]) -> bool:
        return False

    def _fit(self, sample: Sample) -> None:
        if self.estimator is not None and get_tags(self.estimator).estimator_type == "classifier":
            raise ValueError(
                f"estimator must be a regressor, got the classifier {type(self.estimator).__name__}: an "
                "interval is of numbers, and a class has none."
            )
        if sample.y.ndim != 1 or sample.y.dtype.kind not in "biuf":
            raise ValueError(
                f"y must be one number a row, got {sample.y.dtype} of shape {sample.y.shape}. Fit one model "
                "for each target."
            )
        if len(sample.y) < 2:
            raise ValueError("X must have at least 2 rows to leave one out, got n_samples = 1.")
        self.estimator_ = self._fitted(sample)
        self.residuals_ = np.abs(sample.y - self._fit_without(sample))

    # ---- predict ----------------------------------------------------------------------------

    def predict(self, X: Any) -> Floats:
        """Return predictions (n_samples,) of the model that was fitted on all rows, for rows X."""
        check_is_fitted(self, "estimator_")
        return _predicted(self.estimator_, self._checked_rows(X, reset=False))

    def predict_interval(self, X: Any, confidence_level: float = 0.9) -> Floats:
        """Return an interval for the target of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, as the model takes them.
        confidence_level : float, default=0.9
            Share of the targets that are to be inside, in (0, 1).

        Returns
        -------
        interval : ndarray of shape (n_samples, 2)
            Lower and upper ends, in the unit of the target. With fewer than ``confidence_level / (1 -
            confidence_level)`` training rows they are infinite.

        Raises
        ------
        ValueError
            If `confidence_level` is not in (0, 1).
        """
        check_is_fitted(self, "residuals_")
        if not OPEN_SHARE.is_satisfied_by(confidence_level):
            raise ValueError(f"confidence_level must be in (0, 1), got {confidence_level!r}.")
        X = self._checked_rows(X, reset=False)
        return np.concatenate([self._interval(part, confidence_level) for part in self._blocks(X)])

    def _interval(self, X: Any, level: float) -> Floats:
        without, residuals = self._without(X), self.residuals_
        if self.method == "plus":
            upper = quantile(without + residuals, level)
            return np.stack([-quantile(residuals - without, level), upper], axis=1)
        largest = quantile(residuals[None], level)
        return np.stack([without.min(1) - largest, without.max(1) + largest], axis=1)


def quantile(values: Floats, level: float) -> Floats:
    """Return the ``ceil(level * (n + 1))``-th smallest of n values in each row; infinite beyond them."""
    n = values.shape[-1]
    place = ceil(round(level * (n + 1), 9))
    if place > n:
        return np.full(len(values), np.inf)
    return np.partition(values, place - 1, axis=-1)[..., place - 1]


def _predicted(model: Any, X: Any) -> Floats:
    """Return predictions (n,) of a fitted regressor."""
    return np.asarray(model.predict(X), dtype=np.float64).reshape(n_rows(X))


class JackknifePlusRegressor(BaseIntervals):
    r"""A regressor with jackknife+ intervals, from leave-one-out scores of any attributor.

    With the attributor's scores :math:`S_{z,i}` of the output, :math:`\mu_{-i}(x) = f(x) + S_{x,i}` is the
    prediction without training row i, and :math:`R_i = |y_i - \mu_{-i}(x_i)|`. The interval at the
    confidence level :math:`1 - \alpha` is

    .. math:: \left[ -q_{1-\alpha}\{R_i - \mu_{-i}(x)\},\; q_{1-\alpha}\{\mu_{-i}(x) + R_i\} \right]

    where :math:`q_{1-\alpha}` of n numbers is the :math:`\lceil (1 - \alpha)(n + 1) \rceil`-th smallest.
    If the rows are exchangeable and the predictions are those of real refits, it holds a new target with
    probability :math:`1 - 2\alpha` at least, and nearly always about :math:`1 - \alpha`. Refits they are by
    default for linear models with squared error, from one fit; and with `LeaveOneOut`, which trains networks
    as stacks of models, and fits other models again in every call (`CVPlusRegressor` with
    ``cv=sklearn.model_selection.LeaveOneOut()`` gives the same and keeps them).

    Methods that approximate underestimate how much a flexible model owes to each row: networks, boosting
    and forests predict rows without themselves much better by their scores than by refits, and coverage at
    nominal .9 falls to .3 to .7. So scores are multiplied by the factor that makes the mean of the R as
    large as the held-out error in the folds of `cv`. Coverage is then about nominal, without a guarantee.

    Parameters
    ----------
    estimator : object, default=None
        Unfitted regressor of one target; it checks the rows itself, missing values and categories
        included. A finished search stands for its best model, fitted again. None is `Ridge`.
    attributor : BaseAttributor, default=None
        How rows are left out; its own ``estimator`` and ``measurement`` are replaced. None is
        `ExactInfluence` with a Newton step, for trees `LeafInfluence` or `LeafKernel`.
    method : {"plus", "minmax"}, default="plus"
        "minmax" takes the least and the largest prediction without a row and :math:`q_{1-\alpha}\{R_i\}`:
        wider, and with real refits it holds a new target with probability :math:`1 - \alpha`.
    cv : int, splitter, iterable or None, default=10
        Splits whose held-out errors scale approximated scores, as for `CVPlusRegressor`; None takes scores as
        they are.
    random_state : int, RandomState or None, default=None
        For an attributor that has none of its own. It also shuffles the rows for `cv`.

    Attributes
    ----------
    estimator_ : object
        The model, fitted on all rows.
    attributor_ : BaseAttributor
        Fitted to it.
    scale_ : float
        Factor of the scores; 1 for exact ones.
    residuals_ : ndarray of shape (n_samples,)
        Absolute error of each row's prediction without it.

    Raises
    ------
    ValueError
        For a classifier, several targets, a model that the attributor does not take or that predicts
        otherwise than its outputs say, and an attributor that scores some rows only or has no unit.

    References
    ----------
    Barber, Candes, Ramdas and Tibshirani, "Predictive inference with the jackknife+", Annals of
    Statistics 49, 2021, arXiv 1905.02928.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from fimoda import JackknifePlusRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = JackknifePlusRegressor().fit(X[:300], y[:300])
    >>> lower, upper = model.predict_interval(X[300:], confidence_level=0.9).T
    >>> round(float(((lower <= y[300:]) & (y[300:] <= upper)).mean()), 2)
    0.94
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseIntervals._parameter_constraints,
        "cv": ["cv_object", None],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        attributor: BaseAttributor | None = None,
        method: str = "plus",
        cv: Any = 10,
        random_state: Any = None,
    ):
        self.estimator = estimator
        self.attributor = attributor
        self.method = method
        self.cv = cv
        self.random_state = random_state

    def _fit_without(self, sample: Sample) -> Floats:
        self.attributor_, self.scale_ = self._attributed(sample), 1.0
        outputs = self._outputs(self.attributor_._own.inputs)
        check_answers(self.estimator_, sample.X, Answers(self.attributor_.model_, outputs))
        own = np.asarray(self.attributor_.self_influence(), dtype=np.float64)[:, None]
        if self.cv is not None and not self._is_exact():
            known = CVPlusRegressor(self.estimator, cv=self.cv, random_state=self.random_state)
            wanted = known.fit(*sample).residuals_.mean()
            self.scale_ = self._scale(sample.y, outputs, own, wanted)
        return self._changed(outputs, own)[:, 0]

    def _is_exact(self) -> bool:
        """Return whether scores are those of refits: by them, or by a Newton step of least squares."""
        model = self.attributor_.model_
        least_squares = model.recipe.solved and model.loss.constant_curvature(1) is not None
        return self.attributor_._retrains or (self.attributor is None and least_squares)

    def _scale(self, y: NDArray[Any], outputs: Floats, own: Floats, wanted: float) -> float:
        """Return the factor by which scores make the mean error of rows without themselves as wanted.

        The error is convex in it, so that there is one where the training error is less than wanted.
        """

        def excess(scale: float) -> float:
            changed = Answers(self.attributor_.model_, outputs + scale * own).labels()
            return float(np.abs(y - changed).mean() - wanted)

        if excess(0.0) >= 0 or not own.any():
            return 1.0
        largest = 1.0
        while excess(largest) < 0:
            largest *= 2
        return float(brentq(excess, 0.0, largest, xtol=1e-6))

    def _attributed(self, sample: Sample) -> BaseAttributor:
        """Return the attributor of the model's output, fitted on all rows."""
        given = self.attributor
        if given is None:
            given = method_of_trees(self.estimator_) or ExactInfluence(newton_step=True)
        require_unit(given)
        attributor = self._of(given, self.estimator_).set_params(measurement="output")
        try:
            attributor.fit(*sample)
        except TypeError as error:
            raise ValueError(
                f"estimator must be a model that {type(attributor).__name__} takes: {error} "
                "CVPlusRegressor takes any."
            ) from error
        if len(attributor.train_indices_) < len(sample.y):
            raise ValueError(
                f"attributor must score all {len(sample.y)} training rows, got one that scores "
                f"{len(attributor.train_indices_)}. Leave out leave_out and max_seconds."
            )
        return attributor

    def _outputs(self, inputs: Any) -> Floats:
        """Return the outputs (n, 1) of the final model."""
        outputs = self.attributor_.model_.outputs(inputs).double().cpu().numpy()
        if outputs.shape[1] != 1:
            raise ValueError(
                f"estimator must have one output, the prediction, got {outputs.shape[1]}."
            )
        return outputs

    def _changed(self, outputs: Floats, scores: Floats) -> Floats:
        """Return predictions (m, n) from outputs (m, 1) that change by scores (m, n)."""
        if not np.isfinite(scores).all():
            raise FloatingPointError(
                f"{type(self.attributor_).__name__} gave scores that are NaN or infinite: there is no "
                "prediction without some of the rows."
            )
        return Answers(
            self.attributor_.model_, (outputs + self.scale_ * scores)[..., None]
        ).labels()

    def _without(self, X: Any) -> Floats:
        test = self.attributor_._test(X, None)
        scores = np.asarray(self.attributor_.transform(X), dtype=np.float64)
        return self._changed(self._outputs(test.inputs), scores)

    def _blocks(self, X: Any) -> Iterator[Any]:
        # each call of a method that trains again trains
        return iter([X]) if self.attributor_._retrains else super()._blocks(X)


class CVPlusRegressor(BaseIntervals):
    r"""A regressor with CV+ intervals, from models that are fitted without each fold of the rows.

    :math:`\mu_{-i}` is the model fitted without the fold of training row i, :math:`R_i = |y_i -
    \mu_{-i}(x_i)|`, and the interval is made of them as that of `JackknifePlusRegressor`. It takes any
    regressor. If the rows are exchangeable, it holds a new target with probability
    :math:`1 - 2\alpha - \sqrt{2 / n}` at least, and nearly always about :math:`1 - \alpha`. With
    ``cv=sklearn.model_selection.LeaveOneOut()`` it is the exact jackknife+.

    Parameters
    ----------
    estimator : object, default=None
        Unfitted regressor of one target; it checks the rows itself, missing values and categories
        included. A finished search stands for its best model, fitted again. None is `Ridge`.
    cv : int, splitter, iterable or None, default=10
        Splits that hold out each row once; a number is that of folds of shuffled rows. None is 5 folds of
        rows in their order.
    method : {"plus", "minmax"}, default="plus"
        "minmax" takes the least and the largest prediction without a row and :math:`q_{1-\alpha}\{R_i\}`:
        wider.
    random_state : int, RandomState or None, default=None
        Shuffles the rows.
    n_jobs : int, default=None
        joblib workers that fit models.

    Attributes
    ----------
    estimator_ : object
        The model, fitted on all rows.
    models_ : list of object
        The models fitted without each fold.
    fold_ : ndarray of shape (n_samples,)
        Model that was fitted without each row.
    residuals_ : ndarray of shape (n_samples,)
        Absolute error of each row's prediction without it.

    Raises
    ------
    ValueError
        For a classifier, several targets, and splits that do not hold out each row once.

    References
    ----------
    Barber, Candes, Ramdas and Tibshirani, "Predictive inference with the jackknife+", Annals of
    Statistics 49, 2021, arXiv 1905.02928, section 3.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.ensemble import RandomForestRegressor
    >>> from fimoda import CVPlusRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> forest = RandomForestRegressor(20, random_state=0)
    >>> model = CVPlusRegressor(forest, random_state=0).fit(X[:300], y[:300])
    >>> lower, upper = model.predict_interval(X[300:]).T
    >>> round(float(((lower <= y[300:]) & (y[300:] <= upper)).mean()), 1)
    0.9
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseIntervals._parameter_constraints,
        "cv": ["cv_object"],
        "n_jobs": [None, int],
    }

    attributor = None

    def __init__(
        self,
        estimator: Any = None,
        *,
        cv: Any = 10,
        method: str = "plus",
        random_state: Any = None,
        n_jobs: int | None = None,
    ):
        self.estimator = estimator
        self.cv = cv
        self.method = method
        self.random_state = random_state
        self.n_jobs = n_jobs

    def _fit_without(self, sample: Sample) -> Floats:
        splits = self._splits(sample)
        self.models_ = Parallel(n_jobs=self.n_jobs)(
            delayed(self._fitted)(sample.take(train)) for train, _ in splits
        )
        held_out = [rows for _, rows in splits]
        self.fold_ = np.repeat(np.arange(len(splits)), [len(rows) for rows in held_out])
        self.fold_ = self.fold_[np.argsort(np.concatenate(held_out))]
        found = np.empty(len(sample.y))
        for model, rows in zip(self.models_, held_out, strict=True):
            found[rows] = _predicted(model, take_rows(sample.X, rows))
        return found

    def _splits(self, sample: Sample) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Return the rows that are fitted and held out in each split."""
        n, cv = len(sample.y), self.cv
        if is_integer(cv):
            seed = check_random_state(self.random_state).randint(MAX_SEED)
            cv = KFold(min(cv, n), shuffle=True, random_state=seed)
        splits = list(check_cv(cv).split(np.zeros(n), sample.y))
        held_out = np.concatenate([rows for _, rows in splits])
        if not np.array_equal(np.sort(held_out), np.arange(n)):
            raise ValueError(
                f"cv must hold out each of the {n} rows once, got {len(held_out)} held-out rows of which "
                f"{len(np.unique(held_out))} differ. Use KFold or LeaveOneOut."
            )
        return splits

    def _without(self, X: Any) -> Floats:
        return np.stack([_predicted(model, X) for model in self.models_], axis=1)[:, self.fold_]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.non_deterministic = self.random_state is None
        return tags
