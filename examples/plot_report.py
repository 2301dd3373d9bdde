"""
A report to send to a colleague
===============================

What an attribution found, as one page: facts, charts, and tables that are searched, sorted and exported in
any browser, without a network. A tenth of the labels is wrong here, and two rows are there twice.
"""

# %%
# An attribution
# --------------
# Rows with names, from a table with a column of words. The model is a Pipeline; influence is exact.

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from fimoda import ExactInfluence, attribute, flip_labels

data = load_breast_cancer(as_frame=True)
X = data.data.iloc[:, :8].copy()
rng = np.random.default_rng(0)
X["hospital"] = rng.choice(["north", "south", "west"], size=len(X))
X.index = [f"patient {i}" for i in range(len(X))]
X_train, X_test = X[:450].copy(), X[450:480]
X_train.iloc[[17, 230]] = X_train.iloc[[60, 61]]
y, wrong = flip_labels(data.target[:450].to_numpy(), 0.1, random_state=0)
y_train, y_test = data.target_names[y], data.target_names[data.target[450:480]]

numbers = list(X.columns[:8])
columns = make_column_transformer((StandardScaler(), numbers), (OneHotEncoder(), ["hospital"]))
model = make_pipeline(columns, LogisticRegression()).fit(X_train, y_train)
found = attribute(model, X_train, y_train, X_test, y_test, method=ExactInfluence())
print(found)

# %%
# The page
# --------
# ``groups`` is a table of effects by name; here those of the hospitals to first order, the sums of their
# rows' scores. An agreement curve is shown where one was measured.

hospitals = X_train["hospital"].to_numpy()
effects = {name: found.scores[:, hospitals == name].sum(1) for name in np.unique(hospitals)}

folder = tempfile.TemporaryDirectory()
path = found.report(
    Path(folder.name) / "report.html", title="Lumps: what the model learnt from", groups=effects
)
print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")

# %%
# What it has found
# -----------------
# The rows to look at first are those of largest self-influence. The page shows them beside their features,
# and exports their positions as ``rows_to_drop.csv``.

own = pd.Series(found.attributor.self_influence(), index=X_train.index)
first = np.argsort(-own.to_numpy())[:23]
print(own.iloc[first[:5]].round(3).to_string())
chance = 23 * wrong.mean()
print(
    f"of 23 rows to look at first, {wrong[first].sum()} have a wrong label (by chance {chance:.0f})"
)

# %%
# In a notebook
# -------------
# The result shows the page itself, of fewer rows, in a frame that can do nothing to the notebook.

folder.cleanup()
found
