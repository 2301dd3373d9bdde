"""Training rows as a model saw them, where a step before it cross-fits."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.base import TransformerMixin, clone
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags

from .._arrays import entries, is_several
from .randomness import global_generators
from .wrappers import through_steps, uncached, wrappers


def training_rows(estimator: Any, X: Any, y: NDArray[Any]) -> Any:
    """Return the training rows as the model itself was trained on them.

    They are those of `transform_rows`, unless an earlier step of a Pipeline cross-fits, as a
    ``TargetEncoder`` does: its ``fit_transform`` gives other rows than its ``transform``. The former are
    made again by fitting a clone of the earlier steps, if that gives the same steps. Otherwise, since the
    draws of a step are not fixed or it was fitted on other rows, a warning says so.
    """
    for wrapper in wrappers(estimator):
        if wrapper.obstacle:
            raise TypeError(wrapper.obstacle)
        if wrapper.rows:
            seen = wrapper.rows(X)
            X = _cross_fitted(estimator, X, y, seen) if _may_cross_fit(estimator) else seen
        if wrapper.targets:
            y = wrapper.targets(y)
        estimator = wrapper.inner
    return X


def _may_cross_fit(pipeline: Any) -> bool:
    """Return whether a step of a Pipeline has a ``fit_transform`` of its own that looks at targets."""
    steps = pipeline[:-1] if isinstance(pipeline, Pipeline) else None
    parts = [] if steps is None else steps.get_params().values()
    return any(_looks_at_targets(part) for part in parts if hasattr(part, "get_params"))


def _looks_at_targets(step: Any) -> bool:
    own = getattr(type(step), "fit_transform", None)
    if isinstance(step, type) or own in (None, TransformerMixin.fit_transform):
        return False
    tags = get_tags(step)
    return bool(tags.target_tags.required or getattr(tags, "supervised_encoder", False))


def _cross_fitted(pipeline: Pipeline, X: Any, y: NDArray[Any], seen: Any) -> Any:
    """Return what ``fit_transform`` of the earlier steps gives, or else `seen`, which is `transform`'s."""
    (trained, again), (other, _) = _fitted_anew(pipeline, X, y, 0), _fitted_anew(pipeline, X, y, 1)
    if _same(trained, again):
        return seen
    drawn = any(
        isinstance(value, np.random.RandomState | np.random.Generator)  # moved by its first use
        for value in pipeline[:-1].get_params().values()
    )
    fixed = _same(trained, other) and not drawn
    if fixed and _same(again, seen):
        return trained
    why = (
        "was fitted on other rows or targets than these"
        if fixed
        else "draws anew each time (no number is its random_state)"
    )
    warnings.warn(
        "estimator is a Pipeline whose earlier steps give their training rows otherwise when they are "
        "fitted (fit_transform, which cross-fits) than later (transform), and which "
        f"{why}: the rows that its last step was trained on are not known, and those of transform stand "
        "for them. Methods that fit the whole Pipeline again (LeaveOneOut, Downsampling, Datamodel) "
        "need not know them.",
        UserWarning,
        stacklevel=2,
    )
    return seen


def _fitted_anew(pipeline: Pipeline, X: Any, y: NDArray[Any], seed: int) -> tuple[Any, Any]:
    """Return what ``fit_transform`` and then ``transform`` of a clone of the earlier steps give."""
    steps = uncached(clone(pipeline[:-1]))
    with global_generators(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the user has seen them
        return steps.fit_transform(X, y), through_steps(steps.steps, X)


def _same(one: Any, other: Any) -> bool:
    """Return whether rows are equal up to rounding."""
    if is_several(one) and is_several(other):
        pairs = zip(entries(one), entries(other), strict=False)
        return len(one) == len(other) and all(_same(a, b) for (_, a), (_, b) in pairs)
    one, other = (np.asarray(rows.toarray() if issparse(rows) else rows) for rows in (one, other))
    if one.shape != other.shape:
        return False
    if one.dtype.kind in "fiub" and other.dtype.kind in "fiub":
        return np.allclose(one, other, rtol=1e-6, atol=0, equal_nan=True)
    return np.array_equal(one, other)
