"""Views: the ways in which a method sees the user's model and its rows, one a file."""

from .gradients import GradientView
from .predictions import PredictionView, refitted_view
from .trees import TreeView
from .view import View

__all__ = ["GradientView", "PredictionView", "TreeView", "View", "refitted_view"]
