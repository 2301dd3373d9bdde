"""From a user's model to a `FinalModel`: which adapter it is for."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import skorch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Ridge,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.neural_network import MLPClassifier, MLPRegressor
from torch import Tensor, nn

from .._validation import n_rows, take_rows
from ..model import FinalModel
from .linear_models import from_least_squares, from_logistic, from_sgd
from .mlp import from_mlp
from .modules import from_module
from .own_predictions import check_predictions, some_rows
from .skorch_nets import from_skorch
from .wrappers import check_fitted, last_step, obstacle, unsupported


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
    estimator = last_step(estimator)
    if not isinstance(estimator, FinalModel | nn.Module):
        check_predictions(model, estimator, take_rows(X, some_rows(n_rows(X))))
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
    estimator = last_step(estimator)
    if isinstance(estimator, FinalModel):
        return estimator
    if isinstance(estimator, nn.Module):
        return from_module(estimator, X, criterion)
    if criterion is not None:
        raise ValueError(
            f"criterion is for a bare torch.nn.Module; {type(estimator).__name__} has its own. "
            "Leave criterion=None."
        )
    if isinstance(estimator, skorch.NeuralNet):
        return from_skorch(estimator, X, y)
    n_features = getattr(estimator, "n_features_in_", None)
    if np.shape(X)[1:] != (n_features,) and n_features is not None:
        raise ValueError(
            f"X must have the {n_features} features that {type(estimator).__name__} was fitted on, "
            f"got rows of shape {np.shape(X)[1:]}."
        )
    if issparse(getattr(estimator, "coef_", None)):  # after sparsify()
        estimator = copy.copy(estimator).densify()
    weights = (
        np.ones(n_rows(X)) if sample_weight is None else np.asarray(sample_weight, dtype=float)
    )
    if isinstance(estimator, MLPClassifier | MLPRegressor):
        return from_mlp(estimator, weights)
    if isinstance(estimator, LogisticRegression) and not isinstance(
        estimator, LogisticRegressionCV
    ):
        return from_logistic(estimator, y, weights)
    if isinstance(estimator, LinearRegression | Ridge):
        return from_least_squares(estimator, weights)
    if isinstance(estimator, SGDClassifier | SGDRegressor):
        return from_sgd(estimator, y, weights)
    raise TypeError(unsupported(estimator))
