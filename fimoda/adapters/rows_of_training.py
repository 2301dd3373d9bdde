"""Rows that a model was given and was not trained on, or not evenly."""

from __future__ import annotations

import warnings
from math import ceil
from typing import Any

import numpy as np
import skorch
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.base import TransformerMixin, clone
from sklearn.linear_model import SGDClassifier, SGDRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags
from torch.utils.data import DataLoader

from .randomness import global_generators
from .wrappers import through_steps, wrappers


def training_rows(estimator: Any, X: Any, y: NDArray[Any]) -> Any:
    """Return the training rows as the model itself was trained on them.

    They are those of `transform_rows`, unless an earlier step of a Pipeline cross-fits, as a
    ``TargetEncoder`` does: its ``fit_transform`` gives other rows than its ``transform``. The former are
    made again by fitting a clone of the earlier steps, if that gives the same steps.

    Parameters
    ----------
    estimator : object
        The fitted model.
    X : array-like of shape (n_train, ...)
        Training rows as given.
    y : ndarray of shape (n_train, ...)
        Their targets as given.

    Warns
    -----
    UserWarning
        If the model was trained on other rows and they cannot be made again, since the draws of a
        step are not fixed or it was fitted on other rows.
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
    steps = clone(pipeline[:-1])
    steps.set_params(**{n: None for n in steps.get_params() if n.split("__")[-1] == "memory"})
    with global_generators(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the user has seen them
        return steps.fit_transform(X, y), through_steps(steps.steps, X)


def _same(one: Any, other: Any) -> bool:
    """Return whether rows are equal up to rounding."""
    one, other = (np.asarray(rows.toarray() if issparse(rows) else rows) for rows in (one, other))
    if one.shape != other.shape:
        return False
    if one.dtype.kind in "fiub" and other.dtype.kind in "fiub":
        return np.allclose(one, other, rtol=1e-6, atol=0, equal_nan=True)
    return np.array_equal(one, other)


def warn_of_rows(estimator: Any, n_rows: int, weighted: bool) -> None:
    """Warn if the model was trained on fewer rows than these, or drew some more often than others.

    Parameters
    ----------
    estimator : object
        The fitted model itself.
    n_rows : int
        Number of training rows given.
    weighted : bool
        Whether weights were given for them.
    """
    name = type(estimator).__name__
    seen = _rows_seen(estimator)
    if seen is not None and seen < n_rows:
        warnings.warn(
            f"{name} was trained on {seen} rows and is given {n_rows}: those that were held out "
            "(train_split, early_stopping), or were not there, are scored and counted like the others. "
            "Pass the rows that it was trained on, or train without holding rows out.",
            UserWarning,
            stacklevel=2,
        )
    if isinstance(estimator, skorch.NeuralNet) and _makes_other_rows(estimator):
        warnings.warn(
            f"{name} makes its batches by a collate_fn or an iterator of its own in training "
            "(iterator_train) and otherwise without: what it does to the rows is not known. Scores are those "
            "of the rows as they are given, each once an epoch.",
            UserWarning,
            stacklevel=2,
        )
    if isinstance(estimator, skorch.NeuralNet) and not weighted:
        settings = estimator.get_params_for("iterator_train")
        if settings.get("sampler") is not None or settings.get("batch_sampler") is not None:
            warnings.warn(
                f"{name} draws its rows with a sampler of its own (iterator_train), and scores are those "
                "of rows that come up once an epoch. Where the sampler draws some rows more often, give "
                "their weights as sample_weight.",
                UserWarning,
                stacklevel=2,
            )


def _makes_other_rows(net: skorch.NeuralNet) -> bool:
    """Return whether batches are made otherwise in training than for predictions, which are checked."""
    made = net.get_params_for("iterator_train").get("collate_fn")
    own = net.get_params_for("iterator_valid").get("collate_fn")
    if made is not None and made is not own:
        return True
    return net.iterator_train not in (DataLoader, net.iterator_valid)


def _rows_seen(estimator: Any) -> int | None:
    """Return how many rows an epoch of training had, where the model tells."""
    if isinstance(estimator, skorch.NeuralNet):
        return _rows_of_an_epoch(estimator)
    if not getattr(estimator, "early_stopping", False) or not getattr(estimator, "n_iter_", 0):
        return None
    if isinstance(estimator, MLPClassifier | MLPRegressor) and estimator.solver != "lbfgs":
        return round(estimator.t_ / estimator.n_iter_)
    if isinstance(estimator, SGDClassifier | SGDRegressor):
        given = round((estimator.t_ - 1) / estimator.n_iter_)
        return given - ceil(estimator.validation_fraction * given)
    return None


def _rows_of_an_epoch(net: skorch.NeuralNet) -> int | None:
    settings = net.get_params_for("iterator_train")
    if settings.get("drop_last") or settings.get("batch_sampler") is not None:
        return None
    epochs = (net.history_ or [])[-2:]  # the last may have been interrupted
    sizes = [
        sum(batch.get("train_batch_size", 0) for batch in epoch.get("batches", []))
        for epoch in epochs
    ]
    return max(sizes, default=0) or None
