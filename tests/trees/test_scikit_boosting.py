"""scikit-learn's boosting beside plain loops over rounds and leaves, in float64."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from boosting_by_hand import ByHand, Loss, assert_close
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fimoda import BoostIn, FurtherTraining, LeafInfluence, LeafRefit, LeaveOneOut
from fimoda.adapters import as_tree_model
from fimoda.rows import RawRows

rng = np.random.default_rng(0)
N, N_TEST = 60, 6
X = rng.normal(size=(N + N_TEST, 3))
X[rng.random(X.shape) < 0.1] = np.nan
SIGNAL = np.nan_to_num(X[:, 0]) + np.nan_to_num(X[:, 1]) ** 2 + 0.3 * rng.normal(size=len(X))
TARGETS = {
    "squared_error": SIGNAL,
    "binary": (SIGNAL > 1).astype(int),
    "classes": np.digitize(SIGNAL, [0.3, 1.3]),
    "poisson": rng.poisson(np.exp(0.4 * SIGNAL)).astype(float),
    "gamma": np.exp(0.5 * SIGNAL),
}
WEIGHTS = rng.uniform(0.5, 2, N)
ROWS = np.arange(0, N, 7)

CASES = [
    *(("histogram", name, l2) for name in TARGETS for l2 in (0.0, 1.5)),
    *(("exact", name, 0.0) for name in ("squared_error", "binary", "classes")),
]


def fitted(library, name, l2=0.0, weights=WEIGHTS, **params):
    y, loss = TARGETS[name][:N], name if name in ("squared_error", "poisson", "gamma") else None
    given = {"learning_rate": 0.3, "random_state": 0, "min_samples_leaf": 5, **params}
    if library == "histogram":
        cls = HistGradientBoostingRegressor if loss else HistGradientBoostingClassifier
        given |= {"max_iter": 6, "max_leaf_nodes": 4, "l2_regularization": l2} | params
        model = cls(**given, **({"loss": loss} if loss else {}))
        return model.fit(X[:N], y, sample_weight=weights)
    cls = GradientBoostingRegressor if loss else GradientBoostingClassifier
    return cls(n_estimators=6, max_depth=2, **given).fit(known(X[:N]), y, sample_weight=weights)


def known(rows):
    """Rows without missing values, which exact trees do not take."""
    return np.nan_to_num(rows)


def rows_of(library):
    return X if library == "histogram" else known(X)


def fall(nodes, row):
    """The node that a row ends in, by the thresholds of a tree on histograms."""
    k = 0
    while not nodes[k]["is_leaf"]:
        value = row[nodes[k]["feature_idx"]]
        left = (
            nodes[k]["missing_go_to_left"]
            if np.isnan(value)
            else value <= nodes[k]["num_threshold"]
        )
        k = nodes[k]["left"] if left else nodes[k]["right"]
    return k


def leaves_by_hand(library, model):
    """Nodes (rows, rounds, outputs) of all rows."""
    if library == "exact":
        return model.apply(known(X)).reshape(len(X), len(model.estimators_), -1).astype(int)
    return np.array(
        [[[fall(tree.nodes, row) for tree in each] for each in model._predictors] for row in X]
    )


def derivatives(name, F, y, library):
    """g and h of rows (n, C)."""
    if name == "squared_error":
        return F - y[:, None], np.ones_like(F)
    if name == "binary":
        p = 1 / (1 + np.exp(-F))
        return p - y[:, None], p * (1 - p)
    if name == "classes":
        p = np.exp(F) / np.exp(F).sum(1, keepdims=True)
        factor = 1.5 if library == "exact" else 1  # K / (K - 1)
        return p - np.eye(3)[y], factor * p * (1 - p)
    if name == "poisson":
        return np.exp(F) - y[:, None], np.exp(F)
    return 1 - y[:, None] * np.exp(-F), y[:, None] * np.exp(-F)


def start(name, y, w):
    if name == "classes":
        logs = np.log([w[y == k].sum() / w.sum() for k in range(3)])
        return logs - logs.mean()
    mean = np.average(y, weights=w)
    links = {"squared_error": mean, "poisson": np.log(mean), "gamma": np.log(mean)}
    return np.array([links[name] if name in links else np.log(mean / (1 - mean))])


def replay(library, name, model, l2, w, first=None):
    """Scores (rows, C) before each round and after the last, of all rows; trained on the first N.

    The first score is that of the weights `first`, or of w.
    """
    leaves, y = leaves_by_hand(library, model), TARGETS[name]
    F = [np.tile(start(name, y[:N], w if first is None else first), (len(X), 1))]
    for nodes in leaves.swapaxes(0, 1):
        F.append(F[-1] + round_of(library, name, nodes, F[-1], l2, w))
    return F


def round_of(library, name, nodes, F, l2, w):
    g, h = derivatives(name, F[:N], TARGETS[name][:N], library)
    added = np.zeros_like(F)
    for k in range(F.shape[1]):
        for leaf in np.unique(nodes[:, k]):
            own = nodes[:N, k] == leaf
            value = -(w * g[:, k])[own].sum() / ((w * h[:, k])[own].sum() + l2)
            added[nodes[:, k] == leaf, k] = 0.3 * value
    return added


def losses(name, F):
    y, F = TARGETS[name][N:], F[N:]
    if name == "squared_error":
        return (F[:, 0] - y) ** 2
    if name == "binary":
        return np.log1p(np.exp(F[:, 0])) - y * F[:, 0]
    if name == "classes":
        return np.log(np.exp(F).sum(1)) - F[np.arange(len(y)), y]
    return np.exp(F[:, 0]) - y * F[:, 0] if name == "poisson" else F[:, 0] + y * np.exp(-F[:, 0])


def scores(method, library, model, name, **params):
    rows, y = rows_of(library), TARGETS[name]
    return (
        method(model, **params)
        .fit(rows[:N], y[:N], sample_weight=WEIGHTS)
        .transform(rows[N:], y[N:])
    )


def without(i, part=1.0):
    w = WEIGHTS.copy()
    w[i] *= 1 - part
    return w


@pytest.mark.parametrize(("library", "name", "l2"), CASES)
def test_a_run_beside_plain_loops(library, name, l2):
    model = fitted(library, name, l2)
    F = replay(library, name, model, l2, WEIGHTS)
    rows = rows_of(library)
    view = as_tree_model(model, rows[:N], TARGETS[name][:N], WEIGHTS)
    # histograms have their gradients in float32
    assert_allclose(view.outputs(view.encode_X(rows)).numpy(), F[-1], rtol=1e-5, atol=1e-5)

    removed = [replay(library, name, model, l2, without(i))[-1] for i in ROWS]
    expected = np.stack([losses(name, one) - losses(name, F[-1]) for one in removed], 1)
    found = scores(LeafRefit, library, model, name)[:, ROWS]
    assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())

    step = 1e-4
    ends = [
        [losses(name, replay(library, name, model, l2, without(i, by))[-1]) for i in ROWS]
        for by in (step, -step)
    ]
    expected = np.subtract(*ends).T / (2 * step)
    found = scores(LeafInfluence, library, model, name)[:, ROWS]
    assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())

    expected = np.zeros((N_TEST, len(ROWS)))
    for t, nodes in enumerate(leaves_by_hand(library, model).swapaxes(0, 1)):
        for column, i in enumerate(ROWS):
            less, more = (
                round_of(library, name, nodes, F[t], l2, without(i, by)) for by in (step, -step)
            )
            moved = (less - more) / (2 * step)
            both = [losses(name, F[t] + by * moved) for by in (step, -step)]
            expected[:, column] += np.subtract(*both) / (2 * step)
    found = scores(BoostIn, library, model, name, shrunken=False)[:, ROWS]
    assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("library", "name", "l2"), CASES)
def test_other_targets_beside_plain_loops(library, name, l2):
    model, y = fitted(library, name, l2), TARGETS[name]
    leaves = leaves_by_hand(library, model).reshape(len(X), -1)

    def part(k):
        return lambda F, own: derivatives(name, F, own.astype(y.dtype), library)[k]

    def loss(F, own):
        return losses(name, np.concatenate([np.zeros((N, F.shape[1])), F]))

    hand = ByHand(
        leaves[:N], leaves[N:], y[:N], WEIGHTS, Loss(part(0), part(1), loss),
        lambda w, own: start(name, own, w), 0.3, l2,
    )  # fmt: skip
    rows = [3, 20]
    targets = y[[11, 47]] if name in ("squared_error", "gamma") else (y[rows] + 1) % 3
    targets = (y[rows] + 1) % 2 if name == "binary" else targets
    expected = hand.relabels(y[N:], rows, targets)
    X_of = rows_of(library)
    for method, wanted in (
        (LeafRefit(model), "exact"),
        (LeafInfluence(model), "derivative"),
        (BoostIn(model, shrunken=False), "boost_in"),
    ):
        found = method.fit(X_of[:N], y[:N], sample_weight=WEIGHTS)
        effect = found.relabel(X_of[N:], y[N:], rows=rows, targets=targets)
        assert np.abs(expected[wanted]).max() > 0
        assert_close(effect, expected[wanted], 2e-4)


@pytest.mark.parametrize("method", [LeafRefit, LeafInfluence, BoostIn])
def test_other_targets_over_several_models_and_in_further_rounds(method):
    """The mean over the models that had the row, by their share; at the last horizon."""
    within = 1e-6 if method is BoostIn else 1e-9  # which multiplies in float32
    y, (rows, targets) = TARGETS["squared_error"], ([3, 20, 41], [1.0, -2.0, 0.5])
    model = fitted("histogram", "squared_error", weights=None)
    given = {"n_models": 5, "share": 0.6, "random_state": 0}
    several = method(model, **given).fit(X[:N], y[:N])
    effect = several.relabel(X[N:], y[N:], rows=rows, targets=targets)
    each = np.full((5, N_TEST, 3), np.nan)
    for one, member, seed in zip(each, several._members, several.seeds_, strict=True):
        own = member.rows
        grown = clone(model).set_params(random_state=seed).fit(X[own], y[own])
        alone = method(grown).fit(X[own], y[own])
        for k, row in enumerate(rows):
            if row in own:
                at = int(np.searchsorted(own, row))
                one[:, k] = alone.relabel(X[N:], y[N:], rows=at, targets=targets[k])[:, 0]
    assert_close(effect, 0.6 * np.nanmean(each, 0), within)
    further = method(model, n_rounds=[2, 4], **given).fit(X[:N], y[:N])
    alone = method(model, n_rounds=4, **given).fit(X[:N], y[:N])
    effects = [one.relabel(X[N:], y[N:], rows=rows, targets=targets) for one in (further, alone)]
    assert np.abs(effects[0]).max() > 0
    assert_close(*effects, within)
    small = method(model, memory_budget=1).fit(X[:N], y[:N])
    large = method(model).fit(X[:N], y[:N])
    effects = [one.relabel(X[N:], y[N:], rows=rows, targets=targets) for one in (small, large)]
    assert_close(*effects, within)


@pytest.mark.parametrize("name", ["squared_error", "binary", "classes"])
def test_the_first_score_may_be_held(name):
    model = fitted("histogram", name)

    def end(w):
        return losses(name, replay("histogram", name, model, 0.0, w, first=WEIGHTS)[-1])

    expected = np.stack([end(without(i)) - end(WEIGHTS) for i in ROWS], 1)
    size = np.abs(expected).max()
    found = scores(LeafRefit, "histogram", model, name, first_score="held")[:, ROWS]
    assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * size)
    step = 1e-4
    expected = np.subtract(*([end(without(i, by)) for i in ROWS] for by in (step, -step)))
    found = scores(LeafInfluence, "histogram", model, name, first_score="held")[:, ROWS]
    assert_allclose(found, expected.T / (2 * step), rtol=1e-3, atol=1e-4 * size)
    moves = scores(LeafRefit, "histogram", model, name)[:, ROWS]
    assert np.abs(moves - found).max() > 0.01 * size


@pytest.mark.parametrize("name", ["squared_error", "classes"])
@pytest.mark.parametrize("method", [BoostIn, LeafInfluence, LeafRefit])
def test_budgets_and_the_order_of_rows_do_not_matter(method, name):
    model, y = fitted("histogram", name), TARGETS[name]
    expected = scores(method, "histogram", model, name)
    size = np.abs(expected).max()
    small = scores(method, "histogram", model, name, memory_budget=1)
    assert_allclose(small, expected, rtol=1e-9, atol=1e-12 * size)
    order = rng.permutation(N)
    made = method(model).fit(X[:N][order], y[:N][order], sample_weight=WEIGHTS[order])
    assert_allclose(made.transform(X[N:], y[N:]), expected[:, order], rtol=1e-9, atol=1e-10 * size)


def test_a_row_of_weight_zero_does_not_matter():
    weights = np.where(np.arange(N) == 3, 0.0, WEIGHTS)
    y = TARGETS["binary"]
    model = fitted("histogram", "binary", weights=weights)
    for method in (BoostIn, LeafInfluence, LeafRefit):
        found = method(model).fit(X[:N], y[:N], sample_weight=weights).transform(X[N:], y[N:])
        assert_array_equal(found[:, 3], 0)
        assert np.abs(found[:, :3]).max(0).min() > 0


@pytest.mark.parametrize("library", ["histogram", "exact"])
def test_rows_that_early_stopping_holds_out_do_not_matter(library):
    y = TARGETS["binary"]
    stops = (
        {"early_stopping": True, "validation_fraction": 0.2}
        if library == "histogram"
        else {"n_iter_no_change": 3, "validation_fraction": 0.2}
    )
    model = fitted(library, "binary", **stops, weights=None)
    rows = rows_of(library)
    made = LeafRefit(model).fit(rows[:N], y[:N])
    zero = (made.transform(rows[N:], y[N:]) == 0).all(0)
    assert zero.sum() == 12
    if library == "exact":
        _, held = train_test_split(np.arange(N), test_size=0.2, stratify=y[:N], random_state=0)
        assert_array_equal(np.flatnonzero(zero), np.sort(held))


def test_class_weights_count():
    y = TARGETS["binary"]
    model = HistGradientBoostingClassifier(
        max_iter=4, class_weight={0: 3, 1: 1}, early_stopping=False
    ).fit(X[:N], y[:N])
    expected = clone(model).set_params(class_weight=None)
    weights = np.where(y[:N] == 0, 3.0, 1.0)
    expected.fit(X[:N], y[:N], sample_weight=weights)
    found = LeafRefit(model).fit(X[:N], y[:N]).transform(X[N:], y[N:])
    by_hand = LeafRefit(expected).fit(X[:N], y[:N], sample_weight=weights)
    assert_allclose(found, by_hand.transform(X[N:], y[N:]), rtol=1e-9, atol=1e-12)


def test_what_rows_drawn_for_each_round_are_expected_to_do():
    """The leaves are those of the rows drawn; a row's part is taken everywhere, and cancels in the mean."""
    y = TARGETS["squared_error"]
    model = fitted("exact", "squared_error", subsample=0.6)
    found = scores(LeafInfluence, "exact", model, "squared_error")
    assert np.isfinite(found).all()
    # removing a row from a leaf of one round moves its mean by w (r - mean) / W, whatever the part drawn
    one = GradientBoostingRegressor(
        n_estimators=1, learning_rate=1.0, subsample=0.6, max_depth=1, random_state=0
    ).fit(known(X[:N]), y[:N])
    leaf = one.apply(known(X)).ravel()
    value = one.predict(known(X[:N]))
    made = LeafInfluence(one, measurement="output").fit(known(X[:N]), y[:N])
    S = made.transform(known(X[N:]), y[N:])
    same = leaf[N:, None] == leaf[None, :N]
    mean = y[:N].mean()
    count = np.array([(leaf[:N] == one).sum() for one in leaf[:N]])
    ratio = np.where(same, -(y[:N] - value) / count, 0)
    start_moves = -(y[:N] - mean) / N
    shift = np.array(
        [start_moves * (1 - np.ones(N)) for _ in S]
    )  # residuals take the start away again
    assert_allclose(S, ratio + shift, rtol=1e-8, atol=1e-10)


# ---- several models -------------------------------------------------------------------------


@pytest.mark.parametrize("method", [BoostIn, LeafInfluence, LeafRefit])
def test_several_models_are_averaged_over_those_that_had_the_row(method):
    y = TARGETS["binary"]
    model = HistGradientBoostingClassifier(
        max_iter=3, max_features=0.5, early_stopping=False, min_samples_leaf=5
    ).fit(X[:N], y[:N])
    made = method(model, n_models=5, share=0.6, random_state=1).fit(X[:N], y[:N])
    found = made.transform(X[N:], y[N:])
    each = np.full((5, N_TEST, N), np.nan)
    for one, member, seed in zip(each, made._members, made.seeds_, strict=True):
        rows = member.rows
        assert len(rows) == 36
        grown = clone(model).set_params(random_state=seed)
        grown.fit(X[rows], y[rows])
        one[:, rows] = 0.6 * method(grown).fit(X[rows], y[rows]).transform(X[N:], y[N:])
    assert_allclose(found, np.nanmean(each, 0), rtol=1e-8, atol=1e-12)
    count = np.isfinite(each).sum(0)
    error = np.nanstd(each, 0, ddof=1) / np.sqrt(count)
    assert_allclose(made.scores_sem_, np.where(count > 1, error, np.nan), rtol=1e-6, atol=1e-12)


def test_models_of_all_rows_differ_by_their_seeds_only():
    y = TARGETS["squared_error"]
    model = HistGradientBoostingRegressor(max_iter=3, max_features=0.5).fit(X[:N], y[:N])
    made = LeafInfluence(model, n_models=3, share=1, random_state=0).fit(X[:N], y[:N])
    found = made.transform(X[N:], y[N:])
    own = [
        LeafInfluence(clone(model).set_params(random_state=seed).fit(X[:N], y[:N]))
        .fit(X[:N], y[:N])
        .transform(X[N:], y[N:])
        for seed in made.seeds_
    ]
    assert_allclose(found, np.mean(own, 0), rtol=1e-10)
    again = LeafInfluence(model, n_models=3, share=1, random_state=0, n_jobs=2).fit(X[:N], y[:N])
    assert_array_equal(again.transform(X[N:], y[N:]), found)


def test_too_few_models_and_small_classes_are_refused():
    y = TARGETS["binary"]
    model = HistGradientBoostingClassifier(max_iter=2).fit(X[:N], y[:N])
    with pytest.raises(ValueError, match="n_models must be larger for every row"):
        LeafInfluence(model, n_models=2, share=0.3).fit(X[:N], y[:N])
    rare = np.where(np.arange(N) == 0, 7, y[:N])
    model = HistGradientBoostingClassifier(max_iter=2).fit(X[:N], rare)
    with pytest.raises(ValueError, match="share must leave rows of every class"):
        LeafInfluence(model, n_models=8).fit(X[:N], rare)
    with pytest.raises(ValueError, match="share"):
        LeafInfluence(model, n_models=8, share=1.5).fit(X[:N], rare)


# ---- users' models and rows -----------------------------------------------------------------


def mixed_frame():
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    frame["kind"] = pd.Categorical(np.where(SIGNAL > 0.5, "high", "low"))
    frame.loc[3, "kind"] = np.nan
    frame.index = [f"r{k}" for k in range(len(frame))]
    return frame


def test_a_frame_with_categories_and_missing_values():
    frame, y = mixed_frame(), TARGETS["binary"]
    model = HistGradientBoostingClassifier(
        max_iter=5, categorical_features="from_dtype", early_stopping=False
    ).fit(frame[:N], y[:N])
    made = LeafInfluence(model).set_output(transform="pandas").fit(frame[:N], y[:N])
    found = made.transform(frame[N:], y[N:])
    assert list(found.columns) == list(frame.index[:N])
    assert list(found.index) == list(frame.index[N:])
    refit = LeafRefit(model).fit(frame[:N], y[:N]).transform(frame[N:], y[N:])
    assert np.corrcoef(found.to_numpy().ravel(), refit.ravel())[0, 1] > 0.98
    with pytest.raises(ValueError, match="feature names"):
        made.transform(frame[N:].rename(columns={"a": "z"}), y[N:])


def test_a_pipeline_in_a_search():
    frame, y = mixed_frame(), TARGETS["binary"]
    steps = make_pipeline(
        make_column_transformer((StandardScaler(), ["a", "b", "c"])),
        HistGradientBoostingClassifier(max_iter=4, early_stopping=False),
    )
    search = GridSearchCV(steps, {"histgradientboostingclassifier__max_leaf_nodes": [3, 5]}, cv=2)
    search.fit(frame[:N], y[:N])
    inner = search.best_estimator_
    seen = inner[0].transform(frame)
    found = LeafInfluence(search).fit(frame[:N], y[:N]).transform(frame[N:], y[N:])
    alone = LeafInfluence(inner[-1]).fit(seen[:N], y[:N]).transform(seen[N:], y[N:])
    assert_array_equal(found, alone)


def test_labels_may_be_texts():
    y = np.array(["no", "yes"])[TARGETS["binary"]]
    model = HistGradientBoostingClassifier(max_iter=4).fit(X[:N], y[:N])
    numbers = HistGradientBoostingClassifier(max_iter=4).fit(X[:N], TARGETS["binary"][:N])
    found = LeafRefit(model).fit(X[:N], y[:N]).transform(X[N:], y[N:])
    expected = LeafRefit(numbers).fit(X[:N], TARGETS["binary"][:N])
    assert_array_equal(found, expected.transform(X[N:], TARGETS["binary"][N:]))


def test_the_sign_is_that_of_leave_one_out():
    """A wrong label among rows of its own leaf harms its neighbours: removing it lowers their loss."""
    rows, y = np.repeat([[0.0], [1.0]], 20, axis=0), np.repeat([0, 1], 20)
    y[3] = 1
    model = HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=5).fit(rows, y)
    test = np.array([[0.0]])
    for method in (BoostIn, LeafInfluence, LeafRefit, LeaveOneOut):
        found = method(model).fit(rows, y).transform(test, [0])[0]
        assert found[3] < 0
        assert (found[[0, 1, 2]] > 0).all()


@pytest.mark.parametrize("change", ["rows", "targets", "weights"])
def test_other_rows_than_those_of_the_training_are_refused(change):
    y = TARGETS["squared_error"][:N].copy()
    model, rows, weights = fitted("histogram", "squared_error"), X[:N].copy(), WEIGHTS
    if change == "rows":
        rows = rows[::-1]
    elif change == "targets":
        y[0] += 10
    else:
        weights = None
    for given in ({}, {"n_models": 4}, {"n_rounds": 2}):
        with pytest.raises(ValueError, match="must be the rows that the model was trained on"):
            LeafInfluence(model, **given).fit(rows, y, sample_weight=weights)


def test_what_has_no_run_of_boosting_is_refused():
    y = TARGETS["binary"][:N]
    with pytest.raises(TypeError, match="estimator must be fitted trees"):
        LeafInfluence(Ridge().fit(known(X[:N]), y)).fit(known(X[:N]), y)
    forest = RandomForestClassifier(5).fit(known(X[:N]), y)
    with pytest.raises(TypeError, match="estimator must be"):
        LeafInfluence(forest).fit(known(X[:N]), y)
    model = HistGradientBoostingRegressor(loss="absolute_error", max_iter=3).fit(X[:N], SIGNAL[:N])
    with pytest.raises(TypeError, match="second derivative"):
        LeafRefit(model).fit(X[:N], SIGNAL[:N])
    model = GradientBoostingRegressor(init=Ridge(), n_estimators=3).fit(known(X[:N]), SIGNAL[:N])
    with pytest.raises(TypeError, match="init"):
        LeafRefit(model).fit(known(X[:N]), SIGNAL[:N])
    model = GradientBoostingClassifier(loss="exponential", n_estimators=3).fit(known(X[:N]), y)
    with pytest.raises(TypeError, match="'exponential'"):
        LeafRefit(model).fit(known(X[:N]), y)
    model = GradientBoostingClassifier(n_estimators=3, n_iter_no_change=2).fit(known(X[:N]), y)
    with pytest.raises(ValueError, match="random_state"):
        LeafRefit(model).fit(known(X[:N]), y)


def test_trees_of_one_leaf():
    y = TARGETS["squared_error"]
    model = HistGradientBoostingRegressor(max_iter=2, min_samples_leaf=N).fit(X[:N], y[:N])
    found = LeafRefit(model).fit(X[:N], y[:N]).transform(X[N:], y[N:])
    means = (y[:N].sum() - y[:N]) / (N - 1)
    expected = (means - y[N:, None]) ** 2 - (y[:N].mean() - y[N:, None]) ** 2
    assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", [BoostIn, LeafInfluence, LeafRefit])
def test_trees_of_one_leaf_after_others_add_nothing(method):
    y = TARGETS["classes"]
    few = fitted("histogram", "classes", learning_rate=1.0, weights=None)
    while all(len(tree.nodes) > 1 for tree in few._predictors[-1]):
        few.set_params(max_iter=few.max_iter + 1).fit(X[:N], y[:N])
    assert sum(len(tree.nodes) == 1 for tree in few._predictors[-1]) == 1  # and two that have grown
    found = method(few).fit(X[:N], y[:N]).transform(X[N:], y[N:])
    split = TARGETS["classes"] >= 2
    alone = clone(few).fit(X[:N], split[:N])
    while len(alone._predictors[-1][0].nodes) > 1:
        alone.set_params(max_iter=alone.max_iter + 1).fit(X[:N], split[:N])
    more = clone(alone).set_params(max_iter=alone.max_iter + 3).fit(X[:N], split[:N])
    one, other = (
        method(m).fit(X[:N], split[:N]).transform(X[N:], split[N:]) for m in (alone, more)
    )
    assert_allclose(other, one, rtol=1e-9, atol=1e-12)
    assert np.isfinite(found).all()


def test_monotonic_constraints_hold_values():
    y = TARGETS["squared_error"]
    model = HistGradientBoostingRegressor(
        max_iter=8, max_leaf_nodes=6, min_samples_leaf=3, monotonic_cst=[0, 1, 0]
    ).fit(X[:N], y[:N])
    made = LeafInfluence(model).fit(X[:N], y[:N])
    run = made._members[0].run
    held = sum((tree.rates == 0).sum() for one in run.backwards() for tree in one.trees)
    assert held > 0
    found, refit = made.transform(X[N:], y[N:]), LeafRefit(model).fit(X[:N], y[:N])
    assert np.corrcoef(found.ravel(), refit.transform(X[N:], y[N:]).ravel())[0, 1] > 0.97


# ---- further rounds -------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["histogram", "exact"])
@pytest.mark.parametrize("name", ["squared_error", "classes"])
def test_further_rounds_beside_plain_loops(library, name):
    model, rows, y = fitted(library, name), rows_of(library), TARGETS[name]
    method = {"n_rounds": 3, "random_state": 5}
    made = LeafRefit(model, **method).fit(rows[:N], y[:N], sample_weight=WEIGHTS)
    view = made._members[0].model
    leaves = view.leaves(RawRows(rows)).reshape(len(X), 9, -1)
    before = np.asarray(
        model.predict(rows)[:, None] if name == "squared_error" else model.decision_function(rows)
    )

    def ahead(w):
        F = [before]
        for nodes in leaves[:, 6:].swapaxes(0, 1):
            F.append(F[-1] + round_of(library, name, nodes, F[-1], 0.0, w))
        return F

    full = ahead(WEIGHTS)
    assert_allclose(view.outputs(RawRows(rows)).numpy(), full[-1], rtol=1e-5, atol=1e-5)
    expected = np.stack(
        [losses(name, ahead(without(i))[-1]) - losses(name, full[-1]) for i in ROWS], 1
    )
    size = np.abs(expected).max()
    found = made.transform(rows[N:], y[N:])[:, ROWS]
    assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * size)

    step = 1e-4
    ends = [[losses(name, ahead(without(i, by))[-1]) for i in ROWS] for by in (step, -step)]
    expected = np.subtract(*ends).T / (2 * step)
    found = scores(LeafInfluence, library, model, name, **method)[:, ROWS]
    assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * size)

    expected = np.zeros((N_TEST, len(ROWS)))
    for F, nodes in zip(full, leaves[:, 6:].swapaxes(0, 1), strict=False):
        for column, i in enumerate(ROWS):
            less, more = (
                round_of(library, name, nodes, F, 0.0, without(i, by)) for by in (step, -step)
            )
            moved = (less - more) / (2 * step)
            both = [losses(name, F + by * moved) for by in (step, -step)]
            expected[:, column] += np.subtract(*both) / (2 * step)
    found = scores(BoostIn, library, model, name, shrunken=False, **method)[:, ROWS]
    assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * size)


def test_further_rounds_are_those_of_further_training():
    """One row decides a leaf: what further boosting does without it is what the methods say."""
    rows, y = np.repeat([[0.0], [1.0]], [30, 30], axis=0), np.repeat([0.0, 1.0], 30)
    y[:3] = [3.0, 2.0, 1.5]
    model = HistGradientBoostingRegressor(max_iter=5, min_samples_leaf=10).fit(rows, y)
    gold = FurtherTraining(model, n_epochs=4, n_seeds=1, leave_out=[0, 1, 2, 40]).fit(rows, y)
    expected = gold.transform(rows[[10, 50]], y[[10, 50]])
    found = LeafRefit(model, n_rounds=4).fit(rows, y).transform(rows[[10, 50]], y[[10, 50]])
    assert_allclose(found[:, [0, 1, 2, 40]], expected, rtol=1e-5, atol=1e-8)
    assert (
        "further boosting of the final model, 4 rounds" in LeafRefit(model, n_rounds=4)._process()
    )


def test_several_models_look_ahead_with_other_rows():
    y = TARGETS["squared_error"]
    model = HistGradientBoostingRegressor(max_iter=4, min_samples_leaf=5).fit(X[:N], y[:N])
    made = LeafInfluence(model, n_rounds=2, n_models=6, share=0.6, random_state=0)
    found = made.fit(X[:N], y[:N]).transform(X[N:], y[N:])
    assert found.shape == (N_TEST, N)
    for member in made._members:
        weights = member.run.weights
        assert_array_equal(np.flatnonzero(weights), member.rows)
        assert member.run.boosting.n_rounds == 6
        assert member.run.first == 4


@pytest.mark.parametrize("method", [BoostIn, LeafInfluence, LeafRefit])
@pytest.mark.parametrize("n_models", [1, 3])
@pytest.mark.parametrize("name", ["binary", "classes"])
def test_several_horizons_are_those_of_shorter_runs(method, n_models, name):
    model, y = fitted("histogram", name, weights=None), TARGETS[name]
    settings = {"n_models": n_models, "share": 0.8, "random_state": 0}
    made = method(model, n_rounds=[1, 2, 5], **settings).fit(X[:N], y[:N])
    found = made.transform_horizons(X[N:], y[N:])
    assert made.horizons_ == [1, 2, 5]
    assert_array_equal(made.transform(X[N:], y[N:]), found[-1])
    assert "5 rounds" in made._process()
    for n_rounds, scores_there in zip(made.horizons_, found, strict=True):
        one = method(model, n_rounds=n_rounds, **settings).fit(X[:N], y[:N])
        expected = one.transform(X[N:], y[N:])
        size = np.abs(expected).max()
        assert_allclose(scores_there, expected, rtol=1e-6, atol=1e-9 * size)
        assert_array_equal(one.transform_horizons(X[N:], y[N:])[0], expected)
    assert_array_equal(made._at_horizons(X[N:], y[N:], [1, 5]), found[[0, 2]])
    assert_array_equal(made._at_horizons(X[N:], y[N:], [1, 4]), found[-1])


@pytest.mark.parametrize("wrong", [[2, 1], [1, 1], [1.5], [], [0, 3], "many"])
def test_horizons_are_increasing_numbers_of_rounds(wrong):
    y = TARGETS["binary"]
    model = fitted("histogram", "binary", weights=None)
    with pytest.raises(ValueError, match="n_rounds"):
        LeafInfluence(model, n_rounds=wrong).fit(X[:N], y[:N])


def test_the_whole_training_is_one_horizon():
    y = TARGETS["binary"]
    made = LeafInfluence(fitted("histogram", "binary", weights=None)).fit(X[:N], y[:N])
    assert made.horizons_ == [None]
    found = made.transform_horizons(X[N:], y[N:])
    assert_array_equal(found[0], made.transform(X[N:], y[N:]))


def test_other_rows_are_found_out_where_rows_were_drawn():
    y = TARGETS["squared_error"][:N]
    model = GradientBoostingRegressor(
        n_estimators=10, max_depth=2, subsample=0.5, random_state=0
    ).fit(known(X[:N]), y)
    LeafInfluence(model).fit(known(X[:N]), y)
    with pytest.raises(ValueError, match="must be the rows that the model was trained on"):
        LeafInfluence(model).fit(known(X[:N]), np.random.default_rng(3).permutation(y))


@pytest.mark.parametrize("name", ["squared_error", "binary", "classes"])
def test_boost_in_as_published_counts_values_after_the_learning_rate(name):
    model, l2 = fitted("histogram", name, 1.5), 1.5
    F, leaves = (
        replay("histogram", name, model, l2, WEIGHTS),
        leaves_by_hand("histogram", model).swapaxes(0, 1),
    )
    expected = np.zeros((N_TEST, len(ROWS)))
    for t, nodes in enumerate(leaves):
        g, h = derivatives(name, F[t], TARGETS[name], "histogram")
        value = F[t + 1] - F[t]
        slopes = 2 * g if name == "squared_error" else g  # of what is measured: the squared error
        for k in range(F[t].shape[1]):
            for column, i in enumerate(ROWS):
                own = nodes[:N, k] == nodes[i, k]
                push = 0.3 * WEIGHTS[i] * (g[i, k] + value[i, k] * h[i, k])
                push /= (WEIGHTS * h[:N, k])[own].sum() + l2
                same = nodes[N:, k] == nodes[i, k]
                expected[:, column] += slopes[N:, k] * push * same
    found = scores(BoostIn, "histogram", model, name)[:, ROWS]
    assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
