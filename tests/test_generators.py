"""Nobody's global generator moves: torch's, numpy's and Python's are as they were."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.tree import DecisionTreeClassifier
from test_common import ATTRIBUTORS, make
from torch import nn

import fimoda
from fimoda.attributors.families.trained_again import BaseTrainedAgain

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

X, y = make_classification(30, 4, n_informative=3, n_redundant=0, random_state=0)
X_test, y_test = X[:3] + 0.1, y[:3]


def states():
    numpy_state = np.random.get_state()  # noqa: NPY002
    return (
        torch.get_rng_state().tolist(),
        numpy_state[1].tolist(),
        numpy_state[2],
        random.getstate(),
    )


@pytest.fixture(autouse=True)
def left_alone():
    torch.manual_seed(5)
    torch.rand(3)
    before = states()
    yield
    names = ("torch", "numpy", "numpy", "random")
    moved = [name for name, a, b in zip(names, before, states(), strict=True) if a != b]
    assert not moved


def models():
    """Fitted models of each kind; drawn before the generators are looked at."""
    with torch.random.fork_rng([]):
        module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlp = MLPClassifier((4,), max_iter=5, random_state=0).fit(X, y)
    return {
        "linear": LogisticRegression().fit(X, y),
        "mlp": mlp,
        "dropout": module.double().eval(),
    }


MODELS = models()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cls", ATTRIBUTORS, ids=lambda cls: cls.__name__)
def test_attributors(cls, name):
    params = {"criterion": nn.CrossEntropyLoss()} if name == "dropout" else {}
    if name == "dropout" and cls in (fimoda.EnsembleAttributor, fimoda.DistributionalInfluence):
        pytest.skip("its inner method has the criterion, tested by itself")
    if name == "dropout" and issubclass(cls, BaseTrainedAgain):
        params["n_epochs"] = 1
    if cls is fimoda.Datamodel:
        params["regression"] = "lasso"
    made = make(cls, MODELS[name], **params)
    made.fit(X, y)
    made.transform(X_test, y_test)
    made.transform(X_test)
    made.self_influence()
    made.top(X_test, y_test, k=2)


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_functions(name):
    model = MODELS[name]
    fimoda.attribute(model, X, y, X_test, y_test, budget=5, random_state=0)
    run = {"n_seeds": 2, "leave_out": [0, 4, 9], "random_state": 0}
    rows = (model, X, y, X_test, y_test)
    curve = fimoda.further_training_curve(*rows, epochs=[1, 2], **run)
    dot = fimoda.GradDot(model).fit(X, y)
    fimoda.agreement_curve({"dot": dot}, curve, X_test, y_test)
    fimoda.compare_methods(
        model,
        X,
        y,
        X_test,
        y_test,
        methods={"dot": fimoda.GradDot(model)},
        budget=5,
        epochs=[1],
        **run,
    )
    masks = fimoda.random_subsets(30, 6, random_state=0)
    with_epochs = {"n_epochs": 1} if name == "mlp" else {}
    outcomes = fimoda.train_on_subsets(
        model, X, y, masks, X_test, y_test, n_seeds=2, random_state=0, **with_epochs
    )
    fimoda.linear_datamodeling_score({"dot": dot}, outcomes, X_test, y_test, random_state=0)
    fimoda.train_ensemble(model, X, y, n_seeds=2, random_state=0, **with_epochs)


def test_estimators_that_are_refitted():
    with torch.random.fork_rng([]):
        tree = DecisionTreeClassifier(max_depth=2, random_state=0).fit(X, y)
    fimoda.attribute(tree, X, y, X_test, y_test, budget=5, random_state=0)
    fimoda.LeaveOneOut(tree, leave_out=[0, 1], n_seeds=2, random_state=0).fit(X, y).transform(X, y)
    fimoda.MislabelDetector(tree, random_state=0).fit(X, y)


def test_networks_are_drawn_with_any_generator():
    """A network's own way of drawing its parameters may use numpy's generator, or Python's."""

    class Drawn(nn.Linear):
        def reset_parameters(self):
            drawn = np.random.rand(*self.weight.shape) + random.random()  # noqa: NPY002
            with torch.no_grad():
                self.weight.copy_(torch.from_numpy(drawn) + torch.rand(()))
                self.bias.zero_()

    before = states()
    numpy_state, own = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng([]):
        module = Drawn(4, 2).double()
    np.random.set_state(numpy_state)  # noqa: NPY002
    random.setstate(own)
    loo = fimoda.LeaveOneOut(
        module, n_epochs=1, n_seeds=[3], leave_out=[0], criterion=nn.CrossEntropyLoss()
    )
    first = loo.fit(X, y).transform(X_test, y_test)
    assert states() == before
    np.testing.assert_array_equal(loo.fit(X, y).transform(X_test, y_test), first)
