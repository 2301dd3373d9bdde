"""Rows that a model was given and was not trained on, or not evenly."""

from __future__ import annotations

import warnings
from math import ceil
from typing import Any

import skorch
from sklearn.linear_model import SGDClassifier, SGDRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor


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
