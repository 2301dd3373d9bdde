"""AXIL: weights that give predictions, by finite differences, and what follows for removal."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.datasets import make_classification, make_regression
from sklearn.ensemble import (
    BaggingRegressor,
    ExtraTreesRegressor,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.tree import DecisionTreeRegressor

from fimoda import AXIL, LeafInfluence, LeafKernel, LeafRefit

N = 60
TEST = slice(0, 7)


def rows():
    X, y = make_regression(N, 4, noise=30, random_state=0)
    return X, y, X[TEST] + 0.1


def boosted(**params):
    return GradientBoostingRegressor(
        **{"n_estimators": 12, "max_depth": 2, "learning_rate": 0.3, "random_state": 0, **params}
    )


MODELS = {
    "boosting": boosted(),
    "from zero": boosted(init="zero"),
    "histograms": HistGradientBoostingRegressor(
        max_iter=12, l2_regularization=1.5, min_samples_leaf=5
    ),
    "held out": HistGradientBoostingRegressor(
        max_iter=8, early_stopping=True, min_samples_leaf=5, random_state=0
    ),
    "forest": RandomForestRegressor(6, random_state=0),
    "extra": ExtraTreesRegressor(6, max_depth=3, random_state=0),
    "bags": BaggingRegressor(n_estimators=4, max_features=0.5, random_state=0),
    "tree": DecisionTreeRegressor(max_depth=3, criterion="poisson"),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_weights_give_the_predictions(name, weighted):
    X, y, Z = rows()
    y = y - y.min() + 1
    sample_weight = np.random.default_rng(0).uniform(0.5, 2, N) if weighted else None
    model = MODELS[name].fit(X, y, sample_weight=sample_weight)
    weights = AXIL(model).fit(X, y, sample_weight=sample_weight).weights(Z)
    assert weights.shape == (7, N)
    assert_allclose(weights @ y, model.predict(Z), rtol=1e-6)
    if name not in ("from zero", "histograms", "held out"):
        assert_allclose(weights.sum(1), 1)


def test_probabilities_of_classes():
    X, y = make_classification(N, 4, random_state=0)
    model = RandomForestClassifier(6, max_depth=3, random_state=0).fit(X, y)
    weights = AXIL(model).fit(X, y).weights(X[TEST])
    assert_allclose(weights @ np.eye(2)[y], model.predict_proba(X[TEST]), atol=1e-12)


def rerun(model, X, y, Z):
    """Predictions of boosting from the mean, with the leaves of fitted trees and new values."""
    f, g = np.full(len(X), y.mean()), np.full(len(Z), y.mean())
    for (tree,) in model.estimators_:
        at, there = tree.apply(X), tree.apply(Z)
        for leaf in np.unique(at):
            value = model.learning_rate * (y - f)[at == leaf].mean()
            g[there == leaf] += value
            f[at == leaf] += value
    return g


def test_weights_are_derivatives_in_the_targets():
    X, y, Z = rows()
    model = boosted().fit(X, y)
    weights = AXIL(model).fit(X, y).weights(Z)
    for i in range(0, N, 7):
        step = np.eye(N)[i]
        differences = (rerun(model, X, y + step, Z) - rerun(model, X, y - step, Z)) / 2
        assert_allclose(weights[:, i], differences, atol=1e-10)


def test_scores_by_hand():
    X, y, Z = rows()
    model = boosted().fit(X, y)
    axil = AXIL(model).fit(X, y)
    weights, own = axil.weights(Z), np.diag(axil.weights(X))
    f, target = model.predict(Z), y[TEST] + 1
    expected = np.empty((7, N))
    for i in range(N):
        new = y.copy()
        new[i] += (model.predict(X)[i] - y[i]) / (1 - own[i])
        assert_allclose(rerun(model, X, new, X[[i]]), new[i])  # it asks for nothing
        expected[:, i] = (rerun(model, X, new, Z) - target) ** 2 - (f - target) ** 2
    assert_allclose(axil.transform(Z, target), expected, atol=1e-9 * np.abs(expected).max())
    change = weights * ((model.predict(X) - y) / (1 - own))
    assert_allclose(AXIL(model, measurement="output").fit(X, y).transform(Z), change, atol=1e-10)


def test_leaf_influence_moves_the_target_of_each_round():
    X, y, Z = rows()
    model = boosted(n_estimators=3).fit(X, y)
    influence = LeafInfluence(model, measurement="output").fit(X, y).transform(Z)
    # f before each round, and the value that the leaf asks of a row there
    before = [np.full(N, y.mean()), *model.staged_predict(X)]
    expected = np.zeros((7, N))
    for i in range(N):
        for number in range(4):
            # the target of one round alone, and of the start at first
            wanted = (
                y.mean()
                if number == 0
                else before[number - 1][i]
                + ((before[number] - before[number - 1])[i] / model.learning_rate)
            )
            expected[:, i] += (wanted - y[i]) * of_one_round(model, X, y, Z, i, number)
    assert_allclose(influence, expected, atol=1e-9)
    weights = sum(of_one_round(model, X, y, Z, 5, number) for number in range(4))
    assert_allclose(AXIL(model).fit(X, y).weights(Z)[:, 5], weights, atol=1e-10)


def of_one_round(model, X, y, Z, i, number):
    """Derivative of predictions in the target of row i as one round sees it; round 0 is the start."""
    found = []
    for step in (1, -1):
        moved = y + step * np.eye(N)[i]
        start = (moved if number == 0 else y).mean()
        f, g = np.full(N, start), np.full(len(Z), start)
        for t, (tree,) in enumerate(model.estimators_, 1):
            at, there = tree.apply(X), tree.apply(Z)
            residual = (moved if t == number else y) - f
            for leaf in np.unique(at):
                value = model.learning_rate * residual[at == leaf].mean()
                g[there == leaf] += value
                f[at == leaf] += value
        found.append(g)
    return (found[0] - found[1]) / 2


def test_one_tree_is_exact():
    """Of one tree with all of its learning rate, from 0: as LeafRefit, and LeafInfluence to first order."""
    X, y, Z = rows()
    one = boosted(n_estimators=1, init="zero", learning_rate=1.0).fit(X, y)
    output = {"measurement": "output"}
    axil = AXIL(one, **output).fit(X, y)
    exact = LeafRefit(one, **output).fit(X, y).transform(Z)
    assert_allclose(axil.transform(Z), exact, atol=1e-9)
    first = axil.weights(Z) * (one.predict(X) - y)
    assert_allclose(LeafInfluence(one, **output).fit(X, y).transform(Z), first, atol=1e-9)
    tree = DecisionTreeRegressor(min_samples_leaf=4).fit(X, y)
    scores = AXIL(tree).fit(X, y).transform(Z, y[TEST])
    exact = LeafKernel(tree).fit(X, y).transform(Z, y[TEST])
    assert_allclose(scores, exact, atol=1e-9 * np.abs(exact).max())


def test_a_row_that_predicts_itself_alone_has_no_score():
    X, y, _ = rows()
    tree = DecisionTreeRegressor().fit(X, y)
    assert not AXIL(tree).fit(X, y).transform(X, y + 1).any()


@pytest.mark.parametrize("name", ["boosting", "extra"])
def test_blocks_and_order_do_not_matter(name):
    X, y, Z = rows()
    model = MODELS[name].fit(X, y)
    scores = AXIL(model).fit(X, y).transform(Z, y[TEST])
    close = {"rtol": 1e-9, "atol": 1e-9 * np.abs(scores).max()}
    small = AXIL(model, memory_budget=1).fit(X, y)
    assert_allclose(small.transform(Z, y[TEST]), scores, **close)
    order = np.random.default_rng(0).permutation(N)
    again = AXIL(model).fit(X[order], y[order]).transform(Z[::-1], y[TEST][::-1])
    assert_allclose(again, scores[::-1][:, order], **close)


def test_a_harmful_row_is_found():
    X, y, _ = rows()
    y[3] += 3000
    model = boosted().fit(X, y)
    neighbour = np.abs(X - X[3]).sum(1).argsort()[1]
    scores = AXIL(model).fit(X, y).transform(X[[neighbour]], y[[neighbour]])
    assert scores.argmin() == 3
    assert AXIL(model).fit(X, y).self_influence()[3] > 0


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (boosted(loss="huber"), "trained with"),
        (HistGradientBoostingRegressor(loss="poisson"), "another loss than the squared error"),
        (HistGradientBoostingRegressor(monotonic_cst=[1, 0, 0, 0]), "constraints keep"),
        (boosted(subsample=0.5), "not known which rows were drawn"),
        (ExtraTreesRegressor(3, max_depth=2, monotonic_cst=[1, 0, 0, 0]), "monotonic_cst keeps"),
    ],
)
def test_other_models_are_refused(model, reason):
    X, y, _ = rows()
    y = y - y.min() + 1
    with pytest.raises(TypeError, match=f"estimator .*{reason}"):
        AXIL(model.fit(X, y)).fit(X, y)


def test_boosted_classes_are_refused():
    X, y = make_classification(N, 4, random_state=0)
    model = HistGradientBoostingClassifier(max_iter=3).fit(X, y)
    with pytest.raises(TypeError, match=r"weighted sums of its training targets.*LeafInfluence"):
        AXIL(model).fit(X, y)


@pytest.mark.parametrize("name", MODELS)
def test_another_target_moves_predictions_by_its_weight(name):
    X, y, Z = rows()
    y = y - y.min() + 1
    axil = AXIL(MODELS[name].fit(X, y), measurement="output").fit(X, y)
    row = int(axil.weights(Z).sum(0).argmax())
    effect = axil.relabel(Z, rows=[row, row ^ 1], targets=[1000.0, y[row ^ 1]])
    assert_allclose(effect[:, 0], axil.weights(Z)[:, row] * (1000 - y[row]), atol=1e-9)
    assert (effect[:, 1] == 0).all()
    assert np.abs(effect).max() > 0
    loss = AXIL(MODELS[name].fit(X, y)).fit(X, y).relabel(Z, y[TEST], rows=row, targets=1000.0)
    f = MODELS[name].predict(Z)
    assert_allclose(loss[:, 0], (f + effect[:, 0] - y[TEST]) ** 2 - (f - y[TEST]) ** 2, rtol=1e-6)


def test_another_class_moves_probabilities():
    X, y = make_classification(N, 4, random_state=0)
    model = RandomForestClassifier(6, max_depth=3, random_state=0).fit(X, y)
    axil = AXIL(model, measurement="output").fit(X, y)
    effect = axil.relabel(X[TEST], np.ones(7, dtype=int), rows=[4], targets=[1 - y[4]])
    assert_allclose(effect[:, 0], axil.weights(X[TEST])[:, 4] * (1 - 2 * y[4]), atol=1e-12)
