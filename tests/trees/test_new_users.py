"""Short scripts that a new user would write."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from fimoda import InfluencePruner, LeafInfluence, MislabelDetector, PrunedClassifier

lgb = pytest.importorskip("lightgbm")
xgb = pytest.importorskip("xgboost")


@pytest.fixture(scope="module")
def customers():
    """Mixed columns with missing values; a tenth of the labels of young people in Bern are wrong."""
    rng = np.random.default_rng(0)
    n = 400
    frame = pd.DataFrame(
        {"age": rng.integers(18, 80, n), "income": rng.lognormal(3, 0.5, n).round(1)}
    )
    frame["town"] = rng.choice(["Bern", "Basel", "Chur"], n)
    stays = (frame["age"] > 45) ^ (frame["town"] == "Chur")
    frame["wrong"] = (frame["town"] == "Bern") & (frame["age"] <= 45) & (rng.random(n) < 0.3)
    frame["stays"] = np.where(stays ^ frame["wrong"], "yes", "no")
    frame.loc[rng.choice(n, 40, replace=False), "income"] = np.nan
    frame.loc[rng.choice(n, 20, replace=False), "town"] = None
    frame.index = [f"customer {i}" for i in range(n)]
    return frame


def test_which_rows_make_this_prediction_wrong(customers):
    train, test = customers[:300], customers[300:]
    typed_wrongly = train["town"].eq("Chur") & train["age"].between(25, 40)
    X, y = train[["age", "income", "town"]], train["stays"].mask(typed_wrongly, "no")
    encoder = make_column_transformer((OrdinalEncoder(), ["town"]), remainder="passthrough")
    model = make_pipeline(encoder, HistGradientBoostingClassifier(max_iter=30)).fit(X, y)

    person = test[test["town"].eq("Chur") & test["age"].between(28, 37)][:1]
    assert model.predict(person[X.columns]) != person["stays"].to_numpy()
    top = LeafInfluence(model).fit(X, y).top(person[X.columns], person["stays"], k=5)

    assert "customer" in str(top)
    assert typed_wrongly.iloc[top.harmful[0]].all()


def test_which_labels_are_wrong(customers):
    X = customers[["age", "income", "town"]].astype({"town": "category"})
    detector = MislabelDetector(
        lgb.LGBMClassifier(n_estimators=30, verbose=-1, n_jobs=1), contamination=0.1
    )
    marked = detector.fit_predict(X, customers["stays"]) == -1
    by_influence = (
        detector.set_params(attributor=LeafInfluence()).fit_predict(X, customers["stays"]) == -1
    )

    for found in (marked, by_influence):
        assert customers["wrong"][found].mean() > 3 * customers["wrong"].mean()


def test_which_rows_to_drop(customers):
    X = customers[["age", "income", "town"]].astype({"town": "category"})
    y = (customers["stays"] == "yes").astype(int)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.3, random_state=0)
    model = xgb.XGBClassifier(n_estimators=20, enable_categorical=True, n_jobs=1)
    search = GridSearchCV(model, {"max_depth": [2, 3]}, cv=3).fit(X, y)

    pruned = PrunedClassifier(search, fraction=0.05, by="self", random_state=0).fit(X, y)
    X_kept, y_kept = InfluencePruner(search, fraction=0.05, random_state=0).fit_resample(X, y)

    assert list(X_kept.index) == list(y_kept.index)
    assert len(X_kept) == len(X) - 14
    assert customers["wrong"][X.index[~pruned.support_]].mean() > 2 * customers["wrong"].mean()
    ours = accuracy_score(y_test, pruned.predict(X_test))
    assert ours > accuracy_score(y_test, search.predict(X_test)) - 0.03
