"""
Rows that make a model unfair
=============================

Past decisions that were biased teach a model to be biased. Here a third of the good applicants of one
group were refused, and a model learns from these labels. :func:`fimoda.metric_influence` says which rows
widen the difference between the groups, :class:`fimoda.PrunedClassifier` leaves them out, and the model
fitted without them is measured anew.
"""

# %%
# Biased labels
# -------------
# Two features say who pays back. The groups do not differ in them, but labels of the second were changed.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LogisticRegression

from fimoda import ExactInfluence, PrunedClassifier, metric_influence

rng = np.random.default_rng(0)
X = rng.normal(size=(4000, 3))
X[:, 2] = rng.random(4000) < 0.4
fair = (X[:, 0] + X[:, 1] + rng.normal(size=4000) > 0).astype(int)
refused = (X[:, 2] == 1) & (fair == 1) & (rng.random(4000) < 0.35)
y = np.where(refused, 0, fair)
train, validation, test = slice(0, 1000), slice(1000, 2000), slice(2000, 4000)


def judge(name, model):
    """Print the share that is selected in each group, and the accuracy on what would have been fair."""
    selected = model.predict(X[test])
    rates = [selected[X[test, 2] == group].mean() for group in (0, 1)]
    accuracy = (selected == fair[test]).mean()
    print(f"{name}: selected {rates[0]:.2f} and {rates[1]:.2f}, accuracy {accuracy:.3f}")
    return [*rates, accuracy]


model = LogisticRegression().fit(X[train], y[train])
judge("all rows", model)

# %%
# Which rows do it
# ----------------
# The change of the difference in selection rates when a row is removed, from the derivative, since the rows
# are to be removed together. Rows with a negative score widen it.

influence = ExactInfluence(model).fit(X[train], y[train])
found = metric_influence(
    influence,
    X[validation],
    y[validation],
    "selection_rate",
    sensitive=2,
    how="derivative",
)
worst = np.argsort(found.scores)[:50]
print(f"the difference is {found.value:.2f}: {found.of_groups}")
print(
    f"{refused[train].mean():.0%} of the rows were refused, of the 50 worst {refused[worst].mean():.0%}"
)

# %%
# Without them
# ------------
# The pruner scores rows by held-out folds of the training rows, and leaves out as many as would close the
# difference.

pruned = PrunedClassifier(scoring="selection_rate", sensitive=2).fit(X[train], y[train])
n_gone = int((~pruned.support_).sum())
kept = rng.permutation(1000)[n_gone:]
results = {
    "all rows": judge("all rows", model),
    "at random": judge(f"{n_gone} random rows left out", model.fit(X[kept], y[kept])),
    "pruned": judge(f"{n_gone} rows pruned", pruned),
}

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
order = np.argsort(found.scores)
left.scatter(np.arange(1000), found.scores[order], c=refused[order], cmap="coolwarm", s=6)
left.set(xlabel="training rows (red: wrongly refused)", ylabel="change of the difference")
places = np.arange(3)
for k, group in enumerate(("first group", "second group")):
    right.bar(places + 0.4 * k, [rates[k] for rates in results.values()], 0.38, label=group)
right.set_xticks(places + 0.2, list(results))
right.set(ylabel="share selected")
right.legend()
