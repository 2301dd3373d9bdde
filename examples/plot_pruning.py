"""
Leaving out rows that hurt
==========================

A fifth of the labels of the digits are wrong. :class:`fimoda.PrunedClassifier` leaves out the rows
that its model fits only by their own presence, inside a grid search that chooses how many, and
without a look at clean labels. It is compared with the same search over the same model without
pruning, and with rows left out at random.
"""

# %%
# The search
# ----------
# Whatever is searched is scored by cross-validation on the noisy labels. Pruning happens inside each
# fold, on the rows that the fold trains with.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split

from fimoda import EKFACInfluence, PrunedClassifier, attribute, flip_labels

X, y = load_digits(return_X_y=True)
X = X / 16
model = LogisticRegression(C=10.0, max_iter=200)
fractions = [0.0, 0.1, 0.2, 0.25]


def trial(seed):
    """Accuracy on clean test labels: without pruning, at random, pruned; and what was left out."""
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, test_size=0.4, random_state=seed, stratify=y
    )
    noisy, flipped = flip_labels(y_train, 0.2, random_state=seed)
    plain = model.fit(X_train, noisy).score(X_test, y_test)
    search = GridSearchCV(PrunedClassifier(model, by="self"), {"fraction": fractions}, cv=3)
    pruned = search.fit(X_train, noisy).best_estimator_
    kept = np.random.default_rng(seed).permutation(len(noisy))[: pruned.support_.sum()]
    random = model.fit(X_train[kept], noisy[kept]).score(X_test, y_test)
    share = flipped[~pruned.support_].mean()
    print(
        f"split {seed}: accuracy {plain:.3f}, at random {random:.3f}, pruned "
        f"{pruned.score(X_test, y_test):.3f}; fraction {search.best_params_['fraction']}, of which "
        f"{share:.0%} have a wrong label"
    )
    return plain, random, pruned.score(X_test, y_test)


accuracy = np.array([trial(seed) for seed in range(5)])

# %%
# By how much
# -----------
# Means over five splits, and the 95% interval of the difference to the model without pruning
# (Student's t, 4 degrees of freedom).

gains = accuracy[:, 2:] - accuracy[:, :2]
half = 2.776 * gains.std(0, ddof=1) / np.sqrt(len(gains))
for name, mean, width in zip(("no pruning", "pruning at random"), gains.mean(0), half, strict=True):
    print(f"pruned against {name}: {mean:+.3f} ± {width:.3f}")

figure, ax = plt.subplots(figsize=(5, 3.5), layout="constrained")
names = ["no pruning", "at random", "by self-influence"]
ax.bar(names, accuracy.mean(0), color=["C7", "C7", "C0"])
ax.plot(names, accuracy.T, ".-", color="0.3", lw=0.5)
ax.set(ylabel="accuracy on clean test labels", ylim=(accuracy.min() - 0.05, 1))

# %%
# The rows behind one error
# -------------------------
# A test digit that the model trained on all rows gets wrong most surely, and the training rows that
# raise and lower its loss most, with the labels they were given.

X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.4, random_state=0, stratify=y)
noisy, flipped = flip_labels(y_train, 0.2, random_state=0)
model.fit(X_train, noisy)
worst = int(model.predict_log_proba(X_test)[np.arange(len(y_test)), y_test].argmin())
found = attribute(model, X_train, noisy, X_test[[worst]], y_test[[worst]], method=EKFACInfluence())
found.plot(k=5, image_shape=(8, 8))
print(f"the digit is a {y_test[worst]}, the model says {model.predict(X_test)[worst]}")
print(f"{flipped[found.top(5).harmful].mean():.0%} of its harmful rows have a wrong label")
