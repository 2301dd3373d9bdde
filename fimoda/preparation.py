"""From what a user gives to a model and rows: the estimator, X, y and weights of `fit` and `transform`."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from torch import nn

from . import measurements
from ._arrays import n_rows, texts
from ._validation import check_targets, check_weights
from .adapters import (
    as_final_model,
    check_columns,
    check_ids,
    check_shapes,
    default_estimator,
    fit_with,
    has_earlier_steps,
    is_fitted,
    last_step,
    refuse_trees,
    training_rows,
    transform_rows,
    transform_targets,
    warn_of_rows,
)
from .checked_rows import checked_rows, require_same_inputs, require_squares, seen_rows
from .measured import Measure, Measured
from .measurements import Measurement
from .model import DEFAULT_BUDGET, FinalModel
from .objective import Objective
from .rows import Inputs, RawRows, Rows


class Preparation:
    """The part of an attributor that freezes the model and encodes rows; its methods are hooks."""

    #: Whether a recorded run tells which rows were trained on, and how often.
    _knows_rows: ClassVar[bool] = False

    estimator: Any
    measurement: Measurement
    criterion: nn.Module | None
    random_state: Any

    estimator_: Any
    model_: FinalModel
    n_outputs_: int
    _objective: Objective
    _measure: Measure
    _row_names: Any
    _row_texts: list[str] | None
    _seen: dict[str, Any]  # by the last call of `transform`

    def _prepare(self, X: Any, y: Any, sample_weight: ArrayLike | None) -> None:
        """Freeze the model and encode the training rows."""
        self._seen = {}
        estimator = self.estimator
        fitted = estimator is not None and is_fitted(estimator)
        raw = estimator is not None and self._leaves_rows(estimator)
        rows = checked_rows(self, X, reset=True, raw=raw)
        y = check_targets(y, n_rows(rows))
        weights = check_weights(sample_weight, np.zeros((n_rows(rows), 1)))
        if fitted:
            self.estimator_ = estimator
        else:
            model = self._default(y) if estimator is None else clone(estimator)
            self.estimator_ = fit_with(model, X, y, weights)
        seen, y = self._model_rows(rows, y), self._model_targets(y)
        self._check_columns(X if hasattr(X, "columns") else rows)
        self.model_ = self._freeze(seen, y, weights)
        inputs = self.model_.encode_X(seen)
        require_squares(inputs)
        outputs = self.model_.outputs(inputs[:2])
        self.n_outputs_ = outputs.shape[1]
        targets = self.model_.encode_y(y, self.n_outputs_)
        given = None if weights is None else torch.tensor(weights)
        self._objective = Objective(
            self.model_,
            Rows(inputs, targets, self.model_.row_weights(targets, given)),
            memory_budget=getattr(self, "memory_budget", DEFAULT_BUDGET),
            chunk_size=getattr(self, "chunk_size", None),
        )
        self._row_names = X.index if hasattr(X, "iloc") else None
        self._row_texts = texts(X)
        self._measure = measurements.resolve(self.measurement, self.model_)
        # bad ones show now, not after training
        measurements.require_numbers(self.model_.loss, "the loss", outputs, targets[:2])
        measurements.require_numbers(self._measure, "measurement", outputs, targets[:2])

    @property
    def _own(self) -> Measured:
        """The training rows, with what is attributed measured of them."""
        return Measured(self._objective.rows, self._measure)

    def _default(self, y: NDArray[Any]) -> Any:
        """Hook of `fit`: the unfitted model that ``estimator=None`` stands for."""
        return default_estimator(y, self.random_state)

    def _takes_own_rows(self, estimator: Any) -> bool:
        """Hook: whether the model is left its rows as they are, of which it has no gradients."""
        return False

    def _leaves_rows(self, estimator: Any) -> bool:
        """Hook of `fit` and `transform`: whether rows are left to the estimator's own checks."""
        return has_earlier_steps(estimator) or self._takes_own_rows(estimator)

    def _hands_on_rows(self, estimator: Any) -> bool:
        """Hook of the tags: whether the rows may be whatever the estimator takes."""
        return self._takes_own_rows(estimator)

    def _freeze(
        self, X: Any, y: NDArray[Any], sample_weight: NDArray[np.float64] | None
    ) -> FinalModel:
        """Hook of `fit`: the frozen view of ``estimator_``, from rows as the model sees them."""
        if not self._knows_rows:
            warn_of_rows(last_step(self.estimator_), n_rows(X), sample_weight is not None)
        return as_final_model(
            self.estimator_, X, y, sample_weight=sample_weight, criterion=self.criterion
        )

    def _model_rows(self, X: Any, y: NDArray[Any] | None = None) -> Any:
        """Hook of `fit` and `transform`: rows as the last step of a Pipeline sees them.

        With their targets `y` they are the training rows.
        """
        if self._takes_own_rows(self.estimator_):
            return RawRows(self._seen_by_model(X, y))
        refuse_trees(self.estimator_)
        seen = self._seen_by_model(X, y)
        return seen_rows(self.estimator_, seen, getattr(self, "memory_budget", 0))

    def _seen_by_model(self, X: Any, y: NDArray[Any] | None) -> Any:
        """Return rows after the earlier steps of a Pipeline; with targets they are the training rows."""
        if y is None:
            return transform_rows(self.estimator_, X)
        return training_rows(self.estimator_, X, y)

    def _check_columns(self, X: Any) -> None:
        """Hook of `fit` and `transform`: let the model see whether it knows the columns."""
        check_columns(self.estimator_, X)

    def _model_targets(self, y: NDArray[Any]) -> NDArray[Any]:
        """Hook of `fit` and `transform`: targets as the model itself is fitted on them."""
        return transform_targets(self.estimator_, y)

    def _check_inputs(self, inputs: Inputs) -> None:
        """Raise ValueError for test rows that are made otherwise than the training rows, and fail for it."""
        known = self._objective.rows.inputs
        require_same_inputs(known, inputs)
        if not isinstance(inputs, RawRows):
            check_shapes(self.model_, known, inputs)
            check_ids(self.model_, inputs)

    def _test(self, X: Any, y: Any) -> Measured:
        """Return encoded test rows, with the measurement to take on them."""
        checked = checked_rows(self, X, reset=False, raw=self._leaves_rows(self.estimator_))
        inputs = self.model_.encode_X(self._model_rows(checked))
        require_squares(inputs)
        self._check_inputs(inputs)
        self._check_columns(X if hasattr(X, "columns") else checked)
        if y is not None:
            targets = self._model_targets(check_targets(y, n_rows(checked)))
            rows = Rows(inputs, self.model_.encode_y(targets, self.n_outputs_))
            return Measured(rows, self._measure)
        predicted = self.model_.predicted_targets(self.model_.outputs(inputs))
        loss, measure = self.model_.loss, self._measure
        if self.measurement == "loss" and not loss.is_classifier:
            measure = loss.target_output  # a number has no loss at its own prediction
        return Measured(Rows(inputs, predicted), measure)
