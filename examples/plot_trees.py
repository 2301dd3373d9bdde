"""
Boosted trees: why is this prediction wrong?
============================================

A table with numbers, categories and missing values, and gradient boosting at the end of a Pipeline.
Trees have no gradients in parameters, but the values of their leaves are sums over training rows, so
that every row can be followed through the rounds of boosting. Which rows made this prediction, which
labels are wrong, and does training again without the rows say the same?
"""

# %%
# A model
# -------
# The rows are parcels, simulated for this page. One is late if it has far to go, unless it goes
# East, or if it is heavy on a Friday. One label in ten of the training rows is wrong, and some
# weights are missing. Test labels are right.

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from fimoda import (
    BoostIn,
    LeafInfluence,
    LeaveOneOut,
    TopRowsDisplay,
    flip_labels,
    linear_datamodeling_score,
    mislabel_detection,
    random_subsets,
    train_on_subsets,
)

rng = np.random.default_rng(0)
n = 400
frame = pd.DataFrame(
    {
        "distance": rng.gamma(2, 150, n).round(),
        "weight": rng.gamma(1.5, 4, n).round(1),
        "region": rng.choice(["North", "South", "East", "West"], n),
        "day": rng.choice(["Mon", "Tue", "Wed", "Thu", "Fri"], n),
    },
    index=[f"parcel {i}" for i in range(n)],
)
is_far = (frame["distance"] > 350) & (frame["region"] != "East")
is_late = (is_far | ((frame["day"] == "Fri") & (frame["weight"] > 4))).astype(int).to_numpy()
frame.loc[rng.random(n) < 0.15, "weight"] = np.nan
labels, flipped = flip_labels(is_late, 0.1, random_state=0)
train, test = frame[:300], frame[300:]
y_train, y_test, flipped = labels[:300], is_late[300:], flipped[:300]

model = make_pipeline(
    make_column_transformer((OrdinalEncoder(), ["region", "day"]), remainder="passthrough"),
    HistGradientBoostingClassifier(
        categorical_features=[0, 1],
        max_iter=60,
        max_leaf_nodes=8,
        max_features=0.5,
        random_state=0,
    ),
)
model.fit(train, y_train)
print(f"accuracy on test rows: {model.score(test, y_test):.2f}")

# %%
# Which rows made a wrong prediction?
# -----------------------------------
# `LeafInfluence` differentiates the run of boosting in the weight of each row. The splits of the trees
# stay where they are; averaged over 16 models, whose splits differ, the scores agree better with
# training again. A score is the change of the loss without the row: harmful rows, whose absence would
# lower the loss, are negative.

scores = LeafInfluence(model, n_models=16, random_state=0).fit(train, y_train)
S = scores.transform(test, y_test)

missed = np.flatnonzero(model.predict(test) != y_test)
wrong = missed[S[missed].min(axis=1).argmin()]  # the one that a single row harms most
print(test.iloc[[wrong]].assign(late=y_test[wrong], predicted=model.predict(test)[wrong]))
harmful = np.argsort(S[wrong])[:5]
about = {"late": y_train[harmful], "label is wrong": flipped[harmful], "score": S[wrong, harmful]}
print(train.iloc[harmful].assign(**about).round(3))

# %%
# The rows at fault are parcels much like it, from far away and heavy, that are written down as on time;
# most of these labels are the planted ones. In real data nobody would know, and these rows would be
# the ones to look at.
#
# Which labels are wrong?
# -----------------------
# Two questions to the same method: which rows could be fitted only by their own presence
# (self-influence), and which rows raise the loss of other rows whose labels are known to be right.
# The plain baseline is the loss of each row, and on this problem it is about as good: compare before
# you pay for more. What the loss does not say is which prediction a wrong label has spoilt.

given = model.predict_proba(train)[np.arange(300), y_train]
suspicion = {
    "self-influence": scores.self_influence(),
    "harm to the test rows": -S.sum(0),
    "loss alone": -np.log(given),
}
for name, one in suspicion.items():
    found = mislabel_detection(one, flipped)
    print(f"{name:22} ROC-AUC {found.roc_auc:.3f}, precision {found.average_precision:.2f}")

# %%
# Does training again say the same?
# ---------------------------------
# The model is trained on 40 random halves of the rows, with two seeds each, and the scores of the
# rows that are missing are summed up as a prediction of the loss: their rank correlation is the
# linear datamodeling score. BoostIn looks at each round on its own, LeafInfluence also at what
# a row has changed for the rounds after it.

halves = random_subsets(300, 40, ratio=0.5, random_state=1)
outcomes = train_on_subsets(model, train, y_train, halves, test, y_test, n_seeds=2, random_state=0)
methods = {
    "BoostIn": BoostIn(model).fit(train, y_train),
    "LeafInfluence": LeafInfluence(model).fit(train, y_train),
    "LeafInfluence, 16 models": scores,
}
judged = linear_datamodeling_score(methods, outcomes, test, y_test, random_state=0)
print(judged.to_frame().round(2).to_string())

# %%
# A single row is harder to measure. Without it the trees split elsewhere, and they do with another seed
# as well, so that training again once says little. Here are the three most harmful and the three most
# helpful rows of the same prediction, in the mean over ten seeds. The large effects stand out of the noise,
# with the sign of the scores. They are larger than the scores, in which the splits do not move.
# Small effects are lost in the noise.

order = np.argsort(S[wrong])
few = [*order[:3], *order[-3:]]
again = LeaveOneOut(model, leave_out=few, n_seeds=10, random_state=0).fit(train, y_train)
measured = again.transform(test[wrong : wrong + 1], y_test[wrong : wrong + 1])[0]
print(f"{'':12}{'score':>8}{'measured':>10}{'error':>8}")
for row, change, error in zip(again.train_indices_, measured, again.scores_sem_[0], strict=True):
    print(f"{train.index[row]:12}{S[wrong, row]:+8.3f}{change:+10.3f}{error:8.3f}")

# %%
# Left: the rows behind the wrong prediction, with two standard errors over the models. Right: the same
# prediction after training on each half, against what the scores predict.

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
TopRowsDisplay.from_estimator(scores, test[wrong : wrong + 1], y_test[wrong : wrong + 1]).plot(
    ax=left
)
left.set_title(f"{test.index[wrong]}: late, predicted on time")
predicted = (~halves).astype(float) @ S[wrong]
right.scatter(predicted, outcomes.measured[:, wrong].mean(1))
right.set_xlabel("sum of the scores of the missing rows")
right.set_ylabel("loss after training on a half")
plt.show()
