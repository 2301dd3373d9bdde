"""
Finding mislabelled rows
========================

A row with a wrong label can only be fitted by its own presence: without it, the loss on the row
itself would rise most. That number, the self-influence, needs no clean data. Here a tenth of the
labels of the breast cancer data are planted wrong, and three attributors are asked which.
"""

# %%
# A model trained on rows of which some are wrong
# -----------------------------------------------

import matplotlib.pyplot as plt
import numpy as np
import skorch
import torch

from fimoda import (
    EKFACInfluence,
    ExactInfluence,
    GradDot,
    MislabelDetectionDisplay,
    flip_labels,
)
from fimoda.datasets import split_breast_cancer

X_train, X_test, y_clean, y_test = split_breast_cancer()
y_train, is_mislabelled = flip_labels(y_clean, 0.1, random_state=0)
print(f"{is_mislabelled.sum()} of {len(y_train)} labels are wrong")


def train(X, y):
    torch.manual_seed(0)
    return skorch.NeuralNetBinaryClassifier(
        torch.nn.Sequential(torch.nn.Linear(30, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1)),
        optimizer=torch.optim.SGD,
        lr=0.05,
        batch_size=64,
        max_epochs=30,
        train_split=None,
        verbose=0,
    ).fit(X, y.astype("float32"))


net = train(X_train, y_train)

# %%
# Self-influence against the loss
# -------------------------------
# The loss of each row is the plain baseline: a row that the model gets wrong is suspicious as well.
# On this small, easy problem, with a network that has not had the time to fit the wrong labels, it
# does as well as the attributors. Compare before you pay for more.

attributors = {
    "exact influence": ExactInfluence(net).fit(X_train, y_train),
    "EK-FAC influence": EKFACInfluence(net).fit(X_train, y_train),
    "Grad-Dot": GradDot(net).fit(X_train, y_train),
}
suspicion = {name: one.self_influence() for name, one in attributors.items()}
wrong_probability = np.abs(net.predict_proba(X_train)[:, 1] - y_train)
suspicion["loss alone"] = -np.log1p(-wrong_probability)

display = MislabelDetectionDisplay.from_attributors(suspicion, is_mislabelled)
display.ax_.set_title("mislabelled rows of breast cancer")
print(f"{'':18}{'ROC-AUC':>9}{'precision':>11}{'found in the first 15 percent':>31}")
for name, one in display.detections.items():
    print(f"{name:18}{one.roc_auc:9.3f}{one.average_precision:11.3f}{one.found_after(0.15):31.0%}")

# %%
# What inspecting some of them is worth
# -------------------------------------
# The rows with the largest self-influence are looked at, and their labels put right.

first = np.argsort(-suspicion["exact influence"])[: round(0.15 * len(y_train))]
y_inspected = y_train.copy()
y_inspected[first] = y_clean[first]
for name, y in (("as given", y_train), ("inspected", y_inspected), ("all correct", y_clean)):
    again = train(X_train, y)
    p = np.clip(again.predict_proba(X_test)[np.arange(len(y_test)), y_test], 1e-7, 1)
    print(f"labels {name:12} {(y != y_clean).sum():3d} wrong, log-loss {-np.log(p).mean():.3f}")
plt.show()
