"""Display classes."""

from .agreement import AgreementCurveDisplay
from .lds import LinearDatamodelingScoreDisplay
from .mislabels import MislabelDetectionDisplay
from .removal import SubsetRemovalCurveDisplay

__all__ = [
    "AgreementCurveDisplay",
    "LinearDatamodelingScoreDisplay",
    "MislabelDetectionDisplay",
    "SubsetRemovalCurveDisplay",
]
