"""From a user's model to a `FinalModel`. Only this file knows skorch and scikit-learn."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import numpy as np
import skorch
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Ridge,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from . import losses
from .losses import BinaryCrossEntropy, CrossEntropy, OneVsRestCrossEntropy, RowLoss, SquaredError
from .model import FinalModel, Recipe

_SKLEARN_ACTIVATIONS = {
    "identity": nn.Identity,
    "logistic": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
}
_SUPPORTED = (
    "a fitted skorch net, a torch.nn.Module with criterion=..., MLPClassifier, MLPRegressor, "
    "LogisticRegression, LinearRegression, Ridge, SGDClassifier or SGDRegressor with a smooth "
    "loss, a FrozenEstimator around one of them, or a Pipeline that ends in one of them"
)
_SKORCH_HOOKS = ("get_loss", "infer", "train_step", "train_step_single")


def unwrap(estimator: Any) -> Any:
    """The model inside frozen estimators and finished searches."""
    while True:
        if type(estimator).__name__ == "FrozenEstimator":
            estimator = estimator.estimator
        elif hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        else:
            return estimator


def is_fitted(estimator: Any) -> bool:
    """Whether the model can be used as it stands.

    Raises
    ------
    NotFittedError
        If the last step of a Pipeline is fitted and an earlier step is not.
    """
    estimator = unwrap(estimator)
    if isinstance(estimator, nn.Module):
        return True
    if isinstance(estimator, Pipeline):
        if not is_fitted(estimator[-1]):
            return False
        for name, step in estimator.steps[:-1]:
            if step not in (None, "passthrough") and not is_fitted(step):
                raise NotFittedError(
                    f"estimator is a Pipeline whose last step is fitted but whose step {name!r} is "
                    "not. Fit the whole Pipeline, or pass the last step alone with transformed X."
                )
        return True
    try:
        check_is_fitted(estimator)
    except NotFittedError:
        return False
    except TypeError as error:
        raise TypeError(f"estimator must be {_SUPPORTED}; got {estimator!r}.") from error
    return True


def check_fitted(estimator: Any) -> None:
    """Raise NotFittedError unless the model can be used as it stands."""
    if not is_fitted(estimator):
        raise NotFittedError(
            f"estimator {type(unwrap(estimator)).__name__} is not fitted. Attribution starts from "
            "a final model: call fit on it first."
        )


def default_estimator(y: ArrayLike, random_state: Any = None) -> BaseEstimator:
    """The small MLP that stands in for ``estimator=None``."""
    kind = type_of_target(y, input_name="y")
    model = MLPRegressor if kind.startswith("continuous") else MLPClassifier
    return model(hidden_layer_sizes=(16,), max_iter=50, random_state=random_state)


def has_earlier_steps(estimator: Any) -> bool:
    """Whether rows pass through other steps of a Pipeline before they reach the model."""
    estimator = unwrap(estimator)
    estimator = getattr(estimator, "estimator", estimator)  # what an unfitted search will fit
    return isinstance(estimator, Pipeline)


def transform_rows(estimator: Any, X: Any) -> Any:
    """Rows as the model itself sees them: after the earlier steps of a Pipeline."""
    estimator = unwrap(estimator)
    if not isinstance(estimator, Pipeline):
        return X
    if len(estimator) > 1:
        X = estimator[:-1].transform(X)
    return transform_rows(estimator[-1], X)


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
        The fitted model, see the user guide for what is supported.
    X : array-like of shape (n_samples, ...)
        Its training rows, after the earlier steps of a Pipeline (`transform_rows`). The model is
        run on one of them, and their number scales penalties given per data set.
    y : array-like of shape (n_samples,), default=None
        Their targets; needed for balanced class weights only.
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
        If the model, its criterion or one of its options cannot be attributed.
    """
    estimator = unwrap(estimator)
    if isinstance(estimator, Pipeline):
        return as_final_model(estimator[-1], X, y, sample_weight=sample_weight, criterion=criterion)
    check_fitted(estimator)
    if isinstance(estimator, nn.Module):
        return _from_module(estimator, X, criterion)
    if criterion is not None:
        raise ValueError(
            f"criterion is for a bare torch.nn.Module; {type(estimator).__name__} has its own. "
            "Leave criterion=None."
        )
    if isinstance(estimator, skorch.NeuralNet):
        return _from_skorch(estimator, X)
    n_features = getattr(estimator, "n_features_in_", None)
    if np.shape(X)[1:] != (n_features,) and n_features is not None:
        raise ValueError(
            f"X must have the {n_features} features that {type(estimator).__name__} was fitted on, "
            f"got rows of shape {np.shape(X)[1:]}."
        )
    weights = np.ones(len(X)) if sample_weight is None else np.asarray(sample_weight, dtype=float)
    if isinstance(estimator, MLPClassifier | MLPRegressor):
        return _from_mlp(estimator, weights)
    if isinstance(estimator, LogisticRegression) and not isinstance(
        estimator, LogisticRegressionCV
    ):
        return _from_logistic(estimator, y, weights)
    if isinstance(estimator, LinearRegression | Ridge):
        return _from_least_squares(estimator, weights)
    if isinstance(estimator, SGDClassifier | SGDRegressor):
        return _from_sgd(estimator, y, weights)
    raise TypeError(f"estimator must be {_SUPPORTED}; got {type(estimator).__name__}.")


# ---- torch --------------------------------------------------------------------------------------


def _from_module(module: nn.Module, X: Any, criterion: nn.Module | None) -> FinalModel:
    if criterion is None:
        raise ValueError(
            "criterion must be given with a bare torch.nn.Module, for example "
            "criterion=torch.nn.CrossEntropyLoss(); got None."
        )
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training:
            raise ValueError(
                f"estimator has a BatchNorm layer ({name or 'itself'}) in training mode. Scores are "
                "defined with its running statistics frozen: call estimator.eval() first."
            )
    return _freeze(module, X, criterion, Recipe())


def _from_skorch(net: skorch.NeuralNet, X: Any) -> FinalModel:
    for hook in _SKORCH_HOOKS:
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
    return _freeze(net.module_, X, net.criterion_, recipe, probabilities, binary)


def _freeze(
    module: nn.Module,
    X: Any,
    criterion: nn.Module,
    recipe: Recipe,
    probabilities: bool = False,
    binary: bool = False,
) -> FinalModel:
    module = getattr(module, "_orig_mod", module)
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in module.parameters()):
        raise ValueError("estimator has uninitialised (lazy) parameters; run it on data first.")
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError(
            "estimator has no parameter that requires a gradient: nothing to attribute."
        )
    if len({(p.device, p.dtype) for p in trainable}) > 1:
        raise ValueError("estimator must have all its parameters on one device and in one dtype.")
    if not all(bool(torch.isfinite(p).all()) for p in module.parameters()):
        raise ValueError("estimator has parameters that are NaN or infinite; train it again.")
    frozen = copy.deepcopy(module).eval()
    probe = FinalModel(frozen, losses.SquaredError())
    try:
        with torch.no_grad():
            raw = frozen(probe.encode_X(X[:1]))
    except (RuntimeError, TypeError, IndexError) as error:
        raise ValueError(
            f"estimator could not be run on a row of X of shape {np.shape(X)[1:]}: {error}"
        ) from error
    raw = raw[0] if isinstance(raw, tuple) else raw
    if not isinstance(raw, Tensor) or raw.dim() not in (1, 2) or len(raw) != 1:
        got = tuple(raw.shape) if isinstance(raw, Tensor) else type(raw).__name__
        raise ValueError(
            "estimator must return one tensor of shape (n_rows,) or (n_rows, n_outputs); for one "
            f"row it returned {got}."
        )
    n_outputs = 1 if raw.dim() == 1 else raw.shape[1]
    loss: RowLoss
    if probabilities:
        loss = losses.ProbabilityNLL(eps=torch.finfo(raw.dtype).eps)
    else:
        loss = losses.row_loss(criterion, raw.dim(), n_outputs)
    classes = None
    if loss.kind in losses.CLASS_KINDS:
        if binary and n_outputs != 1:
            raise ValueError("a NeuralNetBinaryClassifier must have one output.")
        classes = np.arange(2 if loss.kind.startswith("binary") else n_outputs)
    weight = losses.class_weight_of(criterion)
    if weight is not None:
        weight = weight.detach().clone()
    return FinalModel(
        frozen, loss, classes=classes, class_weight=weight, recipe=recipe, output_ndim=raw.dim()
    )


# ---- scikit-learn -------------------------------------------------------------------------------


def _dense(coef: NDArray[Any], intercept: NDArray[Any] | None) -> nn.Linear:
    """A Linear layer with weights (out, in)."""
    weight = torch.from_numpy(np.array(coef, copy=True))
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=intercept is not None)
    layer.weight = nn.Parameter(weight)
    if intercept is not None:
        bias = np.broadcast_to(intercept, weight.shape[:1]).astype(coef.dtype)
        layer.bias = nn.Parameter(torch.from_numpy(bias))
    return layer


def _penalty(module: nn.Module, weight_l2: float | NDArray[Any]) -> Tensor:
    """Penalty per coordinate: `weight_l2` (one number, or one per output) on weights only."""
    parts = []
    for name, p in module.named_parameters():
        strength = torch.as_tensor(weight_l2, dtype=p.dtype).reshape(-1, 1)
        parts.append(
            (torch.zeros_like(p) if name.endswith("bias") else strength.expand(p.shape)).reshape(-1)
        )
    return torch.cat(parts).detach()


def _from_mlp(estimator: MLPClassifier | MLPRegressor, weights: NDArray[Any]) -> FinalModel:
    layers: list[nn.Module] = []
    for coef, intercept in zip(estimator.coefs_, estimator.intercepts_, strict=True):
        layers += [_dense(coef.T, intercept), _SKLEARN_ACTIVATIONS[estimator.activation]()]
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
    per_weight = (n if estimator.solver == "lbfgs" else batch) * weights.mean()
    recipe = Recipe(batch_size=batch)
    if estimator.solver == "adam":
        betas = (estimator.beta_1, estimator.beta_2)
        params: dict[str, Any] = {"betas": betas, "eps": estimator.epsilon}
        recipe = Recipe("Adam", estimator.learning_rate_init, batch, params)
    elif estimator.solver == "sgd":
        momentum = estimator.momentum
        params = {"momentum": momentum, "nesterov": estimator.nesterovs_momentum and momentum > 0}
        recipe = Recipe("SGD", estimator.learning_rate_init, batch, params)
    return FinalModel(
        module.eval(),
        loss,
        classes=classes,
        l2=_penalty(module, estimator.alpha / per_weight),
        recipe=recipe,
    )


def _class_weights(
    estimator: Any, y: Any, weights: NDArray[Any], balances_weights: bool = False
) -> tuple[Tensor | None, float]:
    """Class weights, and the total weight of the training rows with them.

    `balances_weights` says that ``class_weight="balanced"`` balances the rows' weights, not their
    numbers (in scikit-learn from 1.7).
    """
    if estimator.class_weight is None:
        return None, float(weights.sum())
    if y is None:
        raise ValueError("y must be given for a model with class_weight.")
    known = inspect.signature(compute_class_weight).parameters
    given = {"sample_weight": weights} if balances_weights and "sample_weight" in known else {}
    by_class = compute_class_weight(
        estimator.class_weight, classes=estimator.classes_, y=np.asarray(y), **given
    )
    total = float((weights * by_class[np.searchsorted(estimator.classes_, y)]).sum())
    return torch.as_tensor(by_class, dtype=torch.from_numpy(estimator.coef_[:0]).dtype), total


def _require_l2(estimator: Any, penalty: str | None, l1_ratio: float | None) -> None:
    if penalty == "l1" or (penalty == "elasticnet" and l1_ratio != 0):
        raise ValueError(
            f"{type(estimator).__name__} has an L1 penalty, which is not smooth: scores are defined "
            "for an L2 penalty or none."
        )


def _from_logistic(estimator: LogisticRegression, y: Any, weights: NDArray[Any]) -> FinalModel:
    penalty, l1_ratio = estimator.penalty, estimator.l1_ratio
    if penalty == "deprecated":  # the penalty follows from l1_ratio and C
        penalty = "elasticnet"
    _require_l2(estimator, penalty, l1_ratio or 0)
    coef, intercept = estimator.coef_, estimator.intercept_ if estimator.fit_intercept else None
    multiclass = getattr(estimator, "multi_class", "deprecated")
    ovr = len(coef) > 1 and (multiclass == "ovr" or estimator.solver == "liblinear")
    if estimator.solver == "liblinear" and estimator.fit_intercept:
        raise ValueError(
            "LogisticRegression(solver='liblinear') penalises its intercept; use another solver."
        )
    by_class, total = _class_weights(estimator, y, weights, balances_weights=True)
    module = _dense(coef, intercept)
    strength = 0.0 if penalty is None or np.isinf(estimator.C) else 1.0 / (estimator.C * total)
    loss: RowLoss = BinaryCrossEntropy() if len(coef) == 1 else CrossEntropy()
    return FinalModel(
        module.eval(),
        OneVsRestCrossEntropy() if ovr else loss,
        classes=estimator.classes_,
        class_weight=by_class,
        l2=_penalty(module, strength),
    )


def _from_least_squares(estimator: LinearRegression | Ridge, weights: NDArray[Any]) -> FinalModel:
    if estimator.positive:
        raise ValueError(
            f"{type(estimator).__name__}(positive=True) constrains its coefficients; scores are "
            "defined for unconstrained training."
        )
    coef = np.atleast_2d(estimator.coef_)
    module = _dense(coef, np.atleast_1d(estimator.intercept_) if estimator.fit_intercept else None)
    alpha = np.asarray(estimator.alpha if isinstance(estimator, Ridge) else 0.0)
    return FinalModel(
        module.eval(),
        SquaredError(over_outputs="sum"),
        l2=_penalty(module, 2 * alpha / weights.sum()),
    )


def _from_sgd(estimator: SGDClassifier | SGDRegressor, y: Any, weights: NDArray[Any]) -> FinalModel:
    _require_l2(estimator, estimator.penalty, estimator.l1_ratio)
    coef = np.atleast_2d(estimator.coef_)
    by_class, total = None, float(weights.sum())
    loss: RowLoss
    if is_classifier(estimator):
        if estimator.loss != "log_loss":
            raise ValueError(
                f"SGDClassifier must have loss='log_loss', got {estimator.loss!r}: the others are "
                "not smooth or give no probabilities."
            )
        if estimator.class_weight is not None and len(coef) > 1:
            raise ValueError(
                "SGDClassifier with class_weight and more than two classes weighs a row differently "
                "in the problem of each class. Use LogisticRegression, or sample_weight instead."
            )
        by_class, total = _class_weights(estimator, y, weights)
        loss = BinaryCrossEntropy() if len(coef) == 1 else OneVsRestCrossEntropy()
    elif estimator.loss == "squared_error":
        loss = SquaredError(scale=0.5)
    elif estimator.loss == "huber":
        loss = losses.row_loss(nn.HuberLoss(delta=estimator.epsilon), 2, 1)
    else:
        raise ValueError(
            "SGDRegressor must have loss='squared_error' or 'huber', got "
            f"{estimator.loss!r}, which is not smooth."
        )
    module = _dense(coef, np.atleast_1d(estimator.intercept_) if estimator.fit_intercept else None)
    strength = 0.0 if estimator.penalty is None else estimator.alpha * len(weights) / total
    return FinalModel(
        module.eval(),
        loss,
        classes=getattr(estimator, "classes_", None),
        class_weight=by_class,
        l2=_penalty(module, strength),
    )
