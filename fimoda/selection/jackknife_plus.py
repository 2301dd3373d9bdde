"""Jackknife+ intervals, from leave-one-out scores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from ..adapters import Answers, check_answers, learns_before
from ..attributors.exact_influence import ExactInfluence
from ..attributors.of_trees import method_of_trees
from ..base import BaseAttributor
from ..evaluation._scores import require_unit
from ._base import Sample
from ._intervals import BaseIntervals
from .cv_plus import CVPlusRegressor

Floats = NDArray[np.float64]


class JackknifePlusRegressor(BaseIntervals):
    r"""A regressor with jackknife+ intervals, from leave-one-out scores of any attributor.

    With the attributor's scores :math:`S_{z,i}` of the output, :math:`\mu_{-i}(x) = f(x) + S_{x,i}` is the
    prediction without training row i, and :math:`R_i = |y_i - \mu_{-i}(x_i)|`. The interval at the
    confidence level :math:`1 - \alpha` is

    .. math:: \left[ -q_{1-\alpha}\{R_i - \mu_{-i}(x)\},\; q_{1-\alpha}\{\mu_{-i}(x) + R_i\} \right]

    where :math:`q_{1-\alpha}` of n numbers is the :math:`\lceil (1 - \alpha)(n + 1) \rceil`-th smallest.
    If the rows are exchangeable and the predictions are those of real refits, it holds a new target with
    probability :math:`1 - 2\alpha` at least, and nearly always about :math:`1 - \alpha`. Refits they are by
    default for linear models with squared error, from one fit, unless they come behind steps of a Pipeline
    that learn from the rows, which stay as they are; and with `LeaveOneOut`, which trains networks
    as stacks of models, and fits other models again in every call (`CVPlusRegressor` with
    ``cv=sklearn.model_selection.LeaveOneOut()`` gives the same and keeps them).

    Methods that approximate underestimate how much a flexible model owes to each row: networks, boosting
    and forests predict rows without themselves much better by their scores than by refits, and coverage at
    nominal .9 falls to .4 to .8. So scores are multiplied by the factor that makes the mean of the R as
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
        Factor of the scores; 1 for exact ones and those of methods that train again.
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
        "cv": ["cv_object"],
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
        told = self._outputs(self.attributor_._test(sample.X, None).inputs)
        check_answers(self.estimator_, sample.X, Answers(self.attributor_.model_, told))
        outputs = self._outputs(
            self.attributor_._own.inputs
        )  # others, where steps are fitted crosswise
        own = np.asarray(self.attributor_.self_influence(), dtype=np.float64)[:, None]
        if self.cv is not None and not self._is_exact():
            known = CVPlusRegressor(self.estimator, cv=self.cv, random_state=self.random_state)
            wanted = known.fit(*sample).residuals_.mean()
            self.scale_ = self._scale(sample.y.ravel(), outputs, own, wanted)
        return self._changed(outputs, own)[:, 0]

    def _is_exact(self) -> bool:
        """Return whether scores come from training again, or from a Newton step of least squares.

        Steps of a Pipeline that learn from rows stay as they are in the latter.
        """
        model = self.attributor_.model_
        least_squares = model.recipe.solved and model.loss.constant_curvature(1) is not None
        least_squares = least_squares and not learns_before(self.estimator_)
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
