"""From a user's model to a `FinalModel`. Only this package knows skorch and scikit-learn's models."""

from .answers import Answers, asked, check_answers, does_not_fit
from .closed_forms import (
    LeastSquaresForm,
    LogisticForm,
    NeighboursForm,
    closed_form,
    default_neighbours,
)
from .continuing import Continuing, OwnRows
from .first_run import check_ids, check_shapes
from .going_on import continued, how_to_continue, with_rounds_held
from .mlp import default_estimator, default_linear_model, is_class_target
from .models import (
    as_final_model,
    as_tree_model,
    check_columns,
    check_fitted,
    continues_itself,
    fits_itself,
    initial_parameters,
    is_fitted,
    is_network,
    own_training,
    refuse_trees,
    require_dense_rows,
    takes_several_inputs,
    takes_sparse_rows,
    training_epochs,
    trees_of,
    warn_of_rows,
)
from .randomness import is_random
from .recorder import TrajectoryRecorder, recorded_trajectory
from .refits import (
    draws,
    fit_anew,
    fit_with,
    learns_before,
    part_to_refit,
    refit,
    takes_pairs,
    trained_in_stacks,
    unfitted,
    weights_name,
)
from .refitted_outputs import RefittableModel, as_refittable, refit_outputs
from .rows_of_training import training_rows
from .scikit_boosting import default_trees
from .scikit_forests import default_forest
from .wrappers import (
    caveats,
    has_earlier_steps,
    last_step,
    transform_rows,
    transform_targets,
    transforms,
)

__all__ = [
    "Answers",
    "Continuing",
    "LeastSquaresForm",
    "LogisticForm",
    "NeighboursForm",
    "OwnRows",
    "RefittableModel",
    "TrajectoryRecorder",
    "as_final_model",
    "as_refittable",
    "as_tree_model",
    "asked",
    "caveats",
    "check_answers",
    "check_columns",
    "check_fitted",
    "check_ids",
    "check_shapes",
    "closed_form",
    "continued",
    "continues_itself",
    "default_estimator",
    "default_forest",
    "default_linear_model",
    "default_neighbours",
    "default_trees",
    "does_not_fit",
    "draws",
    "fit_anew",
    "fit_with",
    "fits_itself",
    "has_earlier_steps",
    "how_to_continue",
    "initial_parameters",
    "is_class_target",
    "is_fitted",
    "is_network",
    "is_random",
    "last_step",
    "learns_before",
    "own_training",
    "part_to_refit",
    "recorded_trajectory",
    "refit",
    "refit_outputs",
    "refuse_trees",
    "require_dense_rows",
    "takes_pairs",
    "takes_several_inputs",
    "takes_sparse_rows",
    "trained_in_stacks",
    "training_epochs",
    "training_rows",
    "transform_rows",
    "transform_targets",
    "transforms",
    "trees_of",
    "unfitted",
    "warn_of_rows",
    "weights_name",
    "with_rounds_held",
]
