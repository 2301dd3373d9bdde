"""Any scikit-learn estimator, fitted again on some of its rows, and its predictions as outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone, is_classifier, is_regressor
from torch import Tensor, nn

from ..losses import FlatRowLoss, OutputKind, ProbabilityNLL, SquaredError
from ..model import FinalModel
from .dispatch import as_final_model
from .initial import last_step
from .wrappers import unwrap


def refit(
    estimator: Any,
    X: NDArray[Any],
    y: NDArray[Any],
    sample_weight: NDArray[Any] | None,
    seed: int,
) -> Any:
    """A clone of the model, fitted; `seed` is every ``random_state`` that it has."""
    fresh = clone(last_step(estimator))
    names = [n for n in fresh.get_params() if n.split("__")[-1] == "random_state"]
    given = {} if sample_weight is None else {"sample_weight": sample_weight}
    return fresh.set_params(**dict.fromkeys(names, seed)).fit(X, y, **given)


def as_refittable(
    estimator: Any, X: NDArray[Any], y: NDArray[Any], sample_weight: NDArray[Any] | None
) -> FinalModel:
    """The `FinalModel` of an estimator, or one of its predictions if it has no gradients.

    The outputs of the latter are class probabilities (the loss is the log-loss), predicted classes
    where it has no probabilities (the loss is 0 or 1), or predictions (the loss is the squared
    error). It has no parameters.
    """
    try:
        return as_final_model(estimator, X, y, sample_weight=sample_weight)
    except (TypeError, ValueError):
        model = last_step(estimator)
        if not (is_classifier(model) or is_regressor(model)):
            raise
    if is_regressor(model):
        return FinalModel(_Predictions(model).eval(), SquaredError())
    classes = getattr(model, "classes_", None)
    if not isinstance(classes, np.ndarray) or classes.ndim != 1:
        raise ValueError(
            f"estimator {type(model).__name__} must be a classifier of one label a row; fit one for "
            "each label."
        )
    has_probabilities = hasattr(model, "predict_proba")
    loss = ProbabilityNLL(float(np.finfo(float).eps)) if has_probabilities else ZeroOneLoss()
    return FinalModel(_Predictions(model, classes).eval(), loss, classes=classes)


def refit_outputs(
    model: FinalModel, refitted: Any, X: Tensor, y: NDArray[Any], X_train: NDArray[Any]
) -> Tensor:
    """Outputs (n, C) of a refitted estimator in float64, as those of the whole data's `model`.

    Raises
    ------
    ValueError
        If they are others, since a class has no row among those of the refit.
    """
    if isinstance(model.module, _Predictions):
        return FinalModel(_Predictions(refitted, model.classes).eval(), model.loss).outputs(X)
    if model.classes is not None:
        missing = np.setdiff1d(model.classes, refitted.classes_)
        if missing.size:
            raise ValueError(f"its rows have none of class {missing[0]}")
    own = as_final_model(refitted, X_train, y).double
    return own.outputs(X.to(own.dtype))


class ZeroOneLoss(FlatRowLoss):
    """One where the target class is not the predicted one, else zero."""

    kind: OutputKind = "probabilities"

    def _rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 1 - outputs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


class _Predictions(nn.Module):
    """Predictions of a fitted estimator (n, C); it has one empty parameter, to have a dtype."""

    def __init__(self, estimator: Any, classes: NDArray[Any] | None = None):
        super().__init__()
        self.nothing = nn.Parameter(torch.empty(0, dtype=torch.float64))
        self.estimator = unwrap(estimator)
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        rows = x.detach().cpu().numpy()
        if self.classes is None:
            predicted = np.asarray(self.estimator.predict(rows), dtype=float)
            return torch.from_numpy(predicted.reshape(len(rows), -1))
        if not hasattr(self.estimator, "predict_proba"):
            hits = self.estimator.predict(rows)[:, None] == self.classes
            return torch.from_numpy(hits.astype(float))
        found = np.zeros((len(rows), len(self.classes)))
        place = np.searchsorted(self.classes, self.estimator.classes_)
        found[:, place] = self.estimator.predict_proba(rows)
        return torch.from_numpy(found)
