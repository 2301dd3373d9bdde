"""Display classes."""

from .agreement import AgreementCurveDisplay
from .lds import LinearDatamodelingScoreDisplay
from .mislabels import MislabelDetectionDisplay
from .outcomes import MeanVarianceDisplay, OutcomeDensityDisplay
from .removal import SubsetRemovalCurveDisplay
from .top_rows import TopRowsDisplay

__all__ = [
    "AgreementCurveDisplay",
    "LinearDatamodelingScoreDisplay",
    "MeanVarianceDisplay",
    "MislabelDetectionDisplay",
    "OutcomeDensityDisplay",
    "SubsetRemovalCurveDisplay",
    "TopRowsDisplay",
]
