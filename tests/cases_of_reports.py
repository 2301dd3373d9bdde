"""Attributions that reports are made of."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from fimoda import Attribution, GradDot, attribute

#: What people may find in a label, a name or a cell.
HOSTILE = [
    "</script><script>window.stolen=1</script>",
    "\"onmouseover='window.stolen=1' x=",
    "{{7*7}}{% raw %}",
    "<img src=x onerror=window.stolen=1>",
    "<!--<script>window.stolen=1",
    "javascript:window.stolen=1",
    "line\u2028paragraph\u2029end",
    '=HYPERLINK("http://example.invalid")',
    "http://example.invalid/track.png",
]


def table(n=60, n_test=6, seed=0):
    """Return rows of mixed columns, as frames, with labels and names."""
    rng = np.random.default_rng(seed)
    X = pd.DataFrame(rng.normal(size=(n + n_test, 3)), columns=["age", "dose", "weight"])
    X["ward"] = np.array(["north", "south", "west"])[rng.integers(3, size=n + n_test)]
    y = np.where(X["age"] + 0.5 * rng.normal(size=n + n_test) > 0, "ill", "well")
    X.index = [f"patient {i}" for i in range(n + n_test)]
    return X, pd.Series(y, index=X.index)


def found_of(X, y, n_test=6, method=None, **options):
    """Return the attribution of a logistic regression on all rows but the last ones."""
    numbers = [name for name in X if X[name].dtype.kind == "f"]
    others = [name for name in X if name not in numbers]
    model = make_pipeline(
        make_column_transformer(
            (StandardScaler(), numbers), (OneHotEncoder(handle_unknown="ignore"), others)
        ),
        LogisticRegression(),
    )
    X_train, X_test, y_train, y_test = X[:-n_test], X[-n_test:], y[:-n_test], y[-n_test:]
    model.fit(X_train, y_train)
    method = GradDot() if method is None else method
    return attribute(model, X_train, y_train, X_test, y_test, method=method, **options)


def small_found():
    return found_of(*table())


def hostile_found():
    """Return an attribution whose names, labels, columns and cells are all hostile."""
    X, y = table()
    several = np.resize(np.array(HOSTILE, dtype=object), len(X))
    X = X.assign(ward=several).rename(columns={"ward": HOSTILE[0], "age": HOSTILE[3]})
    X.index = pd.Index([f"{name} {i}" for i, name in enumerate(several)], name=HOSTILE[1])
    y = pd.Series(np.array(HOSTILE[:2])[(y == "ill").to_numpy().astype(int)], index=X.index)
    return found_of(X, y)


def made_found(n, n_test=20, n_features=8, seed=0):
    """Return random scores of many rows, without an attributor having computed them."""
    small = small_found()
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n + n_test, n_features))
    X = pd.DataFrame(X, columns=[f"feature {j}" for j in range(n_features)])
    y = rng.integers(3, size=n + n_test)
    attributor = small.attributor
    attributor.train_indices_, attributor._row_names = np.arange(n), None
    data = {"X_train": X[:n], "y_train": y[:n], "X_test": X[n:], "y_test": y[n:]}
    facts = small.reason, 1.0, small.behaviour, small.intervention, small.process
    scores = rng.normal(size=(n_test, n))
    return Attribution(scores, attributor, *facts, None, "made up", np.arange(n_test), data)


def sentences_found():
    texts = [
        "the room was clean and the staff kind",
        "the food was cold and the room dirty",
        "kind staff and a very clean room",
        "never again, cold food, rude waiter",
        "a very good dinner in a clean place",
        "a dirty floor and a rude host",
    ] * 4
    labels = ["good", "bad"] * 12
    model = make_pipeline(CountVectorizer(), LogisticRegression()).fit(texts[:20], labels[:20])
    return attribute(model, texts[:20], labels[:20], texts[20:], labels[20:], method=GradDot())


def data_of(page):
    """Return the JSON that a page holds."""
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1]
    )
