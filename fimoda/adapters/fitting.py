"""Fitting an estimator, and fitting clones of it again."""

from __future__ import annotations

import inspect
from typing import Any

import sklearn
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline

from .models import kind_of
from .randomness import global_generators, seed_parameters
from .wrappers import uncached


def fit_with(estimator: Any, X: Any, y: Any, sample_weight: NDArray[Any] | None) -> Any:
    """Return the estimator, fitted in place; weights of a Pipeline go to its last step."""
    if sample_weight is None:
        return estimator.fit(X, y)
    return estimator.fit(X, y, **{weights_name(estimator): sample_weight})


def weights_name(estimator: Any) -> str:
    """Return the name under which ``fit`` takes the weights of the rows."""
    if not sklearn.get_config()["enable_metadata_routing"]:  # which asks for the plain name
        if isinstance(estimator, Pipeline):
            name, last = estimator.steps[-1]
            return f"{name}__{weights_name(last)}"
        if isinstance(estimator, BaseSearchCV):
            return weights_name(estimator.estimator)
        if isinstance(estimator, TransformedTargetRegressor) and estimator.regressor is not None:
            return weights_name(estimator.regressor)
    known = inspect.signature(estimator.fit).parameters
    if "sample_weight" not in known and not any(p.kind == p.VAR_KEYWORD for p in known.values()):
        raise ValueError(
            f"sample_weight was given, but {type(estimator).__name__}.fit takes none. Leave it out, or "
            "use an estimator that takes weights."
        )
    return "sample_weight"


def refit(
    estimator: Any, X: Any, y: NDArray[Any], sample_weight: NDArray[Any] | None, seed: int
) -> Any:
    """Return a clone of the estimator, fitted.

    `seed` is every ``random_state`` that it has, and that of the global generators of numpy and torch
    for what has none; these are put back afterwards. Nothing is cached on disk.
    """
    return fit_anew(unfitted(estimator, seed), X, y, sample_weight, seed)


def unfitted(estimator: Any, seed: int) -> Any:
    """Return a clone of the estimator with a seed, which caches nothing: what `fit_anew` fits clones of."""
    fresh = uncached(clone(estimator))
    return fresh.set_params(**dict.fromkeys(seed_parameters(fresh), seed))


def fit_anew(
    fresh: Any, X: Any, y: NDArray[Any], sample_weight: NDArray[Any] | None, seed: int
) -> Any:
    """Return a clone of an estimator that `unfitted` has made, fitted as `refit` does."""
    with global_generators(seed):
        fitted = fit_with(clone(fresh), X, y, sample_weight)
    kind_of(fitted).let_be_pickled()
    return fitted
