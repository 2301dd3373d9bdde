"""
Rows of an earlier stage of training
====================================

A net is trained on digits, and then fine-tuned on other digits that are turned by 45 degrees. Which
rows of the *first* stage still matter, and which have been forgotten? The final model alone cannot
tell: `SOURCE` carries the effect of a row through the curvature of the second stage.
"""

# %%
# Two stages, one record
# ----------------------
# ``partial_fit`` goes on where ``fit`` ended. The recorder takes it for a new stage.

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.ndimage import rotate
from sklearn.datasets import load_digits
from skorch import NeuralNetClassifier
from torch import nn

from fimoda import SOURCE, TracIn, TrajectoryRecorder

images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(images))
images, labels = images[order].astype(np.float32) / 16, labels[order]
turned = rotate(images.reshape(-1, 8, 8), 45, axes=(1, 2), reshape=False, order=1).reshape(-1, 64)

X1, y1 = images[:500], labels[:500]
X2, y2 = turned[500:1000], labels[500:1000]
X_test, y_test = images[1000:1050], labels[1000:1050]


def new_net(seed, callbacks=None):
    torch.manual_seed(seed)
    return NeuralNetClassifier(
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)),
        criterion=nn.CrossEntropyLoss,
        max_epochs=10,
        lr=0.02,
        batch_size=32,
        optimizer__momentum=0.9,
        iterator_train__shuffle=True,
        train_split=None,
        callbacks=callbacks,
        verbose=0,
    )


recorder = TrajectoryRecorder(checkpoints=4)
net = new_net(0, [recorder]).fit(X1, y1)
before = net.score(X_test, y_test)
net.partial_fit(X2, y2)
after = net.score(X_test, y_test)
print(f"accuracy on upright digits: {before:.2f}, after the second stage {after:.2f}")
for stage in recorder.trajectory_.stages:
    print(f"{stage.name}: steps {stage.start} to {stage.stop}, {stage.n_rows} rows")

# %%
# Attribute to the rows of the first stage
# ----------------------------------------
# ``fit`` takes the rows of both stages, one after the other; ``stage=0`` names those that are scored.

X, y = np.vstack([X1, X2]), np.r_[y1, y2]
source = SOURCE(net, segments=4, stage=0).fit(X, y)
tracin = TracIn(net, stage=0).fit(X, y)
print("segments (first step, end, checkpoints):", source.segments_)
S, T = source.transform(X_test, y_test), tracin.transform(X_test, y_test)

# %%
# Is it so?
# ---------
# The rows that each method calls most helpful for the test rows, taken together, are taken out of the
# first stage, and both stages are trained again; with the same number of random rows for comparison.


def loss_without(rows, seeds=range(3)):
    """Mean loss of the test rows when these rows are missing from the first stage."""
    losses, kept = [], np.setdiff1d(np.arange(len(X1)), rows)
    for seed in seeds:
        again = new_net(seed).fit(X1[kept], y1[kept]).partial_fit(X2, y2)
        outputs = again.forward(X_test)
        losses.append(nn.functional.cross_entropy(outputs, torch.from_numpy(y_test)).item())
    return np.mean(losses)


full = loss_without([])
numbers = [10, 25, 50]
shuffled = np.random.default_rng(1).permutation(len(X1))
curves = {
    "SOURCE": [loss_without(np.argsort(-S.sum(0))[:k]) - full for k in numbers],
    "TracIn": [loss_without(np.argsort(-T.sum(0))[:k]) - full for k in numbers],
    "random rows": [loss_without(shuffled[:k]) - full for k in numbers],
}
for name, curve in curves.items():
    print(f"{name:12s}", np.round(curve, 3))

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for name, curve in curves.items():
    axes[0].plot(numbers, curve, marker="o", label=name)
axes[0].set(xlabel="rows of the first stage removed", ylabel="rise of the test loss")
axes[0].legend()
best = np.argsort(-S.sum(0))[:8]
axes[1].imshow(np.hstack(X1[best].reshape(-1, 8, 8)), cmap="gray_r")
axes[1].set(title="most helpful rows of the first stage", xticks=[], yticks=[])
plt.show()
