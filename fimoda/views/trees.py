"""Ensembles of trees, of which splits and leaves are frozen."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from torch import nn

from .._arrays import n_rows
from ..adapters import as_tree_model, default_trees
from ..rows import RawRows
from ..trees import TreeModel
from .view import View


class TreeView(View):
    """A model of trees seen by its leaves; rows stay as its library takes them."""

    @staticmethod
    def default(y: NDArray[Any], random_state: Any) -> Any:
        return default_trees(y, random_state)

    @property
    def leaves_rows(self) -> bool:
        return True

    def freeze(
        self,
        X: Any,
        y: NDArray[Any],
        sample_weight: NDArray[Any] | None,
        criterion: nn.Module | None,
    ) -> TreeModel:
        if len(X) < 2:
            raise ValueError("X must have at least 2 rows to leave one out, got n_samples = 1.")
        return as_tree_model(self.estimator, X.values, y, sample_weight, criterion=criterion)

    def rows(self, X: Any, y: NDArray[Any] | None = None) -> Any:
        if not n_rows(X):  # some libraries predict of none
            raise ValueError("X must have at least one row, got none.")
        return RawRows(self._transformed(X, y))
