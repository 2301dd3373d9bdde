"""
A model whose training stopped early
====================================

An influence function answers for a model that has converged. This one has not: its training stopped
after twelve epochs. `SOURCE` looks at the run that was recorded and knows how far it went. Both
predict what training on half of the rows would give, and the model is trained on many halves to see.
"""

# %%
# Record the training
# -------------------
# A callback is all it takes; the net stays an ordinary skorch net.

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from skorch import NeuralNetClassifier
from torch import nn

from fimoda import (
    SOURCE,
    EKFACInfluence,
    GradDot,
    TracIn,
    TrajectoryRecorder,
    linear_datamodeling_score,
    random_subsets,
    train_on_subsets,
)

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X.astype(np.float32) / 16, y, train_size=600, test_size=60, random_state=0, stratify=y
)
torch.manual_seed(0)
net = NeuralNetClassifier(
    nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
    criterion=nn.CrossEntropyLoss,
    max_epochs=12,
    lr=0.02,
    batch_size=32,
    optimizer__momentum=0.9,
    iterator_train__shuffle=True,
    train_split=None,
    callbacks=[TrajectoryRecorder(checkpoints=6)],
    verbose=0,
).fit(X_train, y_train)
run = net.callbacks[0].trajectory_
print(run, "after steps", run.steps)
print(f"accuracy {net.score(X_test, y_test):.2f}")

# %%
# Score the rows
# --------------
# Two influence functions of the final model, with little damping and with much, and the methods that
# look along the run. `SOURCE(trajectory="final")` has the final model alone and the length of its
# training.

methods = {
    "Grad-Dot": GradDot(net),
    "influence, damping 1e-8": EKFACInfluence(net, damping=1e-8),
    "influence, damping by rule": EKFACInfluence(net),
    "TracIn": TracIn(net),
    "SOURCE, final model alone": SOURCE(net, trajectory="final"),
    "SOURCE": SOURCE(net),
}
for method in methods.values():
    method.fit(X_train, y_train)

# %%
# Train on halves of the rows
# ---------------------------
# Sixty halves, five seeds each. The score is the rank correlation, over halves, of the loss of a test
# row with the sum of the scores of the rows that were left out.

subsets = random_subsets(len(X_train), 60, ratio=0.5, random_state=0)
outcomes = train_on_subsets(net, X_train, y_train, subsets, X_test, y_test, n_seeds=range(5))
lds = linear_datamodeling_score(methods, outcomes, X_test, y_test, random_state=0)
print(lds.table())

# %%
# Damping does not mend the influence function. What it lacks is the length of the training, which SOURCE
# has even from the final model alone, and where the run came through, which only checkpoints tell.

means, interval = lds.mean()[:, 0], lds.interval()[:, 0]
fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
ax.barh(lds.methods, means, xerr=np.abs(interval.T - means), color="tab:blue", alpha=0.7)
ax.axvline(lds.ceiling.mean(), color="black", linestyle=":", label="ceiling of five seeds")
ax.set_xlabel("linear datamodeling score")
ax.legend()
plt.show()
