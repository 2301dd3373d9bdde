"""Display classes."""

from .agreement import AgreementCurveDisplay
from .lds import LinearDatamodelingScoreDisplay
from .mislabels import MislabelDetectionDisplay
from .outcomes import MeanVarianceDisplay, OutcomeDensityDisplay
from .removal import SubsetRemovalCurveDisplay
from .scores import ScoreMapDisplay, SelfInfluenceDisplay
from .seeds import SeedsNeededDisplay
from .top_rows import TopRowsDisplay

__all__ = [
    "AgreementCurveDisplay",
    "LinearDatamodelingScoreDisplay",
    "MeanVarianceDisplay",
    "MislabelDetectionDisplay",
    "OutcomeDensityDisplay",
    "ScoreMapDisplay",
    "SeedsNeededDisplay",
    "SelfInfluenceDisplay",
    "SubsetRemovalCurveDisplay",
    "TopRowsDisplay",
]
