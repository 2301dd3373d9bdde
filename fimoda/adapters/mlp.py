"""scikit-learn's multi-layer perceptrons."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.utils.multiclass import type_of_target
from torch import nn

from ..losses import BinaryCrossEntropy, CrossEntropy, RowLoss, SquaredError
from ..model import FinalModel
from ..recipe import Recipe, Weighting
from .dense import dense_layer, weight_penalty
from .kinds import ScikitLearn

_ACTIVATIONS = {
    "identity": nn.Identity,
    "logistic": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
}

#: Steps of this size change no parameter.
_NO_STEP = 1e-300


def is_class_target(y: ArrayLike) -> bool:
    """Return whether targets look like classes; more than two floats are numbers, also whole ones."""
    kind = type_of_target(y, input_name="y")
    whole_floats = kind == "multiclass" and np.asarray(y).dtype.kind == "f"
    return not (kind.startswith("continuous") or whole_floats)


def default_linear_model(classes: bool) -> BaseEstimator:
    """Return the linear model that stands in for ``estimator=None`` where one is fitted many times."""
    return LogisticRegression() if classes else Ridge()


def default_estimator(y: ArrayLike, random_state: Any = None) -> BaseEstimator:
    """Return the small MLP that stands in for ``estimator=None``."""
    model = MLPClassifier if is_class_target(y) else MLPRegressor
    return model(hidden_layer_sizes=(16,), max_iter=50, random_state=random_state)


def from_mlp(estimator: MLPClassifier | MLPRegressor, y: Any, weights: NDArray[Any]) -> FinalModel:
    """Freeze an MLP, with the optimiser that it was trained with."""
    layers: list[nn.Module] = []
    for coef, intercept in zip(estimator.coefs_, estimator.intercepts_, strict=True):
        layers += [dense_layer(coef.T, intercept), _ACTIVATIONS[estimator.activation]()]
    module = nn.Sequential(*layers[:-1])
    classes = None
    loss: RowLoss
    if isinstance(estimator, MLPRegressor):
        if getattr(estimator, "loss", "squared_error") != "squared_error":
            raise ValueError(
                f"MLPRegressor must have loss='squared_error', got {estimator.loss!r}: its output "
                "is not linear in the last layer. Use a skorch net with that criterion."
            )
        # its loss_ averages over outputs, but the gradients it trains with are those of the sum
        loss = SquaredError(scale=0.5, over_outputs="sum")
    else:
        if estimator._label_binarizer.y_type_.startswith("multilabel"):
            raise ValueError("a multilabel MLPClassifier is not supported; train one per label.")
        classes = estimator.classes_
        loss = BinaryCrossEntropy() if estimator.out_activation_ == "logistic" else CrossEntropy()
    n = len(weights)
    batch = min(200, n) if estimator.batch_size == "auto" else min(estimator.batch_size, n)
    whole = estimator.solver == "lbfgs" or batch == n
    per_weight = (n if whole else batch) * weights.mean()
    recipe = Recipe(batch_size=batch)
    if estimator.solver == "adam":
        betas = (estimator.beta_1, estimator.beta_2)
        params: dict[str, Any] = {"betas": betas, "eps": estimator.epsilon}
        recipe = Recipe("Adam", estimator.learning_rate_init, batch, params)
    elif estimator.solver == "sgd":
        momentum = estimator.momentum
        params = {"momentum": momentum, "nesterov": estimator.nesterovs_momentum and momentum > 0}
        first = estimator.learning_rate_init
        last = float(getattr(getattr(estimator, "_optimizer", None), "learning_rate", first))
        recipe = Recipe("SGD", first, batch, params)
        if last != first:
            recipe = replace(recipe, last_lr=last, last_lr_from="its optimiser's last")
    recipe = replace(recipe, shuffle=estimator.shuffle)
    return FinalModel(
        module.eval(),
        loss,
        classes=classes,
        l2=weight_penalty(module, estimator.alpha / per_weight),
        weighting=Weighting("sum" if whole else "rows"),
        recipe=recipe,
    )


class MLP(ScikitLearn):
    """MLPClassifier and MLPRegressor."""

    types = (MLPClassifier, MLPRegressor)
    takes_sparse = False
    view = staticmethod(from_mlp)

    def is_network(self) -> bool:
        """Return whether it is trained in batches, and predicts as its class does."""
        own, known = type(self.model), next(t for t in self.types if isinstance(self.model, t))
        overrides = any(
            getattr(own, name, None) is not getattr(known, name, None)
            for name in ("predict", "predict_proba")
        )
        return self.model.solver != "lbfgs" and not overrides

    def n_epochs(self) -> int | None:
        return self.model.n_iter_

    def own_training(self) -> str | None:
        """Return the setting by which it ends early, or changes its learning rate."""
        if self.model.early_stopping:
            return "early_stopping=True"
        if self.model.solver == "sgd" and self.model.learning_rate != "constant":
            return f"learning_rate={self.model.learning_rate!r}"
        return None

    def rows_seen(self) -> int | None:
        """Return how many rows early stopping has left to an epoch."""
        model = self.model
        if model.solver == "lbfgs" or not model.early_stopping or not getattr(model, "n_iter_", 0):
            return None
        return round(model.t_ / model.n_iter_)

    def fresh(self, seed: int) -> nn.Module:
        """Return what scikit-learn draws, seen after a step of no length on one row of zeros."""
        model = self.model
        fresh = clone(model).set_params(
            random_state=seed, learning_rate_init=_NO_STEP, batch_size=1, early_stopping=False
        )
        row = np.zeros((1, model.n_features_in_), dtype=model.coefs_[0].dtype)
        if isinstance(model, MLPClassifier):
            fresh.partial_fit(row, model.classes_[:1], classes=model.classes_)
        else:
            target = np.zeros((1, model.n_outputs_))
            fresh.partial_fit(row, target if model.n_outputs_ > 1 else target[0])
        return from_mlp(fresh, None, np.ones(1)).module
