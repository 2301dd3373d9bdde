"""Models with gradients: networks and linear models, of which the last step of a Pipeline is frozen."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from torch import nn

from ..adapters import as_final_model, refuse_trees
from ..model import FinalModel
from .view import View


class GradientView(View):
    """A model seen by its parameters, with gradients of its rows."""

    def freeze(
        self,
        X: Any,
        y: NDArray[Any],
        sample_weight: NDArray[Any] | None,
        criterion: nn.Module | None,
    ) -> FinalModel:
        return as_final_model(
            self.estimator, X, y, sample_weight=sample_weight, criterion=criterion
        )

    def rows(self, X: Any, y: NDArray[Any] | None = None) -> Any:
        refuse_trees(self.estimator)
        return self._transformed(X, y)
