"""Acting on scores: estimators that leave out rows that hurt, and find mislabelled ones."""

from .mislabels import MislabelDetector
from .pruning import InfluencePruner, PrunedClassifier, PrunedRegressor

__all__ = ["InfluencePruner", "MislabelDetector", "PrunedClassifier", "PrunedRegressor"]
