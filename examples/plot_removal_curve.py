"""
Do the rows that a method names hold the prediction up?
=======================================================

The rows that a method calls most helpful for a test row are removed, the model is trained again,
and the prediction either holds or flips. Random rows of the same class are removed for comparison.
"""

# %%
# A model and two methods
# -----------------------

import matplotlib.pyplot as plt
from sklearn.linear_model import LogisticRegression

from fimoda import (
    ExactInfluence,
    GradCos,
    LeaveOneOut,
    SubsetRemovalCurveDisplay,
)
from fimoda.datasets import split_breast_cancer

X_train, X_test, y_train, y_test = split_breast_cancer()
model = LogisticRegression(C=0.1).fit(X_train, y_train)
methods = {
    "exact influence": ExactInfluence(model).fit(X_train, y_train),
    "Grad-Cos": GradCos(model).fit(X_train, y_train),
}

# %%
# Remove, train again, look
# -------------------------
# The model is trained again as `LeaveOneOut` would. Test rows that have flipped are not trained for
# again, so the curve is the fraction flipped by removing at most k rows.

display = SubsetRemovalCurveDisplay.from_attributors(
    methods,
    LeaveOneOut(model, n_seeds=1),
    y_train,
    X_test,
    y_test,
    X_train=X_train,
    k=[5, 10, 20, 50, 100],
    random_state=0,
)
curve = display.curve
print(f"{len(curve.test_rows)} test rows, {curve.n_trained} models trained")
print(curve.to_frame().pivot(index="method", columns="k", values="mean").round(3).to_string())
plt.show()
