"""
Which method follows further training, and for how long
=======================================================

Every approximation of further training is good for a while. This example measures for how long, on
one small network: a gradient product, an influence function, further training linearised once and
linearised anew along its run, and the derivative of the run itself. ``benchmarks/README.md`` in the
source repository has larger cases.
"""

# %%
# A model and the gold standard
# -----------------------------
# The network stops before it has converged. 40 of its 512 rows are left out, one at a time, and the
# model is trained further without each of them: up to 100 epochs, with 3 batch orders. To keep the
# example short, only half of the test rows are looked at.

import matplotlib.pyplot as plt
import skorch
import torch

from fimoda import (
    AgreementCurveDisplay,
    ExactInfluence,
    GradDot,
    LinearizedFurtherTraining,
    OnceLinearizedFurtherTraining,
    UnrolledDifferentiation,
    agreement_curve,
    further_training_curve,
)
from fimoda.datasets import split_breast_cancer

X_train, X_test, y_train, y_test = split_breast_cancer()
X_test, y_test = X_test[::2], y_test[::2]

torch.manual_seed(0)
net = skorch.NeuralNetBinaryClassifier(
    torch.nn.Sequential(
        torch.nn.Linear(30, 32),
        torch.nn.ReLU(),
        torch.nn.Linear(32, 32),
        torch.nn.ReLU(),
        torch.nn.Linear(32, 1),
    ),
    optimizer=torch.optim.SGD,
    lr=0.05,
    batch_size=64,
    max_epochs=30,
    train_split=None,
    verbose=0,
)
net.fit(X_train, y_train.astype("float32"))

horizons = [1, 2, 5, 10, 20, 50, 100]
curve = further_training_curve(
    net, X_train, y_train, X_test, y_test,
    epochs=horizons, n_seeds=3, leave_out=40, correction="mean", random_state=0,
)  # fmt: skip

# %%
# The approximations
# ------------------
# The first two know nothing of the horizon: they have one matrix of scores. The other three are told
# the horizons and score all of them in one go, for every training row.

methods = {
    "Grad-Dot": GradDot(net),
    "influence function": ExactInfluence(net),
    "linearised once": OnceLinearizedFurtherTraining(net, n_epochs=horizons, random_state=0),
    "linearised anew": LinearizedFurtherTraining(net, n_epochs=horizons, random_state=0),
    "unrolled": UnrolledDifferentiation(net, n_epochs=horizons, random_state=0),
}
for method in methods.values():
    method.fit(X_train, y_train)

# %%
# ``discrepancy_`` needs no gold standard: it says how far the linearised run on all rows is from the
# real one.

for name in ("linearised once", "linearised anew"):
    print(f"{name}, discrepancy after {horizons} epochs:", methods[name].discrepancy_.round(2))

# %%
# How long they last
# ------------------
# The cosine between a method's scores and those of further training, averaged over test rows, with
# one standard error.

agreement = agreement_curve(methods, curve, X_test, y_test)
print(agreement.table())

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
AgreementCurveDisplay(agreement).plot(axes)
figure.savefig("agreement_over_horizon.png", dpi=150)
