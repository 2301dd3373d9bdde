"""
Which images drive a prediction?
================================

A small convolutional network on 600 digits of 8 x 8 pixels: the training images that hold the loss of a test
image down and those that raise it, as pictures, and what happens when they are taken away.
"""

# %%
# A network
# ---------
# Images go in as they are, (n, channels, height, width).

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from skorch import NeuralNetClassifier
from torch import nn

from fimoda import GradDot, TopRowsDisplay, further_training_curve

digits = load_digits()
X, y = (digits.images[:, None] / 16).astype(np.float32), digits.target
X_train, y_train, X_test, y_test = X[:600], y[:600], X[600:], y[600:]


class Convolutions(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
        )  # fmt: skip


torch.manual_seed(0)
net = NeuralNetClassifier(
    Convolutions,
    criterion=nn.CrossEntropyLoss,
    lr=0.1,
    batch_size=64,
    max_epochs=30,
    train_split=None,
    verbose=0,
)
net.fit(X_train, y_train)
print(f"accuracy on {len(y_test)} test images: {net.score(X_test, y_test):.3f}")

# %%
# Pictures
# --------
# The two test images that the network gets wrong most surely. Helpful images hold the loss down, harmful ones
# raise it: they look like the test image and are something else.

losses = -np.log(net.predict_proba(X_test)[np.arange(len(y_test)), y_test])
asked = losses.argsort()[[-1, -2]]
grad_dot = GradDot(net).fit(X_train, y_train)
display = TopRowsDisplay.from_estimator(
    grad_dot, X_test[asked], y_test[asked], k=5, X_train=X_train, y_train=y_train
)
figure, axes = plt.subplots(2, 1, figsize=(7, 6), layout="constrained")
for row, ax in enumerate(axes):
    display.plot_images(row, ax=ax)
    print(f"a {y_test[asked[row]]}, taken for a {net.predict(X_test[asked[[row]]])[0]}")

# %%
# Without them
# ------------
# The network is trained for one more epoch, and for five, without each of the ten images of the first picture
# and with all of them, five times in other orders. The loss goes up without helpful images and down without
# harmful ones.

top = grad_dot.top(X_test[asked[:1]], y_test[asked[:1]], k=5)
ten = [*top.helpful[0], *top.harmful[0]]
curve = further_training_curve(
    net, X_train, y_train, X_test[asked[:1]], y_test[asked[:1]], epochs=[1, 5], leave_out=ten,
    lr=0.02, n_seeds=5, random_state=0,
)  # fmt: skip
figure, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
for k, epochs in enumerate(curve.epochs):
    ax.errorbar(
        np.arange(10), curve.scores[k, 0], 2 * curve.sem[k, 0], fmt="o", label=f"{epochs} epochs"
    )
ax.axhline(0, color="0.7", zorder=0)
ax.set_xticks(np.arange(10), [f"{i}: {y_train[i]}" for i in ten], rotation=45)
ax.set(xlabel="image left out: its digit", ylabel="change of the test image's loss")
ax.legend()
