"""Boosted models of libraries, grown anew in as many rounds as the final one predicts by."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer

from fimoda import TREX, LeafInfluence, attribute

rng = np.random.default_rng(0)
X = rng.normal(size=(120, 3))
y = (X[:, 0] + 0.5 * rng.normal(size=120) > 0).astype(int)
TRAIN, TEST = slice(0, 80), slice(80, 120)


def early_stopped(library):
    if library == "xgboost":
        xgboost = pytest.importorskip("xgboost")
        model = xgboost.XGBClassifier(
            n_estimators=60, max_depth=2, learning_rate=0.5, early_stopping_rounds=2, n_jobs=1
        )
        return model.fit(X[TRAIN], y[TRAIN], eval_set=[(X[TEST], y[TEST])], verbose=0)
    if library == "lightgbm":
        lightgbm = pytest.importorskip("lightgbm")
        model = lightgbm.LGBMClassifier(
            n_estimators=60, num_leaves=4, learning_rate=0.5, n_jobs=1, verbose=-1
        )
        stop = lightgbm.early_stopping(2, verbose=False)
        return model.fit(X[TRAIN], y[TRAIN], eval_set=[(X[TEST], y[TEST])], callbacks=[stop])
    catboost = pytest.importorskip("catboost")
    model = catboost.CatBoostClassifier(
        iterations=60,
        depth=2,
        learning_rate=0.5,
        leaf_estimation_iterations=1,
        thread_count=1,
        verbose=0,
        allow_writing_files=False,
        early_stopping_rounds=2,
    )
    return model.fit(X[TRAIN], y[TRAIN], eval_set=(X[TEST], y[TEST]))


@pytest.mark.parametrize("library", ["xgboost", "lightgbm", "catboost"])
def test_models_grown_anew_have_the_rounds_of_the_final_one(library):
    model = early_stopped(library)
    made = LeafInfluence(model, n_models=4, random_state=0).fit(X[TRAIN], y[TRAIN])
    n_rounds = made.model_.n_rounds
    assert 0 < n_rounds < 60
    assert [member.model.n_rounds for member in made._members] == [n_rounds] * 4
    found = attribute(model, X[TRAIN], y[TRAIN], X[TEST][:3], y[TEST][:3], budget=20)
    assert isinstance(found.attributor, LeafInfluence)


def test_categories_of_catboost_may_be_a_list_or_given_to_fit():
    catboost = pytest.importorskip("catboost")
    frame = pd.DataFrame(X, columns=["a", "b", "c"]).assign(kind=np.where(X[:, 1] > 0, "p", "q"))
    given = {"iterations": 5, "one_hot_max_size": 5, "thread_count": 1, "verbose": 0}
    given |= {"allow_writing_files": False, "leaf_estimation_iterations": 1}
    named = catboost.CatBoostClassifier(**given, cat_features=["kind"]).fit(frame, y)
    fitted = catboost.CatBoostClassifier(**given).fit(frame, y, cat_features=["kind"])
    scores = [
        LeafInfluence(model, n_models=4, random_state=0).fit(frame, y).transform(frame[:3], y[:3])
        for model in (named, fitted)
    ]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-6, atol=1e-12)


def test_steps_that_were_shortened_are_no_other_rows():
    catboost = pytest.importorskip("catboost")
    rows, labels = load_breast_cancer(return_X_y=True)
    rows, labels = rows[:200], labels[:200]
    model = catboost.CatBoostClassifier(
        iterations=150, learning_rate=0.3, thread_count=1, verbose=0, allow_writing_files=False
    ).fit(rows, labels)
    with pytest.raises(TypeError, match="leaf_estimation_backtracking='No'"):
        LeafInfluence(model).fit(rows, labels)
    assert np.isfinite(TREX(model).fit(rows, labels).transform(rows[:5], labels[:5])).all()
    with pytest.raises(ValueError, match="must be the rows"):
        LeafInfluence(model).fit(rows, 1 - labels)
