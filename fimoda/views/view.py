"""`View`: a way to see the user's model, and the rows that go with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from torch import nn

from ..adapters import (
    check_columns,
    default_estimator,
    has_earlier_steps,
    training_rows,
    transform_rows,
    transform_targets,
)
from ..measurements import Measure
from ..model import FinalModel
from ..objective import Objective


@dataclass(frozen=True, eq=False)
class View(ABC):
    """A way to see a model: what is frozen of it, and the rows and targets that this part is given.

    Rows pass the earlier steps of a Pipeline, and targets their transform, unless a view says otherwise.
    """

    estimator: Any

    @staticmethod
    def default(y: NDArray[Any], random_state: Any) -> Any:
        """Return the unfitted model that ``estimator=None`` stands for."""
        return default_estimator(y, random_state)

    @property
    def leaves_rows(self) -> bool:
        """True if rows are left to the estimator's own checks, and may be whatever it takes."""
        return has_earlier_steps(self.estimator)

    @abstractmethod
    def freeze(
        self,
        X: Any,
        y: NDArray[Any],
        sample_weight: NDArray[Any] | None,
        criterion: nn.Module | None,
    ) -> FinalModel:
        """Return the frozen model, from training rows and targets as `rows` and `targets` give them."""

    @abstractmethod
    def rows(self, X: Any, y: NDArray[Any] | None = None) -> Any:
        """Return rows as the frozen model sees them; with their targets they are the training rows."""

    def _transformed(self, X: Any, y: NDArray[Any] | None) -> Any:
        """Return rows behind the earlier steps of a Pipeline."""
        if y is None:
            return transform_rows(self.estimator, X)
        return training_rows(self.estimator, X, y)

    def targets(self, y: NDArray[Any]) -> NDArray[Any]:
        """Return targets as the model itself is fitted on them."""
        return transform_targets(self.estimator, y)

    def check_columns(self, X: Any) -> None:
        """Let the model see whether it knows the columns of X."""
        check_columns(self.estimator, X)

    def check_test_rows(self, model: Any, X: Any) -> None:
        """Raise what the estimator raises where it cannot predict test rows, as the user gave them."""
        return

    def check_measure(self, objective: Objective, measurement: Any, measure: Measure) -> None:
        """Raise ValueError if what is measured is not finite on the training rows."""
        return
