"""skorch nets: criterion and way of training come with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import skorch
from torch import nn

from ..model import FinalModel, Recipe
from .modules import freeze

#: Methods that make the training objective another than the mean of the criterion.
_HOOKS = ("get_loss", "infer", "train_step", "train_step_single")


def from_skorch(net: skorch.NeuralNet, X: Any) -> FinalModel:
    """The module of a net, with its criterion and its optimiser."""
    for hook in _HOOKS:
        owner = next(c for c in type(net).__mro__ if hook in vars(c))
        if not owner.__module__.startswith("skorch."):
            raise TypeError(
                f"estimator {type(net).__name__} overrides {hook}, so its training objective cannot "
                "be read from its criterion. Pass net.module_ with criterion=... instead."
            )
    params = dict(net.get_params_for("optimizer"))
    obstacle = None
    if params.pop("param_groups", None):
        obstacle = "it was trained with parameter groups of their own"
    callbacks = [callback for _, callback in getattr(net, "callbacks_", [])]
    if any(isinstance(c, skorch.callbacks.GradientNormClipping) for c in callbacks):
        obstacle = "it was trained with gradients clipped by norm, which mixes coordinates"
    batch_size = net.get_params_for("iterator_train").get("batch_size", net.batch_size)
    recipe = Recipe(
        optimizer=net.optimizer,
        lr=params.pop("lr", net.lr),
        batch_size=len(X) if batch_size == -1 else batch_size,
        params=params,
        obstacle=obstacle,
    )
    probabilities = isinstance(net, skorch.NeuralNetClassifier) and isinstance(
        net.criterion_, nn.NLLLoss
    )
    binary = isinstance(net, skorch.NeuralNetBinaryClassifier)
    model = freeze(net.module_, X, net.criterion_, recipe, probabilities, binary)
    return replace(model, threshold=net.threshold) if binary else model
