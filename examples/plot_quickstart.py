"""
Which rows drive which predictions, and which method to trust
=============================================================

A small network is trained on the breast cancer data. Further training, the gold standard of
attribution to a final model, says how each prediction depends on each training row. Four methods
approximate it in milliseconds to seconds, and their agreement with it is measured.
"""

# %%
# A trained model and its rows
# ----------------------------
# Any fitted skorch net will do, as will a plain ``torch.nn.Module``, a scikit-learn MLP or linear
# model, or a Pipeline that ends in one. This net stops before it has converged, as most do.

import time

import matplotlib.pyplot as plt
import skorch
import torch

from fimoda import (
    AgreementCurveDisplay,
    ExactInfluence,
    FurtherTraining,
    GradCos,
    GradDot,
    LinearizedFurtherTraining,
    agreement_curve,
    further_training_curve,
)
from fimoda.datasets import split_breast_cancer

X_train, X_test, y_train, y_test = split_breast_cancer()

torch.manual_seed(0)
net = skorch.NeuralNetBinaryClassifier(
    torch.nn.Sequential(
        torch.nn.Linear(30, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 1),
    ),
    optimizer=torch.optim.SGD,
    lr=0.05,
    batch_size=64,
    max_epochs=30,
    train_split=None,
    verbose=0,
)
net.fit(X_train, y_train.astype("float32"))
print(f"accuracy on {len(X_test)} test rows: {(net.predict(X_test) == y_test).mean():.3f}")

# %%
# The gold standard
# -----------------
# ``fit`` trains the model further, 20 epochs with and without each of the 512 rows, 5 times with
# other batch orders. ``transform`` gives the change in each test row's loss: positive means that
# the training row helps.

gold = FurtherTraining(net, n_epochs=20, n_seeds=5, random_state=0, n_jobs=2, verbose=1)
gold.fit(X_train, y_train)
scores = gold.transform(X_test, y_test)
errors = gold.scores_sem_

hardest = abs(net.predict_proba(X_test)[:, 1] - y_test).argsort()[::-1][:3]
top = gold.top(X_test, y_test, k=3)
for z in hardest:
    p = net.predict_proba(X_test[[z]])[0, 1]
    print(f"\ntest row {z}: label {y_test[z]}, predicted probability of label 1: {p:.2f}")
    for kind, rows, changes, sems in (
        ("helpful", top.helpful, top.helpful_scores, top.helpful_sem),
        ("harmful", top.harmful, top.harmful_scores, top.harmful_sem),
    ):
        for i, change, sem in zip(rows[z], changes[z], sems[z], strict=True):
            print(
                f"  {kind}: training row {i:3d} (label {y_train[i]}), "
                f"loss {change:+.4f} ± {sem:.4f} without it"
            )

# %%
# Which method to trust
# ---------------------
# The curve runs further training once more for some of the rows and looks at it as it goes. The
# agreement is the cosine between a method's scores and those of further training, averaged over
# test rows. Linearised further training is told the horizons; the others have one answer for all.

horizons = [1, 2, 5, 10, 20, 50]
curve = further_training_curve(
    net, X_train, y_train, X_test, y_test,
    epochs=horizons, n_seeds=5, leave_out=100, correction="mean",
    random_state=0, n_jobs=2, verbose=1,
)  # fmt: skip
methods = {
    "linearised": LinearizedFurtherTraining(net, n_epochs=horizons, n_jobs=2, random_state=0),
    "influence function": ExactInfluence(net),
    "Grad-Dot": GradDot(net),
    "Grad-Cos": GradCos(net),
}
seconds = {}
for name, method in methods.items():
    start = time.perf_counter()
    method.fit(X_train, y_train).transform(X_test, y_test)
    seconds[name] = time.perf_counter() - start
agreement = agreement_curve(methods, curve, X_test, y_test)
print("\nagreement with further training (cosine) after so many epochs:")
print(agreement.table())
print("seconds:", ", ".join(f"{name} {taken:.2f}" for name, taken in seconds.items()))

# %%
# A picture of both
# -----------------
# Left: the agreement by horizon. Right: the scores of all training rows for the test row with the
# highest loss, with two standard errors.

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
AgreementCurveDisplay(agreement).plot(left)
z = hardest[0]
order = scores[z].argsort()
right.errorbar(
    range(len(order)), scores[z, order], 2 * errors[z, order], fmt=".", ms=2, lw=0.5, color="C2"
)
right.axhline(0, color="0.8", lw=0.8, zorder=0)
right.set(xlabel="training rows, sorted", ylabel=f"loss of test row {z} without the row, change")
figure.savefig("quickstart.png", dpi=150)
print("\nsaved quickstart.png")
