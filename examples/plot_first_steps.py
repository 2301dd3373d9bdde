"""
Ten minutes with fimoda
=======================

A table with numbers, categories and missing values; a scikit-learn Pipeline; and the questions that
come after the accuracy: which training rows drive this prediction, how sure is that, which method
may be trusted, and which rows should not be there? Tables and figures take
``pip install ".[pandas,plot]"``.
"""

# %%
# A model
# -------
# Nothing here is special to fimoda. The rows are machines, simulated for this page: whether one
# fails depends on two columns, and one label in ten is wrong.

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from fimoda import MislabelDetector, attribute, compare_methods, flip_labels, mislabel_detection

rng = np.random.default_rng(0)
n = 300
frame = pd.DataFrame(
    {
        "age": rng.integers(1, 80, n).astype(float),
        "load": rng.gamma(2, 20, n),
        "site": rng.choice(["A", "B", "C"], n),
    },
    index=[f"machine {i}" for i in range(n)],
)
right = ((frame["age"] < 30) | (frame["site"] == "A")).astype(int).to_numpy()
frame.loc[rng.random(n) < 0.1, "age"] = np.nan
labels, flipped = flip_labels(right, 0.1, random_state=0)
train, test = frame[:250], frame[250:]
y_train, y_test = labels[:250], right[250:]

model = make_pipeline(
    make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), ["age", "load"]),
        (OneHotEncoder(), ["site"]),
    ),
    MLPClassifier((32,), max_iter=300, learning_rate_init=0.01, random_state=0),
)
model.fit(train, y_train)
print(f"accuracy on clean test labels: {model.score(test, y_test):.2f}")

# %%
# Which rows drive which predictions?
# -----------------------------------
# One call. It says what it did: a score is the change of a test row's loss when a training row is
# left out and the model is trained a little further. Positive means that the row helps.

found = attribute(model, train, y_train, test, y_test, budget=30, random_state=0)
print(found)

# %%
# The scores are a matrix of test rows by training rows, with names if the tables have any.

scores = found.to_frame()
print(scores.iloc[:3, :3])

# %%
# The test row with the highest loss, and the rows behind it, with two standard errors if the method
# has them.

wrong = int(np.argmax(-model.predict_log_proba(test)[np.arange(len(test)), y_test]))
print(f"{test.index[wrong]}: label {y_test[wrong]}, predicted {model.predict(test)[wrong]}")
found.plot(wrong, k=5)
plt.tight_layout()

# %%
# What those rows hold, beside the test row (in brackets and as colour what differs from it).

found.table(wrong, k=3)

# %%
# Which method may be trusted, on this model?
# -------------------------------------------
# The usual methods for such a model beside a small gold standard. The last line is the fastest of
# those that agree with it as well as the best.

compared = compare_methods(model, train, y_train, test, y_test, leave_out=40, random_state=0)
print(compared)

# %%
# Which rows should not be there?
# -------------------------------
# The detector marks rows that the model can fit only by their own presence. A tenth of the labels
# were flipped; in real data nobody knows which.

detector = MislabelDetector(model, contamination=0.1).fit(train, y_train)
marked = detector.labels_ == -1
print(f"{flipped[:250][marked].mean():.0%} of the marked rows have a wrong label")
print(f"ROC-AUC {mislabel_detection(detector.scores_, flipped[:250]).roc_auc:.2f}")
print(train[marked].assign(label=y_train[marked]).head())
