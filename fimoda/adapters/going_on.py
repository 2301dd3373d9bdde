"""Estimators with ``partial_fit``, those that cannot go on, and how a model does go on."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import is_classifier, is_regressor
from sklearn.ensemble import (
    BaggingClassifier,
    BaggingRegressor,
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.naive_bayes import BernoulliNB, CategoricalNB, ComplementNB, GaussianNB, MultinomialNB

from ..rows import RawRows
from .boosting import (
    FOREST,
    CatBoost,
    GradientBoosting,
    HistGradientBoosting,
    LightGBM,
    XGBoost,
)
from .continuing import Continuing, OwnRows
from .randomness import global_generators

_FORESTS = (
    RandomForestClassifier,
    RandomForestRegressor,
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    BaggingClassifier,
    BaggingRegressor,
)
_COUNTERS = (BernoulliNB, CategoricalNB, ComplementNB, GaussianNB, MultinomialNB)


class PartialFit(Continuing):
    """Estimators whose ``partial_fit`` takes a step for each row: a call with all rows is an epoch.

    The rows are shuffled here, if the estimator would shuffle them, so that a row that is left out has
    no other effect on their order.
    """

    unit = "epochs of partial_fit"
    process = "further training of the final model"

    def is_random(self, n_rows: int) -> bool:
        return self._shuffles

    @property
    def _shuffles(self) -> bool:
        return bool(getattr(self.model, "shuffle", True))

    def draws_rows(self) -> bool:
        return "sample_weight" in inspect.signature(self.model.partial_fit).parameters

    def must_stay(self, rows: OwnRows) -> NDArray[np.bool_]:
        """Return an empty mask: the classes are known."""
        return np.zeros(len(rows), dtype=bool)

    def held_out(self) -> float | None:
        stops = getattr(self.model, "early_stopping", False)
        return self.model.validation_fraction if stops else None

    def check_rows(self, rows: OwnRows) -> None:
        super().check_rows(rows)
        if rows.sample_weight is not None and not self.draws_rows():
            raise ValueError(
                f"sample_weight was given, but {type(self.model).__name__}.partial_fit takes none. Leave it "
                "out, or use an estimator that takes weights."
            )

    def after(
        self, rows: OwnRows, left_out: int | None, stays: bool, seed: int, horizons: Sequence[int]
    ) -> list[Any]:
        model = copy.deepcopy(self.model)
        off = {"shuffle": False, "early_stopping": False, "verbose": 0}
        model.set_params(**{name: off[name] for name in off if name in model.get_params()})
        if stays and left_out is not None:
            rows, left_out = rows.masked(left_out), None
        rng, reached = np.random.RandomState(seed), []
        with global_generators(seed):
            for epoch in range(1, horizons[-1] + 1):
                order = rng.permutation(len(rows)) if self._shuffles else np.arange(len(rows))
                self._train(model, rows.taken(order[order != left_out]))
                if epoch in horizons:
                    reached.append(copy.deepcopy(model))
        return reached

    def _train(self, model: Any, rows: OwnRows) -> None:
        given: dict[str, Any] = {"classes": model.classes_} if is_classifier(model) else {}
        if rows.sample_weight is not None:
            given["sample_weight"] = rows.sample_weight
        model.partial_fit(rows.X.values, rows.y, **given)


def continued(
    model: Any, X: RawRows, y: NDArray[Any], sample_weight: Any, n_units: int, seed: int
) -> Any:
    """Return a fitted model after so many more units of its own training, rounds of boosting or epochs."""
    way = how_to_continue(model)
    return way.after(OwnRows(X, y, sample_weight), None, False, seed, [n_units])[0]


def with_rounds_held(model: Any) -> Any:
    """Return boosted trees with parameters for a fit of as many rounds as they predict by."""
    for library in (XGBoost, LightGBM, CatBoost):
        if type(model).__module__.split(".")[0] == library.library:
            return library(model).anew()
    return model


def how_to_continue(model: Any) -> Continuing:
    """Return how a fitted model goes on training by itself; TypeError if it cannot."""
    name = type(model).__name__
    for way in (GradientBoosting, HistGradientBoosting):
        if isinstance(model, way.types):
            return way(model)
    for library in (XGBoost, LightGBM, CatBoost):
        if type(model).__module__.split(".")[0] == library.library:
            found = library(model)
            if reason := found.refusal():
                raise TypeError(f"estimator {name} cannot be trained further: {reason}")
            return found
    if isinstance(model, _FORESTS):
        raise TypeError(f"estimator {name} is a forest, {FOREST}.")
    if hasattr(model, "partial_fit") and (is_classifier(model) or is_regressor(model)):
        inside = [model, *model.get_params().values()]
        if any(isinstance(part, _COUNTERS) for part in inside):
            raise TypeError(
                f"estimator {name} counts rows: its partial_fit would count them a second time, and is no "
                "further training. Use LeaveOneOut."
            )
        return PartialFit(model)
    raise TypeError(
        "estimator must be a network, or an estimator that goes on by itself (gradient boosting, or "
        f"steps of partial_fit), to be trained further; got {name}. Methods that train again "
        "(LeaveOneOut, Downsampling, Datamodel) take other scikit-learn estimators too."
    )
