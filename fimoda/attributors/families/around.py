"""Methods around another method, which says how a model without gradients is seen."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ...adapters import continues_itself, last_step
from ...base import BaseAttributor
from ...model import FinalModel
from ...rows import RawRows
from ...training.ensemble import Ensemble
from ...trajectory import Trajectory
from ...views import GradientView, TreeView, View

if TYPE_CHECKING:
    _Attributor = BaseAttributor
else:
    _Attributor = object


@dataclass(frozen=True, eq=False)
class InnerView(View):
    """The last step of a Pipeline, as an inner method sees it; rows stay as this step takes them."""

    inner: Callable[[Any], BaseAttributor]

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
        model = last_step(self.estimator)
        view = self.inner(model)._view(model)
        rows = X if view.leaves_rows else X.values  # then it says what it does not take
        return view.freeze(rows, y, sample_weight, criterion)

    def rows(self, X: Any, y: NDArray[Any] | None = None) -> Any:
        return RawRows(self._transformed(X, y))


class AroundMixin(_Attributor):
    """Mixin of methods around another one, fitted to the rows that the last step of a Pipeline sees.

    A model with gradients has its frozen view of them. That of other models is the inner method's, and
    rows stay as they are: trees for methods of trees, predictions for those that fit or train it again.
    """

    _keeps_rows = True

    @abstractmethod
    def _inner(self, estimator: Any) -> BaseAttributor:
        """Hook of `fit`: the method inside for a model, unfitted."""

    def _default(self, y: NDArray[Any]) -> Any:
        inner = self._inner(None)
        return inner._default(y) if inner._sees is TreeView else super()._default(y)

    def _view(self, estimator: Any) -> View:
        if continues_itself(estimator):
            return InnerView(estimator, self._inner)
        return GradientView(estimator)

    @property
    def _model_given(self) -> Any:
        """The estimator, or the first of several models where there is none."""
        several = getattr(self, "models", None)
        if self.estimator is None and several is not None:
            return models_and_runs(several)[0][0]
        return self.estimator

    @property
    def _rows_of_last_step(self) -> tuple[Any, NDArray[Any], NDArray[np.float64] | None]:
        """Training rows, targets and weights as the last step of a Pipeline takes them."""
        X, y, sample_weight = self._seen_rows
        return X.values if isinstance(X, RawRows) else X, y, sample_weight


def models_and_runs(given: Ensemble | Sequence[Any]) -> tuple[list[Any], list[Trajectory | None]]:
    """Return the models, and their trajectories as far as they are not their own."""
    runs = given.trajectories if isinstance(given, Ensemble) else []
    models = list(given.models if isinstance(given, Ensemble) else given)
    if not models:
        raise ValueError("models must hold at least one fitted model, got none.")
    return models, list(runs) or [None] * len(models)
