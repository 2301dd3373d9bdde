"""Values of rows beside pyDVL and OpenDataVal: the same utility, rows and number of evaluations, in one run.

In an environment of its own with fimoda, pyDVL and ``pip install --no-deps opendataval requests urllib3 idna
certifi``::

    OMP_NUM_THREADS=1 python benchmarks/games.py

The utility is the accuracy on 100 test rows of the breast cancer data after training on some of 100 rows.
``z`` is the mean of ``|a - b|`` over the joint standard error: .8 for estimates of the same values. Each
peer is timed by evaluation, a training with its score, since OpenDataVal leaves out some.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from skorch import NeuralNetClassifier
from torch import nn

from fimoda import DataBanzhaf, DataOOB, DataShapley, KNNShapley

warnings.simplefilter("ignore")
for absent in (  # of OpenDataVal, for images and texts, which play no part here
    *("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.models"),
    *(
        "torchvision.models.feature_extraction",
        "torchvision.transforms.functional",
        "transformers",
        "geomloss",
        "openml",
    ),
):
    sys.modules.setdefault(absent, mock.MagicMock())

import opendataval.dataval as odv  # noqa: E402
from opendataval.dataval.margcontrib.sampler import TMCSampler  # noqa: E402
from opendataval.model import ClassifierMLP, ClassifierSkLearnWrapper  # noqa: E402
from pydvl.valuation import (  # noqa: E402
    DataOOBValuation,
    Dataset,
    KNNShapleyValuation,
    MinUpdates,
    ModelUtility,
    MSRBanzhafValuation,
    NoTruncation,
    PermutationSampler,
    ShapleyValuation,
    SupervisedScorer,
)
from sklearn.ensemble import BaggingClassifier  # noqa: E402

N, N_TEST, ORDERS, SETS, EPOCHS, HIDDEN = 100, 100, 20, 1000, 10, 25

Values = tuple[NDArray[np.float64], NDArray[np.float64] | None]


def rows(n: int, n_test: int) -> tuple[Any, Any, Any, Any]:
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(X))
    train, test = order[:n], order[n : n + n_test]
    y = y.copy()
    y[train[:10]] = 1 - y[train[:10]]  # some rows that harm
    return X[train], y[train], X[test], y[test]


def network(classes: int = 2) -> nn.Module:
    return nn.Sequential(
        nn.Linear(30, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, classes),
    )


def skorch_network() -> NeuralNetClassifier:
    torch.manual_seed(0)
    return NeuralNetClassifier(
        network(),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=0.01,
        batch_size=32,
        max_epochs=EPOCHS,
        train_split=None,
        verbose=0,
    )


class PlainLoop:
    """The same network in the plainest loop of torch, for pyDVL."""

    def fit(self, X: Any, y: Any) -> PlainLoop:
        torch.manual_seed(0)
        self.net = network()
        optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01)
        X, y = torch.from_numpy(X), torch.from_numpy(y)
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(X)).split(32):
                optimizer.zero_grad()
                nn.functional.cross_entropy(self.net(X[batch]), y[batch]).backward()
                optimizer.step()
        return self

    def predict(self, X: Any) -> Any:
        with torch.no_grad():
            return self.net(torch.from_numpy(X)).argmax(1).numpy()

    def score(self, X: Any, y: Any) -> float:
        return float((self.predict(X) == y).mean())


class CountedUtility(ModelUtility):
    """A utility of pyDVL's that counts its trainings, those of its copies among them."""

    calls = 0

    def _utility(self, sample: Any) -> float:
        CountedUtility.calls += 1
        return super()._utility(sample)


def accuracy(model: Any, X: Any, y: Any) -> float:
    return float((model.predict(X) == y).mean())


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    with redirect_stderr(StringIO()):
        found = work()
    return found, time.perf_counter() - start


def agreement(own: Values, other: Values) -> str:
    (a, a_sem), (b, b_sem) = own, other
    r = np.corrcoef(a, b)[0, 1]
    if b_sem is None or a_sem is None:
        return f"r {r:.2f}"
    both = np.hypot(a_sem, b_sem)
    known = both > 1e-6  # rows that never changed a prediction have no error
    return f"z {np.mean(np.abs(a - b)[known] / both[known]):.2f}, r {r:.2f}"


def line(
    name: str, own: tuple[Values, float, int], peers: dict[str, tuple[Values, float, int]]
) -> None:
    values, seconds, n = own
    cells = [f"{1e3 * seconds / n:.2f}"]
    for found, other, n_other in peers.values():
        ratio = (other / n_other) / (seconds / n)
        cells.append(f"{1e3 * other / n_other:.2f} | {ratio:.2g} | {agreement(values, found)}")
    print(f"| {name} | {n} | " + " | ".join(cells) + " |", flush=True)


def fimoda_values(method: Any, data: Any, n: int) -> tuple[Values, float, int]:
    X, y, X_test, y_test = data

    def work() -> Values:
        method.fit(X, y).values(X_test, y_test)
        return method.values_, method.values_sem_

    found, seconds = timed(work)
    return found, seconds, n


def pydvl_values(make: Callable[[Any], Any], model: Any, data: Any, default: float) -> Any:
    X, y, X_test, y_test = data
    scorer = SupervisedScorer(accuracy, Dataset(X_test, y_test), default=default)
    utility = CountedUtility(model, scorer, show_warnings=False)
    CountedUtility.calls = 0

    def work() -> Values:
        result = make(utility).fit(Dataset(X, y)).result
        order = np.argsort(result.indices)
        return result.values[order], result.stderr[order]

    found, seconds = timed(work)
    return found, seconds, CountedUtility.calls


def opendataval_shapley(model: Any, data: Any, **training: Any) -> tuple[Values, float, int]:
    X, y, X_test, y_test = (torch.from_numpy(part) for part in data)
    hot, hot_test = (nn.functional.one_hot(part).float() for part in (y, y_test))
    sampler = TMCSampler(ORDERS, min_cardinality=1, cache_name=None, random_state=0)
    evaluator = odv.DataShapley(sampler)
    evaluator.input_model(model).input_metric(
        lambda a, b: float((a.argmax(1) == b.argmax(1)).float().mean())
    )
    evaluator.input_data(X, hot, X_test, hot_test)
    calls = [0]
    own = sampler.compute_utility

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return own(*args, **kwargs)

    sampler.compute_utility = counted
    _, seconds = timed(lambda: evaluator.train_data_values(**training))
    # the plain mean over permutations: its own mean over sizes takes those not seen for zero
    return (sampler.marginal_contrib_sum.sum(1) / ORDERS, None), seconds, calls[0]


def opendataval_banzhaf(model: Any, data: Any) -> tuple[Values, float, int]:
    evaluator = odv.DataBanzhaf(SETS, random_state=0)
    evaluator.input_model(model).input_metric(
        lambda a, b: float((a.argmax(1) == b.argmax(1)).float().mean())
    )
    X, y, X_test, y_test = (torch.from_numpy(part) for part in data)
    hot, hot_test = (nn.functional.one_hot(part).float() for part in (y, y_test))
    evaluator.input_data(X, hot, X_test, hot_test)
    found, seconds = timed(lambda: evaluator.train_data_values().evaluate_data_values())
    return (found, None), seconds, SETS


def main() -> None:
    torch.set_num_threads(1)
    data = rows(N, N_TEST)
    default = float(np.mean(data[3] == np.bincount(data[1]).argmax()))
    print(f"{N} rows, {N_TEST} test rows; milliseconds an evaluation, and the ratio to fimoda's\n")
    print(
        "| utility, method | evaluations | fimoda | pyDVL | times | agreement "
        "| OpenDataVal | times | agreement |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    evaluations = ORDERS * N

    def permutations(utility: Any) -> Any:
        sampler = PermutationSampler(NoTruncation(), seed=1)
        return ShapleyValuation(utility, sampler, is_done=MinUpdates(ORDERS), progress=False)

    models = {
        "logistic regression": (
            LogisticRegression(max_iter=1000),
            LogisticRegression,
            {"max_iter": 1000},
        ),
        "5 nearest neighbours": (KNeighborsClassifier(), KNeighborsClassifier, {}),
        "decision tree": (
            DecisionTreeClassifier(max_depth=3, random_state=0),
            DecisionTreeClassifier,
            {"max_depth": 3, "random_state": 0},
        ),
    }
    for name, (model, cls, params) in models.items():
        method = DataShapley(model, n_samples=ORDERS, scoring="accuracy", random_state=0)
        own = fimoda_values(method, data, evaluations)
        peers = {"pyDVL": pydvl_values(permutations, model, data, default)}
        try:
            wrapped = ClassifierSkLearnWrapper(cls, 2, **params)
            peers["OpenDataVal"] = opendataval_shapley(wrapped, data)
        except Exception as error:
            print(f"OpenDataVal, {name}: {type(error).__name__}: {str(error)[:80]}")
        line(f"{name}, Shapley", own, peers)
    net = DataShapley(
        skorch_network().fit(*data[:2]), n_samples=ORDERS, scoring="accuracy", random_state=0
    )
    own = fimoda_values(net, data, evaluations)
    torch.manual_seed(0)
    theirs = ClassifierMLP(30, 2, layers=3, hidden_dim=HIDDEN)
    peers = {
        "pyDVL": pydvl_values(permutations, PlainLoop(), data, default),
        "OpenDataVal": opendataval_shapley(theirs, data, epochs=EPOCHS, lr=0.01, batch_size=32),
    }
    line("network 30-25-25-2, Shapley", own, peers)
    logistic = LogisticRegression(max_iter=1000)
    banzhaf = DataBanzhaf(logistic, n_samples=SETS, scoring="accuracy", random_state=0)
    peer = pydvl_values(
        lambda utility: MSRBanzhafValuation(utility, is_done=MinUpdates(SETS), progress=False),
        *(logistic, data, default),
    )
    wrapped = ClassifierSkLearnWrapper(LogisticRegression, 2, max_iter=1000)
    peers = {"pyDVL": peer, "OpenDataVal": opendataval_banzhaf(wrapped, data)}
    line("logistic regression, Banzhaf", fimoda_values(banzhaf, data, SETS), peers)
    nearest()
    out_of_bag(data)


def nearest() -> None:
    """KNN-Shapley of 300 rows for 200 test rows; OpenDataVal's weighs the farthest row in its own way."""
    X, y, X_test, y_test = rows(300, 200)
    method = KNNShapley(n_neighbors=5)

    def own() -> Values:
        method.fit(X, y).transform(X_test, y_test)
        return method.values_, None

    def pydvl() -> Values:
        fitted = KNeighborsClassifier(5).fit(X, y)
        valuation = KNNShapleyValuation(fitted, Dataset(X_test, y_test), progress=False)
        result = valuation.fit(Dataset(X, y)).result
        return result.values[np.argsort(result.indices)], None

    def opendataval() -> Values:
        hot, hot_test = (
            nn.functional.one_hot(torch.from_numpy(part)).float() for part in (y, y_test)
        )
        evaluator = odv.KNNShapley(5)
        evaluator.input_data(torch.from_numpy(X), hot, torch.from_numpy(X_test), hot_test)
        return evaluator.train_data_values().evaluate_data_values(), None

    own()
    mine, *others = (timed(work) for work in (own, pydvl, opendataval))
    differences = [np.abs(found[0] - mine[0][0]).max() for found, _ in others]
    names = ["pyDVL", "OpenDataVal"]
    line(
        "KNN-Shapley", (*mine, 1), {n: (*other, 1) for n, other in zip(names, others, strict=True)}
    )
    print("largest difference:", dict(zip(names, (f"{d:.1e}" for d in differences), strict=True)))


def out_of_bag(data: Any, n_bags: int = 200) -> None:
    """Data-OOB of 200 bags."""
    X, y, _, _ = data
    tree = DecisionTreeClassifier(max_depth=3, random_state=0)
    for name, model in {"decision tree": tree, "logistic regression": LogisticRegression()}.items():
        method = DataOOB(model, n_samples=n_bags, random_state=0)

        def own(method: Any = method) -> Values:
            method.fit(X, y)
            return method.values_, method.values_sem_

        def pydvl(model: Any = model) -> Values:
            bags = BaggingClassifier(model, n_estimators=n_bags, random_state=1).fit(X, y)
            result = DataOOBValuation(bags).fit(Dataset(X, y)).result
            order = np.argsort(result.indices)
            return result.values[order], result.stderr[order]

        line(f"{name}, Data-OOB", (*timed(own), n_bags), {"pyDVL": (*timed(pydvl), n_bags)})


if __name__ == "__main__":
    main()
