"""Methods that say what further training would do, at one or several horizons."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .._validation import POSITIVE_INTEGER, check_horizons, check_is_fitted
from ..row_gradients import Measure
from ._further_training import BaseFurtherTraining


class BaseHorizons(BaseFurtherTraining):
    """Base of the approximations of further training that score all horizons in one go.

    A subclass implements `_horizon_scores`. `transform` gives the last horizon.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseFurtherTraining._parameter_constraints,
        "n_epochs": [POSITIVE_INTEGER, "array-like"],
    }

    @abstractmethod
    def _horizon_scores(
        self, X: Tensor, y: Tensor, measure: Measure, horizons: list[int]
    ) -> NDArray[np.float64]:
        """Hook: scores (n_horizons, n_test, n_columns)."""

    def _check_horizons(self) -> list[int]:
        return check_horizons(self.n_epochs, "n_epochs")

    def transform_horizons(self, X: Any, y: Any = None) -> NDArray[np.float64]:
        """Scores at every horizon of `n_epochs`.

        Parameters
        ----------
        X : array-like of shape (n_test, n_features)
            Test rows.
        y : array-like of shape (n_test,), default=None
            Their targets, as in `transform`.

        Returns
        -------
        S : ndarray of shape (n_horizons, n_test, n_columns)
            ``S[k]`` belongs to ``horizons_[k]``; the last is what `transform` gives.
        """
        check_is_fitted(self, "model_")
        rows, targets, measure = self._test_tensors(X, y)
        return self._finite(self._horizon_scores(rows, targets, measure, self.horizons_))

    def _scores(self, X: Tensor, y: Tensor, measure: Measure) -> NDArray[np.float64]:
        return self._horizon_scores(X, y, measure, self.horizons_[-1:])[0]
