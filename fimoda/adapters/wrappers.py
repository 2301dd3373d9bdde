"""Estimators around a model: Pipelines, target transforms, finished searches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import skorch
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_array

from .._arrays import n_rows

# ---- one wrapper after another --------------------------------------------------------------


@dataclass(frozen=True)
class Wrapper:
    """One estimator around another, and what it does beside calling it."""

    inner: Any
    #: What rows and targets pass before they reach `inner`; None if they pass unchanged.
    rows: Callable[[Any], Any] | None = None
    targets: Callable[[NDArray[Any]], NDArray[Any]] | None = None
    #: What scores of `inner` do not say about the whole.
    caveat: str | None = None
    #: Why scores of `inner` would say too little about the whole to be given.
    obstacle: str | None = None


def _wrapper(estimator: Any) -> Wrapper | None:
    """Return the wrapper that a (fitted) estimator is, or None if it is a model itself."""
    if isinstance(estimator, FrozenEstimator):
        return Wrapper(estimator.estimator)
    if hasattr(estimator, "best_estimator_"):
        return Wrapper(estimator.best_estimator_)
    if hasattr(estimator, "cv_results_") and getattr(estimator, "refit", None) is False:
        raise NotFittedError(
            f"estimator is a {type(estimator).__name__} with refit=False, which kept no fitted model. "
            "Fit it with refit=True, or pass a model fitted with its best parameters."
        )
    if isinstance(estimator, Pipeline):
        return _of_pipeline(estimator)
    if isinstance(estimator, TransformedTargetRegressor) and hasattr(estimator, "regressor_"):
        return Wrapper(
            estimator.regressor_,
            targets=lambda y: _through_target_transform(estimator, y),
            caveat=(
                "scores are in the unit of the transformed target, and the transformation is held "
                "fixed"
            ),
        )
    if isinstance(estimator, CalibratedClassifierCV) and hasattr(
        estimator, "calibrated_classifiers_"
    ):
        if isinstance(estimator.estimator, FrozenEstimator) or estimator.cv == "prefit":
            return Wrapper(
                estimator.estimator, caveat="scores are of the classifier before its calibration"
            )
        return None
    if isinstance(estimator, FixedThresholdClassifier) or (
        isinstance(estimator, TunedThresholdClassifierCV) and hasattr(estimator, "estimator_")
    ):
        return Wrapper(
            getattr(estimator, "estimator_", estimator.estimator),  # it takes a fitted one as it is
            caveat=(
                "the threshold is not attributed to; without y_test, the predicted class is the one "
                "at the classifier's own threshold"
            ),
        )
    return None


def _of_pipeline(pipeline: Pipeline) -> Wrapper:
    steps = [
        (name, step) for name, step in pipeline.steps[:-1] if step not in (None, "passthrough")
    ]
    samplers = [name for name, step in steps if not hasattr(step, "transform")]
    if samplers:  # imbalanced-learn's
        return Wrapper(
            pipeline[-1],
            obstacle=(
                f"estimator is a Pipeline whose step {samplers[0]!r} resamples the training rows, so "
                "the rows that its last step was trained on are not those given. Methods that fit the "
                "whole Pipeline again (LeaveOneOut, Downsampling, Datamodel) take it."
            ),
        )
    return Wrapper(pipeline[-1], rows=(lambda X: through_steps(steps, X)) if steps else None)


def through_steps(steps: list[tuple[str, Any]], X: Any) -> Any:
    """Return rows after the named steps of a Pipeline, one by one: some need no fit and do not say so."""
    for name, step in steps:
        if step in (None, "passthrough"):
            continue
        given = n_rows(X)
        try:
            X = step.transform(X)
        except NotFittedError as error:
            raise NotFittedError(
                f"estimator is a Pipeline whose last step is fitted but whose step {name!r} is "
                "not. Fit the whole Pipeline, or pass the last step alone with transformed X."
            ) from error
        if (found := n_rows(X)) != given:
            raise ValueError(
                f"X must be rows as the steps of the Pipeline take them, but step {name!r} made {found} rows "
                f"of {given}. A step that takes texts takes a list of them or a column of a frame, such as "
                'X["text"], and no frame.'
            )
    return X


def uncached(estimator: Any) -> Any:
    """Return the estimator, whose Pipelines now cache nothing on disk."""
    caches = [name for name in estimator.get_params() if name.split("__")[-1] == "memory"]
    return estimator.set_params(**dict.fromkeys(caches))


def _through_target_transform(estimator: TransformedTargetRegressor, y: Any) -> NDArray[Any]:
    """Return targets as the regressor inside is fitted on them."""
    y = check_array(y, input_name="y", ensure_2d=False, dtype="numeric", allow_nd=True)
    found = np.asarray(estimator.transformer_.transform(y.reshape(-1, 1) if y.ndim == 1 else y))
    return found[:, 0] if y.ndim == 1 and found.ndim == 2 and found.shape[1] == 1 else found


def wrappers(estimator: Any) -> Iterator[Wrapper]:
    """Yield all that stands around a model, from the outside to the inside."""
    while (found := _wrapper(estimator)) is not None:
        yield found
        estimator = found.inner


def last_step(estimator: Any) -> Any:
    """Return the model itself, without wrappers and without the earlier steps of a Pipeline."""
    for wrapper in wrappers(estimator):
        estimator = wrapper.inner
    return estimator


def unwrap(estimator: Any) -> Any:
    """Return the estimator inside frozen estimators and finished searches, which predicts the same."""
    for wrapper in wrappers(estimator):
        if wrapper.rows or wrapper.targets or wrapper.caveat or isinstance(estimator, Pipeline):
            break
        estimator = wrapper.inner
    return estimator


def caveats(estimator: Any) -> list[str]:
    """Return what scores of the model inside do not say about a fitted estimator as a whole."""
    return [wrapper.caveat for wrapper in wrappers(estimator) if wrapper.caveat]


def obstacle(estimator: Any) -> str | None:
    """Return why the model inside cannot stand for a fitted estimator as a whole, if it cannot."""
    return next((wrapper.obstacle for wrapper in wrappers(estimator) if wrapper.obstacle), None)


# ---- rows and targets -----------------------------------------------------------------------


def has_earlier_steps(estimator: Any) -> bool:
    """Return whether there is a Pipeline in it, whose earlier steps rows have to pass."""
    if isinstance(estimator, Pipeline):
        return True
    if isinstance(estimator, FrozenEstimator):  # keeps the parameters of what is inside to itself
        return has_earlier_steps(estimator.estimator)
    if isinstance(estimator, type | skorch.NeuralNet) or not hasattr(estimator, "get_params"):
        return False
    parts = estimator.get_params().values()
    return any(has_earlier_steps(p) for p in parts if isinstance(p, Pipeline | FrozenEstimator))


def transforms(estimator: Any) -> bool:
    """Return whether rows or targets are changed before they reach the model inside."""
    return any(wrapper.rows or wrapper.targets for wrapper in wrappers(estimator))


def transform_rows(estimator: Any, X: Any) -> Any:
    """Return rows as the model itself sees them: after the earlier steps of a Pipeline."""
    for wrapper in wrappers(estimator):
        if wrapper.obstacle:
            raise TypeError(wrapper.obstacle)
        if wrapper.rows:
            X = wrapper.rows(X)
    return X


def transform_targets(estimator: Any, y: NDArray[Any]) -> NDArray[Any]:
    """Return targets as the model itself is fitted on them."""
    for wrapper in wrappers(estimator):
        if wrapper.targets:
            y = wrapper.targets(y)
    return y
