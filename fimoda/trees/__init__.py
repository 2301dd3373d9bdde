"""Trees by their leaves: those that rows fall into, their values, and the run of boosting that made them."""

from .adjoint import row_derivatives
from .ensemble import Boosting, Tree, TreeEnsemble
from .forest import Branches, Forest, ForestRows
from .landmarks import Landmarks
from .leaf_methods import CoupledSoftmax, FirstOrder
from .leaf_sums import LeafSums
from .losses import BoostingLoss, Logistic, Quantile, Softmax, Squared, Tweedie
from .model import TreeModel
from .run import CACHED, BoostingRun
from .splits import Splits

__all__ = [
    "CACHED",
    "Boosting",
    "BoostingLoss",
    "BoostingRun",
    "Branches",
    "CoupledSoftmax",
    "FirstOrder",
    "Forest",
    "ForestRows",
    "Landmarks",
    "LeafSums",
    "Logistic",
    "Quantile",
    "Softmax",
    "Splits",
    "Squared",
    "Tree",
    "TreeEnsemble",
    "TreeModel",
    "Tweedie",
    "row_derivatives",
]
