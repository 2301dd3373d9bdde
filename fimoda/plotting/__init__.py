"""Display classes."""

from .agreement import AgreementCurveDisplay
from .lds import LinearDatamodelingScoreDisplay
from .mislabels import MislabelDetectionDisplay
from .removal import SubsetRemovalCurveDisplay
from .top_rows import TopRowsDisplay

__all__ = [
    "AgreementCurveDisplay",
    "LinearDatamodelingScoreDisplay",
    "MislabelDetectionDisplay",
    "SubsetRemovalCurveDisplay",
    "TopRowsDisplay",
]
