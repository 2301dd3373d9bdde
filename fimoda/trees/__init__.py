"""Trees by their leaves: those that rows fall into, their values, and the run of boosting that made them."""

from .adjoint import row_derivatives
from .changes import Leaving, Relabelled, RowChange, TargetsByOne
from .ensemble import Boosting, Tree, TreeEnsemble
from .forest import Branches, Forest, ForestRows
from .landmarks import Landmarks
from .leaf_methods import CoupledSoftmax, FirstOrder
from .leaf_sums import LeafSums
from .losses import BoostingLoss, Logistic, Quantile, Softmax, Squared, Tweedie
from .member import Member
from .model import TreeModel
from .other_rows import OtherRows
from .raw_scores import differences, slopes
from .ridge import LeafRidge, modes_of
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
    "LeafRidge",
    "LeafSums",
    "Leaving",
    "Logistic",
    "Member",
    "OtherRows",
    "Quantile",
    "Relabelled",
    "RowChange",
    "Softmax",
    "Splits",
    "Squared",
    "TargetsByOne",
    "Tree",
    "TreeEnsemble",
    "TreeModel",
    "Tweedie",
    "differences",
    "modes_of",
    "row_derivatives",
    "slopes",
]
