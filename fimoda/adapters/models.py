"""From a user's model to its kind, and so to a `FinalModel` and all else that is asked of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import NotFittedError
from sklearn.model_selection._search import BaseSearchCV
from torch import Tensor, nn

from .._arrays import n_rows, take_rows
from ..model import FinalModel, unwrapped
from ..rows import RawRows
from ..trees import TreeModel
from .catboost_trees import CatBoost
from .fresh_parameters import kept_beside
from .kinds import Frozen, Kind
from .lightgbm_trees import LightGBM
from .linear_models import SGD, LeastSquares, Logistic
from .mlp import MLP
from .modules import Module
from .own_predictions import some_rows
from .randomness import global_generators
from .scikit_boosting import GradientBoosting, HistGradientBoosting
from .scikit_forests import Forests
from .skorch_nets import Net
from .tree_kinds import told_otherwise
from .wrappers import caveats, last_step, obstacle, transform_rows, unwrap
from .xgboost_trees import XGBoost

Epochs = TypeVar("Epochs", int, float)

#: All kinds; the last one takes everything.
KINDS: tuple[type[Kind], ...] = (
    *(Frozen, Net, Module, MLP, Logistic, LeastSquares, SGD),
    *(HistGradientBoosting, GradientBoosting, XGBoost, LightGBM, CatBoost, Forests),
    Kind,
)


def kind_of(estimator: Any) -> Kind:
    """Return the model inside an estimator, as one of its kind."""
    model = last_step(estimator)
    return next(kind(model) for kind in KINDS if kind.takes(model))


# ---- the frozen view ------------------------------------------------------------------------


def as_final_model(
    estimator: Any,
    X: NDArray[Any] | Tensor,
    y: ArrayLike | None = None,
    *,
    sample_weight: NDArray[Any] | None = None,
    criterion: nn.Module | None = None,
) -> FinalModel:
    """Freeze a fitted model into a `FinalModel`.

    Parameters
    ----------
    estimator : object
        The fitted model, see the user guide for what is supported; a `FinalModel` is itself.
    X : array-like of shape (n_samples, ...)
        Its training rows as the model itself sees them, after the earlier steps of a Pipeline. The
        model is run on some of them, and their number scales penalties given per data set.
    y : array-like of shape (n_samples,), default=None
        Their targets, as the model itself sees them; needed for balanced class weights, and to see
        whether a skorch net's loss has paired every output with every target.
    sample_weight : ndarray of shape (n_samples,), default=None
        Weights of the rows in the training objective.
    criterion : nn.Module, default=None
        Training criterion of a bare ``nn.Module``.

    Returns
    -------
    FinalModel
        A private copy; `estimator` is not changed.

    Raises
    ------
    TypeError, ValueError
        If the model, its criterion or one of its options cannot be attributed, or if it makes
        other predictions of its parameters than the class that it is derived from.
    """
    model = frozen_view(estimator, X, y, sample_weight=sample_weight, criterion=criterion)
    kind_of(estimator).check_predictions(model, take_rows(X, some_rows(n_rows(X))))
    return model


def frozen_view(
    estimator: Any,
    X: NDArray[Any] | Tensor,
    y: ArrayLike | None = None,
    *,
    sample_weight: NDArray[Any] | None = None,
    criterion: nn.Module | None = None,
) -> FinalModel:
    """Return what `as_final_model` does, of a model that is known to predict by its parameters."""
    check_fitted(estimator)
    if reason := obstacle(estimator):
        raise TypeError(reason)
    kind = kind_of(estimator)
    _check_criterion(kind, criterion)
    return kind.frozen(X, y, sample_weight, criterion)


def _check_criterion(kind: Kind, criterion: nn.Module | None) -> None:
    """Raise ValueError if a model that has a criterion of its own is given one."""
    if criterion is not None and not kind.takes_criterion:
        raise ValueError(
            f"criterion is for a bare torch.nn.Module; {type(kind.model).__name__} has its own. "
            "Leave criterion=None."
        )


def as_tree_model(
    estimator: Any,
    X: Any,
    y: Any,
    sample_weight: Any = None,
    *,
    criterion: nn.Module | None = None,
) -> TreeModel:
    """Freeze a fitted tree ensemble into a `TreeModel`.

    Parameters
    ----------
    estimator : object
        The fitted model.
    X, y, sample_weight : array-like
        Its training rows, targets and weights as the model itself sees them.
    criterion : None
        Trees have their own.

    Raises
    ------
    TypeError, ValueError
        If the model is no ensemble of trees, or one of its options cannot be attributed.
    """
    check_fitted(estimator)
    if reason := obstacle(estimator):
        raise TypeError(reason)
    kind = kind_of(estimator)
    model = kind.trees(X, y, sample_weight)
    _check_criterion(kind, criterion)
    kind.check_predictions(model, take_rows(X, some_rows(n_rows(X))))
    return model


def refuse_trees(estimator: Any) -> None:
    """Raise TypeError for a model of trees, which has no gradients, before its rows are looked at."""
    kind = kind_of(estimator)
    if kind.trees_are is not None:
        raise kind.unsupported()


def trees_of(estimator: Any) -> Literal["boosted", "apart"] | None:
    """Return whether trees were grown in rounds or each on its own, and None for models of no trees."""
    return None if estimator is None else kind_of(estimator).trees_are


def is_fitted(estimator: Any) -> bool:
    """Return whether the model itself can be used; earlier steps complain when rows reach them."""
    return kind_of(estimator).is_fitted()


def check_fitted(estimator: Any) -> None:
    """Raise NotFittedError unless the model can be used as it stands."""
    if not is_fitted(estimator):
        raise NotFittedError(
            f"estimator {type(unwrap(estimator)).__name__} is not fitted. Attribution starts from "
            "a final model: call fit on it first."
        )


# ---- its training ---------------------------------------------------------------------------


def is_network(estimator: Any) -> bool:
    """Return whether the model is trained by gradient steps in batches of the rows given."""
    return not obstacle(estimator) and kind_of(estimator).is_network()


def fits_itself(estimator: Any) -> bool:
    """Return whether the model is an estimator with a ``fit`` of its own, and no network of torch's."""
    return kind_of(estimator).fits_itself


def continues_itself(estimator: Any) -> bool:
    """Return whether further training is the model's own continuing, and no steps of an optimiser.

    Of a search or a target transform that is not fitted yet, the answer is that of what it will fit.
    """
    model = last_step(estimator)
    if isinstance(model, BaseSearchCV | TransformedTargetRegressor):
        inner = model.get_params(deep=False)
        inner = inner.get("estimator", inner.get("regressor"))
        return inner is not None and continues_itself(inner)
    return not kind_of(model).goes_on_in_steps()


def own_training(estimator: Any) -> str | None:
    """Return what a stack cannot repeat of the training of a network, if there is such a thing."""
    return kind_of(estimator).own_training()


def training_epochs(estimator: Any, n_epochs: Epochs | None) -> Epochs | int:
    """Return the epochs to train: as given, or those of the network's own training."""
    found = kind_of(estimator).n_epochs() if n_epochs is None else n_epochs
    if found is None:
        raise ValueError(
            "n_epochs must be given for a bare torch.nn.Module, which does not say for how long it "
            "was trained; got None."
        )
    return found


def initial_parameters(
    estimator: Any, model: FinalModel, seed: int, init: Callable[[], nn.Module] | None = None
) -> Tensor:
    """Return the `state` that a network has before training with this seed, as in its view `model`.

    A scikit-learn MLP takes the seed as its ``random_state``; for others it is torch's. `init` makes a new
    module. By default a skorch net is initialised again, and a bare module's parts ``reset_parameters``.
    """
    if (buffer := kept_beside(model.module)) is not None:
        raise ValueError(
            "estimator cannot be trained from scratch as a stack: a spectral norm or an orthogonal "
            f"parametrisation keeps its start in a buffer ({buffer}), beside the parameters. Use "
            "weight_norm, a skorch net (which trains again by its own fit), or methods that begin at the "
            "final model (FurtherTraining, UnrolledDifferentiation)."
        )
    with global_generators(seed):
        module = kind_of(estimator).fresh(seed) if init is None else init()
    fresh = unwrapped(module)
    found = dict(fresh.named_parameters())
    shapes = {name: found[name].shape for name in model.shapes if name in found}
    if shapes != model.shapes:
        wrong = next(name for name in model.shapes if shapes.get(name) != model.shapes[name])
        raise ValueError(
            f"init must make a module of the estimator's architecture: parameter {wrong!r} should "
            f"have shape {tuple(model.shapes[wrong])}, got {shapes.get(wrong) and tuple(shapes[wrong])}."
        )
    known = {**dict(fresh.named_buffers()), **found}
    parts = [known[name].detach().reshape(-1) for name in (*model.shapes, *model.statistics)]
    return torch.cat([part.to(model.theta) for part in parts])


# ---- its rows -------------------------------------------------------------------------------


def takes_several_inputs(estimator: Any) -> bool:
    """Return whether rows may be a dict or a tuple of arrays: for a module, alone or in a net."""
    return estimator is not None and not kind_of(estimator).knows_columns


def takes_sparse_rows(estimator: Any) -> bool:
    """Return whether sparse rows are no mistake: gradients of a network are taken of dense ones."""
    return estimator is not None and kind_of(estimator).takes_sparse


def require_dense_rows(estimator: Any, X: Any) -> None:
    """Raise TypeError if rows are sparse where they reach a network."""
    if issparse(X) and not takes_sparse_rows(estimator):
        raise TypeError(
            f"X is sparse where it reaches the {type(last_step(estimator)).__name__}, whose gradients "
            "are taken of dense rows. Pass X.toarray(), or let the step of the Pipeline before it give "
            "dense rows: by sparse_output=False, or a FunctionTransformer that calls toarray()."
        )


def check_columns(estimator: Any, X: Any) -> None:
    """Let a fitted scikit-learn estimator look at some rows: it knows its columns by name and number.

    Raise TypeError if it does not predict what the model inside predicts of the rows that reach it.
    """
    kind = kind_of(estimator)
    if not (
        kind.knows_columns and hasattr(estimator, "predict") and hasattr(kind.model, "predict")
    ):
        return
    given = RawRows(X)
    rows = given[some_rows(len(given))].values
    bare = estimator is kind.model
    with told_otherwise(type(kind.model).__name__):
        predicted = kind.predict(rows) if bare else estimator.predict(rows)
    if bare or caveats(estimator) or obstacle(estimator):
        return
    if not np.array_equal(predicted, kind.predict(transform_rows(estimator, rows))):
        raise TypeError(
            f"estimator {type(estimator).__name__} must predict what the {type(kind.model).__name__} "
            "inside predicts of the rows that reach it, but does not. Methods that fit it again "
            "(LeaveOneOut, Downsampling, Datamodel) take it as it is."
        )


def warn_of_rows(estimator: Any, n_rows: int, weighted: bool) -> None:
    """Warn if a fitted model was trained on fewer rows than these, or not evenly on them.

    `weighted` says that weights were given for them.
    """
    kind = kind_of(estimator)
    seen = kind.rows_seen()
    if seen is not None and seen < n_rows:
        warnings.warn(
            f"{type(kind.model).__name__} was trained on {seen} rows and is given {n_rows}: those that "
            "were held out (train_split, early_stopping), or were not there, are scored and counted like "
            "the others. Pass the rows that it was trained on, or train without holding rows out.",
            UserWarning,
            stacklevel=2,
        )
    kind.warn_of_batches(weighted)
