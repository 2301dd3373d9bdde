"""Trees without their splits: leaves of rows, values of leaves, and the run of boosting that made them."""

from .ensemble import Boosting, Tree, TreeEnsemble
from .leaf_methods import CoupledSoftmax, FirstOrder
from .losses import BoostingLoss, Logistic, Quantile, Softmax, Squared, Tweedie
from .model import TreeModel
from .run import CACHED, BoostingRun

__all__ = [
    "CACHED",
    "Boosting",
    "BoostingLoss",
    "BoostingRun",
    "CoupledSoftmax",
    "FirstOrder",
    "Logistic",
    "Quantile",
    "Softmax",
    "Squared",
    "Tree",
    "TreeEnsemble",
    "TreeModel",
    "Tweedie",
]
