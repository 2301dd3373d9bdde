"""Training on subsets for a removal curve: by a function of the user's, or by retraining a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..attributors.families.trained_again import BaseTrainedAgain
from ..attributors.leave_one_out import LeaveOneOut
from ..base import BaseAttributor
from ..model import FinalModel
from ._scores import Outcomes

Train = Callable[[NDArray[np.bool_]], Outcomes]


def as_train(
    train: Any,
    X_train: Any,
    y_train: Any,
    X_test: Any,
    y_test: Any,
    sample_weight: Any,
    classification: bool,
) -> Train:
    """Return the function that trains on subsets: `train` itself, or that of its model.

    It then measures 1 or -1 for the right or wrong class, or the absolute error.
    """
    if callable(train) and not isinstance(train, nn.Module) and not hasattr(train, "fit"):
        return train
    given = {"X_train": X_train, "X_test": X_test, "y_test": y_test}
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ValueError(
            f"{' and '.join(missing)} must be given to train {type(train).__name__} on subsets."
        )
    method = retraining_method(train)
    trainer = method.trainer(X_train, y_train, X_test, y_test, sample_weight)
    model = trainer.retraining.way.model
    if classification != model.loss.is_classifier:
        task = "classification" if classification else "regression"
        raise ValueError(
            f"task={task!r} does not fit train, whose outputs are {model.loss.outputs_are}."
        )
    measure = partial(_correct, model) if classification else _absolute_error
    return replace(trainer, measured=replace(trainer.measured, measure=measure))


def retraining_method(train: Any) -> BaseTrainedAgain:
    """Return the retraining method that an estimator or attributor stands for."""
    if not isinstance(train, BaseAttributor):
        return LeaveOneOut(train)
    if train._retrains:
        return train.__sklearn_clone__()
    return LeaveOneOut(getattr(train, "estimator_", train.estimator), criterion=train.criterion)


def fitted_weights(methods: Iterable[Any]) -> NDArray[np.float64] | None:
    """Return the weights of the rows that one of the methods was fitted with, if any was."""
    known = (getattr(one, "_sample_weight", None) for one in methods)
    return next((weights for weights in known if weights is not None), None)


def _correct(model: FinalModel, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 1 where the predicted class is the target, -1 elsewhere."""
    return 2 * (model.predicted_targets(outputs) == targets).to(outputs.dtype) - 1


def _absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over the outputs."""
    return (outputs - targets).abs().mean(-1)
