"""Methods around another method, which says how a model without gradients is seen."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ...adapters import continues_itself, last_step
from ...base import BaseAttributor
from ...model import FinalModel

if TYPE_CHECKING:
    _Attributor = BaseAttributor
else:
    _Attributor = object


class AroundMixin(_Attributor):
    """Mixin of methods around another one, fitted to the rows that the last step of a Pipeline sees.

    A model with gradients has its frozen view of them. That of other models is the inner method's, and
    rows stay as they are: trees for methods of trees, predictions for those that fit or train it again.
    """

    _seen_rows: tuple[Any, NDArray[Any], NDArray[Any] | None]

    @abstractmethod
    def _inner(self, estimator: Any) -> BaseAttributor:
        """Hook of `fit`: the method inside for a model, unfitted."""

    def _default(self, y: NDArray[Any]) -> Any:
        inner = self._inner(None)
        return inner._default(y) if inner._of_trees else super()._default(y)

    def _takes_own_rows(self, estimator: Any) -> bool:
        return continues_itself(estimator)

    def _freeze(self, X: Any, y: NDArray[Any], sample_weight: NDArray[Any] | None) -> FinalModel:
        if not continues_itself(self.estimator_):
            self._seen_rows = (X, y, sample_weight)
            return super()._freeze(X, y, sample_weight)
        self._seen_rows = (X.values, y, sample_weight)
        model = last_step(self.estimator_)
        inner = self._inner(model).__sklearn_clone__()
        inner.set_params(estimator=model, criterion=self.criterion)
        inner.estimator_ = model
        rows = X if inner._leaves_rows(model) else X.values  # then it says what it does not take
        return inner._freeze(rows, y, sample_weight)
