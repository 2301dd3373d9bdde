"""The method that suits a model of trees, where none is asked for."""

from __future__ import annotations

from typing import Any

from ..adapters import trees_of
from ..base import BaseAttributor
from .leaf_influence import LeafInfluence
from .leaf_kernel import LeafKernel


def method_of_trees(estimator: Any) -> BaseAttributor | None:
    """Return the method for a model of trees, without its estimator; None for other models."""
    ways = {"boosted": LeafInfluence, "apart": LeafKernel, None: None}
    found = ways[trees_of(estimator)]
    return None if found is None else found()
