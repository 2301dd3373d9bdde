"""DataOOB by hand: bags, their models and what these predict out of bag."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import make_classification, make_regression
from sklearn.ensemble import BaggingClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from torch import nn

from fimoda import (
    DataOOB,
    MislabelDetector,
    PrunedClassifier,
    group_influence,
    mislabel_detection,
)
from fimoda.games.bags import draw_bags


def classes(n: int = 30):
    return make_classification(n, 4, flip_y=0.3, class_sep=0.7, random_state=0)


def by_hand(model, X, y, bags, judge):
    """Return the means over bags without a row, and their standard errors."""
    found = np.full(bags.shape, np.nan)
    for own, bag in zip(found, bags, strict=True):
        rows = np.repeat(np.arange(len(X)), bag)
        fitted = clone(model).fit(X[rows], y[rows])
        out = bag == 0
        own[out] = judge(fitted, X[out], y[out])
    number = np.isfinite(found).sum(0)
    return np.nanmean(found, 0), np.nanstd(found, 0, ddof=1) / np.sqrt(number)


@pytest.mark.parametrize(
    "model", [DecisionTreeClassifier(random_state=5), LogisticRegression(tol=1e-10), SVC()]
)
def test_right_predictions_of_classes(model):
    X, y = classes()
    method = DataOOB(model, n_samples=25, n_seeds=[5], random_state=0).fit(X, y)
    expected, errors = by_hand(model, X, y, method.bags_, lambda m, X, y: m.predict(X) == y)
    assert_allclose(method.values_, expected)
    assert_allclose(method.values_sem_, errors, atol=1e-12)
    assert (method.values_ < 1).any()
    assert_array_equal(method.transform(X[:3]), np.tile(method.values_, (3, 1)))
    assert_array_equal(method.self_influence(), method.values_)


@pytest.mark.parametrize("model", [Ridge(), DecisionTreeRegressor(max_depth=2, random_state=5)])
def test_squared_errors_of_numbers(model):
    X, y = make_regression(25, 3, noise=30, random_state=0)
    method = DataOOB(model, n_samples=20, n_seeds=[5], random_state=0).fit(X, y)
    expected, _ = by_hand(model, X, y, method.bags_, lambda m, X, y: -((m.predict(X) - y) ** 2))
    assert_allclose(method.values_, expected)


def test_minus_the_measurement():
    X, y = classes()
    model = LogisticRegression(tol=1e-12)
    method = DataOOB(model, n_samples=25, measured="measurement", random_state=0).fit(X, y)

    def judge(fitted, X, y):
        return np.log(fitted.predict_proba(X)[np.arange(len(y)), y])

    expected, _ = by_hand(model, X, y, method.bags_, judge)
    assert_allclose(method.values_, expected, rtol=1e-5)


def test_bags_are_drawn_with_replacement():
    bags = draw_bags(50, 400, np.random.RandomState(0))
    assert_array_equal(bags.sum(1), 50)
    assert_allclose((bags == 0).mean(), np.exp(-1), atol=0.02)


def test_agrees_with_bagging_of_scikit_learn():
    X, y = classes(60)
    bagging = BaggingClassifier(DecisionTreeClassifier(random_state=0), 400, random_state=0).fit(
        X, y
    )
    right, out = np.zeros(len(X)), np.zeros(len(X))
    for tree, rows in zip(bagging.estimators_, bagging.estimators_samples_, strict=True):
        outside = ~np.isin(np.arange(len(X)), rows)
        right[outside] += tree.predict(X[outside]) == y[outside]
        out += outside
    method = DataOOB(DecisionTreeClassifier(random_state=0), n_samples=400, random_state=1).fit(
        X, y
    )
    z = (method.values_ - right / out) / np.maximum(method.values_sem_, 0.02)
    assert np.abs(z).max() < 5


def test_networks_take_twice_the_weight():
    """A bag of a network is the run with weights that count the row's draws."""
    X, y = classes(20)
    X = X.astype(np.float32)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    params = {"criterion": nn.CrossEntropyLoss(), "n_epochs": 15, "lr": 0.5, "batch_size": 20}
    method = DataOOB(net, n_samples=16, n_seeds=[7], random_state=0, **params).fit(X, y)
    retraining = method._retrained_with([7])
    start = retraining.way.start[7]
    right = np.full(method.bags_.shape, np.nan)
    for own, bag in zip(right, method.bags_, strict=True):
        module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
        nn.utils.vector_to_parameters(start.clone(), module.parameters())
        optimizer, weights = torch.optim.SGD(module.parameters(), lr=0.5), torch.tensor(bag / 20.0)
        for _ in range(15):
            optimizer.zero_grad()
            losses = nn.functional.cross_entropy(
                module(torch.tensor(X)), torch.tensor(y), reduction="none"
            )
            (losses * weights).sum().backward()
            optimizer.step()
        out = bag == 0
        predicted = module(torch.tensor(X)).argmax(1).numpy()
        own[out] = (predicted == y)[out]
    assert_allclose(method.values_, np.nanmean(right, 0), atol=1e-6)


def test_n_jobs_and_checkpoints(tmp_path):
    X, y = classes()
    params = {"n_samples": 40, "random_state": 0}
    expected = DataOOB(DecisionTreeClassifier(), **params).fit(X, y).values_
    for other in (
        {"n_jobs": 2},
        {"chunk_size": 3},
        {"checkpoint_dir": tmp_path},
        {"checkpoint_dir": tmp_path},
    ):
        found = DataOOB(DecisionTreeClassifier(), **params, **other).fit(X, y)
        assert_array_equal(found.values_, expected)


def test_low_values_look_like_wrong_labels():
    X, y = make_classification(80, 4, class_sep=2.0, flip_y=0, random_state=0)
    wrong = np.zeros(80, dtype=bool)
    wrong[::8] = True
    given = np.where(wrong, 1 - y, y)
    bags = DataOOB(LogisticRegression(), n_samples=60, random_state=0)
    assert mislabel_detection(bags.fit(X, given), wrong).roc_auc > 0.9
    found = MislabelDetector(LogisticRegression(), attributor=bags, contamination=0.125)
    assert wrong[found.fit(X, given).labels_ == -1].sum() >= 9
    pruned = PrunedClassifier(LogisticRegression(), attributor=bags, by="self", fraction=0.1)
    assert wrong[~pruned.fit(X, given).support_].all()


def test_values_are_no_effects_of_groups():
    X, y = classes()
    bags = DataOOB(LogisticRegression(), n_samples=30, random_state=0).fit(X, y)
    with pytest.raises(TypeError, match="do not add up"):
        group_influence(bags, [[0, 1]], X[:3], y[:3])
    with pytest.raises(TypeError, match="do not add up"):
        bags.reweight(X[:3], y[:3], weights=np.arange(30))


def test_a_column_of_labels():
    X, y = classes()
    names = np.array(["no", "yes"])[y]
    values = [
        DataOOB(LogisticRegression(), n_samples=30, random_state=0).fit(X, labels).values_
        for labels in (names, names[:, None])
    ]
    assert_array_equal(*values)


def test_bad_inputs():
    X, y = classes()
    with pytest.raises(FloatingPointError, match="is in every bag of 2"):
        DataOOB(DecisionTreeClassifier(), n_samples=2, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="takes a column for each row"):
        DataOOB(SVC(kernel="precomputed"), random_state=0).fit(X @ X.T, y)
    with pytest.raises(ValueError, match="at least 2 rows"):
        DataOOB(Ridge()).fit(X[:1], X[:1, 0])
    with pytest.raises(ValueError, match="measured"):
        DataOOB(measured="loss").fit(X, y)
