"""Training-data attribution for people who work with scikit-learn."""

from .adapters import as_final_model
from .attributors.exact_influence import ExactInfluence
from .attributors.further_training import FurtherTraining
from .attributors.further_training_curve import FurtherTrainingCurve, further_training_curve
from .attributors.grad_cos import GradCos
from .attributors.grad_dot import GradDot
from .base import BaseAttributor, TopRows
from .evaluation.agreement import AgreementCurve, agreement_curve
from .model import FinalModel
from .plotting import AgreementCurveDisplay

__version__ = "0.1.0"

__all__ = [
    "AgreementCurve",
    "AgreementCurveDisplay",
    "BaseAttributor",
    "ExactInfluence",
    "FinalModel",
    "FurtherTraining",
    "FurtherTrainingCurve",
    "GradCos",
    "GradDot",
    "TopRows",
    "agreement_curve",
    "as_final_model",
    "further_training_curve",
]
