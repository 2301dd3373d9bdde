"""Rows and models of methods that leave a model to its own ``fit``, or take a network's own rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...adapters import (
    RefittableModel,
    as_refittable,
    part_to_refit,
    trained_in_stacks,
)
from ...base import BaseAttributor
from ...measured import Measured
from ...model import FinalModel
from ...training.refits import require_finite


class BaseRefittable(BaseAttributor):
    """Base of the methods that take any estimator: one that is a network alone, or one with its own ``fit``.

    The rows of the latter stay as they are, and its ``model_`` is a `RefittableModel`. `refit` says which
    part of it is meant.
    """

    refit: str

    def _takes_own_rows(self, estimator: Any) -> bool:
        return not trained_in_stacks(estimator, self.refit)

    def _hands_on_rows(self, estimator: Any) -> bool:
        return self._leaves_rows(estimator)

    @property
    def _in_stacks(self) -> bool:
        """True if a network alone is trained again, and no estimator by its own ``fit``."""
        return trained_in_stacks(self.estimator_, self.refit)

    def _seen_by_model(self, X: Any, y: NDArray[Any] | None) -> Any:
        return super()._seen_by_model(X, y) if self._in_stacks or self.refit == "last" else X

    def _check_columns(self, X: Any) -> None:
        if self._in_stacks:  # what is fitted again is asked to predict, whatever it overrides
            super()._check_columns(X)

    def _model_targets(self, y: NDArray[Any]) -> NDArray[Any]:
        return super()._model_targets(y) if self._in_stacks or self.refit == "last" else y

    def _freeze(
        self, X: Any, y: NDArray[Any], sample_weight: NDArray[np.float64] | None
    ) -> FinalModel:
        self._seen_rows = (X, y, sample_weight)
        if self._in_stacks:
            return super()._freeze(X, y, sample_weight)
        self._refuse_settings()
        model = as_refittable(part_to_refit(self.estimator_, self.refit), X, y)
        model.require_predictable(X)
        return model

    def _refuse_settings(self) -> None:
        """Hook of `fit`: raise ValueError if a parameter is for networks alone."""

    def _prepare(self, X: Any, y: Any, sample_weight: Any) -> None:
        super()._prepare(X, y, sample_weight)
        if not self._in_stacks:
            require_finite(self, self._objective, self._measure)

    def _test(self, X: Any, y: Any) -> Measured:
        if isinstance(self.model_, RefittableModel):  # its complaints before those of this class
            self.model_.require_predictable(self._model_rows(X))
        return super()._test(X, y)
