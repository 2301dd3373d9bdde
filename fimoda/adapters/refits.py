"""Any scikit-learn estimator, fitted again on some of its rows."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags

from .models import (
    is_network,
    kind_of,
    own_training,
)
from .randomness import Watched, global_generators, known_states, seed_parameters
from .wrappers import last_step, uncached

# ---- what is fitted again -------------------------------------------------------------------


def trained_in_stacks(estimator: Any, refit: str) -> bool:
    """Return whether what is trained again (`part_to_refit`) is a network alone, as a stack can be."""
    if own_training(estimator):
        return False
    if refit != "all":
        return refit == "last" and is_network(estimator)
    estimator = _chosen(estimator)
    while isinstance(estimator, Pipeline):
        if any(_learns(step) for _, step in estimator.steps[:-1]):
            return False
        estimator = estimator[-1]
    return is_network(estimator) and last_step(estimator) is estimator


def part_to_refit(estimator: Any, refit: str) -> Any:
    """Return what is fitted again of a fitted estimator, to be cloned for it.

    With ``refit="all"`` that is all of it, with the parameters that a search has chosen; with
    ``"last"`` its last step; with ``"search"`` all of it and the search again, a ValueError if there
    is none.
    """
    if refit == "last":
        return last_step(estimator)
    if refit == "all":
        return _chosen(estimator)
    part = _thawed(estimator)
    last = _thawed(part.steps[-1][1]) if isinstance(part, Pipeline) else part
    if not is_search(last):
        raise ValueError(
            f"refit='search' is for a search such as GridSearchCV, got {type(part).__name__}. Leave "
            "refit='all' to fit all of it again."
        )
    return part


def is_search(estimator: Any) -> bool:
    """Return whether it is a search for parameters, fitted or not."""
    return isinstance(estimator, BaseSearchCV) or hasattr(estimator, "best_estimator_")


def _thawed(estimator: Any) -> Any:
    """Return the model inside a `FrozenEstimator`."""
    while isinstance(estimator, FrozenEstimator):
        estimator = estimator.estimator
    return estimator


def _chosen(estimator: Any) -> Any:
    """Return the fitted estimator with the parameters that its search, or that of its last step, chose."""
    estimator = _thawed(estimator)
    while hasattr(estimator, "best_estimator_"):
        estimator = _thawed(estimator.best_estimator_)
    if isinstance(estimator, Pipeline):
        name, last = estimator.steps[-1]
        if _chosen(last) is not last:
            return copy.copy(estimator).set_params(**{name: _chosen(last)})
    return estimator


def _learns(step: Any) -> bool:
    """Return whether a step of a Pipeline depends on the rows it is fitted to."""
    if step in (None, "passthrough") or isinstance(step, FrozenEstimator):
        return False
    if hasattr(step, "fast_tokenizer_"):  # a tokenizer of skorch's, which may be trained already
        return not step.fixed_vocabulary_
    return bool(get_tags(step).requires_fit)


def learns_before(estimator: Any) -> bool:
    """Return whether a step of a Pipeline before its last one depends on the rows it is fitted to."""
    estimator = _chosen(estimator)
    if not isinstance(estimator, Pipeline):
        return False
    return any(_learns(step) for _, step in estimator.steps[:-1]) or learns_before(estimator[-1])


def takes_pairs(estimator: Any) -> bool:
    """Return whether X has one column for each training row, as a precomputed kernel does."""
    if isinstance(estimator, TransformedTargetRegressor) and estimator.regressor is not None:
        return takes_pairs(estimator.regressor)
    return bool(get_tags(estimator).input_tags.pairwise)


# ---- fitting --------------------------------------------------------------------------------


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


#: What a fitted estimator predicts by.
_ANSWERS = "predict_proba", "decision_function", "predict"


def draws(estimator: Any, X: Any, y: NDArray[Any], sample_weight: NDArray[Any] | None) -> bool:
    """Return False if a fit is known to draw no random numbers, from its seeds or anywhere else.

    It is fitted twice, with a generator that is watched as every ``random_state``, and must predict the same
    (it may have a generator of its own). True also where that is not possible.
    """
    own = Watched(0)
    try:
        predicted = []
        for seed in (0, 1):
            fresh = uncached(clone(estimator))
            fresh.set_params(**dict.fromkeys(seed_parameters(fresh), own))
            with global_generators(seed):
                before = known_states(own)
                fit_with(fresh, X, y, sample_weight)
                if known_states(own) != before:
                    return True
            answers = [name for name in _ANSWERS if hasattr(fresh, name)]
            predicted.append([getattr(fresh, name)(X) for name in answers])
        return not all(map(np.array_equal, *predicted))
    except Exception:  # what estimators raise has no class in common
        return True


def fit_anew(
    fresh: Any, X: Any, y: NDArray[Any], sample_weight: NDArray[Any] | None, seed: int
) -> Any:
    """Return a clone of an estimator that `unfitted` has made, fitted as `refit` does."""
    with global_generators(seed):
        fitted = fit_with(clone(fresh), X, y, sample_weight)
    kind_of(fitted).let_be_pickled()
    return fitted
