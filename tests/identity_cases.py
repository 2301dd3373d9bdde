"""Runs that differ, and runs that do not, for the trial of identity; made anew by each call."""

from __future__ import annotations

import functools
import types

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import BaggingClassifier, RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC
from torch import nn

D = 3
SCALE = 2.0


def rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(16, D)).astype(np.float32)
    return X, X @ np.float32([[1], [-2], [0.5]])


def labels():
    return (rows()[1][:, 0] > 0).astype(int)


def made(code: str, **names):
    """What `thing` is in a module of its own, with this code."""
    module = types.ModuleType("strangers")
    module.__dict__.update(names)
    exec(compile(code, "<strangers>", "exec"), module.__dict__)
    return module.thing


def from_closure(a):
    def measurement(outputs, targets):
        return a * outputs.squeeze(-1)

    return measurement


def with_default(a):
    def measurement(outputs, targets, a=a):
        return a * outputs.squeeze(-1)

    return measurement


def weighted(outputs, targets, weight=1):
    return weight * outputs.squeeze(-1)


def scaled(outputs, targets):
    return SCALE * outputs.squeeze(-1)


@functools.cache
def rate(epoch):
    return 0.1


class Scaled:
    """A measurement with a state."""

    def __init__(self, a):
        self.a = a

    def __call__(self, outputs, targets):
        return self.a * outputs.squeeze(-1)


def scaled_probability(a):
    def measurement(outputs, targets):
        return a * outputs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)

    return measurement


class Loss(nn.Module):
    """A criterion with settings that its repr does not show."""

    def __init__(self, a, table=None):
        super().__init__()
        self.a, self.table, self.reduction = a, table, "mean"

    def forward(self, outputs, targets):
        found = self.a * (outputs - targets) ** 2
        found = found if self.table is None else found * float(self.table[0, 1000])
        return found.mean() if self.reduction == "mean" else found


class Network(nn.Module):
    """A module that acts by a set and a function."""

    def __init__(self, f=torch.tanh, names=("a", "b", "c")):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(D, 1)
        self.f, self.names = f, set(names)

    def forward(self, x):
        return self.f(self.linear(x)) if {"a", "b"} <= self.names else self.linear(x)


class Majority(ClassifierMixin, BaseEstimator):
    """An estimator of the user's own."""

    def __init__(self, settings=None):
        self.settings = settings

    def fit(self, X, y):
        self.classes_, counts = np.unique(y, return_counts=True)
        self.shares_ = counts / len(y)
        return self

    def predict_proba(self, X):
        return np.tile(self.shares_, (len(X), 1))

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(1)]


OPTIMIZER = """
class Own(torch.optim.SGD):
    def __init__(self, params, lr=.1):
        super().__init__(params, lr=lr * factor)
    def step(self, closure=None):
        return super().step(closure){more}
thing = Own
"""


def optimizer(factor=1.0, more=""):
    return made(OPTIMIZER.format(more=more), torch=torch, factor=factor)


def unlike_late(last):
    """A list that is alike for longer than a repr shows."""
    return [*(float(k) for k in range(3000)), last]


def hooked(factor):
    net = Network()
    net.register_forward_hook(lambda module, inputs, outputs: factor * outputs)
    return net


def fitted_on(n):
    X = rows()[0]
    return FrozenEstimator(StandardScaler().fit(X[:n]))


def decayed(net):
    net.linear.weight.data[0, 0] += 1e-6
    return net


def init_of(scale):
    def init():
        net = nn.Linear(D, 1)
        with torch.no_grad():
            net.weight *= scale
        return net

    return init


def buffered(value):
    net = Network()
    net.register_buffer("offset", torch.tensor([value]), persistent=False)
    return net


LATE = np.ones((1, 2000))
LATER = LATE.copy()
LATER[0, 1000] = 2

#: Settings of a further training or its curve; each pair would train or measure something else.
FURTHER = {
    "optimisers of one name, another factor": (
        {"optimizer": optimizer(1.0)},
        {"optimizer": optimizer(0.5)},
    ),
    "optimisers of one name, other code": (
        {"optimizer": optimizer()},
        {"optimizer": optimizer(more=" or None")},
    ),
    "measurements alike on [0, 1)": (
        {"measurement": lambda outputs, targets: outputs.squeeze(-1)},
        {"measurement": lambda outputs, targets: outputs.squeeze(-1).abs()},
    ),
    "measurements alike up to 10": (
        {"measurement": lambda outputs, targets: outputs.squeeze(-1)},
        {"measurement": lambda outputs, targets: outputs.squeeze(-1).clamp(max=10)},
    ),
    "measurements alike to six digits": (
        {"measurement": lambda outputs, targets: outputs.squeeze(-1)},
        {"measurement": lambda outputs, targets: outputs.squeeze(-1) * (1 + 1e-9)},
    ),
    "closures": ({"measurement": from_closure(1.0)}, {"measurement": from_closure(1 + 1e-12)}),
    "defaults": ({"measurement": with_default(1.0)}, {"measurement": with_default(1 + 1e-12)}),
    "partials": (
        {"measurement": functools.partial(weighted, weight=1)},
        {"measurement": functools.partial(weighted, weight=1 + 1e-13)},
    ),
    "objects": ({"measurement": Scaled(1.0)}, {"measurement": Scaled(1 + 1e-13)}),
    "methods": ({"measurement": Scaled(1.0).__call__}, {"measurement": Scaled(2.0).__call__}),
    "globals": (
        {"measurement": made("def thing(o, t): return o.squeeze(-1) * SCALE", SCALE=1.0)},
        {"measurement": made("def thing(o, t): return o.squeeze(-1) * SCALE", SCALE=1 + 1e-13)},
    ),
    "functions that are called": (
        {"measurement": made("def f(o): return o\ndef thing(o, t): return f(o).squeeze(-1)")},
        {"measurement": made("def f(o): return -o\ndef thing(o, t): return f(o).squeeze(-1)")},
    ),
    "rates": ({"lr": lambda epoch: 0.1}, {"lr": lambda epoch: 0.1 if epoch < 1 else 0.05}),
    "criteria that differ late in a large array": (
        {"criterion": Loss(1.0, LATE)},
        {"criterion": Loss(1.0, LATER)},
    ),
    "settings of a criterion": ({"criterion": Loss(1.0)}, {"criterion": Loss(1 + 1e-12)}),
    "a module's function": (
        {"net": Network(lambda x: 0.5 * x)},
        {"net": Network(lambda x: 0.25 * x)},
    ),
    "a module's set": ({"net": Network()}, {"net": Network(names=("a", "c"))}),
    "a module's hook": ({"net": hooked(1.0)}, {"net": hooked(2.0)}),
    "a parameter's sixth digit": ({"net": Network()}, {"net": decayed(Network())}),
    "a buffer that is not saved": ({"net": buffered(1.0)}, {"net": buffered(2.0)}),
    "dtype": ({"net": Network()}, {"net": Network().double()}),
    "weights of rows": ({}, {"sample_weight": np.r_[2.0, np.ones(15)]}),
    "mode": ({}, {"leave_out_mode": "drop"}),
    "penalty": ({}, {"optimizer_params": {"weight_decay": 1e-12}}),
    "the name of a parameter in the manifest": (
        {"optimizer_params": {"momentum": 0.5}},
        {"optimizer_params": {"dampening": 0.5}},
    ),
    "targets": ({}, {"y": rows()[1] + np.float32(1e-6)}),
    "rows": ({}, {"X": rows()[0] + np.float32(1e-6)}),
}  # fmt: skip

#: Estimators that are fitted again.
ESTIMATORS = {
    "a long list": (Majority(unlike_late(0.0)), Majority(unlike_late(1.0))),
    "nested": (
        make_pipeline(StandardScaler(), BaggingClassifier(make_pipeline(SVC(C=1.0)), n_estimators=2)),
        make_pipeline(StandardScaler(), BaggingClassifier(make_pipeline(SVC(C=2.0)), n_estimators=2)),
    ),
    "many steps": (
        make_pipeline(*(StandardScaler() for _ in range(60)), LogisticRegression()),
        make_pipeline(*(StandardScaler() for _ in range(60)), LogisticRegression(C=1 + 1e-12)),
    ),
    "class weights": (
        LogisticRegression(class_weight={0: 1.0, 1: 1.0}),
        LogisticRegression(class_weight={0: 1.0, 1: 1 + 1e-9}),
    ),
    "a large array": (
        KNeighborsClassifier(metric="seuclidean", metric_params={"V": np.ones(3)}),
        KNeighborsClassifier(metric="seuclidean", metric_params={"V": np.array([1, 1, 1 + 1e-12])}),
    ),
    "frozen": (
        make_pipeline(fitted_on(8), LogisticRegression()),
        make_pipeline(fitted_on(9), LogisticRegression()),
    ),
}  # fmt: skip

#: More of them, with code that no other process can import.
FOREIGN = {
    "lambdas": (
        make_pipeline(FunctionTransformer(lambda X: X * 0.5), LogisticRegression()),
        make_pipeline(FunctionTransformer(lambda X: X * 0.25), LogisticRegression()),
    ),
    "classes of one name": (
        made("class thing(Base): x = 1", Base=Majority)(),
        made("class thing(Base): x = 2", Base=Majority)(),
    ),
    "a base class": (
        made("class B(A): pass\nclass thing(B): pass", A=Majority)(),
        made("class B(A):\n def g(self): return 2\nclass thing(B): pass", A=Majority)(),
    ),
    "a tokenizer": (
        CountVectorizer(tokenizer=lambda text: text.split()),
        CountVectorizer(tokenizer=lambda text: text.split(",")),
    ),
}  # fmt: skip

#: What is the same wherever it is made.
SAME = {
    "function": lambda: scaled,
    "closure": lambda: from_closure(0.1),
    "partial": lambda: functools.partial(weighted, weight=3),
    "object": lambda: Scaled(0.1),
    "cached": lambda: rate,
    "network": lambda: Network(),
    "hooks": lambda: (hooked(1.0), hooked(2.0))[1],
    "lstm": lambda: (torch.manual_seed(0), nn.LSTM(2, 3))[1],
    "optimiser": optimizer,
    "estimator": lambda: make_pipeline(StandardScaler(), Majority({"a", "b", "c", "d"})),
    "fitted": lambda: Majority().fit(rows()[0], labels()),
    "forest": lambda: RandomForestClassifier(n_jobs=2, verbose=0),
    "set": lambda: {"a", "b", ("c", frozenset({"d", "e", "f"}))},
    "generator": lambda: np.random.RandomState(3),
    "init": lambda: init_of(0.5),
    "set in code": lambda: made("def thing(o, t): return o if o in {'a', 'b', 'c'} else t"),
}


def identities() -> dict[str, str]:
    """Digest of each."""
    from fimoda._identity import identity_of

    return {name: identity_of(make()) for name, make in SAME.items()}
