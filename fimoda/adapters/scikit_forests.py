"""scikit-learn's trees that are grown each on its own: single ones, forests, and bags of trees."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom
from sklearn.base import BaseEstimator, is_classifier
from sklearn.ensemble import (
    BaggingClassifier,
    BaggingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.ensemble._forest import ForestClassifier, ForestRegressor
from sklearn.tree import BaseDecisionTree
from sklearn.utils import check_array
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight

from .._arrays import n_rows
from ..losses import ProbabilityNLL, RowLoss, SquaredError
from ..trees import Branches, Forest, Tree, TreeModel
from .mlp import is_class_target
from .tree_kinds import TreesKind

Floats = NDArray[np.float64]
Leaves = NDArray[np.int32]


class Forests(TreesKind):
    """Outputs are means over trees: of class probabilities, or of predictions."""

    trees_are = "apart"

    types = (
        BaseDecisionTree,
        ForestClassifier,
        ForestRegressor,
        BaggingClassifier,
        BaggingRegressor,
    )

    @classmethod
    def takes(cls, model: Any) -> bool:
        """Return whether a model is of this kind: bags may be of other models than trees."""
        if not super().takes(model):
            return False
        if not isinstance(model, BaggingClassifier | BaggingRegressor):
            return True
        given = [] if model.estimator is None else [model.estimator]
        return all(
            isinstance(one, BaseDecisionTree) for one in getattr(model, "estimators_", given)
        )

    @property
    def members(self) -> list[Any]:
        """The fitted trees."""
        return [self.model] if isinstance(self.model, BaseDecisionTree) else self.model.estimators_

    @property
    def is_bagging(self) -> bool:
        """True if each tree may have its own features."""
        return isinstance(self.model, BaggingClassifier | BaggingRegressor)

    def trees(self, X: Any, y: Any, weights: Any) -> TreeModel:
        if isinstance(getattr(self.model, "classes_", None), list):
            raise TypeError(
                f"estimator {type(self.model).__name__} must be a classifier of one label a row, got "
                f"{len(self.model.classes_)} labels; fit one for each label."
            )
        known = getattr(self.model, "_n_samples", n_rows(X))
        if known != n_rows(X):
            raise ValueError(
                f"X must have the {known} rows that {type(self.model).__name__} was trained on, in the order "
                f"of its fit, so that it is known which were in the bag of each tree; got {n_rows(X)} rows."
            )
        self._given = weights
        return super().trees(X, y, weights)

    def class_weight(self, y: NDArray[Any]) -> Floats | None:
        """Return the weight of each class in the training, if they are the same for all trees."""
        model = self.model
        given = getattr(model, "class_weight", None)
        if given is None or (given == "balanced_subsample" and model.bootstrap):
            return None
        if given == "balanced_subsample":
            given = "balanced"
        known = {}
        of_weights = isinstance(model, ForestClassifier) and hasattr(model, "_sample_weight")
        if of_weights and self._given is not None:
            known["sample_weight"] = np.asarray(self._given)
        found: Floats = compute_class_weight(given, classes=self.classes, y=y, **known)
        return found

    def _require_own_weights(self, weights: Floats) -> None:
        """Raise ValueError if a forest was trained with other weights; newer ones tell theirs."""
        if not hasattr(self.model, "_sample_weight"):
            return
        known = self.model._sample_weight
        own = np.ones(len(weights)) if known is None else np.asarray(known, dtype=np.float64)
        if not np.allclose(own, weights, rtol=1e-6):
            row = int(np.argmax(np.abs(own - weights)))
            raise ValueError(
                f"X and sample_weight must be those that {type(self.model).__name__} was trained on, in the "
                f"order of its fit: row {row} had the weight {own[row]:g}, with that of its class, and has "
                f"{weights[row]:g} now. Pass all of its training rows with the weights of its fit."
            )

    def ensemble(self, X: Any, y: NDArray[Any], weights: Floats) -> Forest:
        self._require_own_weights(weights)
        members = self.members
        grown = [one.tree_ for one in members]
        trees, numbers, branches, leaf_weights = [], [], [], []
        for one, tree in zip(members, grown, strict=True):
            leaves = np.flatnonzero(tree.children_left == -1)
            trees.append(Tree(self._values(one)[leaves] / len(grown), slice(None)))
            number = np.zeros(tree.node_count, dtype=np.int32)
            number[leaves] = np.arange(len(leaves))
            numbers.append(number)
            branches.append(Branches(_parents(tree), leaves))
            leaf_weights.append(tree.weighted_n_node_samples[leaves])

        leaves_of = partial(_leaves_of, self.model, numbers)
        forest = Forest(
            leaves_of,
            trees,
            np.zeros(trees[0].values.shape[1]),
            **self._bags(y, weights),
            branches=branches,
            leaf_weights=leaf_weights,
            leaves_are_means=members[0].criterion != "absolute_error",
            is_constrained=members[0].monotonic_cst is not None,
            weighs_classes=any(
                getattr(one, "class_weight", None) is not None for one in (self.model, members[0])
            ),
        )
        self._are_counts = bool((forest.outputs(leaves_of(X)) == 0).any())
        return forest

    def _values(self, one: BaseDecisionTree) -> Floats:
        """Return what a tree says at each node (n_nodes, C)."""
        values = np.asarray(one.tree_.value, dtype=np.float64)
        if self.classes is None:
            return values[:, :, 0]
        found = np.zeros((len(values), len(self.classes)))
        columns = np.arange(len(self.classes))
        if len(one.classes_) < len(columns):  # its bag had no row of some class
            columns = np.asarray(one.classes_, dtype=np.int64)
        found[:, columns] = values[:, 0] / values[:, 0].sum(1, keepdims=True)
        return found

    def _bags(self, y: NDArray[Any], weights: Floats) -> dict[str, Any]:
        """Return what is known of the bags: `bags`, `units` and `chances` of a `Forest`."""
        model, n = self.model, len(y)
        if isinstance(model, BaseDecisionTree):
            return {"bags": weights[None], "units": weights[None]}
        shape = len(model.estimators_), n
        if not (self.is_bagging or model.bootstrap):
            all_rows = np.broadcast_to(weights, shape)
            return {"bags": all_rows, "units": all_rows}
        drawn = list(model.estimators_samples_)
        if len(drawn) != shape[0]:
            raise ValueError(
                f"estimator {type(model).__name__} must tell the bags of all of its trees, but after a "
                f"warm start it tells {len(drawn)} of {shape[0]}. Fit all trees at once."
            )
        times = np.stack([np.bincount(rows, minlength=n) for rows in drawn]).astype(np.float64)
        by_weight = getattr(model, "_sample_weight", None)
        units: Floats = np.broadcast_to(1.0, shape)
        if not hasattr(model, "_sample_weight"):  # newer ones draw by weight
            units = units * weights
        if self.is_bagging:
            units = units * self._own_class_weights(y)
        elif getattr(model, "class_weight", None) == "balanced_subsample":
            units = units * [compute_sample_weight("balanced", y, indices=rows) for rows in drawn]
        size, shares = len(drawn[0]), np.full(n, 1 / n)
        if by_weight is not None:
            shares = by_weight / by_weight.sum()
        return {"bags": times * units, "units": units, "chances": self._chances(size, shares)}

    def _chances(self, size: int, shares: Floats) -> Floats:
        """Return the chances (most + 1, n) of rows with these shares to be drawn 0, 1, ... times."""
        if not self.model.bootstrap:  # each at most once
            once = np.minimum(size * shares, 1)
            return np.stack([1 - once, once])
        mean = size * shares.max()
        most = int(min(size, np.ceil(mean + 8 * np.sqrt(mean) + 8)))
        found: Floats = binom.pmf(np.arange(most + 1)[:, None], size, shares)
        return found

    def _own_class_weights(self, y: NDArray[Any]) -> float | Floats:
        """Return the weights that the trees of a bag give to the classes of the rows."""
        given = getattr(self.model.estimators_[0], "class_weight", None)
        if given is None:
            return 1.0
        weights: Floats = compute_sample_weight(given, np.searchsorted(self.model.classes_, y))
        return weights

    def row_loss(self, ensemble: Any, n: int) -> RowLoss:
        if self.classes is None:
            return SquaredError(over_outputs="sum")
        return ProbabilityNLL(float(np.finfo(float).eps), n_rows=n if self._are_counts else None)

    def raw_scores(self, X: Any) -> Floats:
        model = self.model
        own = model.predict_proba(X) if is_classifier(model) else model.predict(X)
        return np.asarray(own, dtype=np.float64)


def _leaves_of(model: Any, numbers: list[Leaves], rows: Any) -> Leaves:
    """Return the leaf (n, n_trees) of each row in each tree, by the numbers of the nodes that are leaves."""
    if isinstance(model, BaggingClassifier | BaggingRegressor):
        seen = check_array(rows, accept_sparse=["csr"], dtype=np.float32, ensure_all_finite=False)
        each = zip(model.estimators_, model.estimators_features_, strict=True)
        applied = [one.apply(seen[:, features]) for one, features in each]
    else:
        applied = model.apply(rows).reshape(n_rows(rows), -1).T
    return np.stack([number[at] for number, at in zip(numbers, applied, strict=True)], 1)


def _parents(tree: Any) -> NDArray[np.int64]:
    """Return the node above each node; the root is above itself."""
    found = np.zeros(tree.node_count, dtype=np.int64)
    inner = np.flatnonzero(tree.children_left != -1)
    found[tree.children_left[inner]] = found[tree.children_right[inner]] = inner
    return found


def default_forest(y: ArrayLike, random_state: Any = None) -> BaseEstimator:
    """Return the small model that stands in for ``estimator=None`` in methods of forests."""
    model = RandomForestClassifier if is_class_target(y) else RandomForestRegressor
    return model(n_estimators=10, max_depth=5, random_state=random_state)
