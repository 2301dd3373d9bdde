"""Rows reweighted and relabelled, against models that are fitted again."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from cells import find_attributors, make
from naive import Naive
from problems import tanh_network
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from torch import nn

from fimoda import (
    SOURCE,
    TRAK,
    CGInfluence,
    DataInf,
    DistributionalInfluence,
    EKFACInfluence,
    EnsembleAttributor,
    ExactInfluence,
    FurtherTraining,
    GradCos,
    GradDot,
    Hydra,
    KNNShapley,
    LeaveOneOut,
    TracIn,
    Trajectory,
)
from fimoda.views import TreeView

N, D = 30, 3
RNG = np.random.default_rng(3)
X, X_TEST = RNG.normal(size=(N, D)), RNG.normal(size=(4, D))
Y = X @ RNG.normal(size=D) + RNG.normal(size=N)
Y_TEST = X_TEST.sum(1)
CLASSES = (Y > 0).astype(int)
ROWS, TARGETS = [4, 17], [1.5, -2.0]


def relabelled(model, y, row, target):
    other = y.copy()
    other[row] = target
    return clone(model).fit(X, other)


@pytest.mark.parametrize("method", [ExactInfluence, CGInfluence, LeaveOneOut])
def test_ridge_is_linear_in_its_targets(method):
    model = Ridge(alpha=0.5).fit(X, Y)
    own = {"tol": 1e-12} if method is CGInfluence else {}
    own = {"n_seeds": 1, "leave_out": [0]} if method is LeaveOneOut else own
    found = method(model, measurement="output", **own).fit(X, Y)
    effect = found.relabel(X_TEST, rows=ROWS, targets=TARGETS)
    for k, (row, target) in enumerate(zip(ROWS, TARGETS, strict=True)):
        wanted = relabelled(model, Y, row, target).predict(X_TEST) - model.predict(X_TEST)
        assert np.allclose(effect[:, k], wanted, rtol=1e-6)


@pytest.mark.parametrize("weight", [None, {0: 1.0, 1: 3.0}])
def test_logistic_regression_with_another_label(weight):
    model = LogisticRegression(C=0.05, tol=1e-10, max_iter=2000, class_weight=weight).fit(
        X, CLASSES
    )
    found = ExactInfluence(model).fit(X, CLASSES)
    y_test, rows = np.array([0, 1, 0, 1]), [3, 8]
    effect = found.relabel(X_TEST, y_test, rows=rows, targets=1 - CLASSES[rows])

    def loss(fitted):
        return -np.log(fitted.predict_proba(X_TEST)[np.arange(4), y_test])

    for k, row in enumerate(rows):
        wanted = loss(relabelled(model, CLASSES, row, 1 - CLASSES[row])) - loss(model)
        assert np.linalg.norm(effect[:, k] - wanted) < 0.25 * np.linalg.norm(wanted)


def gradients(net, criterion, x, y):
    found = []
    for one, target in zip(torch.from_numpy(x), torch.from_numpy(y), strict=True):
        loss = criterion(net(one[None]), target[None])
        found.append(
            torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, [*net.parameters()])])
        )
    return torch.stack(found)


@pytest.mark.parametrize("width", [2, 20], ids=["primal", "dual"])
def test_networks_swap_a_gradient(width):
    net, criterion = tanh_network(D, width, 3), nn.CrossEntropyLoss()
    y, y_test, new = np.arange(N) % 3, np.array([0, 1, 2, 0]), np.array([2, 0])
    rows = np.array(ROWS)
    test = gradients(net, criterion, X_TEST, y_test)
    swapped = gradients(net, criterion, X[rows], y[rows]) - gradients(net, criterion, X[rows], new)
    dot = GradDot(net, criterion=criterion, lr=0.1, batch_size=N).fit(X, y)
    found = dot.relabel(X_TEST, y_test, rows=rows, targets=new)
    assert np.allclose(found, 0.1 / N * (test @ swapped.T).numpy())
    exact = ExactInfluence(net, criterion=criterion, damping=0.2).fit(X, y)
    assert (exact._dual is None) == (width == 2)
    iterative = CGInfluence(net, criterion=criterion, damping=0.2, tol=1e-12).fit(X, y)
    effects = [one.relabel(X_TEST, y_test, rows=rows, targets=new) for one in (exact, iterative)]
    assert np.allclose(*effects, rtol=1e-6)
    # back to what it was: nothing
    assert np.allclose(exact.relabel(X_TEST, y_test, rows=rows, targets=y[rows]), 0)
    factored = EKFACInfluence(net, criterion=criterion, damping=0.2).fit(X, y)
    assert np.isfinite(factored.relabel(X_TEST, y_test, rows=rows, targets=new)).all()


def test_data_inf_by_loops_over_rows():
    net, criterion, weights = tanh_network(D, 4, 3), nn.CrossEntropyLoss(), RNG.uniform(0.5, 2, N)
    y, y_test, new, damping = np.arange(N) % 3, np.array([0, 1, 2, 0]), np.array([2, 0]), 0.3
    test, train = gradients(net, criterion, X_TEST, y_test), gradients(net, criterion, X, y)
    swapped = train[ROWS] - gradients(net, criterion, X[ROWS], new)
    share = weights / weights.sum()
    wanted, start = np.zeros((4, 2)), 0
    for layer in (net[0], net[2]):
        part = slice(start, start := start + sum(p.numel() for p in layer.parameters()))
        for z, v in enumerate(test[:, part]):
            solved = torch.zeros_like(v)
            for s, g in zip(share, train[:, part], strict=True):
                solved += s / damping * (v - (g @ v) / (damping + g @ g) * g)
            wanted[z] += share[ROWS] * (swapped[:, part] @ solved).numpy()
    found = DataInf(net, criterion=criterion, damping=damping).fit(X, y, weights)
    assert np.allclose(found.relabel(X_TEST, y_test, rows=ROWS, targets=new), wanted)


def test_trees_and_networks_are_trained_with_the_label():
    model = HistGradientBoostingClassifier(max_iter=3, min_samples_leaf=3).fit(X, CLASSES)
    found = LeaveOneOut(model, n_seeds=1, leave_out=[0], measurement="output").fit(X, CLASSES)
    effect = found.relabel(X_TEST, rows=[5], targets=[1 - CLASSES[5]])[:, 0]
    after = relabelled(model, CLASSES, 5, 1 - CLASSES[5])
    moved = after.decision_function(X_TEST) - model.decision_function(X_TEST)
    sure = abs(moved) > 1e-9
    assert (abs(effect[sure]) > 0).all()
    net = nn.Sequential(nn.Linear(D, 1)).double()
    own = {"criterion": nn.MSELoss(), "lr": 0.1, "batch_size": N, "random_state": 0}
    scratch = LeaveOneOut(net, n_epochs=3, n_seeds=1, leave_out=[0], **own, measurement="output")
    effect = scratch.fit(X, Y[:, None]).relabel(X_TEST, rows=[5], targets=[[4.0]])[:, 0]
    # by hand: full batches, both runs begin alike, and the run is linear in the targets
    A, theta = np.hstack([X, np.ones((N, 1))]), np.zeros(D + 1)
    for _ in range(3):
        pull = np.zeros(N)
        pull[5] = 4.0 - Y[5]
        theta = theta - 0.1 * 2 / N * A.T @ (A @ theta - pull)
    assert np.allclose(effect, np.hstack([X_TEST, np.ones((4, 1))]) @ theta, atol=1e-6)


def moved(y, row, target):
    """Return targets of which one is another."""
    other = y.copy()
    other[row] = target
    return other


def networks(n: int, width: int):
    """Return networks of one shape whose parameters differ."""
    nets = [tanh_network(D, width, 1) for _ in range(n)]
    for k, net in enumerate(nets):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += 0.1 * k * torch.randn_like(parameter)
    return nets


def small_run(n: int):
    """Return a final network, and a trajectory of a few networks before it with their batches."""
    nets = networks(n, 4)
    orders = [np.random.default_rng(k).permutation(N)[:10] for k in range(n - 1)]
    return nets[-1], Trajectory.from_checkpoints(
        [net.state_dict() for net in nets[:-1]], range(n - 1), n_steps=n - 1, lrs=0.1,
        batches=orders,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "given"),
    [
        (TracIn, {}),
        (TracIn, {"n_components": 8, "random_state": 0}),
        (TracIn, {"reweight_others": True}),
        (Hydra, {}),
        (SOURCE, {"segments": 2, "curvature": "exact"}),
        (SOURCE, {"segments": 2, "curvature": "ekfac"}),
        (SOURCE, {"segments": 2, "curvature": "projected", "n_components": 8, "random_state": 0}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_along_the_run_scores_are_linear_in_the_gradient_of_a_row(method, given):
    """The curvature of a squared error does not know targets: a fit with the other target says the rest."""
    net, run = small_run(5)
    own = {"criterion": nn.MSELoss(), "trajectory": run, **given}
    weights, y, y_test = RNG.uniform(0.5, 2, N), Y[:, None], Y_TEST[:, None]
    found = method(net, **own).fit(X, y, weights)
    effect = found.relabel(X_TEST, y_test, rows=ROWS, targets=np.array(TARGETS)[:, None])
    plain = method(net, **(own | {"reweight_others": False}))
    before = plain.fit(X, y, weights).transform(X_TEST, y_test)
    for k, (row, target) in enumerate(zip(ROWS, TARGETS, strict=True)):
        after = plain.fit(X, moved(y, row, target), weights).transform(X_TEST, y_test)
        wanted = before[:, row] - after[:, row]
        assert np.abs(wanted).max() > 0
        assert np.allclose(effect[:, k], wanted, rtol=1e-6)


def test_means_over_models():
    nets = networks(3, 2)
    own = {"criterion": nn.MSELoss()}
    data, test = (X, Y[:, None]), (X_TEST, Y_TEST[:, None])
    given = {"rows": ROWS, "targets": np.array(TARGETS)[:, None]}
    each = [GradDot(net, **own).fit(*data).relabel(*test, **given) for net in nets]
    ensemble = EnsembleAttributor(nets[0], attributor=GradDot(), models=nets, **own).fit(*data)
    assert np.allclose(ensemble.relabel(*test, **given), np.mean(each, 0))
    influence = DistributionalInfluence(nets[0], method=GradDot(), models=nets, **own).fit(*data)
    assert np.allclose(influence.relabel(*test, **given), np.mean(each, 0))
    spread = DistributionalInfluence(nets[0], method=GradDot(), models=nets, distance="w2", **own)
    with pytest.raises(TypeError, match="DistributionalInfluence cannot tell what another target"):
        spread.fit(*data).relabel(*test, **given)


@pytest.mark.parametrize("mode", ["mask", "drop", "expected"])
def test_further_training_takes_the_same_batches_with_the_target(mode):
    net, seeds = tanh_network(D, 4, 1), [3, 4]
    own = {"criterion": nn.MSELoss(), "lr": 0.1, "batch_size": 8, "compile": False}
    found = FurtherTraining(
        net, n_epochs=2, n_seeds=seeds, leave_out=[0], leave_out_mode=mode, **own
    ).fit(X, Y[:, None])
    test = torch.from_numpy(X_TEST), torch.from_numpy(Y_TEST)

    def after(y):
        naive = Naive(
            net, torch.from_numpy(X), torch.from_numpy(y),
            lambda f, t, _: ((f[:, 0] - t) ** 2).mean(), lambda f, t: (f[:, 0] - t) ** 2,
            batch_size=8,
        )  # fmt: skip
        return naive.run(*test, marks=[2], seeds=seeds, leave_out=[0])[1][0].mean(-1)

    given = {"rows": ROWS, "targets": np.array(TARGETS)[:, None]}
    effect = found.relabel(X_TEST, Y_TEST[:, None], **given)
    pairs = zip(ROWS, TARGETS, strict=True)
    wanted = [after(moved(Y, row, target)) - after(Y) for row, target in pairs]
    assert np.allclose(effect, np.transpose(wanted), rtol=1e-8)


#: Methods whose scores are no effects of a change, and two that speak of removal alone.
WITHOUT_TARGETS = {
    *("BetaShapley", "DataBanzhaf", "DataOOB", "DataShapley", "KNNShapley", "LeastCore"),
    *("GradCos", "RepSim", "RefinedAttributor", "TRAK"),
}


def fitted(cls):
    """Return a method of any class, fitted to a model that suits it."""
    name, known = cls.__name__, inspect.signature(cls).parameters
    if cls._sees is TreeView:
        model = HistGradientBoostingClassifier(max_iter=3, min_samples_leaf=4)
        if name in ("LeafKernel", "AXIL"):
            model = RandomForestClassifier(5, max_depth=3, random_state=0)
        found = cls(model.fit(X, CLASSES))
    else:
        found = make(name, LogisticRegression(tol=1e-8).fit(X, CLASSES))
        given = {"trajectory": "final", "n_subsets": 20}
        found.set_params(**{key: value for key, value in given.items() if key in known})
    return found.fit(X, CLASSES)


each_method = pytest.mark.parametrize(
    "cls", find_attributors() + find_attributors(of_trees=True), ids=lambda cls: cls.__name__
)


@each_method
def test_a_row_of_weight_zero_has_left(cls):
    found, test = fitted(cls), (X[:3], CLASSES[:3])
    weights = np.ones(len(found.train_indices_))
    weights[1] = 0
    if not found._in_unit:
        with pytest.raises(TypeError, match=f"Scores of {cls.__name__} do not add up"):
            found.reweight(*test, weights=weights)
        return
    effect = found.reweight(*test, weights=weights)
    assert effect.shape == (3,)
    assert np.allclose(effect, found.transform(*test)[:, 1], rtol=1e-6, atol=1e-12)


def test_rows_without_a_score_may_keep_their_weight():
    y = np.r_[0, np.ones(N - 1, dtype=int)]  # no model without the only row of its class
    method = LeaveOneOut(LogisticRegression().fit(X, y), n_seeds=1, leave_out=[0, 3, 7]).fit(X, y)
    with pytest.warns(UserWarning, match="without row 0"):
        scores = method.transform(X_TEST, np.ones(4))
    with pytest.warns(UserWarning, match="without row 0"):
        effect = method.reweight(X_TEST, np.ones(4), weights=[1, 0, 1])
    assert np.allclose(effect, scores[:, 1])
    with (
        pytest.warns(UserWarning, match="without row 0"),
        pytest.raises(FloatingPointError, match=r"other weights that are NaN .* row has no score"),
    ):
        method.reweight(X_TEST, np.ones(4), weights=[0, 1, 1])


@each_method
def test_every_method_relabels_or_says_why_not(cls):
    """Nothing happens with the own label, and something with the other."""
    name, found, test = cls.__name__, fitted(cls), (X[:4], CLASSES[:4])
    if name in WITHOUT_TARGETS:
        with pytest.raises(TypeError, match=f"{name} (cannot tell|does not know) what another"):
            found.relabel(*test, rows=[5], targets=[1 - CLASSES[5]])
        return
    effect = found.relabel(*test, rows=[5, 2], targets=[1 - CLASSES[5], CLASSES[2]])
    assert effect.shape == (4, 2)
    assert np.abs(effect[:, 0]).max() > 0
    assert np.abs(effect[:, 1]).max() <= 1e-3 * np.abs(effect[:, 0]).max()


def test_methods_that_know_no_other_target_say_so():
    logistic = LogisticRegression().fit(X, CLASSES)
    trak = TRAK(logistic).fit(X, CLASSES)
    with pytest.raises(TypeError, match="TRAK does not know what another target"):
        trak.relabel(X_TEST, rows=[0], targets=[1])
    for method in (KNNShapley(), GradCos(logistic)):
        with pytest.raises(
            TypeError, match=r"cannot tell what another target.*no effects of a change"
        ):
            method.fit(X, CLASSES).relabel(X_TEST, CLASSES[:4], rows=[0], targets=[1])


@pytest.mark.parametrize(
    ("rows", "targets", "message"),
    [
        ([0, 1], [1], "targets must have one entry for each of the 2 rows to relabel, got 1"),
        ([0, 1], 1, "targets must have one entry for each of the 2 rows to relabel, got 1"),
        ([0], None, "targets must have one entry for each of the 1 rows to relabel, got None"),
        ([0, 0], [1, 1], "rows must not repeat"),
        ([N], [1], "rows must hold indices"),
        ([0], [7], "7"),
    ],
)
def test_bad_targets(rows, targets, message):
    found = ExactInfluence(LogisticRegression().fit(X, CLASSES)).fit(X, CLASSES)
    with pytest.raises(ValueError, match=message):
        found.relabel(X_TEST, rows=rows, targets=targets)


# ---- weights --------------------------------------------------------------------------------


def test_a_sum_of_losses_keeps_the_others():
    model = Ridge(alpha=0.5).fit(X, Y)
    found = ExactInfluence(model, measurement="output").fit(X, Y)
    factors = np.ones(N)
    factors[4], factors[9] = 1.01, 0.99
    wanted = clone(model).fit(X, Y, sample_weight=factors).predict(X_TEST) - model.predict(X_TEST)
    effect = found.reweight(X_TEST, weights=factors)
    assert np.linalg.norm(effect - wanted) < 0.02 * np.linalg.norm(wanted)
    assert np.allclose(effect, found.transform(X_TEST) @ (1 - factors))


def test_a_mean_counts_the_others_more():
    net = nn.Linear(D, 1).double()
    A = np.hstack([X, np.ones((N, 1))])
    solution = np.linalg.lstsq(A, Y, rcond=None)[0]
    with torch.no_grad():
        net.weight[0] = torch.from_numpy(solution[:-1])
        net.bias[0] = float(solution[-1])
    found = ExactInfluence(net, criterion=nn.MSELoss(), damping=0.0, measurement="output")
    found.fit(X, Y[:, None])
    factors = 1 + 1e-4 * RNG.normal(size=N)
    root = np.sqrt(factors)[:, None]
    after = np.linalg.lstsq(A * root, Y * root[:, 0], rcond=None)[0]
    wanted = np.hstack([X_TEST, np.ones((4, 1))]) @ (after - solution)
    assert np.linalg.norm(found.reweight(X_TEST, weights=factors) - wanted) < 1e-3 * np.linalg.norm(
        wanted
    )


@pytest.mark.parametrize("weights", [np.ones(3), -np.ones(N), np.zeros(N), np.full(N, np.nan)])
def test_bad_weights(weights):
    found = ExactInfluence(Ridge().fit(X, Y)).fit(X, Y)
    with pytest.raises(ValueError, match="weights must"):
        found.reweight(X_TEST, weights=weights)


def test_distances_do_not_add_up():
    torch.manual_seed(0)
    nets = [nn.Linear(D, 1).double() for _ in range(3)]
    own = {"models": nets, "method": GradDot(), "criterion": nn.MSELoss()}
    weights = np.full(N, 1.0)
    weights[2] = 0.5
    mean = DistributionalInfluence(nets[0], **own).fit(X, Y[:, None])
    half = mean.reweight(X_TEST, Y_TEST[:, None], weights=weights)
    assert (half * mean.transform(X_TEST, Y_TEST[:, None])[:, 2] > 0).all()
    found = DistributionalInfluence(nets[0], distance="variance", **own).fit(X, Y[:, None])
    with pytest.raises(TypeError, match="DistributionalInfluence do not add up"):
        found.reweight(X_TEST, Y_TEST[:, None], weights=weights)


@pytest.mark.parametrize("width", [2, 20], ids=["primal", "dual"])
def test_a_row_without_weight_has_no_label(width):
    net, weights = tanh_network(D, width, 3), np.ones(N)
    weights[4] = 0
    found = ExactInfluence(net, criterion=nn.CrossEntropyLoss(), damping=0.2)
    found.fit(X, np.arange(N) % 3, sample_weight=weights)
    effect = found.relabel(X_TEST, [0, 1, 2, 0], rows=ROWS, targets=[2, 0])
    assert (effect[:, 0] == 0).all()
    assert (effect[:, 1] != 0).all()
