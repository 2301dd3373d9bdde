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
    check_ids,
    check_shapes,
    fit_with,
    is_fitted,
    last_step,
    warn_of_rows,
)
from .checked_rows import checked_rows, require_same_inputs, require_squares, seen_rows
from .measured import Measure, Measured
from .measurements import Measurement
from .model import DEFAULT_BUDGET, FinalModel
from .objective import Objective
from .rows import Inputs, RawRows, Rows
from .views import GradientView, View


class Preparation:
    """The part of an attributor that freezes the model and encodes rows, as its `View` of the model says."""

    #: Whether a recorded run tells which rows were trained on, and how often.
    _knows_rows: ClassVar[bool] = False

    #: The way to see any model, unless `_view` looks at the model first.
    _sees: ClassVar[type[View]] = GradientView

    #: Whether rows are kept as the model sees them, also of models with gradients.
    _keeps_rows: ClassVar[bool] = False

    estimator: Any
    measurement: Measurement
    criterion: nn.Module | None
    random_state: Any

    estimator_: Any
    model_: FinalModel
    n_outputs_: int
    _objective: Objective
    _measure: Measure
    _sample_weight: NDArray[np.float64] | None
    _seen_rows: tuple[Any, NDArray[Any], NDArray[np.float64] | None]
    _row_names: Any
    _row_texts: list[str] | None
    _seen: dict[str, Any]  # by the last call of `transform`

    def _prepare(self, X: Any, y: Any, sample_weight: ArrayLike | None) -> None:
        """Freeze the model and encode the training rows."""
        self._seen = {}
        estimator = self._model_given
        fitted = estimator is not None and is_fitted(estimator)
        raw = estimator is not None and self._view(estimator).leaves_rows
        rows = checked_rows(self, X, reset=True, raw=raw)
        y = check_targets(y, n_rows(rows))
        weights = check_weights(sample_weight, np.zeros((n_rows(rows), 1)))
        self._sample_weight = weights
        if fitted:
            self.estimator_ = estimator
        else:
            model = self._default(y) if estimator is None else clone(estimator)
            self.estimator_ = fit_with(model, X, y, weights)
        view = self._view(self.estimator_)
        seen, y = self._model_rows(view, rows, y), view.targets(y)
        view.check_columns(X if hasattr(X, "columns") else rows)
        if self._keeps_rows or isinstance(seen, RawRows):
            self._seen_rows = (seen, y, weights)
        if not (self._knows_rows or isinstance(seen, RawRows)):
            warn_of_rows(last_step(self.estimator_), n_rows(seen), weights is not None)
        self.model_ = view.freeze(seen, y, weights, self.criterion)
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
        view.check_measure(self._objective, self.measurement, self._measure)

    @property
    def _model_given(self) -> Any:
        """The model that is attributed to, fitted or not; None stands for a default."""
        return self.estimator

    @property
    def _own(self) -> Measured:
        """The training rows, with what is attributed measured of them."""
        return Measured(self._objective.rows, self._measure)

    def _default(self, y: NDArray[Any]) -> Any:
        """Hook of `fit`: the unfitted model that ``estimator=None`` stands for."""
        return self._sees.default(y, self.random_state)

    def _view(self, estimator: Any) -> View:
        """Hook: how the method sees a model, fitted or not; where it depends on the model."""
        return self._sees(estimator)

    def _model_rows(self, view: View, X: Any, y: NDArray[Any] | None = None) -> Any:
        """Return rows as the frozen model sees them; with their targets `y` they are the training rows."""
        seen = view.rows(X, y)
        if isinstance(seen, RawRows):
            return seen
        return seen_rows(self.estimator_, seen, getattr(self, "memory_budget", 0))

    def _model_targets(self, y: NDArray[Any]) -> NDArray[Any]:
        """Return targets as the model itself is fitted on them."""
        return self._view(self.estimator_).targets(y)

    def _check_inputs(self, inputs: Inputs) -> None:
        """Raise ValueError for test rows that are made otherwise than the training rows, and fail for it."""
        known = self._objective.rows.inputs
        require_same_inputs(known, inputs)
        if not isinstance(inputs, RawRows):
            check_shapes(self.model_, known, inputs)
            check_ids(self.model_, inputs)

    def _test(self, X: Any, y: Any) -> Measured:
        """Return encoded test rows, with the measurement to take on them."""
        view = self._view(self.estimator_)
        view.check_test_rows(self.model_, X)  # the estimator's complaints before those below
        checked = checked_rows(self, X, reset=False, raw=view.leaves_rows)
        inputs = self.model_.encode_X(self._model_rows(view, checked))
        require_squares(inputs)
        self._check_inputs(inputs)
        view.check_columns(X if hasattr(X, "columns") else checked)
        if y is not None:
            targets = view.targets(check_targets(y, n_rows(checked)))
            rows = Rows(inputs, self.model_.encode_y(targets, self.n_outputs_))
            return Measured(rows, self._measure)
        predicted = self.model_.predicted_targets(self.model_.outputs(inputs))
        loss, measure = self.model_.loss, self._measure
        if self.measurement == "loss" and not loss.is_classifier:
            measure = loss.target_output  # a number has no loss at its own prediction
        return Measured(Rows(inputs, predicted), measure)
