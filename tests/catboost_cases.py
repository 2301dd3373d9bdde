"""Small models of CatBoost, of one set of rows and a target for each loss."""

from __future__ import annotations

import numpy as np
import pytest

catboost = pytest.importorskip("catboost")

QUIET = {"allow_writing_files": False, "thread_count": 1, "verbose": 0, "random_seed": 0}
SMALL = {**QUIET, "iterations": 4, "depth": 2, "learning_rate": 0.4}

rng = np.random.default_rng(0)
N = 60
X = rng.normal(size=(N, 3))
SCORE = X[:, 0] - X[:, 1] * X[:, 2] + 0.5 * rng.normal(size=N)
WEIGHTS = rng.uniform(0.3, 2, N)
TARGETS = {
    "RMSE": SCORE,
    "Logloss": (SCORE > 0).astype(int),
    "MultiClass": np.digitize(SCORE, [-0.7, 0.7]),
    "Poisson": rng.poisson(np.exp(0.5 * SCORE)).astype(float),
    "Tweedie:variance_power=1.5": np.maximum(SCORE, 0),
    "MAE": SCORE,
    "Quantile:alpha=0.3": SCORE,
}
SMOOTH = tuple(TARGETS)[:5]


def fitted(loss, weights=None, y=None, **params):
    kind = catboost.CatBoostClassifier if _is_class(loss) else catboost.CatBoostRegressor
    model = kind(**{**SMALL, "loss_function": loss, **params})
    return model.fit(X, TARGETS[loss] if y is None else y, sample_weight=weights)


def _is_class(loss):
    return loss in ("Logloss", "MultiClass")


def raw(model, rows):
    found = np.asarray(model.predict(rows, prediction_type="RawFormulaVal"))
    return found.reshape(len(rows), -1)
