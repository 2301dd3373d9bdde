"""LightGBM's boosted trees, bare or in its estimators."""

from __future__ import annotations

import re
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arrays import n_rows
from ..trees import (
    Boosting,
    BoostingLoss,
    Logistic,
    Quantile,
    Softmax,
    Splits,
    Squared,
    Tree,
    Tweedie,
)
from .tree_kinds import BoosterKind, own_leaves, positions

Floats = NDArray[np.float64]
Leaves = NDArray[np.int32]

_DOUBTS = (
    "LightGBM does not tell of init_score, with which its training cannot be followed, nor of the "
    "sample_weight of its rows."
)

#: Numbers up to this size are zero for LightGBM.
_ZERO = float(np.float32(1e-35))

#: Options with which leaves are made otherwise, and what to set instead.
_REFUSED = {
    "linear_tree": "0",
    "path_smooth": "0",
    "use_quantized_grad": "0",
    "reg_sqrt": "0",
    "sigmoid": "1",
    "pos_bagging_fraction": "1",
    "neg_bagging_fraction": "1",
}


class LightGBM(BoosterKind):
    """Trees of LightGBM, by the text of the model, which holds the parameters of its training."""

    library = "lightgbm"
    names = frozenset({"LGBMModel", "Booster"})

    @property
    def booster(self) -> Any:
        """The booster itself."""
        return self.model if self.is_bare else self.model.booster_

    @cached_property
    def text(self) -> str:
        """The model up to its best round, which is what it predicts with."""
        return str(self.booster.model_to_string())

    @cached_property
    def options(self) -> dict[str, str]:
        """The parameters of its training, by their main names."""
        told = self.text.rpartition("\nparameters:")[2]
        found = dict(re.findall(r"^\[(\w+): (.*)\]$", told, re.MULTILINE))
        if "objective" not in found:
            raise ValueError(
                f"estimator {type(self.model).__name__} must hold the parameters of its training, but was "
                "made from a file without its part 'parameters:'. Save it by save_model() of the booster "
                "that was trained, or pickle it."
            )
        return found

    def is_fitted(self) -> bool:
        return self.model.num_trees() > 0 if self.is_bare else super().is_fitted()

    @property
    def n_classes(self) -> int | None:
        options = self.options
        return {"binary": 2, "multiclass": int(options["num_class"])}.get(options["objective"])

    # ---- weights of classes ---------------------------------------------------------------------

    def _own_class_weight(self, y: NDArray[Any]) -> Floats | None:
        """Return the weights of two classes by parameters of LightGBM, which the first score has not."""
        options = self.options
        if options["objective"] != "binary":
            return None
        found = np.array([1.0, float(options["scale_pos_weight"])])
        if options["is_unbalance"] == "1":
            counts = np.bincount(positions(np.asarray(self.classes), y), minlength=2)
            found *= counts.max() / np.maximum(counts, 1)
        return None if (found == 1).all() else found

    def class_weight(self, y: NDArray[Any]) -> Floats | None:
        known = [super().class_weight(y), self._own_class_weight(y)]
        given = [weights for weights in known if weights is not None]
        return np.prod(given, axis=0) if given else None

    @property
    def balances(self) -> str | None:
        return "rows" if self.options["is_unbalance"] == "1" else super().balances

    # ---- trees ----------------------------------------------------------------------------------

    def ensemble(self, X: Any, y: NDArray[Any], weights: Floats) -> Boosting:
        options = self.options
        self._require_supported(options)
        head, *grown = map(_fields, self.text.split("\nTree="))
        loss, size = self._loss(options), int(head["num_tree_per_iteration"])
        own = self._own_class_weight(y)
        start_shares = 1.0 if own is None else 1 / own[positions(np.asarray(self.classes), y)]
        is_fitted = loss.is_smooth and options["boost_from_average"] == "1"
        start = np.zeros(size)
        if is_fitted:
            targets = self.targets(y, loss, size).astype(np.float32).astype(np.float64)
            start = loss.start(targets, weights * start_shares)
        trees, of_leaves = [], _joined(grown, "leaf_value")
        ends = np.cumsum([int(tree["num_leaves"]) for tree in grown])
        for t, (tree, values) in enumerate(zip(grown, np.split(of_leaves, ends[:-1]), strict=True)):
            k = t % size
            if t < size and len(values) > 1:
                values -= start[k]
            elif t < size:  # a leaf alone is the first score itself
                start[k], values = values[0], np.zeros(1)
            extra = _extra_penalties(tree, head, options)
            trees.append(Tree(values[:, None], own_leaves(values, k), extra))
        share, draws = _drawn(options)
        counts = _numbers(grown[0].get("leaf_count", "")) if grown else np.zeros(0)
        is_known = len(counts) > 1 and not draws and (weights > 0).all()
        return Boosting(
            partial(_leaves, self.model, _splits(head, grown)),
            trees,
            start,
            loss,
            self._learning_rates(grown, size, options),
            l2=float(options["lambda_l2"]),
            l1=float(options["lambda_l1"]),
            max_step=_largest_step(options),
            start_is_fitted=is_fitted,
            start_shares=start_shares,
            shares=share,
            draws_rows=draws,
            n_trained=int(counts.sum()) if is_known else None,
            is_constrained="1" in options["monotone_constraints"],
            trees_of_round=size,
            doubts=_DOUBTS,
        )

    def _require_supported(self, options: dict[str, str]) -> None:
        """Raise TypeError for ways of boosting that cannot be followed."""
        if options["boosting"] not in ("gbdt", "goss"):
            raise self.not_supported(f"boosting={options['boosting']!r}", "boosting='gbdt'")
        for name, wanted in _REFUSED.items():
            if (given := options.get(name, wanted)) != wanted:
                raise self.not_supported(f"{name}={given}", f"{name}={wanted}")

    def _loss(self, options: dict[str, str]) -> BoostingLoss:
        """Return the loss of the booster's objective with its derivatives."""
        name, n = options["objective"], int(options["num_class"])
        largest = float(options["poisson_max_delta_step"])
        known: dict[str, BoostingLoss] = {
            "regression": Squared(),
            "regression_l1": Quantile(0.5),
            "quantile": Quantile(float(options["alpha"])),
            "poisson": Tweedie(1.0, float(np.exp(largest))),
            "gamma": Tweedie(2.0),
            "tweedie": Tweedie(float(options["tweedie_variance_power"])),
            "binary": Logistic(),
            "multiclass": Softmax(n / max(n - 1, 1), is_centred=False),
        }
        if name not in known:
            raise self.unknown_loss(f"objective={name!r}")
        return known[name]

    def _learning_rates(
        self, grown: list[dict[str, str]], size: int, options: dict[str, str]
    ) -> Floats:
        """Return the learning rate of each round; the first tree has lost its own to the first score."""
        last = float(options["learning_rate"])
        rates = np.full(len(grown) // size, last)
        for t, tree in enumerate(grown):
            if tree["num_leaves"] != "1":
                rates[t // size] = float(tree["shrinkage"])
        if rates[0] == 1 != last:
            if not np.allclose(rates[1:], last):
                raise ValueError(
                    f"estimator {type(self.model).__name__} must tell the learning rate of its first round, "
                    "which LightGBM does not keep where learning rates differ by round. Train it with one "
                    "learning_rate, or with boost_from_average=False."
                )
            rates[0] = last
        return rates

    # ---- rows -----------------------------------------------------------------------------------

    def predict(self, X: Any) -> Any:
        return self.model.predict(X, validate_features=True)

    def raw_scores(self, X: Any) -> Floats:
        return np.asarray(self.model.predict(X, raw_score=True), dtype=np.float64)


def _leaves(model: Any, splits: Splits | None, X: Any) -> Leaves:
    """Return the leaves (n, n_trees) of rows, numbered from 0 in each tree."""
    if splits is not None and splits.suits(X):
        return splits.leaves(np.where(np.abs(X) <= _ZERO, 0, X))
    found = np.asarray(model.predict(X, pred_leaf=True))
    return found.reshape(n_rows(X), -1).astype(np.int32)


def _splits(head: dict[str, str], grown: list[dict[str, str]]) -> Splits | None:
    """Return the splits of all trees, or None where some are by categories or see zero as missing."""
    sizes = np.array([int(tree["num_leaves"]) for tree in grown])
    split = [tree for tree in grown if tree["num_leaves"] != "1"]
    names = "split_feature", "decision_type", "left_child", "right_child"
    features, kinds, *sides = (_joined(split, name, np.int64) for name in names)
    thresholds, missing = _joined(split, "threshold"), kinds >> 2
    if (kinds & 1).any() or (missing == 1).any() or sizes.max() > Splits.LARGEST:
        return None
    firsts, largest = np.cumsum([0, *(sizes - 1)]), int(sizes.max())
    tree = np.repeat(np.arange(len(sizes)), sizes - 1)
    left, right = (np.where(one < 0, ~(tree * largest + ~one), one + firsts[tree]) for one in sides)
    return Splits(
        np.where(sizes > 1, firsts[:-1], -1),
        features,
        thresholds,
        np.where(missing == 2, kinds & 2 > 0, thresholds >= 0),  # else NaN counts as zero
        left,
        right,
        largest,
        int(head["max_feature_idx"]) + 1,
    )


def _fields(text: str) -> dict[str, str]:
    """Return the lines ``name=value`` of a part of the model's text."""
    return dict(line.split("=", 1) for line in text.split("\n") if "=" in line)


def _numbers(text: str, dtype: Any = np.float64) -> NDArray[Any]:
    return np.fromstring(text, dtype, sep=" ") if text else np.zeros(0, dtype)


def _joined(grown: list[dict[str, str]], name: str, dtype: Any = np.float64) -> NDArray[Any]:
    """Return what the trees have under a name, one after another."""
    return _numbers(" ".join(tree[name] for tree in grown), dtype)


def _largest_step(options: dict[str, str]) -> float:
    """Return the largest size of a leaf's value; 0 and less stand for none."""
    given = float(options["max_delta_step"])
    return given if given > 0 else np.inf


def _extra_penalties(tree: dict[str, str], head: dict[str, str], options: dict[str, str]) -> Any:
    """Return the penalty ``cat_l2`` of leaves that lie side by side under a split by many categories."""
    if tree["num_cat"] == "0" or tree["num_leaves"] == "1":
        return 0.0
    n_bins = np.array([infos.count(":") + 1 for infos in head["feature_infos"].split()])
    children = np.stack([_numbers(tree[f"{side}_child"]).astype(int) for side in ("left", "right")])
    by_category = _numbers(tree["decision_type"]).astype(int) & 1 > 0
    many = n_bins[_numbers(tree["split_feature"]).astype(int)] > int(options["max_cat_to_onehot"])
    found = np.zeros(int(tree["num_leaves"]))
    under = children[:, by_category & many]
    found[~under[under < 0]] = float(options["cat_l2"])
    return found


def _drawn(options: dict[str, str]) -> tuple[float, bool]:
    """Return the part of its weight with which a row takes part, and whether rows are drawn."""
    if "goss" in (options["boosting"], options.get("data_sample_strategy")):
        return 1.0, True  # rows that are drawn count for those that are not
    part = float(options["bagging_fraction"]) if int(options["bagging_freq"]) > 0 else 1.0
    return part, part < 1
