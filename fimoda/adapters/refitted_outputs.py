"""The predictions of estimators that are fitted again as outputs, and their loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import is_classifier, is_regressor
from torch import Tensor, nn

from .._arrays import check_rows, of_each
from ..losses import HingeLoss, ProbabilityNLL, SquaredError, ZeroOneLoss
from ..model import FinalModel
from ..rows import RawRows
from .models import (
    as_tree_model,
    check_columns,
    frozen_view,
    kind_of,
)
from .own_predictions import some_rows
from .tree_kinds import BoostingKind
from .wrappers import caveats, last_step, transform_rows

#: Name of rows as a model at the end of a Pipeline sees them.
_SEEN = "X after the Pipeline's earlier steps"

#: Entries of a sparse matrix that are made dense at a time.
_ENTRIES = 2**22


@dataclass(frozen=True, eq=False)
class RefittableModel(FinalModel):
    """The outputs and the loss of an estimator that is fitted again; it has no parameters.

    Rows stay as they are, until the estimator gets them.
    """

    def encode_X(self, X: Any) -> Any:
        """Return the rows, as the estimator takes them."""
        return X if isinstance(X, RawRows) else RawRows(X)

    def require_predictable(self, X: RawRows) -> None:
        """Raise whatever the estimator raises where it cannot predict rows."""
        module: Any = self.module
        module.estimator.predict(X.values)

    def outputs(
        self, X: Tensor | RawRows, theta: Tensor | None = None, chunk_size: int = 8192
    ) -> Tensor:
        """Return outputs (n, C) in float64, a chunk of rows at a time."""
        with torch.no_grad():
            return torch.cat([self.module(rows) for rows in self.encode_X(X).split(chunk_size)])


def as_refittable(estimator: Any, X: RawRows, y: NDArray[Any]) -> RefittableModel:
    """Return the outputs of a fitted estimator and their loss, from its training rows and targets.

    They are those of its `FinalModel`, of rows that have passed the estimator's own earlier steps, or raw
    scores of boosted trees. If it has neither, the outputs are class probabilities (the loss is the
    log-loss), values of its decision function where it has no probabilities (the hinge loss), predicted
    classes where it has neither (the loss is 0 or 1), or predictions (the
    loss is the squared error, summed over the outputs). Where a training row has a class of probability 0,
    probabilities are counts of rows, and smoothed in the loss, ``log_prob`` and ``margin``
    (`ProbabilityNLL`).
    """
    try:
        check_columns(estimator, X.values)
        if isinstance(kind_of(estimator), BoostingKind) and hasattr(estimator, "fit"):
            return _of_boosting(estimator, X, y)
        known = _final_model(estimator, X, y)
        kind_of(estimator).check_predictions(known, _seen(estimator, X[some_rows(len(X))]))
        known = known.double
    except (TypeError, ValueError):
        no_estimator = not hasattr(estimator, "fit")
        if no_estimator or not (is_classifier(estimator) or is_regressor(estimator)):
            raise
    else:
        return RefittableModel(
            _OfFinalModel(estimator, known).eval(),
            known.loss,
            classes=known.classes,
            class_weight=known.class_weight,
            threshold=known.threshold,
        )
    if is_regressor(estimator):
        return RefittableModel(_Predictions(estimator).eval(), SquaredError(over_outputs="sum"))
    classes = getattr(estimator, "classes_", None)
    if not isinstance(classes, np.ndarray) or classes.ndim != 1:
        raise ValueError(
            f"estimator {type(estimator).__name__} must be a classifier of one label a row; fit one "
            "for each label."
        )
    predictions = _Predictions(estimator, classes).eval()
    if not hasattr(estimator, "predict_proba"):
        if _decides_by_class(estimator, X[:1], classes):
            decisions = _Decisions(estimator, classes).eval()
            return RefittableModel(decisions, HingeLoss(), classes=classes)
        return RefittableModel(predictions, ZeroOneLoss(), classes=classes)
    are_counts = bool((predictions(X) == 0).any())
    loss = ProbabilityNLL(float(np.finfo(float).eps), n_rows=len(X) if are_counts else None)
    return RefittableModel(predictions, loss, classes=classes)


def _of_boosting(estimator: Any, X: RawRows, y: NDArray[Any]) -> RefittableModel:
    """Return the raw scores of boosted trees, with the loss that they were grown by."""
    if found := caveats(estimator):
        raise TypeError(f"the model inside is not all of the estimator: {found[0]}")
    view = as_tree_model(estimator, transform_rows(estimator, X.values), y)
    scores = _RawScores(estimator, view.classes).eval()
    return RefittableModel(scores, view.loss, classes=view.classes, class_weight=view.class_weight)


def refit_outputs(model: RefittableModel, refitted: Any, X: Any, y: NDArray[Any]) -> Tensor:
    """Return outputs (n, C) of a refitted estimator in float64, as those of the whole data's `model`."""
    own: Any = model.module
    module = own.again(refitted, model.encode_X(X), y)
    return RefittableModel(module.eval(), model.loss).outputs(X)


def _final_model(estimator: Any, X: RawRows, y: NDArray[Any]) -> FinalModel:
    """Return the frozen view of an estimator, for its outputs only."""
    if found := caveats(estimator):
        raise TypeError(f"the model inside is not all of the estimator: {found[0]}")
    one = _seen(estimator, X[:1])
    # penalties, which depend on all rows, play no role in outputs
    rows = of_each(lambda part: np.broadcast_to(part, (len(y), *part.shape[1:])), one)
    return frozen_view(estimator, rows, y)


def _seen(estimator: Any, X: RawRows) -> NDArray[Any]:
    """Return rows as the model inside sees them."""
    return check_rows(RawRows(transform_rows(estimator, X.values)).dense(), _SEEN)


class _Outputs(nn.Module):
    """Outputs of a fitted estimator (n, C); it has one empty parameter, to have a dtype."""

    def __init__(self, estimator: Any):
        super().__init__()
        self.nothing = nn.Parameter(torch.empty(0, dtype=torch.float64))
        self.estimator = estimator


class _OfFinalModel(_Outputs):
    """Those of its `FinalModel`."""

    def __init__(self, estimator: Any, final_model: FinalModel):
        super().__init__(estimator)
        self.final_model = final_model

    def again(self, refitted: Any, X: RawRows, y: NDArray[Any]) -> _OfFinalModel:
        """Return those of a refit; ValueError if a class has no row among those of the refit."""
        _require_classes(refitted, self.final_model.classes)
        return _OfFinalModel(refitted, _final_model(refitted, X, y).double)

    def forward(self, rows: RawRows) -> Tensor:
        seen = RawRows(transform_rows(self.estimator, rows.values))
        width = np.prod(getattr(seen.values, "shape", (1,))[1:])
        parts = seen.split(max(1, int(_ENTRIES // max(width, 1))))
        return torch.cat([self._of_part(check_rows(part.dense(), _SEEN)) for part in parts])

    def _of_part(self, seen: NDArray[Any]) -> Tensor:
        return self.final_model.outputs(self.final_model.encode_X(seen)).double().cpu()


class _RawScores(_Outputs):
    """Raw scores of boosted trees."""

    def __init__(self, estimator: Any, classes: NDArray[Any] | None):
        super().__init__(estimator)
        self.classes = classes

    def again(self, refitted: Any, X: RawRows, y: NDArray[Any]) -> _RawScores:
        """Return those of a refit; ValueError if a class has no row among those of the refit."""
        _require_classes(refitted, self.classes)
        return _RawScores(refitted, self.classes)

    def forward(self, rows: RawRows) -> Tensor:
        kind: Any = kind_of(self.estimator)
        found = kind.raw_scores(transform_rows(self.estimator, rows.values))
        return torch.from_numpy(np.array(found, dtype=np.float64).reshape(len(rows), -1))


def _require_classes(refitted: Any, classes: NDArray[Any] | None) -> None:
    """Raise ValueError if a class has no row among those that an estimator was fitted on again."""
    if classes is None:
        return
    missing = np.setdiff1d(classes, refitted.classes_)
    if missing.size:
        raise ValueError(f"its rows have none of class {missing[0]}")


def _decides_by_class(estimator: Any, X: RawRows, classes: NDArray[Any]) -> bool:
    """Return whether there is a value of a decision function for each class, or one for two."""
    pairs = getattr(last_step(estimator), "decision_function_shape", "ovr") == "ovo"
    if pairs or not hasattr(estimator, "decision_function"):
        return False
    n_values = np.asarray(estimator.decision_function(X.values)).size
    return n_values == (1 if len(classes) == 2 else len(classes))


class _Decisions(_Outputs):
    """Values of a decision function, one for each class; of two, whose value is one, -f and f."""

    def __init__(self, estimator: Any, classes: NDArray[Any]):
        super().__init__(estimator)
        self.classes = classes

    def again(self, refitted: Any, X: RawRows, y: NDArray[Any]) -> _Decisions:
        """Return those of a refit; ValueError if a class has no row among those of the refit."""
        _require_classes(refitted, self.classes)
        return _Decisions(refitted, self.classes)

    def forward(self, rows: RawRows) -> Tensor:
        found = np.asarray(self.estimator.decision_function(rows.values), dtype=np.float64)
        if found.ndim == 1:
            found = np.stack([-found, found], axis=1)
        return torch.from_numpy(found)


class _Predictions(_Outputs):
    """Probabilities, predicted classes or predictions."""

    def __init__(self, estimator: Any, classes: NDArray[Any] | None = None):
        super().__init__(estimator)
        self.classes = classes

    def again(self, refitted: Any, X: RawRows, y: NDArray[Any]) -> _Predictions:
        """Return those of a refit."""
        return _Predictions(refitted, self.classes)

    def forward(self, rows: RawRows) -> Tensor:
        if self.classes is None:
            predicted = np.asarray(self.estimator.predict(rows.values), dtype=float)
            return torch.from_numpy(predicted.reshape(len(rows), -1))
        if not hasattr(self.estimator, "predict_proba"):
            predicted = np.asarray(self.estimator.predict(rows.values)).reshape(-1, 1)
            return torch.from_numpy((predicted == self.classes).astype(float))
        found = np.zeros((len(rows), len(self.classes)))
        place = np.searchsorted(self.classes, self.estimator.classes_)
        found[:, place] = self.estimator.predict_proba(rows.values)
        return torch.from_numpy(found)
