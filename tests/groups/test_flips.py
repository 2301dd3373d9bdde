"""The smallest sets that turn a prediction, against fitting again and trying every set."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from torch import nn

from fimoda import ExactInfluence, GradDot, LeafInfluence, LeaveOneOut, smallest_flip
from fimoda.groups._search import Prefix, Shrinking, shortest, shrink

N, D = 30, 2
RNG = np.random.default_rng(2)
X = RNG.normal(size=(N, D))
Y = np.where(X[:, 0] + 0.8 * RNG.normal(size=N) > 0, "yes", "no")
X_TEST = RNG.normal(size=(12, D))
MODEL = LogisticRegression(C=0.5, tol=1e-9, max_iter=1000).fit(X, Y)
NEAR = abs(MODEL.decision_function(X_TEST)).argsort()[:4]


def given(**own):
    return {"X_train": X, "y_train": Y, "n_seeds": 1, "random_state": 0, **own}


def turns(z, rows, labels=None):
    y, kept = Y.copy(), np.ones(N, dtype=bool)
    if labels is None:
        kept[list(rows)] = False
    else:
        y[list(rows)] = labels
    again = clone(MODEL).fit(X[kept], y[kept])
    return again.predict(X_TEST[z : z + 1]) != MODEL.predict(X_TEST[z : z + 1])


@pytest.fixture(scope="module")
def influence():
    return ExactInfluence(MODEL).fit(X, Y)


@pytest.fixture(scope="module")
def removed(influence):
    return smallest_flip(influence, X_TEST[NEAR], **given(max_rows=8))


def test_weights_of_the_fit():
    weights = np.where(Y == "yes", 6.0, 0.3)
    model = clone(MODEL).fit(X, Y, weights)
    near = abs(model.decision_function(X_TEST)).argsort()[:4]
    influence = ExactInfluence(model).fit(X, Y, weights)
    for relabel in (False, True):
        found = smallest_flip(influence, X_TEST[near], **given(max_rows=8), relabel=relabel)
        assert (found.share > 0).any()
        for z, rows in zip(near, found.rows, strict=True):
            if rows is None:
                continue
            y, kept = Y.copy(), np.ones(N, dtype=bool)
            if relabel:
                y[rows] = np.where(y[rows] == "yes", "no", "yes")
            else:
                kept[rows] = False
            again = clone(MODEL).fit(X[kept], y[kept], weights[kept])
            assert again.predict(X_TEST[[z]]) != model.predict(X_TEST[[z]])


def test_sets_turn_the_prediction(removed):
    assert (~np.isnan(removed.size)).any()
    for z, rows, size in zip(NEAR, removed.rows, removed.size, strict=True):
        if rows is not None:
            assert len(rows) == size
            assert turns(z, rows)
    has = ~np.isnan(removed.size)
    assert removed.verified[has].all()
    assert removed.share[has].tolist() == [1.0] * int(has.sum())
    assert (removed.before == 0).all()
    assert removed.predicted.tolist() == MODEL.predict(X_TEST[NEAR]).tolist()


def test_no_subset_that_the_search_tries_is_smaller(removed):
    for z, rows in zip(NEAR, removed.rows, strict=True):
        if rows is not None and len(rows) > 1:
            assert not any(turns(z, np.delete(rows, k)) for k in range(len(rows)))


def test_the_smallest_sets_of_all(removed):
    """Every set of one and two rows is tried; the search finds those that there are."""
    for k, z in enumerate(NEAR):
        least = next(
            (s for s in (1, 2) if any(turns(z, rows) for rows in combinations(range(N), s))), None
        )
        if least is None:
            assert removed.rows[k] is None or len(removed.rows[k]) > 2
        else:
            assert removed.size[k] <= least + 1
            assert removed.size[k] >= least


def test_orders_are_prefixes(influence, removed):
    scores = influence.transform(X_TEST[NEAR])
    for k, z in enumerate(NEAR):
        order = np.argsort(-scores[k], kind="stable")
        size = removed.sizes["top"][k]
        if np.isnan(size):
            assert not any(turns(z, order[:s]) for s in (1, 2, 4, 8))
        else:
            assert turns(z, order[: int(size)])
    assert set(removed.sizes) == {"top", "greedy", "random"}


def test_margins_say_the_same_as_losses(removed):
    margins = ExactInfluence(MODEL, measurement="margin").fit(X, Y)
    found = smallest_flip(margins, X_TEST[NEAR], **given(max_rows=8, random_baseline=False))
    assert np.array_equal(found.sizes["top"], removed.sizes["top"], equal_nan=True)


def test_relabelling(influence):
    found = smallest_flip(influence, X_TEST[NEAR], **given(max_rows=8, relabel=True))
    assert found.labels.tolist() == ["yes" if p == "no" else "no" for p in found.predicted]
    for k, z in enumerate(NEAR):
        if found.rows[k] is not None:
            assert turns(z, found.rows[k], found.labels[k])
            assert (Y[found.rows[k]] == found.predicted[k]).all()
    assert (~np.isnan(found.size)).any()
    assert "relabelled" in repr(found)


def test_none_is_an_answer(influence):
    far = abs(MODEL.decision_function(X_TEST)).argsort()[-2:]
    found = smallest_flip(influence, X_TEST[far], **given(max_rows=1))
    assert found.rows == [None, None]
    assert np.isnan(found.share).all()
    assert not found.verified.any()
    assert "none up to 1" in repr(found)
    assert found.to_frame()["size"].isna().all()


def test_rows_that_are_predicted_wrong_are_left_out(influence):
    y_test = MODEL.predict(X_TEST[NEAR])
    y_test[0] = "no" if y_test[0] == "yes" else "yes"
    found = smallest_flip(influence, X_TEST[NEAR], y_test, **given(max_rows=8))
    assert found.rows[0] is None
    assert np.isnan([found.sizes[order][0] for order in found.sizes]).all()
    np.testing.assert_array_equal(found.looked_at, np.arange(len(NEAR)) > 0)
    np.testing.assert_array_equal(found.to_frame()["looked_at"], found.looked_at)
    first, second = repr(found).splitlines()[1:3]
    assert "predicted wrong" in first
    assert "none up to" not in first
    assert "predicted wrong" not in second


def test_rows_of_one_class_are_no_set():
    """Without all rows of a class there is nothing to fit: that turns no prediction."""
    few = np.append(np.flatnonzero(Y == "yes")[:3], np.flatnonzero(Y == "no"))
    model = clone(MODEL).fit(X[few], Y[few])
    influence = ExactInfluence(model).fit(X[few], Y[few])
    test = X[few[:1]]
    found = smallest_flip(
        influence, test, X_train=X[few], y_train=Y[few], max_rows=6, n_seeds=1, random_state=0
    )
    rows = found.rows[0]
    assert rows is None or len(set(Y[np.delete(few, rows)])) == 2


@pytest.mark.parametrize("relabel", [False, True])
def test_a_pipeline_is_fitted_whole(relabel):
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.5)).fit(X, Y)
    influence = ExactInfluence(model).fit(X, Y)
    found = smallest_flip(influence, X_TEST[NEAR], **given(max_rows=8, relabel=relabel))
    for z, rows, label in zip(NEAR, found.rows, found.labels if relabel else NEAR, strict=True):
        if rows is not None:
            y, kept = Y.copy(), np.ones(N, dtype=bool)
            if relabel:
                y[rows] = label
            else:
                kept[rows] = False
            again = clone(model).fit(X[kept], y[kept]).predict(X_TEST[[z]])
            assert again != model.predict(X_TEST[[z]])


def test_trees():
    y = (Y == "yes").astype(int)
    model = HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=3).fit(X, y)
    found = smallest_flip(
        LeafInfluence(model).fit(X, y),
        X_TEST[:3],
        X_train=X,
        y_train=y,
        max_rows=8,
        n_seeds=1,
        random_state=0,
    )
    assert set(found.sizes) == {"top", "random"}
    for z, rows in enumerate(found.rows):
        if rows is not None and len(rows):
            again = clone(model).fit(np.delete(X, rows, 0), np.delete(y, rows))
            assert again.predict(X_TEST[[z]]) != model.predict(X_TEST[[z]])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    net = NeuralNetClassifier(
        nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, 2)),
        criterion=nn.CrossEntropyLoss,
        lr=0.3,
        batch_size=10,
        max_epochs=10,
        train_split=None,
        verbose=0,
    )
    y = (Y == "yes").astype(np.int64)
    return net.fit(X.astype(np.float32), y), X.astype(np.float32), y, X_TEST.astype(np.float32)


def test_networks_are_the_same_for_any_stack_and_go_on(network, tmp_path):
    net, rows, y, test = network
    scores = GradDot(net).fit(rows, y)
    own = {"X_train": rows, "y_train": y, "max_rows": 3, "n_seeds": 2, "random_state": 0}
    test = test[:4]
    first = smallest_flip(scores, test, **own, train=LeaveOneOut(net, checkpoint_dir=tmp_path))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*seed-*")}
    for train in (LeaveOneOut(net, checkpoint_dir=tmp_path), LeaveOneOut(net, chunk_size=3)):
        again = smallest_flip(scores, test, **own, train=train)
        assert np.array_equal(first.size, again.size, equal_nan=True)
        assert np.array_equal(first.share, again.share, equal_nan=True)
    assert kept == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*seed-*")}
    unstable = first.before > 0.5
    assert (first.size[unstable] == 0).all()


@pytest.mark.parametrize(
    ("method", "own", "message"),
    [
        (
            ExactInfluence(MODEL),
            {"max_rows": N},
            "max_rows must be below the number of training rows",
        ),
        (ExactInfluence(MODEL, measurement="output"), {}, "one of the measurements"),
        (ExactInfluence(MODEL), {"n_seeds": 0}, "n_seeds"),
        (ExactInfluence(MODEL), {"share": 0.0}, "share"),
    ],
)
def test_bad_arguments(method, own, message):
    with pytest.raises(ValueError, match=message):
        smallest_flip(method.fit(X, Y), X_TEST, **given(**{"max_rows": 4, **own}))


@pytest.mark.parametrize(
    ("rows", "message"),
    [(slice(10), f"the {N} rows .* got 10 rows"), (slice(None, None, -1), "in their order; row")],
)
def test_other_training_rows(influence, rows, message):
    with pytest.raises(ValueError, match=message):
        smallest_flip(influence, X_TEST, X_train=X[rows], y_train=Y[rows], max_rows=4)


def test_a_model_is_no_attributor():
    with pytest.raises(ValueError, match="'attributor' parameter of smallest_flip"):
        smallest_flip(MODEL, X_TEST, **given())


def test_numbers_do_not_turn():
    model = Ridge().fit(X, X[:, 0])
    with pytest.raises(ValueError, match="must be of a classifier"):
        smallest_flip(ExactInfluence(model).fit(X, X[:, 0]), X_TEST, X_train=X, y_train=X[:, 0])


# ---- the search -----------------------------------------------------------------------------


@pytest.mark.parametrize("least", [1, 2, 3, 5, 7, 8, 11, None])
def test_the_shortest_beginning_is_found(least):
    tried = []

    def turned(sets):
        tried.extend(len(rows) for _, rows in sets)
        return np.array([float(least is not None and len(rows) >= least) for _, rows in sets])

    one = Prefix(0, np.arange(11))
    shortest([one], turned, 0.8)
    assert one.found == least
    assert len(tried) == len(set(tried)) <= 8


@pytest.mark.parametrize("needed", [{0}, {3, 4}, {1, 6, 9}, set(range(10))])
def test_rows_that_are_not_needed_are_put_back(needed):
    def turned(sets):
        return np.array([float(needed <= set(rows.tolist())) for _, rows in sets])

    one = Shrinking(0, np.arange(10), 1.0)
    shrink([one], turned, 0.8)
    assert set(one.rows.tolist()) == needed


def test_shares_below_the_one_asked_for_are_not_enough():
    def turned(sets):
        return np.array([len(rows) / 10 for _, rows in sets])

    few, many = Prefix(0, np.arange(10)), Prefix(0, np.arange(10))
    shortest([few], turned, 0.3)
    shortest([many], turned, 0.8)
    assert (few.found, many.found) == (3, 8)
