"""CatBoost's boosted trees."""

from __future__ import annotations

import json
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..trees import (
    Boosting,
    BoostingLoss,
    CoupledSoftmax,
    FirstOrder,
    Logistic,
    Quantile,
    Softmax,
    Squared,
    Tree,
    Tweedie,
)
from .tree_kinds import BoostingKind

Floats = NDArray[np.float64]
Leaves = NDArray[np.int32]


class CatBoost(BoostingKind):
    r"""CatBoost on the CPU, known by the name of its class, so that it need not be installed.

    In each round a leaf takes `leaf_estimation_iterations` steps :math:`-G / (H + \lambda \bar w)`, with the
    mean weight :math:`\bar w` of all rows. H is the sum of weights for `leaf_estimation_method`
    ``"Gradient"``, and a matrix over classes for ``"Newton"``. All rows take part with their whole weight:
    samples of rows choose splits only. That :math:`\bar w` moves without a row is left out; it does not where
    weights are equal. Weights of classes are held, too.
    """

    @classmethod
    def takes(cls, model: Any) -> bool:
        return any(
            one.__name__ == "CatBoost" and one.__module__.partition(".")[0] == "catboost"
            for one in type(model).__mro__
        )

    def is_fitted(self) -> bool:
        return bool(self.model.is_fitted())

    def ensemble(self, X: Any, y: NDArray[Any], weights: Floats) -> Boosting:
        model, params = self.model, self._params
        scale, bias = model.get_scale_and_bias()
        start = np.array(bias, dtype=np.float64).reshape(-1)
        counts = np.asarray(model.get_tree_leaf_counts(), dtype=np.int64)
        values = scale * np.asarray(model.get_leaf_values(), dtype=np.float64)
        leaves = np.split(values.reshape(-1, len(start)), np.cumsum(counts)[:-1])
        return Boosting(
            partial(_leaves_of, model),
            [Tree(of_tree, slice(0, len(start))) for of_tree in leaves],
            start,
            self._loss,
            np.full(len(counts), float(params["learning_rate"])),
            l2=float(params["l2_leaf_reg"]) * float(weights.mean()),
            start_is_fitted=bool(params["boost_from_average"]),
            is_constrained=bool(params.get("monotone_constraints")),
            n_steps=int(params["leaf_estimation_iterations"]),
            obstacle=self._obstacle(float(scale)),
        )

    def raw_scores(self, X: Any) -> Floats:
        return np.asarray(self.model.predict(X, prediction_type="RawFormulaVal"), dtype=np.float64)

    @property
    def classes(self) -> NDArray[Any] | None:
        return np.asarray(self.model.classes_) if self._has_classes else None

    def class_weight(self, y: NDArray[Any]) -> Floats | None:
        given = self._params.get("class_weights")
        return np.asarray(given, dtype=np.float64) if given and self._has_classes else None

    @property
    def balances(self) -> str | None:
        return "weights" if self._params.get("auto_class_weights", "None") != "None" else None

    # ---- its training -----------------------------------------------------------------------

    @cached_property
    def _params(self) -> dict[str, Any]:
        """All parameters of the training, with their defaults."""
        from catboost import CatBoostError

        try:
            found: dict[str, Any] = self.model.get_all_params()
        except CatBoostError as error:
            raise ValueError(
                f"estimator {type(self.model).__name__} must know the parameters of its training, but its "
                "get_all_params() fails, as it does for sums of models and for models from other tools. Fit "
                "it, or load it from a file that save_model has written after a fit."
            ) from error
        return found

    @property
    def _has_classes(self) -> bool:
        return self._params["loss_function"] in ("Logloss", "MultiClass")

    @property
    def _loss(self) -> BoostingLoss:
        """The loss of the training; its leaves are made by Newton steps or by gradients."""
        given, method = self._params["loss_function"], self._params["leaf_estimation_method"]
        name, _, rest = given.partition(":")
        options = dict(one.split("=") for one in rest.split(";") if one)
        if name in ("MAE", "Quantile"):
            return Quantile(float(options.get("alpha", 0.5)))
        losses: dict[str, BoostingLoss] = {
            "RMSE": Squared(),
            "Logloss": Logistic(),
            "MultiClass": CoupledSoftmax() if method == "Newton" else Softmax(),
            "Poisson": Tweedie(1.0),
            "Tweedie": Tweedie(float(options.get("variance_power", 1.5))),
        }
        if name not in losses or method not in ("Newton", "Gradient"):
            raise self.unknown_loss(f"loss_function={given!r}, leaf_estimation_method={method!r}")
        return FirstOrder(losses[name]) if method == "Gradient" else losses[name]

    def _obstacle(self, scale: float) -> str:
        """Return why the training cannot be followed back, or nothing."""
        params, model = self._params, self.model
        steps = params["leaf_estimation_iterations"]
        may_overshoot = params["loss_function"].startswith(("Poisson", "Tweedie"))
        may_halve = params["leaf_estimation_backtracking"] != "No"
        reasons = [
            (params.get("langevin"), "langevin=True, which puts noise into its leaves"),
            (
                params.get("model_shrink_rate"),
                "model_shrink_rate > 0, which shrinks earlier rounds (set it to 0, with "
                "monotone_constraints too)",
            ),
            (
                params.get("eval_fraction"),
                "eval_fraction > 0, where it is not known which rows it held out",
            ),
            (scale != 1, f"its leaves multiplied by {scale:g} afterwards (set_scale_and_bias)"),
            (
                may_overshoot and steps > 1 and may_halve,
                f"leaf_estimation_iterations={steps}, where steps may have been halved (set it to 1, or "
                "leaf_estimation_backtracking='No')",
            ),
            (
                self._has_statistics(),
                "categories by statistics of targets, which give training rows other leaves in the training "
                "than afterwards (set one_hot_max_size to the number of categories, or encode them before)",
            ),
            (
                model.get_text_feature_indices() or model.get_embedding_feature_indices(),
                "texts or embeddings, which give training rows other leaves in the training than afterwards",
            ),
        ]
        return next(
            (
                f"estimator {type(model).__name__} must have leaves that follow from its training rows for "
                f"this method, but was trained with {reason}. Train it otherwise, or use methods that fit it "
                "again (LeaveOneOut, Downsampling, Datamodel)."
                for found, reason in reasons
                if found
            ),
            "",
        )

    def _has_statistics(self) -> bool:
        """Return whether trees split by statistics of targets; only the stored model tells."""
        if not self.model.get_cat_feature_indices():
            return False
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.json"
            self.model.save_model(str(path), format="json")
            return bool(json.loads(path.read_bytes())["features_info"].get("ctrs"))


def _leaves_of(model: Any, rows: Any) -> Leaves:
    """Return the leaves (n, n_trees) of rows in the trees of a model."""
    return np.asarray(model.calc_leaf_indexes(rows), dtype=np.int32)
