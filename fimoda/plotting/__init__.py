"""Display classes."""

from .curves import AgreementCurveDisplay, SubsetRemovalCurveDisplay
from .lds import LinearDatamodelingScoreDisplay
from .mislabels import MislabelDetectionDisplay
from .outcomes import MeanVarianceDisplay, OutcomeDensityDisplay
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
