"""Estimators that train by themselves: rows stay as they are, and outputs are predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from ..adapters import as_refittable, part_to_refit, trained_in_stacks
from ..measurements import Measure, values
from ..model import FinalModel
from ..objective import Objective
from ..rows import RawRows
from .gradients import GradientView
from .view import View


def refitted_view(estimator: Any, refit: str) -> View:
    """Return the view of what is trained again: a network alone, or an estimator by its own ``fit``."""
    if trained_in_stacks(estimator, refit):
        return GradientView(estimator)
    return PredictionView(estimator, refit)


@dataclass(frozen=True, eq=False)
class PredictionView(View):
    """An estimator seen by its predictions; `refit` says which part of it is meant (`part_to_refit`)."""

    refit: str = "all"

    @property
    def leaves_rows(self) -> bool:
        return True

    def freeze(
        self,
        X: Any,
        y: NDArray[Any],
        sample_weight: NDArray[Any] | None,
        criterion: nn.Module | None,
    ) -> FinalModel:
        model = as_refittable(part_to_refit(self.estimator, self.refit), X, y)
        model.require_predictable(X)
        return model

    def rows(self, X: Any, y: NDArray[Any] | None = None) -> Any:
        return RawRows(self._transformed(X, y) if self.refit == "last" else X)

    def targets(self, y: NDArray[Any]) -> NDArray[Any]:
        return super().targets(y) if self.refit == "last" else y

    def check_columns(self, X: Any) -> None:
        """Leave it to the estimator, which is asked to predict, whatever it overrides."""

    def check_test_rows(self, model: Any, X: Any) -> None:
        model.require_predictable(self.rows(X))

    def check_measure(self, objective: Objective, measurement: Any, measure: Measure) -> None:
        if callable(measurement) or not objective.model.loss.is_classifier:
            return
        if not torch.isfinite(values(measure, objective.outputs, objective.rows.targets)).all():
            raise ValueError(
                f"measurement={measurement!r} is not finite where a class has the probability 0 or "
                f"1, as {type(self.estimator).__name__} gives. Use measurement='loss' or 'output'."
            )
