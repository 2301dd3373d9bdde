"""Any scikit-learn estimator, fitted again on some of its rows, and its predictions as outputs."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import is_classifier, is_regressor
from sklearn.compose import TransformedTargetRegressor
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags
from torch import Tensor, nn

from .._arrays import check_rows, of_each
from ..losses import ProbabilityNLL, SquaredError, ZeroOneLoss
from ..model import FinalModel
from ..rows import RawRows
from .models import (
    as_tree_model,
    check_columns,
    frozen_view,
    is_network,
    kind_of,
    own_training,
)
from .own_predictions import some_rows
from .tree_kinds import BoostingKind
from .wrappers import caveats, last_step, transform_rows

#: Name of rows as a model at the end of a Pipeline sees them.
_SEEN = "X after the Pipeline's earlier steps"

#: Entries of a sparse matrix that are made dense at a time.
_ENTRIES = 2**22

# ---- what is fitted again -------------------------------------------------------------------


def trained_in_stacks(estimator: Any, refit: str) -> bool:
    """Return whether what is trained again (`part_to_refit`) is a network alone, as a stack can be."""
    if own_training(estimator):
        return False
    if refit != "all":
        return refit == "last" and is_network(estimator)
    estimator = _chosen(estimator)
    while isinstance(estimator, Pipeline):
        if any(_learns(step) for _, step in estimator.steps[:-1]):
            return False
        estimator = estimator[-1]
    return is_network(estimator) and last_step(estimator) is estimator


def part_to_refit(estimator: Any, refit: str) -> Any:
    """Return what is fitted again of a fitted estimator, to be cloned for it.

    With ``refit="all"`` that is all of it, with the parameters that a search has chosen; with
    ``"last"`` its last step; with ``"search"`` all of it and the search again, a ValueError if there
    is none.
    """
    if refit == "last":
        return last_step(estimator)
    if refit == "all":
        return _chosen(estimator)
    part = _thawed(estimator)
    last = _thawed(part.steps[-1][1]) if isinstance(part, Pipeline) else part
    if not is_search(last):
        raise ValueError(
            f"refit='search' is for a search such as GridSearchCV, got {type(part).__name__}. Leave "
            "refit='all' to fit all of it again."
        )
    return part


def is_search(estimator: Any) -> bool:
    """Return whether it is a search for parameters, fitted or not."""
    return isinstance(estimator, BaseSearchCV) or hasattr(estimator, "best_estimator_")


def _thawed(estimator: Any) -> Any:
    """Return the model inside a `FrozenEstimator`."""
    while isinstance(estimator, FrozenEstimator):
        estimator = estimator.estimator
    return estimator


def _chosen(estimator: Any) -> Any:
    """Return the fitted estimator with the parameters that its search, or that of its last step, chose."""
    estimator = _thawed(estimator)
    while hasattr(estimator, "best_estimator_"):
        estimator = _thawed(estimator.best_estimator_)
    if isinstance(estimator, Pipeline):
        name, last = estimator.steps[-1]
        if _chosen(last) is not last:
            return copy.copy(estimator).set_params(**{name: _chosen(last)})
    return estimator


def _learns(step: Any) -> bool:
    """Return whether a step of a Pipeline depends on the rows it is fitted to."""
    if step in (None, "passthrough") or isinstance(step, FrozenEstimator):
        return False
    if hasattr(step, "fast_tokenizer_"):  # a tokenizer of skorch's, which may be trained already
        return not step.fixed_vocabulary_
    return bool(get_tags(step).requires_fit)


def takes_pairs(estimator: Any) -> bool:
    """Return whether X has one column for each training row, as a precomputed kernel does."""
    if isinstance(estimator, TransformedTargetRegressor) and estimator.regressor is not None:
        return takes_pairs(estimator.regressor)
    return bool(get_tags(estimator).input_tags.pairwise)


# ---- outputs --------------------------------------------------------------------------------


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
    log-loss), predicted classes where it has no probabilities (the loss is 0 or 1), or predictions (the
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
