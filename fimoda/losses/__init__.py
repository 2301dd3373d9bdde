"""Per-row losses: the training criterion, and all that follows from it for one row.

Outputs always have a last axis of length C (one number per output) and any leading axes, and targets
have the same leading axes. A stack of L models on B rows is therefore just outputs of shape
(L, B, C) with targets of shape (L, B) or (L, B, C), expanded where the models share their rows.
"""

from .base import RowLoss
from .classification import (
    BinaryCrossEntropy,
    BinaryProbabilityNLL,
    CrossEntropy,
    HingeLoss,
    LogProbabilityNLL,
    OneVsRestCrossEntropy,
    ProbabilityNLL,
    SmoothedCrossEntropy,
    ZeroOneLoss,
)
from .criteria import (
    TorchCriterion,
    class_weight_of,
    has_positions,
    is_torchs_own,
    pairs_all_rows,
    positions_loss,
    row_loss,
)
from .positions import OfPositions
from .regression import SquaredError

__all__ = [
    "BinaryCrossEntropy",
    "BinaryProbabilityNLL",
    "CrossEntropy",
    "HingeLoss",
    "LogProbabilityNLL",
    "OfPositions",
    "OneVsRestCrossEntropy",
    "ProbabilityNLL",
    "RowLoss",
    "SmoothedCrossEntropy",
    "SquaredError",
    "TorchCriterion",
    "ZeroOneLoss",
    "class_weight_of",
    "has_positions",
    "is_torchs_own",
    "pairs_all_rows",
    "positions_loss",
    "row_loss",
]
