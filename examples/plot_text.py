"""
Which sentences drive a prediction?
===================================

A small transformer encoder, trained on the spot on 120 sentences, behind a step that makes tokens of them.
Rows are sentences everywhere: in ``fit``, in ``transform`` and in what is printed.
"""

# %%
# Sentences and a model
# ---------------------
# What is said of films is positive or negative, and "not" turns it round. Three training sentences have a
# wrong label.

from itertools import product

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.pipeline import Pipeline
from skorch import NeuralNetClassifier
from torch import nn

from fimoda import EKFACInfluence, FurtherTraining, GradDot

things = ["film", "plot", "cast", "music", "script", "dialogue"]
words = {"good": 1, "clever": 1, "moving": 1, "warm": 1, "bad": 0, "dull": 0, "noisy": 0, "cold": 0}
forms = {"the {0} is {1}": 0, "what a {1} {0}": 0, "a {0} not {1}": 1, "the {0} is not {1}": 1}
rows = [(form.format(t, w), words[w] ^ forms[form]) for form, t, w in product(forms, things, words)]
order = np.random.default_rng(0).permutation(len(rows))
sentences = [rows[i][0] for i in order]
labels = np.array([rows[i][1] for i in order])
train, test, y_train, y_test = sentences[:120], sentences[120:], labels[:120], labels[120:]
wrong = [7, 40, 99]
y_train[wrong] = 1 - y_train[wrong]


class Tokens(TransformerMixin, BaseEstimator):
    """Numbers of the words of each sentence, filled up with zeros."""

    def fit(self, X, y=None):
        self.counter_ = CountVectorizer(token_pattern=r"\w+").fit(X)
        return self

    def transform(self, X):
        numbers, split = self.counter_.vocabulary_, self.counter_.build_analyzer()
        ids = [[numbers[word] + 1 for word in split(x) if word in numbers] for x in X]
        return np.array([row + [0] * (8 - len(row)) for row in ids])


class Encoder(nn.Module):
    """Two layers of attention, and the mean over the words of a sentence."""

    def __init__(self, width=16):
        super().__init__()
        self.words = nn.Embedding(40, width, padding_idx=0)
        self.places = nn.Parameter(0.1 * torch.randn(8, width))
        layer = nn.TransformerEncoderLayer(width, 2, 32, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 2)

    def forward(self, X):
        padding = X == 0
        hidden = self.layers(self.words(X) + self.places, src_key_padding_mask=padding)
        return self.head(hidden.masked_fill(padding[..., None], 0).sum(1) / (~padding).sum(1, True))


torch.manual_seed(0)
net = NeuralNetClassifier(
    Encoder,
    criterion=nn.CrossEntropyLoss,
    lr=0.3,
    batch_size=20,
    max_epochs=60,
    train_split=None,
    verbose=0,
)
model = Pipeline([("tokens", Tokens()), ("net", net)]).fit(train, y_train)
print(f"accuracy on {len(test)} other sentences: {model.score(test, y_test):.2f}")

# %%
# The sentences behind a prediction
# ---------------------------------
# A score is the change of the test sentence's loss when a training sentence is left out: helpful ones hold it
# down, harmful ones raise it. Against the sentence that the model gets wrong most surely stands one with a
# wrong label.

losses = -np.log(model.predict_proba(test)[np.arange(len(test)), y_test])
asked = int(losses.argmax())
grad_dot = GradDot(model).fit(train, y_train)
print(f"{test[asked]!r} is {['negative', 'positive'][y_test[asked]]}, loss {losses[asked]:.2f}\n")
print(grad_dot.top([test[asked]], y_test[[asked]], k=4))
print("\nwrong labels:", *(train[i] for i in wrong), sep="\n  ")

# %%
# Is that so?
# -----------
# Twelve sentences are left out in turn, and the model is trained for one more epoch with and without each.
# Grad-Dot and EK-FAC are compared with what happens then.

gold = FurtherTraining(model, n_epochs=1, n_seeds=3, leave_out=12, random_state=0).fit(
    train, y_train
)
truth = gold.transform(test, y_test)
for method in (grad_dot, EKFACInfluence(model).fit(train, y_train)):
    scores = method.transform(test, y_test)[:, gold.train_indices_]
    cosines = (
        (scores * truth).sum(1) / np.linalg.norm(scores, axis=1) / np.linalg.norm(truth, axis=1)
    )
    print(f"{type(method).__name__}: mean cosine with further training {cosines.mean():.2f}")
