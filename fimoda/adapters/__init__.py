"""From a user's model to a `FinalModel`. Only this package knows skorch and scikit-learn's models."""

from .dispatch import as_final_model
from .mlp import default_estimator
from .wrappers import check_fitted, has_earlier_steps, is_fitted, transform_rows, unwrap

__all__ = [
    "as_final_model",
    "check_fitted",
    "default_estimator",
    "has_earlier_steps",
    "is_fitted",
    "transform_rows",
    "unwrap",
]
