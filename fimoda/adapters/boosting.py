"""Boosting by scikit-learn, XGBoost, LightGBM and CatBoost: further rounds."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)

from .continuing import Boosting, OwnRows, alone

#: Rows from which on HistGradientBoosting draws those that its bins are made of.
_DRAWN_FOR_BINS = 200_000

#: Names under which the libraries take what is set here.
_ROUNDS = (
    "iterations", "max_iter", "n_estimators", "n_iter", "nrounds", "num_boost_round", "num_iteration",
    "num_iterations", "num_round", "num_rounds", "num_tree", "num_trees",
)  # fmt: skip
_SEEDS = ("random_seed", "random_state", "seed")
_THREADS = (
    "n_jobs",
    "n_thread",
    "nthread",
    "nthreads",
    "num_thread",
    "num_threads",
    "thread_count",
)
_STOPPING = (
    "callbacks", "early_stopping", "early_stopping_round", "early_stopping_rounds", "eval_fraction",
    "n_iter_no_change", "od_pval", "od_type", "od_wait", "use_best_model",
)  # fmt: skip


#: Why forests have no further training.
FOREST = (
    "whose further trees do not change those that there are: it has no further training. Use LeaveOneOut, or "
    "a method for forests"
)

_DROPS_TREES = (
    "{} with {} changes the trees that there are when it goes on, so that no horizon can be read. Train with "
    "{!r}, or use LeaveOneOut."
)


class GradientBoosting(Boosting):
    """GradientBoostingClassifier and GradientBoostingRegressor.

    Rows of weight zero are not in its trees. Draws decide between splits that are equally good.
    """

    types = (GradientBoostingClassifier, GradientBoostingRegressor)

    def draws_rows(self) -> bool:
        return bool(self.model.subsample < 1)

    def held_out(self) -> float | None:
        stops = self.model.n_iter_no_change is not None
        return self.model.validation_fraction if stops else None

    def n_rounds(self, model: Any) -> int:
        return len(model.estimators_)

    def boosted(self, rows: OwnRows, seed: int, n_more: int) -> Any:
        model = copy.deepcopy(self.model).set_params(
            warm_start=True,
            n_estimators=self.n_rounds(self.model) + n_more,
            n_iter_no_change=None,
            verbose=0,
        )
        model._rng = np.random.RandomState(seed)  # goes on where it was, otherwise
        return model.fit(rows.X.values, rows.y, sample_weight=rows.sample_weight)

    def first(self, model: Any, n_rounds: int) -> Any:
        part = copy.copy(model)
        part.estimators_ = model.estimators_[:n_rounds]
        part.n_estimators = part.n_estimators_ = len(part.estimators_)
        return part


class HistGradientBoosting(Boosting):
    """HistGradientBoostingClassifier and HistGradientBoostingRegressor."""

    types = (HistGradientBoostingClassifier, HistGradientBoostingRegressor)

    def is_random(self, n_rows: int) -> bool:
        return bool(self.model.max_features < 1 or n_rows > _DRAWN_FOR_BINS)

    def must_stay(self, rows: OwnRows) -> NDArray[np.bool_]:
        """Return a mask of the only ones of their class, or of a category: others' codes depend on them."""
        found = super().must_stay(rows)
        categorical = self.model.is_categorical_
        for column in [] if categorical is None else np.flatnonzero(categorical):
            values = rows.X.columns(np.arange(len(categorical)) == column).values
            found |= alone(np.asarray(values).ravel())
        return found

    def held_out(self) -> float | None:
        return self.model.validation_fraction if self.model.do_early_stopping_ else None

    def n_rounds(self, model: Any) -> int:
        return int(model.n_iter_)

    def boosted(self, rows: OwnRows, seed: int, n_more: int) -> Any:
        model = copy.deepcopy(self.model).set_params(
            warm_start=True,
            max_iter=self.n_rounds(self.model) + n_more,
            early_stopping=False,
            verbose=0,
        )
        model._random_seed = seed  # these go on where they were, otherwise
        model._feature_subsample_rng = np.random.default_rng(seed)
        model._bin_data = partial(_in_known_bins, model, model._bin_mapper)
        model.fit(rows.X.values, rows.y, sample_weight=rows.sample_weight)
        del model._bin_data
        return model

    def first(self, model: Any, n_rounds: int) -> Any:
        part = copy.copy(model)
        part._predictors = model._predictors[:n_rounds]
        part.max_iter = n_rounds
        return part


def _in_known_bins(model: Any, bins: Any, X: Any, *given: Any, **named: Any) -> Any:
    """Return binned training rows by the bins of the final model, by which its trees read them.

    The model's own way makes bins anew, from other rows or weights, and then reads its trees wrongly.
    """
    model._bin_mapper = bins
    return np.asfortranarray(bins.transform(X))


class _OfLibrary(Boosting):
    """Models of a library that may be absent, known by its name."""

    #: Name of the package.
    library: str
    #: Its estimator's names of the number of rounds, the seed and the threads.
    names: tuple[str, str, str] = ("n_estimators", "random_state", "n_jobs")

    def _parameters(self, seed: int, n_more: int) -> dict[str, Any]:
        """Return the model's parameters, for so many more rounds without early stopping."""
        ours = {*_ROUNDS, *_SEEDS, *_THREADS, *_STOPPING}
        given = {name: value for name, value in self.model.get_params().items() if name not in ours}
        return given | dict(zip(self.names, (n_more, seed, 1), strict=True))

    def anew(self) -> Any:
        """Return an unfitted model with parameters for as many rounds, without early stopping."""
        ours = {*_ROUNDS, *_STOPPING}
        given = {name: value for name, value in self.model.get_params().items() if name not in ours}
        return type(self.model)(**given, **{self.names[0]: self.n_rounds(self.model)})

    def _is_changed(self, **defaults: Any) -> bool:
        """Return whether a parameter has another value than None and its default."""
        given = self.model.get_params()
        return any(given.get(name) not in (None, value) for name, value in defaults.items())

    def _forest(self) -> str:
        return f"this is a forest, {FOREST}."


class XGBoost(_OfLibrary):
    """XGBClassifier and XGBRegressor."""

    library = "xgboost"

    def refusal(self) -> str | None:
        given = self.model.get_params()
        if type(self.model).__name__.startswith("XGBRF"):
            return self._forest()
        if given.get("booster") == "dart":
            return _DROPS_TREES.format("XGBoost", "booster='dart'", "gbtree")
        if given.get("booster") == "gblinear":
            return (
                "XGBoost with booster='gblinear' has no trees, and cannot be read after some of its "
                "rounds. Use LeaveOneOut."
            )
        if given.get("process_type") == "update":
            return "XGBoost with process_type='update' changes the trees that there are. Use LeaveOneOut."
        return None

    def is_random(self, n_rows: int) -> bool:
        columns = dict.fromkeys(("colsample_bytree", "colsample_bylevel", "colsample_bynode"), 1)
        return self._is_changed(**columns) or self.draws_rows()

    def draws_rows(self) -> bool:
        return self._is_changed(subsample=1)

    def n_rounds(self, model: Any) -> int:
        best = model.get_booster().attributes().get("best_iteration")
        return model.get_booster().num_boosted_rounds() if best is None else int(best) + 1

    def boosted(self, rows: OwnRows, seed: int, n_more: int) -> Any:
        start = self.model.get_booster()[: self.n_rounds(self.model)]
        model = type(self.model)(**self._parameters(seed, n_more))
        weights = rows.sample_weight
        return model.fit(
            rows.X.values, rows.y, sample_weight=weights, xgb_model=start, verbose=False
        )

    def first(self, model: Any, n_rounds: int) -> Any:
        part = copy.copy(model)
        part._Booster = model.get_booster()[:n_rounds]
        return part


class LightGBM(_OfLibrary):
    """LGBMClassifier and LGBMRegressor."""

    library = "lightgbm"

    def _kind(self) -> str:
        given = self.model.get_params()
        return next(given[name] for name in ("boosting", "boost", "boosting_type") if name in given)

    def refusal(self) -> str | None:
        if self._kind() in ("rf", "random_forest"):
            return self._forest()
        if self._kind() == "dart":
            return _DROPS_TREES.format("LightGBM", "boosting_type='dart'", "gbdt")
        return None

    def is_random(self, n_rows: int) -> bool:
        more = set(self.model.get_params()) - set(type(self.model)().get_params())
        return (
            self._is_changed(colsample_bytree=1, boosting_type="gbdt")
            or n_rows > self.model.subsample_for_bin
            or bool(more - {"verbose", "verbosity"})  # of which any may draw something
            or self.draws_rows()
        )

    def draws_rows(self) -> bool:
        given = self.model.get_params()
        known = self._is_changed(subsample=1) and given["subsample_freq"] > 0
        names = {"bagging_fraction", "bagging_freq", "data_sample_strategy", "neg_bagging_fraction"}
        return known or self._kind() == "goss" or bool(names & set(given))

    def n_rounds(self, model: Any) -> int:
        return model.best_iteration_ or model.booster_.current_iteration()

    def boosted(self, rows: OwnRows, seed: int, n_more: int) -> Any:
        start = self.first(self.model, self.n_rounds(self.model))
        given = {"verbose": -1, **self._parameters(seed, n_more)}
        if not {"force_col_wise", "force_row_wise"} & set(given):
            given["force_col_wise"] = True  # chosen by the time that each takes, otherwise
        model = type(self.model)(**given)
        weights = rows.sample_weight
        return model.fit(rows.X.values, rows.y, sample_weight=weights, init_model=start.booster_)

    def first(self, model: Any, n_rounds: int) -> Any:
        part = copy.copy(model)
        text = model.booster_.model_to_string(num_iteration=n_rounds)
        part._Booster = type(model.booster_)(model_str=text)
        part._best_iteration = 0
        return part


class CatBoost(_OfLibrary):
    """CatBoostClassifier and CatBoostRegressor; they draw permutations of the rows."""

    library = "catboost"
    names = ("iterations", "random_seed", "thread_count")

    def refusal(self) -> str | None:
        if self._is_changed(model_shrink_rate=0, langevin=False, posterior_sampling=False):
            return (
                "CatBoost with model_shrink_rate, langevin or posterior_sampling changes the trees that "
                "there are. Use LeaveOneOut."
            )
        return None

    def held_out(self) -> float | None:
        return self.model.get_params().get("eval_fraction")

    def known_by(self) -> Any:
        """Return parameters and trees: other bytes of the model change when it is pickled."""
        model = self.model
        trees = model.get_leaf_values(), model.get_leaf_weights(), model.get_borders()
        return model.get_params(), model.get_scale_and_bias(), trees

    def draws_rows(self) -> bool:
        return True

    def n_rounds(self, model: Any) -> int:
        return int(model.tree_count_)

    def anew(self) -> Any:
        """Return an unfitted model, also with the learning rate and the categories found in ``fit``."""
        found = super().anew()
        given = found.get_params()
        if not {"learning_rate", "eta"} & set(given):
            found.set_params(learning_rate=self.model.get_all_params()["learning_rate"])
        if "cat_features" not in given and (columns := self.model.get_cat_feature_indices()):
            found.set_params(cat_features=tuple(columns))
        elif given.get("cat_features") is not None:  # what is no tuple cannot be cloned
            found.set_params(cat_features=tuple(given["cat_features"]))
        return found

    def boosted(self, rows: OwnRows, seed: int, n_more: int) -> Any:
        given = self._parameters(seed, n_more)
        rates = {"learning_rate", "eta"} & set(given)
        if not rates:  # chosen by the number of rounds, otherwise
            given["learning_rate"] = self.model.get_all_params()["learning_rate"]
        quiet = {"verbose", "verbose_eval", "silent", "logging_level", "metric_period"}
        given = {name: value for name, value in given.items() if name not in quiet}
        if "cat_features" not in given:
            given["cat_features"] = self.model.get_cat_feature_indices() or None
        model = type(self.model)(**{**given, "verbose": False, "allow_writing_files": False})
        start = self.model.copy()  # goes on otherwise the first time after its training
        return model.fit(rows.X.values, rows.y, sample_weight=rows.sample_weight, init_model=start)

    def first(self, model: Any, n_rounds: int) -> Any:
        part = model.copy()
        part.shrink(min(n_rounds, model.tree_count_))
        return part
