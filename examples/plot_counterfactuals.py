"""
Which rows would turn a decision?
=================================

A logistic regression calls a tumour malignant or benign. For a few test rows that it is not sure of, which
training rows would have to go, or to have another label, for the decision to turn?
"""

# %%
# A model, and rows that it is not sure of
# ----------------------------------------

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LogisticRegression

from fimoda import ExactInfluence, greedy_removal, group_influence, smallest_flip
from fimoda.datasets import split_breast_cancer

X_train, X_test, y_train, y_test = split_breast_cancer()
model = LogisticRegression().fit(X_train, y_train)
near = abs(model.decision_function(X_test)).argsort()[:6]
influence = ExactInfluence(model).fit(X_train, y_train)

# %%
# The smallest sets
# -----------------
# Rows are tried in the order of their scores and in that of a greedy choice; the model is fitted again
# without them until the prediction turns. Random rows of the predicted class are counted beside them.

settings = {"X_train": X_train, "y_train": y_train, "n_seeds": 1, "random_state": 0}
removed = smallest_flip(influence, X_test[near], max_rows=48, **settings)
removed

# %%
# Wrong labels weigh more than missing rows: fewer of them are enough.

relabelled = smallest_flip(influence, X_test[near], max_rows=48, relabel=True, **settings)
relabelled

# %%
# Rows that act together
# ----------------------
# The rows with the largest scores of their own are not those with the largest effect together. The greedy
# choice takes each next row given that those before it are gone.

k = 40
found = greedy_removal(influence, X_test[near], y_test[near], n_rows=k)
z = int(np.argmax(found.effects[:, -1] - found.top_effects[:, -1]))
fig, ax = plt.subplots()
ax.plot(range(1, k + 1), found.effects[z], label="greedy")
ax.plot(range(1, k + 1), found.top_effects[z], label="by score")
ax.set(xlabel="rows removed", ylabel=f"loss of test row {near[z]}, less that with all rows")
ax.legend()
plt.show()

# %%
# What a kind of rows does
# ------------------------
# Clusters of the training rows, each removed as a whole. In the quadratic model of the objective all of a
# group's rows count with each other; their sum does not know that.

exact = group_influence(influence, 5, X_test[near], y_test[near], random_state=0)
summed = group_influence(
    influence, 5, X_test[near], y_test[near], method="first-order", random_state=0
)
print(exact, summed, sep="\n\n")
