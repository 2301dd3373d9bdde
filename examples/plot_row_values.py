"""
What is a row worth
===================

Some rows carry labels that are wrong. Five games value each row: what it adds, on average, to
models that are trained on some of the others. The nearest rows' votes need no training at all, and
out-of-bag predictions no other rows to judge by.
"""

# %%
# Rows with wrong labels
# ----------------------
import numpy as np
from matplotlib import pyplot as plt
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import scale

from fimoda import BetaShapley, DataBanzhaf, DataOOB, DataShapley, KNNShapley, LeaveOneOut

X, y = load_breast_cancer(return_X_y=True)
X, X_valid, y, y_valid = train_test_split(scale(X)[:400], y[:400], train_size=150, random_state=0)
rng = np.random.default_rng(0)
wrong = rng.permutation(len(y)) < 20
y = np.where(wrong, 1 - y, y)

# %%
# Values of the rows
# ------------------
# `values` shares the accuracy on the rows to value by among the training rows. Logistic regression is
# solved for hundreds of sets of rows at once; any other estimator would be fitted to each.
model = LogisticRegression().fit(X, y)
games = {
    "DataShapley": DataShapley(model, n_samples=40, scoring="accuracy", random_state=0),
    "BetaShapley": BetaShapley(model, n_samples=40, scoring="accuracy", random_state=0),
    "DataBanzhaf": DataBanzhaf(model, n_samples=1000, scoring="accuracy", random_state=0),
}
values = {name: game.fit(X, y).values(X_valid, y_valid) for name, game in games.items()}

# %%
# Scores for each test row have the contract of all methods: positive, where the row lowers the loss.
# Their mean over test rows is in ``values_``.
nearest = KNNShapley().fit(X, y)
nearest.transform(X_valid, y_valid)
values["KNNShapley"] = nearest.values_
values["DataOOB"] = DataOOB(model, n_samples=200, random_state=0).fit(X, y).values_
values["LeaveOneOut"] = LeaveOneOut(model, n_seeds=1).fit(X, y).transform(X_valid, y_valid).mean(0)

# %%
# Which values find the wrong labels
# ----------------------------------
figure, axes = plt.subplots(2, 3, figsize=(9, 5), layout="constrained")
for axis, (name, value) in zip(axes.flat, values.items(), strict=True):
    bins = np.linspace(value.min(), value.max(), 25)
    axis.hist(value[~wrong], bins, color="0.7", label="right label")
    axis.hist(value[wrong], bins, color="C3", label="wrong label")
    area = roc_auc_score(wrong, -value)
    axis.set(title=f"{name}: area {area:.2f}", xlabel="value")
axes[0, 0].legend()
plt.show()

# %%
# A value without its error says little: the game of a few permutations is noisy.
shapley = games["DataShapley"]
print(
    f"values spread by {shapley.values_.std():.4f}, standard errors are {shapley.values_sem_.mean():.4f}"
)
