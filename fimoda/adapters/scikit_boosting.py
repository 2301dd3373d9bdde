"""scikit-learn's boosted trees."""

from __future__ import annotations

import copy
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn._loss import loss as losses
from sklearn.base import BaseEstimator, is_classifier
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.model_selection import train_test_split

from .._arrays import dense_rows, n_rows, take_rows
from ..trees import (
    Boosting,
    BoostingLoss,
    Logistic,
    Quantile,
    Softmax,
    Squared,
    Tree,
    Tweedie,
)
from .mlp import is_class_target
from .tree_kinds import BoostingKind, own_leaves

Floats = NDArray[np.float64]
Leaves = NDArray[np.int32]


def _boosting_loss(kind: BoostingKind, loss: Any, softmax_factor: float) -> BoostingLoss:
    """Return the loss of scikit-learn's boosting with its derivatives."""
    if isinstance(loss, losses.HalfMultinomialLoss):
        return Softmax(softmax_factor)
    if isinstance(loss, losses.HalfBinomialLoss):
        return Logistic()
    if isinstance(loss, losses.HalfSquaredError):
        return Squared()
    if isinstance(loss, losses.HalfPoissonLoss):
        return Tweedie(1.0)
    if isinstance(loss, losses.HalfGammaLoss):
        return Tweedie(2.0)
    if isinstance(loss, losses.PinballLoss):
        return Quantile(float(loss.closs.quantile))
    if isinstance(loss, losses.AbsoluteError):
        return Quantile(0.5)
    raise kind.unknown_loss(f"loss={kind.model.loss!r}")


class HistGradientBoosting(BoostingKind):
    """Boosting on histograms, whose trees tell no leaves: their values are replaced by numbers for it."""

    types = (HistGradientBoostingClassifier, HistGradientBoostingRegressor)

    def ensemble(self, X: Any, y: NDArray[Any], weights: Floats) -> Boosting:
        model = self.model
        rounds = model._predictors
        trees, numbered = [], []
        for predictors in rounds:
            for k, predictor in enumerate(predictors):
                nodes = predictor.nodes
                leaves = np.flatnonzero(nodes["is_leaf"])
                values = nodes["value"][leaves].copy()
                trees.append(Tree(values[:, None], own_leaves(values, k)))
                numbered.append(_numbered(predictor, leaves))

        return Boosting(
            partial(_histogram_leaves, model, numbered),
            trees,
            np.asarray(model._baseline_prediction, dtype=np.float64).reshape(-1),
            _boosting_loss(self, model._loss, 1.0),
            np.full(len(rounds), float(model.learning_rate)),
            l2=float(model.l2_regularization),
            shares=self._shares(y, len(rounds)),
            n_trained=int(rounds[0][0].nodes["count"][0]) if (weights > 0).all() else None,
            is_constrained=model.monotonic_cst is not None,
            trees_of_round=model.n_trees_per_iteration_,
        )

    def _shares(self, y: NDArray[Any], n_rounds: int) -> float | Floats:
        """Return 0 for rows that were held out for early stopping, and 1 for the others."""
        model = self.model
        if not model.do_early_stopping_ or model.validation_fraction is None:
            return 1.0
        held = _kept(y, model.validation_fraction, model._random_seed, is_classifier(model))
        return np.broadcast_to(held, (n_rounds, len(y)))

    def raw_scores(self, X: Any) -> Floats:
        return np.asarray(self.model._raw_predict(X), dtype=np.float64)


def _histogram_leaves(model: Any, numbered: list[Any], X: Any) -> Leaves:
    """Return the leaves (n, n_trees) of rows, which trees with numbered leaves predict."""
    seen = model._preprocess_X(X, reset=False)
    sets, places = model._bin_mapper.make_known_categories_bitsets()
    found = np.empty((len(seen), len(numbered)), dtype=np.int32)
    for t, predictor in enumerate(numbered):
        found[:, t] = predictor.predict(seen, sets, places, 1)
    return found


def _numbered(predictor: Any, leaves: NDArray[np.int64]) -> Any:
    """Return a copy of a tree whose leaves have their number as their value."""
    found = copy.copy(predictor)
    found.nodes = predictor.nodes.copy()
    found.nodes["value"][leaves] = np.arange(len(leaves))
    return found


class GradientBoosting(BoostingKind):
    """Boosting of exact trees."""

    types = (GradientBoostingClassifier, GradientBoostingRegressor)

    def ensemble(self, X: Any, y: NDArray[Any], weights: Floats) -> Boosting:
        model = self.model
        if not (model.init_ == "zero" or isinstance(model.init_, DummyClassifier | DummyRegressor)):
            raise TypeError(
                f"estimator {type(model).__name__} must begin with a constant, got init="
                f"{model.init!r}. Leave init=None, or use methods that fit it again (LeaveOneOut)."
            )
        n_classes = getattr(model, "n_classes_", 2)
        loss = _boosting_loss(self, model._loss, n_classes / max(n_classes - 1, 1))
        grown = [[one.tree_ for one in stage] for stage in model.estimators_]
        trees, numbers = [], []
        for stage in grown:
            for k, tree in enumerate(stage):
                leaves = np.flatnonzero(tree.children_left == -1)
                values = model.learning_rate * tree.value[leaves, 0, 0]
                trees.append(Tree(values[:, None], slice(k, k + 1)))
                number = np.zeros(tree.node_count, dtype=np.int32)
                number[leaves] = np.arange(len(leaves))
                numbers.append(number)

        first = dense_rows(take_rows(X, np.array([0])), 2**20)
        start = model._raw_predict_init(np.asarray(first)).reshape(-1).astype(np.float64)
        return Boosting(
            partial(_exact_leaves, model, numbers),
            trees,
            start,
            loss,
            np.full(len(grown), float(model.learning_rate)),
            start_is_fitted=model.init is None,
            shares=self._shares(y, len(grown)),
            draws_rows=model.subsample < 1,
            n_trained=int(grown[0][0].n_node_samples[0]),
            trees_of_round=len(grown[0]),
        )

    def _shares(self, y: NDArray[Any], n_rounds: int) -> float | Floats:
        """Return the part of its weight with which each row takes part."""
        model = self.model
        if model.n_iter_no_change is None:
            return float(model.subsample)
        if not isinstance(model.random_state, Integral):
            raise ValueError(
                f"estimator {type(model).__name__} must have a whole number as its random_state where "
                f"n_iter_no_change holds rows out, got random_state={model.random_state!r}: which rows it "
                "was trained on cannot be known otherwise. Fit it with a number, or without holding rows out."
            )
        held = _kept(y, model.validation_fraction, model.random_state, is_classifier(model))
        return np.broadcast_to(model.subsample * held, (n_rounds, len(y)))

    def raw_scores(self, X: Any) -> Floats:
        model = self.model
        own = model.decision_function(X) if is_classifier(model) else model.predict(X)
        return np.asarray(own, dtype=np.float64)


def _exact_leaves(model: Any, numbers: list[Leaves], X: Any) -> Leaves:
    """Return the leaves (n, n_trees) of rows, from the number of each node's leaf in each tree."""
    rows = X if issparse(X) else np.asarray(X)  # the trees know no names, and lists have no shape
    nodes = model.apply(rows).reshape(n_rows(X), -1).astype(np.int64)
    return np.stack([number[node] for number, node in zip(numbers, nodes.T, strict=True)], axis=1)


def _kept(y: NDArray[Any], held: Any, seed: Any, stratify: bool) -> Floats:
    """Return 0 (n,) for rows that were held out for early stopping, and 1 for the others."""
    kept, _ = train_test_split(
        np.arange(len(y)), test_size=held, stratify=y if stratify else None, random_state=seed
    )
    found = np.zeros(len(y))
    found[kept] = 1.0
    return found


def default_trees(y: ArrayLike, random_state: Any = None) -> BaseEstimator:
    """Return the small model that stands in for ``estimator=None`` in methods of boosting."""
    classes = is_class_target(y)
    model = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
    return model(max_iter=10, min_samples_leaf=5, early_stopping=False, random_state=random_state)
