"""Groups of rows removed together, against closed forms and models that are fitted again."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from problems import tanh_network
from sklearn.base import clone
from sklearn.cluster import DBSCAN, AgglomerativeClustering
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from fimoda import (
    CGInfluence,
    ExactInfluence,
    FurtherTraining,
    GradDot,
    GroupInfluence,
    LeafRefit,
    LeaveOneOut,
    LinearizedFurtherTraining,
    OnceLinearizedFurtherTraining,
    compare_group_influence,
    group_influence,
    train_on_subsets,
)

N, D, M = 60, 4, 5
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D))
Y = X @ RNG.normal(size=D) + RNG.normal(size=N)
X_TEST = RNG.normal(size=(M, D))
Y_TEST = X_TEST.sum(1)
CLASSES, CLASSES_TEST = (Y > 0).astype(int), (Y_TEST > 0).astype(int)
GROUPS = [np.arange(12), np.array([3, 40, 41]), np.array([7]), np.arange(20, 50)]


def squared(model, rows=slice(None)):
    fitted = clone(model).fit(X[rows], Y[rows])
    return (fitted.predict(X_TEST) - Y_TEST) ** 2


def without(rows):
    return np.setdiff1d(np.arange(N), rows)


@pytest.mark.parametrize("given", [None, LeaveOneOut(Ridge(alpha=0.7).fit(X, Y), n_seeds=1)])
def test_training_again_has_the_weights_of_the_fit(given):
    weights = np.where(np.arange(N) < 30, 20.0, 0.05)
    model = Ridge(alpha=0.7).fit(X, Y, weights)
    influence = ExactInfluence(model).fit(X, Y, weights)
    settings = {"method": "retraining", "X_train": X, "y_train": Y, "train": given}
    found = group_influence(influence, GROUPS, X_TEST, Y_TEST, **settings)
    before = (model.predict(X_TEST) - Y_TEST) ** 2
    for effects, group in zip(found.effects.T, GROUPS, strict=True):
        rows = without(group)
        after = clone(model).fit(X[rows], Y[rows], weights[rows])
        assert np.allclose(effects, (after.predict(X_TEST) - Y_TEST) ** 2 - before)
    compared = compare_group_influence(
        influence, GROUPS, X_TEST, Y_TEST, X_train=X, y_train=Y, train=given
    )
    errors = dict(zip(compared.methods, np.nanmax(compared.relative_error(), axis=1), strict=True))
    assert errors["ExactInfluence, exact"] < 1e-6


def norm(a):
    return float(np.linalg.norm(a))


@pytest.fixture(scope="module")
def ridge():
    model = Ridge(alpha=0.7).fit(X, Y)
    truth = np.stack([squared(model, without(g)) - squared(model) for g in GROUPS], axis=1)
    return model, truth


def test_exact_is_ridge_fitted_again(ridge):
    model, truth = ridge
    found = group_influence(ExactInfluence(model).fit(X, Y), GROUPS, X_TEST, Y_TEST)
    assert found.method == "exact"
    assert found.effects.shape == (M, len(GROUPS))
    assert norm(found.effects - truth) < 1e-10 * norm(truth)


def test_each_way_is_closer_than_the_one_before(ridge):
    model, truth = ridge
    influence = ExactInfluence(model).fit(X, Y)
    errors = [
        norm(group_influence(influence, GROUPS, X_TEST, Y_TEST, method=way).effects - truth)
        for way in ("first-order", "second-order", "exact")
    ]
    assert errors[0] > 1.5 * errors[1] > 10 * errors[2]


def test_retraining_is_ridge_fitted_again(ridge):
    model, truth = ridge
    found = group_influence(
        GradDot(model).fit(X, Y),
        GROUPS,
        X_TEST,
        Y_TEST,
        method="retraining",
        X_train=X,
        y_train=Y,
        train=LeaveOneOut(model, n_seeds=2),
    )
    assert norm(found.effects - truth) < 1e-8 * norm(truth)
    assert np.allclose(found.sem, 0, atol=1e-10)


def network(width, n_outputs=1):
    net = tanh_network(D, width, n_outputs)
    criterion = nn.MSELoss() if n_outputs == 1 else nn.CrossEntropyLoss()
    y = Y[:, None] if n_outputs == 1 else CLASSES + (X[:, 0] > 1)
    return net, criterion, y


def by_hand(net, criterion, y, rows, damping, terms):
    """The change of the outputs from dense float64 matrices: (H - E)^{-1} f, or two terms of its series."""
    parameters = list(net.parameters())
    theta = torch.cat([p.detach().reshape(-1) for p in parameters])
    names = [name for name, _ in net.named_parameters()]

    def outputs(t, x):
        parts = t.split([p.numel() for p in parameters])
        views = {n: v.view_as(p) for n, v, p in zip(names, parts, parameters, strict=True)}
        return torch.func.functional_call(net, views, (x[None],))[0]

    xs, ys = torch.from_numpy(X), torch.from_numpy(np.asarray(y))
    g, C = [], []
    for x, target in zip(xs, ys, strict=True):
        J = torch.autograd.functional.jacobian(lambda t, x=x: outputs(t, x), theta)
        f = outputs(theta, x)
        loss = lambda o, target=target: criterion(o[None], target[None])  # noqa: E731
        slope = torch.autograd.functional.jacobian(loss, f)
        g.append(J.T @ slope)
        C.append(J.T @ torch.autograd.functional.hessian(loss, f) @ J)
    g, C = torch.stack(g) / N, torch.stack(C) / N
    rho = len(rows) / (N - len(rows))
    force = (1 + rho) * g[rows].sum(0) - rho * g.sum(0)
    E = (1 + rho) * C[rows].sum(0) - rho * C.sum(0)
    H = C.sum(0) + damping * torch.eye(len(theta), dtype=torch.float64)
    step = torch.linalg.solve(H, force)
    if terms == 2:
        step = step + torch.linalg.solve(H, E @ step)
    elif terms is None:
        step = torch.linalg.solve(H - E, force)
    return torch.stack(
        [
            outputs(theta, x)
            + torch.autograd.functional.jacobian(lambda t, x=x: outputs(t, x), theta) @ step
            for x in torch.from_numpy(X_TEST)
        ]
    )


@pytest.mark.parametrize("width", [2, 40], ids=["primal", "dual"])
@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize(("way", "terms"), [("second-order", 2), ("exact", None)])
def test_networks_by_hand(width, n_outputs, way, terms):
    net, criterion, y = network(width, n_outputs)
    influence = ExactInfluence(net, criterion=criterion, damping=0.3).fit(X, y)
    assert (influence._dual is None) == (width == 2)
    y_test = Y_TEST[:, None] if n_outputs == 1 else CLASSES_TEST
    found = group_influence(influence, GROUPS, X_TEST, y_test, method=way)
    before = net(torch.from_numpy(X_TEST)).detach()
    each = (
        (lambda o: (o[:, 0] - torch.from_numpy(Y_TEST)) ** 2)
        if n_outputs == 1
        else (lambda o: nn.functional.cross_entropy(o, torch.from_numpy(y_test), reduction="none"))
    )
    truth = torch.stack(
        [each(by_hand(net, criterion, y, g, 0.3, terms)) - each(before) for g in GROUPS], dim=1
    ).numpy()
    assert norm(found.effects - truth) < 1e-8 * norm(truth)


def test_first_order_is_the_sum_of_scores_with_the_weight_that_is_left():
    net, criterion, y = network(2)
    influence = ExactInfluence(net, criterion=criterion, damping=0.3).fit(X, y)
    found = group_influence(influence, GROUPS, X_TEST, Y_TEST[:, None], method="first-order")
    scores = influence.transform(X_TEST, Y_TEST[:, None])
    for j, rows in enumerate(GROUPS):
        wanted = scores[:, rows].sum(1) * (N - 1) / (N - len(rows))
        assert np.allclose(found.effects[:, j], wanted, rtol=1e-10)


@pytest.mark.parametrize("method", [CGInfluence, ExactInfluence])
def test_second_order_of_any_solver(method):
    net, criterion, y = network(3, 3)
    own = {"tol": 1e-12} if method is CGInfluence else {"curvature": "empirical-fisher"}
    one = method(net, criterion=criterion, damping=0.3, **own).fit(X, y)
    found = group_influence(one, GROUPS, X_TEST, CLASSES_TEST)
    assert found.method == "second-order"
    if method is CGInfluence:
        dense = ExactInfluence(net, criterion=criterion, damping=0.3).fit(X, y)
        wanted = group_influence(dense, GROUPS, X_TEST, CLASSES_TEST, method="second-order").effects
        assert norm(found.effects - wanted) < 1e-6 * norm(wanted)
    assert np.isfinite(found.effects).all()


def test_a_group_of_one_is_a_newton_step():
    net, criterion, y = network(2)
    given = {"criterion": criterion, "damping": 0.3, "measurement": "output"}
    alone = [[3], [9]]
    found = group_influence(ExactInfluence(net, **given).fit(X, y), alone, X_TEST, Y_TEST[:, None])
    steps = ExactInfluence(net, newton_step=True, **given).fit(X, y)
    assert np.allclose(
        found.effects, steps.transform(X_TEST, Y_TEST[:, None])[:, [3, 9]], rtol=1e-8
    )


def test_balanced_classes_are_balanced_anew():
    model = LogisticRegression(class_weight="balanced", C=0.1, tol=1e-10, max_iter=2000).fit(
        X, CLASSES
    )
    few = [np.flatnonzero(CLASSES == 1)[:2], np.flatnonzero(CLASSES == 0)[:3]]

    def logits(rows=slice(None)):
        return clone(model).fit(X[rows], CLASSES[rows]).decision_function(X_TEST)

    truth = np.stack([logits(without(g)) - logits() for g in few], axis=1)
    influence = ExactInfluence(model, measurement="output").fit(X, CLASSES)
    found = group_influence(influence, few, X_TEST, CLASSES_TEST).effects
    held = ExactInfluence(model, measurement="output", reweight_others=False).fit(X, CLASSES)
    fixed = group_influence(held, few, X_TEST, CLASSES_TEST).effects
    truth = truth if norm(found - truth) < norm(found + truth) else -truth
    assert norm(found - truth) < 0.1 * norm(truth) < norm(fixed - truth)


def test_logistic_regression_fitted_again():
    model = LogisticRegression(C=0.05, tol=1e-10, max_iter=2000).fit(X, CLASSES)
    groups = [np.arange(5), np.arange(30, 40)]
    influence = ExactInfluence(model).fit(X, CLASSES)
    found = compare_group_influence(
        influence,
        groups,
        X_TEST,
        CLASSES_TEST,
        X_train=X,
        y_train=CLASSES,
        train=LeaveOneOut(model, n_seeds=1),
    )
    first, second, exact = found.relative_error().mean(1)
    assert first > second > exact
    assert exact < 0.05
    assert found.methods[2] == "ExactInfluence, exact"
    assert (found.cosine()[2] > 0.99).all()
    assert len(found.to_frame()) == 3
    assert "relative error" in repr(found)


def test_leaves_are_refitted_without_a_group():
    model = HistGradientBoostingRegressor(max_iter=4, max_leaf_nodes=4, min_samples_leaf=10).fit(
        X, Y
    )
    refit = LeafRefit(model).fit(X, Y)
    alone = [[2], [30]]
    found = group_influence(refit, alone, X_TEST, Y_TEST)
    assert found.method == "exact"
    assert np.allclose(found.effects, refit.transform(X_TEST, Y_TEST)[:, [2, 30]], atol=1e-12)
    # a row counted with weight zero is a row that is not there, where the splits are held
    weights = np.ones(N)
    weights[GROUPS[1]] = 0
    run = refit._members[0].run
    scores, full = run.without(
        weights[:, None] == 0, refit.model_.leaves(refit._test(X_TEST, Y_TEST).inputs)
    )
    by_hand = (scores[0, :, 0] - Y_TEST) ** 2 - (full[0] - Y_TEST) ** 2
    found = group_influence(refit, [GROUPS[1]], X_TEST, Y_TEST).effects[:, 0]
    assert np.allclose(found, by_hand) or np.allclose(2 * found, by_hand)


@pytest.fixture(scope="module")
def small():
    net = nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, 1))
    return net, {"criterion": nn.MSELoss(), "random_state": 0, "lr": 0.1, "batch_size": N}


def test_further_training_without_a_group(small):
    net, given = small
    y, y_test = Y[:, None].astype(np.float32), Y_TEST[:, None].astype(np.float32)
    rows = X.astype(np.float32), X_TEST.astype(np.float32)
    further = FurtherTraining(net, n_epochs=5, n_seeds=2, leave_out=[0, 8], **given).fit(rows[0], y)
    found = group_influence(further, [[0], [8], GROUPS[0]], rows[1], y_test)
    assert found.method == "exact"
    assert np.allclose(found.effects[:, :2], further.transform(rows[1], y_test), atol=1e-6)
    # full batches: the group leaves the mean of the loss
    linear = group_influence(
        OnceLinearizedFurtherTraining(net, n_epochs=5, removal="exact", **given).fit(rows[0], y),
        [GROUPS[0]],
        rows[1],
        y_test,
    )
    assert linear.method == "exact"
    assert np.sign(linear.effects[:, 0]).tolist() == np.sign(found.effects[:, 2]).tolist()
    assert np.corrcoef(linear.effects[:, 0], found.effects[:, 2])[0, 1] > 0.8


def test_further_training_keeps_groups_on_disk(small, tmp_path):
    net, given = small
    y = Y[:, None].astype(np.float32)
    rows = X.astype(np.float32), X_TEST.astype(np.float32), Y_TEST[:, None].astype(np.float32)

    def found():
        further = FurtherTraining(
            net, n_epochs=2, n_seeds=1, leave_out=[0], checkpoint_dir=tmp_path, **given
        )
        return group_influence(further.fit(rows[0], y), GROUPS, *rows[1:]).effects

    first = found()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*seed-*")}
    assert np.array_equal(first, found())
    assert kept == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*seed-*")}


def test_training_from_scratch_without_a_group():
    model = HistGradientBoostingRegressor(max_iter=3, min_samples_leaf=5, random_state=0).fit(X, Y)
    scratch = LeaveOneOut(model, n_seeds=1, leave_out=[0]).fit(X, Y)
    found = group_influence(scratch, GROUPS, X_TEST, Y_TEST)
    subsets = [np.arange(N), *map(without, GROUPS)]
    trained = train_on_subsets(model, X, Y, subsets, X_TEST, Y_TEST, n_seeds=1).mean
    assert np.allclose(found.effects, (trained[1:] - trained[0]).T)


# ---- what groups may be ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def influence(ridge):
    return ExactInfluence(ridge[0]).fit(X, Y)


def test_labels_columns_and_dicts_name_the_same_groups(influence):
    labels = np.array(["a", "b", "c"])[np.arange(N) % 3]
    listed = [np.flatnonzero(labels == name) for name in "abc"]
    by_list = group_influence(influence, listed, X_TEST, Y_TEST)
    frame = pd.DataFrame({"region": labels})
    for groups in (
        labels,
        list(labels),
        pd.Series(labels),
        dict(zip("abc", listed, strict=True)),
        "region",
    ):
        found = group_influence(influence, groups, X_TEST, Y_TEST, X_train=frame)
        assert found.names == ["a", "b", "c"]
        assert np.array_equal(found.effects, by_list.effects)
    masks = np.stack([labels == name for name in "abc"])
    assert np.array_equal(
        group_influence(influence, masks, X_TEST, Y_TEST).effects, by_list.effects
    )


def test_rows_without_a_label_are_in_no_group(influence):
    labels = np.full(N, np.nan)
    labels[[4, 5]] = 1.0
    found = group_influence(influence, labels, X_TEST, Y_TEST)
    assert [rows.tolist() for rows in found.groups] == [[4, 5]]


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "float", "object", "category"])
def test_missing_labels_of_pandas_are_none(influence, dtype):
    labels = pd.Series([None] * N, dtype="Int64")
    labels[[4, 5]] = 1
    found = group_influence(influence, labels.astype(dtype), X_TEST, Y_TEST)
    assert [rows.tolist() for rows in found.groups] == [[4, 5]]
    dates = pd.Series([pd.NaT] * N)
    dates[[4, 5]] = pd.Timestamp("2020-01-01")
    found = group_influence(influence, dates, X_TEST, Y_TEST)
    assert [rows.tolist() for rows in found.groups] == [[4, 5]]


def test_clusters(influence):
    found = group_influence(influence, 3, X_TEST, Y_TEST, random_state=0)
    assert sorted(np.concatenate(found.groups)) == list(range(N))
    by_class = group_influence(influence, AgglomerativeClustering(4), X_TEST, Y_TEST)
    assert len(by_class.groups) == 4
    noise = group_influence(influence, DBSCAN(eps=1.2, min_samples=3), X_TEST, Y_TEST)
    assert sum(map(len, noise.groups)) < N


def test_results_are_shown(influence):
    found = group_influence(influence, GROUPS, X_TEST, Y_TEST)
    assert isinstance(found, GroupInfluence)
    frame = found.to_frame()
    assert frame["effect"].to_numpy().reshape(M, -1) == pytest.approx(found.effects)
    assert frame["n_rows"].tolist()[:4] == [12, 3, 1, 30]
    assert "by exact" in repr(found)


@pytest.mark.parametrize(
    ("groups", "given", "message"),
    [
        ([], {}, "at least one group"),
        ([[]], {}, "group 0 is empty"),
        ([[0, 99]], {}, r"group 0 has 99"),
        ([[1, 1]], {}, "group 0 does"),
        ([range(N)], {}, "group 0 has all 60"),
        (["a", "b"], {}, "one for each of the 60"),
        (
            "region",
            {},
            "X_train must be the training frame where groups='region' names a column, got None",
        ),
        ("region", {"X_train": X}, "must be a column of the frame X_train, got X_train of ndarray"),
        ("region", {"X_train": pd.DataFrame({"a": [1]})}, r"columns \['a'\]"),
        (1, {}, "from 2 to the 60"),
        ([[0]], {"method": "retraining"}, "X_train and y_train must be given"),
    ],
)
def test_bad_groups(influence, groups, given, message):
    with pytest.raises(ValueError, match=message):
        group_influence(influence, groups, X_TEST, Y_TEST, **given)


@pytest.mark.parametrize(
    ("rows", "message"),
    [(slice(10), f"the {N} rows .* got 10 rows"), (slice(None, None, -1), "in their order; row 0")],
)
def test_other_training_rows(influence, rows, message):
    given = {"method": "retraining", "X_train": X[rows], "y_train": Y[rows]}
    with pytest.raises(ValueError, match=message):
        group_influence(influence, [[0]], X_TEST, Y_TEST, **given)


def test_a_model_is_no_attributor(ridge):
    with pytest.raises(ValueError, match="'attributor' parameter of group_influence"):
        group_influence(ridge[0], [[0]], X_TEST, Y_TEST)
    with pytest.raises(ValueError, match="a dict of names to such, got list"):
        compare_group_influence([ridge[1]], [[0]], X_TEST, Y_TEST)


def test_ways_that_are_not_known(ridge):
    with pytest.raises(TypeError, match=r"method must be one of \['first-order', 'retraining'\]"):
        group_influence(GradDot(ridge[0]).fit(X, Y), [[0]], X_TEST, Y_TEST, method="exact")
    scratch = LeaveOneOut(ridge[0], n_seeds=1, leave_out=[0, 1]).fit(X, Y)
    with pytest.raises(ValueError, match="got others in group 1"):
        group_influence(scratch, [[0], [5]], X_TEST, Y_TEST, method="first-order")


def test_without_the_group_nothing_is_left():
    Z = np.hstack([X, np.zeros((N, 1))])
    Z[:3, -1] = 1.0
    net = nn.Linear(D + 1, 1).double()
    influence = ExactInfluence(net, criterion=nn.MSELoss(), damping=0.0).fit(Z, Y[:, None])
    with pytest.raises(ValueError, match="without group 0 it is singular"):
        group_influence(influence, [[0, 1, 2]], Z[:2], Y[:2, None])


def test_rows_of_a_pipeline():
    model = make_pipeline(StandardScaler(), Ridge(alpha=0.7)).fit(X, Y)
    inner = Ridge(alpha=0.7).fit(model[0].transform(X), Y)
    found = group_influence(ExactInfluence(model).fit(X, Y), GROUPS, X_TEST, Y_TEST)
    alone = ExactInfluence(inner).fit(model[0].transform(X), Y)
    wanted = group_influence(alone, GROUPS, model[0].transform(X_TEST), Y_TEST)
    assert np.allclose(found.effects, wanted.effects)


def test_linearised_runs_sum_their_scores(small):
    net, given = small
    y = Y[:, None].astype(np.float32)
    rows = X.astype(np.float32), X_TEST.astype(np.float32)
    linearised = LinearizedFurtherTraining(net, n_epochs=2, **given).fit(rows[0], y)
    found = group_influence(linearised, [GROUPS[0]], rows[1], Y_TEST[:, None].astype(np.float32))
    assert found.method == "first-order"
    weights = np.ones(N)
    weights[GROUPS[0]] = 0
    wanted = linearised.reweight(rows[1], Y_TEST[:, None].astype(np.float32), weights=weights)
    assert np.allclose(found.effects[:, 0], wanted)


def test_a_group_that_is_a_class_cannot_be_trained_without():
    model = LogisticRegression().fit(X, CLASSES)
    groups = {"a class": np.flatnonzero(CLASSES == 1), "rows": [0, 1]}
    with pytest.warns(UserWarning, match="no training succeeded without group 'a class'"):
        found = group_influence(
            GradDot(model).fit(X, CLASSES),
            groups,
            X_TEST,
            CLASSES_TEST,
            method="retraining",
            X_train=X,
            y_train=CLASSES,
            train=LeaveOneOut(model, n_seeds=1),
        )
    assert np.isnan(found.effects[:, 0]).all()
    assert np.isfinite(found.effects[:, 1]).all()
