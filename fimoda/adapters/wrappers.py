"""What stands around a model: Pipelines, frozen estimators, finished searches; fitted or not."""

from __future__ import annotations

from typing import Any

from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted
from torch import nn

from ..model import FinalModel

#: What `as_final_model` takes, for messages.
SUPPORTED = (
    "a fitted skorch net, a torch.nn.Module with criterion=..., MLPClassifier, MLPRegressor, "
    "LogisticRegression, LinearRegression, Ridge, SGDClassifier or SGDRegressor with a smooth "
    "loss, a FrozenEstimator around one of them, or a Pipeline that ends in one of them"
)


def unsupported(estimator: Any) -> str:
    """Message for what is none of the models."""
    if isinstance(estimator, type):
        got = f"the class {estimator.__name__}. Pass a fitted instance of it"
    else:
        got = (
            f"{type(estimator).__name__}. Methods that train again (LeaveOneOut, Downsampling, "
            "Datamodel) take other scikit-learn estimators too"
        )
    return f"estimator must be {SUPPORTED}; got {got}."


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
    if isinstance(estimator, nn.Module | FinalModel):
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
        raise TypeError(unsupported(estimator)) from error
    return True


def check_fitted(estimator: Any) -> None:
    """Raise NotFittedError unless the model can be used as it stands."""
    if not is_fitted(estimator):
        raise NotFittedError(
            f"estimator {type(unwrap(estimator)).__name__} is not fitted. Attribution starts from "
            "a final model: call fit on it first."
        )


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
