"""
A row that moves the mean, a row that moves the spread
======================================================

Training is random. A network that starts elsewhere ends elsewhere, so that what it says of a test row
has a distribution, and the influence of a training row is a change of that distribution. Here one row
shifts it, and another one narrows it and leaves its mean where it is: a method that looks at the mean
cannot see that one.
"""

# %%
# A regression with several minima
# --------------------------------
# A sine that is seen at whole numbers only: two frequencies that differ by 2 pi fit these rows equally
# well, and say opposite things in between. Which of them training finds depends on where it starts.
# Two rows are wrong: row 0, at x = 0, which concerns the bump, and row 14, at x = 5, which concerns the
# height of the sine.

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

from fimoda import (
    DistributionalInfluence,
    ExactInfluence,
    MeanVarianceDisplay,
    OutcomeDensityDisplay,
    OutcomeSamples,
    distributional_agreement,
    train_ensemble,
    train_on_subsets,
)


class Wave(nn.Module):
    """height * sin(frequency * x) + bump * exp(-x^2 / 0.72)"""

    def __init__(self):
        super().__init__()
        alias = 2 * np.pi * torch.randint(2, (1,))
        self.frequency = nn.Parameter(np.pi / 2 + alias + 0.1 * torch.randn(1))
        self.height = nn.Parameter(1 + 0.3 * torch.randn(1))
        self.bump = nn.Parameter(0.3 * torch.randn(1))

    def forward(self, x):
        return self.height * torch.sin(self.frequency * x) + self.bump * torch.exp(-(x**2) / 0.72)


x = np.array([0, 0, 0, 0, *range(-8, -1), *range(2, 9)], dtype=np.float32)[:, None]
y = np.sin(np.pi / 2 * x) + 0.05 * np.random.default_rng(0).normal(size=x.shape)
MEAN, SPREAD = 0, 14
y[MEAN] += 1
y[SPREAD] += 2
y = y.astype(np.float32)
X_test, y_test = np.array([[0.5]], dtype=np.float32), np.zeros((1, 1), dtype=np.float32)

steps = {
    "optimizer": "SGD",
    "lr": 0.01,
    "optimizer_params": {"momentum": 0.8},
    "batch_size": len(x),
    "n_epochs": 150,
    "init": Wave,
    "criterion": nn.MSELoss(),
}


def starts_high(seed):
    torch.manual_seed(seed)
    return Wave().frequency.item() > np.pi


# A small sample: twelve trainings that start at either frequency.
high = np.array([starts_high(seed) for seed in range(40)])
seeds = [int(s) for one in (True, False) for s in np.flatnonzero(high == one)[:12]]
ensemble = train_ensemble(Wave(), x, y, n_seeds=seeds, **steps)

grid = torch.linspace(-8, 8, 801)[:, None]
fig, ax = plt.subplots(figsize=(8, 3))
for model in ensemble.models[::2]:
    ax.plot(grid, model.outputs(grid), color="C0", alpha=0.3, lw=0.8)
ax.plot(x, y, "k.")
ax.plot(x[MEAN], y[MEAN], "C1o", label=f"row {MEAN}")
ax.plot(x[SPREAD], y[SPREAD], "C2o", label=f"row {SPREAD}")
ax.axvline(0.5, color="0.7", ls="--", label="test row")
ax.set(xlabel="x", ylabel="y", title="models of different seeds")
ax.legend()

# %%
# Predicted, without training again
# ---------------------------------
# At each of the models an influence function predicts what the same training would have given
# without each row. Twenty-four pairs of outcomes a row, and every distance between the two samples is a
# score. Row 0 is first by the mean, row 14 by the variance and by the Wasserstein distance.

influence = DistributionalInfluence(
    Wave(),
    method=ExactInfluence(damping=1e-3),
    models=ensemble,
    measurement="output",
    criterion=nn.MSELoss(),
).fit(x, y)
predicted = influence.outcome_samples(X_test, y_test)
for distance in ("mean", "variance", "w2"):
    scores = predicted.distance(distance)[0]
    first, second = np.argsort(-np.abs(scores))[:2]
    print(
        f"{distance:>8}: row {first} ({scores[first]:+.3f}), row {second} ({scores[second]:+.3f})"
    )

MeanVarianceDisplay(predicted).plot(n_named=1)

# %%
# Trained again
# -------------
# Trainings without each of the two rows, with the same seeds, agree.

subsets = np.ones((3, len(x)), dtype=bool)
subsets[1, MEAN] = subsets[2, SPREAD] = False
outcomes = train_on_subsets(
    Wave(), x, y, subsets, X_test, y_test, n_seeds=seeds, measurement="output", **steps
)
measured = OutcomeSamples.from_retraining(outcomes, "output")
for distance in ("mean", "variance", "w2"):
    found = distributional_agreement(predicted, measured, distance)
    print(
        f"{distance:>8}: predicted {found.predicted[0].round(3)}, measured {found.measured[0].round(3)}"
    )
p = measured.permutation_test("mean", random_state=0)[0]
print(f"no effect on the mean? p = {p[0]:.3f} for row {MEAN}, {p[1]:.3f} for row {SPREAD}")

fig, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True)
for ax, row in zip(axes, (MEAN, SPREAD), strict=True):
    shown = {"trained again": measured, "predicted": predicted}
    OutcomeDensityDisplay(shown, row=row).plot(ax, bandwidth=0.05)
fig.tight_layout()
