"""scikit-learn's linear models."""

from __future__ import annotations

import inspect
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import is_classifier
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Ridge,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from ..losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    OneVsRestCrossEntropy,
    RowLoss,
    SquaredError,
    row_loss,
)
from ..model import FinalModel
from ..recipe import Recipe, Weighting
from .dense import dense_layer, weight_penalty
from .kinds import ScikitLearn


def _layer(estimator: Any) -> nn.Linear:
    """Return the coefficients and the intercept, if there is one."""
    intercept = estimator.intercept_ if estimator.fit_intercept else None
    return dense_layer(np.atleast_2d(estimator.coef_), intercept)


def _balanced(estimator: Any, by_weight: bool = False) -> str | None:
    """Return what of a class is balanced, if anything: ``"weights"`` or the number of ``"rows"``.

    `by_weight` says that the estimator balances the rows' weights where scikit-learn can (from 1.7).
    """
    if not isinstance(estimator.class_weight, str):
        return None
    known = inspect.signature(compute_class_weight).parameters
    return "weights" if by_weight and "sample_weight" in known else "rows"


def _class_weights(
    estimator: Any, y: Any, weights: NDArray[Any], balanced: str | None
) -> tuple[Tensor | None, float]:
    """Return class weights, and the total weight of the training rows with them."""
    if estimator.class_weight is None:
        return None, float(weights.sum())
    if y is None:
        raise ValueError("y must be given for a model with class_weight.")
    given = {"sample_weight": weights} if balanced == "weights" else {}
    by_class = compute_class_weight(
        estimator.class_weight, classes=estimator.classes_, y=np.asarray(y), **given
    )
    total = float((weights * by_class[np.searchsorted(estimator.classes_, y)]).sum())
    return torch.as_tensor(by_class, dtype=torch.from_numpy(estimator.coef_[:0]).dtype), total


def _require_l2(estimator: Any, penalty: str | None, l1_ratio: float | None) -> None:
    if penalty == "l1" or (penalty == "elasticnet" and l1_ratio != 0):
        raise ValueError(
            f"{type(estimator).__name__} has an L1 penalty, which is not smooth: scores are defined "
            "for an L2 penalty or none."
        )


class Logistic(ScikitLearn):
    """LogisticRegression."""

    types = (LogisticRegression,)
    but = (LogisticRegressionCV,)

    def view(self, estimator: LogisticRegression, y: Any, weights: NDArray[Any]) -> FinalModel:
        """Freeze softmax, one logit or one against the rest, with the L2 penalty."""
        penalty, l1_ratio = estimator.penalty, estimator.l1_ratio
        if penalty == "deprecated":  # the penalty follows from l1_ratio and C
            penalty = "elasticnet"
        _require_l2(estimator, penalty, l1_ratio or 0)
        binary = len(estimator.coef_) == 1
        multiclass = getattr(estimator, "multi_class", "deprecated")
        ovr = not binary and (multiclass == "ovr" or estimator.solver == "liblinear")
        if estimator.solver == "liblinear" and estimator.fit_intercept:
            raise ValueError(
                "LogisticRegression(solver='liblinear') penalises its intercept; use another solver."
            )
        balanced = _balanced(estimator, by_weight=True)
        by_class, total = _class_weights(estimator, y, weights, balanced)
        module = _layer(estimator)
        strength = 0.0 if penalty is None or np.isinf(estimator.C) else 1.0 / (estimator.C * total)
        loss: RowLoss = BinaryCrossEntropy() if binary else CrossEntropy()
        return FinalModel(
            module.eval(),
            OneVsRestCrossEntropy() if ovr else loss,
            classes=estimator.classes_,
            class_weight=by_class,
            l2=weight_penalty(module, strength),
            weighting=Weighting("sum", balanced),
            recipe=Recipe(
                solved=True,
                tolerance=estimator.tol,
                stopped_early=bool(np.max(estimator.n_iter_) >= estimator.max_iter),
            ),
        )


class LeastSquares(ScikitLearn):
    """LinearRegression and Ridge."""

    types = (LinearRegression, Ridge)

    def view(
        self, estimator: LinearRegression | Ridge, y: Any, weights: NDArray[Any]
    ) -> FinalModel:
        """Freeze least squares of any number of outputs, with the ridge."""
        if estimator.positive:
            raise ValueError(
                f"{type(estimator).__name__}(positive=True) constrains its coefficients; scores are "
                "defined for unconstrained training."
            )
        module = _layer(estimator)
        alpha = np.asarray(estimator.alpha if isinstance(estimator, Ridge) else 0.0)
        return FinalModel(
            module.eval(),
            SquaredError(over_outputs="sum"),
            l2=weight_penalty(module, 2 * alpha / weights.sum()),
            weighting=Weighting("sum"),
            recipe=Recipe(solved=True),
        )


class SGD(ScikitLearn):
    """SGDClassifier and SGDRegressor."""

    types = (SGDClassifier, SGDRegressor)

    def goes_on_in_steps(self) -> bool:
        """Return whether the loss is smooth; others go on by ``partial_fit``."""
        return self.model.loss in ("log_loss", "squared_error", "huber")

    def view(
        self, estimator: SGDClassifier | SGDRegressor, y: Any, weights: NDArray[Any]
    ) -> FinalModel:
        """Freeze a linear model with a smooth loss, with its L2 penalty."""
        _require_l2(estimator, estimator.penalty, estimator.l1_ratio)
        by_class, total, balanced = None, float(weights.sum()), None
        loss: RowLoss
        if is_classifier(estimator):
            if estimator.loss != "log_loss":
                raise ValueError(
                    f"SGDClassifier must have loss='log_loss', got {estimator.loss!r}: the others are "
                    "not smooth or give no probabilities."
                )
            binary = len(estimator.coef_) == 1
            if estimator.class_weight is not None and not binary:
                raise ValueError(
                    "SGDClassifier with class_weight and more than two classes weighs a row differently "
                    "in the problem of each class. Use LogisticRegression, or sample_weight instead."
                )
            balanced = _balanced(estimator)
            by_class, total = _class_weights(estimator, y, weights, balanced)
            loss = BinaryCrossEntropy() if binary else OneVsRestCrossEntropy()
        elif estimator.loss == "squared_error":
            loss = SquaredError(scale=0.5)
        elif estimator.loss == "huber":
            loss = row_loss(nn.HuberLoss(delta=estimator.epsilon), (1,))
        else:
            raise ValueError(
                "SGDRegressor must have loss='squared_error' or 'huber', got "
                f"{estimator.loss!r}, which is not smooth."
            )
        module = _layer(estimator)
        strength = 0.0 if estimator.penalty is None else estimator.alpha * len(weights) / total
        return FinalModel(
            module.eval(),
            loss,
            classes=getattr(estimator, "classes_", None),
            class_weight=by_class,
            l2=weight_penalty(module, strength),
            weighting=Weighting("rows", balanced),
        )

    def rows_seen(self) -> int | None:
        """Return how many rows early stopping has left to an epoch."""
        if not self.model.early_stopping or not getattr(self.model, "n_iter_", 0):
            return None
        given = round((self.model.t_ - 1) / self.model.n_iter_)
        return given - ceil(self.model.validation_fraction * given)
