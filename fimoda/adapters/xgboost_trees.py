"""XGBoost's boosted trees, bare or in its estimators."""

from __future__ import annotations

import json
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .._arrays import n_rows
from ..trees import Boosting, BoostingLoss, Logistic, Quantile, Softmax, Squared, Tree, Tweedie
from .tree_kinds import BoosterKind, own_leaves

Floats = NDArray[np.float64]
Leaves = NDArray[np.int32]

_DOUBTS = (
    "XGBoost does not tell of base_margin, an objective of one's own or a schedule of learning rates, with "
    "which its training cannot be followed; and save_model() forgets parameters such as learning_rate and "
    "reg_lambda: after load_model(), give them to the booster by set_param(), or pickle the model. It adds "
    "up in float32, so that targets must not be much larger than they differ: subtract their mean."
)


class XGBoost(BoosterKind):
    """Trees of XGBoost, by the text of the model and the parameters that the booster holds."""

    library = "xgboost"
    names = frozenset({"XGBModel", "Booster"})
    adds_in: ClassVar[type] = np.float32

    @property
    def booster(self) -> Any:
        """The booster itself."""
        return self.model if self.is_bare else self.model.get_booster()

    @cached_property
    def config(self) -> dict[str, Any]:
        """The settings of its training that the booster knows."""
        found: dict[str, Any] = json.loads(self.booster.save_config())["learner"]
        return found

    def is_fitted(self) -> bool:
        return self.model.num_boosted_rounds() > 0 if self.is_bare else super().is_fitted()

    @property
    def n_classes(self) -> int | None:
        config = self.config
        if config["objective"]["name"].startswith("binary:"):
            return 2
        return int(config["learner_model_param"]["num_class"]) or None

    def class_weight(self, y: NDArray[Any]) -> Floats | None:
        if self.n_classes is None:
            return None
        positive = self._positive_weight(self.config)
        return None if positive == 1 else np.array([1.0, positive])

    def ensemble(self, X: Any, y: NDArray[Any], weights: Floats) -> Boosting:
        config = self.config
        self._require_supported(config)
        loss, size = self._loss(config), config["learner_model_param"]
        n_outputs = max(int(size["num_class"]), 1) * int(size["num_target"])
        model = json.loads(bytes(self.booster.save_raw("json")))["learner"]["gradient_booster"]
        n_rounds = self._n_rounds()
        grown = model["model"]["trees"][: n_rounds * n_outputs]
        trees, numbers = [], []
        for tree, output in zip(grown, model["model"]["tree_info"], strict=False):
            leaves = np.flatnonzero(np.array(tree["left_children"]) == -1)
            values = _floats(tree["split_conditions"])[leaves]
            trees.append(Tree(values[:, None], own_leaves(values, output)))
            number = np.zeros(len(tree["left_children"]), dtype=np.int32)
            number[leaves] = np.arange(len(leaves))
            numbers.append(number)
        start = self._start(config, loss, n_outputs)
        options = config["gradient_booster"]["tree_train_param"]
        best = loss.start(self.targets(y, loss, n_outputs), weights) if loss.is_smooth else np.nan
        return Boosting(
            partial(_leaves, self.model, numbers),
            trees,
            start,
            loss,
            np.full(n_rounds, float(options["learning_rate"])),
            l2=float(options["reg_lambda"]),
            l1=float(options["reg_alpha"]),
            max_step=float(options["max_delta_step"]) or np.inf,
            start_is_fitted=size["boost_from_average"] == "1" and _alike(start, best),
            shares=float(options["subsample"]),
            draws_rows=float(options["subsample"]) < 1,
            is_constrained="1" in options["monotone_constraints"],
            trees_of_round=n_outputs,
            curvature=float(grown[0]["sum_hessian"][0]) if grown else None,
            doubts=_DOUBTS,
        )

    def _require_supported(self, config: dict[str, Any]) -> None:
        """Raise TypeError for ways of boosting that cannot be followed."""
        booster = config["learner_train_param"]["booster"]
        if booster != "gbtree":
            raise self.not_supported(f"booster={booster!r}", "booster='gbtree'")
        strategy = config["learner_train_param"]["multi_strategy"]
        if strategy != "one_output_per_tree":
            raise self.not_supported(
                f"multi_strategy={strategy!r}", "multi_strategy='one_output_per_tree'"
            )
        parallel = int(config["gradient_booster"]["gbtree_model_param"]["num_parallel_tree"])
        if parallel != 1:
            raise self.not_supported(f"num_parallel_tree={parallel}", "num_parallel_tree=1")
        positive, objective = self._positive_weight(config), config["objective"]["name"]
        if positive != 1 and not objective.startswith("binary:"):
            raise self.not_supported(
                f"scale_pos_weight={positive:g} for objective={objective!r}", "sample weights"
            )

    @staticmethod
    def _positive_weight(config: dict[str, Any]) -> float:
        """Return the weight of the second class of two."""
        return float(config["objective"].get("reg_loss_param", {}).get("scale_pos_weight", 1))

    def _loss(self, config: dict[str, Any]) -> BoostingLoss:
        """Return the loss of the booster's objective with its derivatives."""
        objective = config["objective"]
        name = objective["name"]
        multilabel = (
            name.startswith("binary:") and config["learner_model_param"]["num_target"] != "1"
        )
        if name in ("binary:logistic", "binary:logitraw") and not multilabel:
            if self._positive_weight(config) != 1:
                return Logistic(start_from="step")
            return Logistic(start_from="mean" if name == "binary:logitraw" else "logit")
        if name in ("multi:softprob", "multi:softmax"):
            return Softmax(2.0)
        if name == "reg:squarederror":
            return Squared()
        if name == "count:poisson":
            largest = float(objective["poisson_regression_param"]["max_delta_step"])
            return Tweedie(1.0, float(np.exp(largest)))
        if name == "reg:gamma":
            return Tweedie(2.0)
        if name == "reg:tweedie":
            return Tweedie(float(objective["tweedie_regression_param"]["tweedie_variance_power"]))
        if name == "reg:absoluteerror":
            return Quantile(0.5)
        if name == "reg:quantileerror":
            levels = np.ravel(json.loads(objective["quantile_loss_param"]["quantile_alpha"]))
            if len(levels) == 1:
                return Quantile(float(levels[0]))
            raise self.unknown_loss(f"objective={name!r} of several quantile_alpha")
        raise self.unknown_loss(f"objective={name!r}" + " of several labels" * multilabel)

    @staticmethod
    def _start(config: dict[str, Any], loss: BoostingLoss, n_outputs: int) -> Floats:
        """Return the score before the first tree; ``base_score`` is a mean where there is a link."""
        text = config["learner_model_param"]["base_score"]
        given = _floats(np.ravel(json.loads(text)))
        if config["objective"]["name"] == "binary:logistic":
            given = Logistic().link(given)
        elif isinstance(loss, Tweedie):
            given = loss.link(given)
        return np.broadcast_to(given, (n_outputs,)).copy()

    # ---- rows -----------------------------------------------------------------------------------

    def _n_rounds(self) -> int:
        """Return the rounds that predictions take: up to the best one, where an estimator stopped early."""
        best = None if self.is_bare else getattr(self.model, "best_iteration", None)
        return int(self.booster.num_boosted_rounds() if best is None else best + 1)

    def predict(self, X: Any) -> Any:
        if self.is_bare and np.shape(X)[1:] != (self.model.num_features(),):
            raise ValueError(
                f"X must have the {self.model.num_features()} features that the booster was trained on, "
                f"got rows of shape {np.shape(X)[1:]}."
            )
        return self.model.predict(_matrix(X) if self.is_bare else X)

    def raw_scores(self, X: Any) -> Floats:
        rows = _matrix(X) if self.is_bare else X
        return np.asarray(self.model.predict(rows, output_margin=True), dtype=np.float64)


def _floats(given: Any) -> Floats:
    """Return numbers as XGBoost has them, in float32, exactly."""
    return np.asarray(given, dtype=np.float32).astype(np.float64)


def _alike(start: Floats, best: Any) -> bool:
    """Return whether the first score is the best one; with an objective of one's own it is 0.5."""
    return bool(np.allclose(start, best, rtol=1e-3, atol=1e-3))


def _matrix(X: Any) -> Any:
    from xgboost import DMatrix

    return DMatrix(X, enable_categorical=True)


def _leaves(model: Any, numbers: list[Leaves], X: Any) -> Leaves:
    """Return the leaves (n, n_trees) of rows, by the number of each node of each tree."""
    own = hasattr(model, "apply")
    nodes = np.asarray(model.apply(X) if own else model.predict(_matrix(X), pred_leaf=True))
    nodes = nodes.reshape(n_rows(X), -1).astype(np.int64)
    return np.stack([number[node] for number, node in zip(numbers, nodes.T, strict=True)], 1)
