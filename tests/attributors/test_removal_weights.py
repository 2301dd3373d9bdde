"""The removal of a row changes the weights of the others: against dense formulas and refits by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from naive import refits
from numpy.testing import assert_allclose
from problems import tanh_network
from sklearn.datasets import load_iris, make_classification
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import scale
from torch import nn

from fimoda import (
    TRAK,
    ArnoldiInfluence,
    CGInfluence,
    DataInf,
    EKFACInfluence,
    ExactInfluence,
    FurtherTraining,
    GradDot,
    LeaveOneOut,
    LiSSAInfluence,
    attribute,
)
from fimoda.curvature.removal import Removal
from fimoda.model import FinalModel
from fimoda.objective import Objective
from fimoda.recipe import Recipe, Weighting
from fimoda.rows import Rows

TIGHT = {"tol": 1e-12, "max_iter": 10_000}
SMALL = {"damping": 1e-8}


def log_losses(X, y):
    def of(model):
        p = model.predict_proba(X)
        return -np.log(p[np.arange(len(y)), np.searchsorted(model.classes_, y)])

    return of


def slope_and_r(scores, truth):
    a, b = scores.ravel(), truth.ravel()
    return float(a @ b / (a @ a)), float(np.corrcoef(a, b)[0, 1])


# ---- class_weight="balanced" ----------------------------------------------------------------


def classes(n_classes):
    X, y = make_classification(
        660,
        6,
        n_informative=4,
        n_redundant=0,
        n_classes=n_classes,
        weights=[0.5, 0.3][: n_classes - 1],
        flip_y=0.15,
        class_sep=0.7,
        random_state=0,
    )
    return X[:600], y[:600], X[600:], y[600:]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("newton_step", [False, True])
def test_balanced_classes_follow_the_refits(n_classes, weighted, newton_step):
    X, y, X_test, y_test = classes(n_classes)
    weights = np.random.default_rng(0).uniform(0.5, 2, len(X)) if weighted else None
    final = LogisticRegression(class_weight="balanced", **TIGHT).fit(X, y, sample_weight=weights)
    rows = np.arange(0, len(X), 20)
    truth = refits(final, X, y, log_losses(X_test, y_test), rows, weights)
    exact = ExactInfluence(final, newton_step=newton_step).fit(X, y, sample_weight=weights)
    slope, r = slope_and_r(exact.transform(X_test, y_test)[:, rows], truth)
    assert r > 0.999
    assert abs(slope - 1) < 0.04
    fixed = exact.set_params(reweight_others=False).fit(X, y, sample_weight=weights)
    assert slope_and_r(fixed.transform(X_test, y_test)[:, rows], truth)[1] < 0.99


@pytest.mark.parametrize("method", [EKFACInfluence, GradDot])
def test_other_methods_with_balanced_classes(method):
    """What the others' weights add brings every method nearer to the refits."""
    X, y, X_test, y_test = classes(2)
    final = LogisticRegression(class_weight="balanced", **TIGHT).fit(X, y)
    rows = np.arange(0, len(X), 20)
    truth = refits(final, X, y, log_losses(X_test, y_test), rows)
    found, fixed = (
        slope_and_r(
            method(final, reweight_others=reweight).fit(X, y).transform(X_test, y_test)[:, rows],
            truth,
        )[1]
        for reweight in (True, False)
    )
    assert found > 0.8
    assert found > fixed


def test_balanced_stochastic_gradient_descent():
    """Classes by numbers of rows, a penalty beside a mean: against its minimum by another solver."""
    X, y, X_test, y_test = classes(2)
    weights = np.random.default_rng(1).uniform(0.5, 2, len(X))
    alpha = 0.01

    def minimum(X, y, weights):
        """SGDClassifier's objective: mean over rows of weighted losses, plus alpha / 2 |w|^2."""
        counts = np.bincount(y)
        balanced = weights * (len(y) / (2 * counts))[y]
        return LogisticRegression(C=1 / (alpha * len(y)), **TIGHT).fit(X, y, balanced)

    final = SGDClassifier(loss="log_loss", alpha=alpha, class_weight="balanced", random_state=0)
    final.fit(X, y, sample_weight=weights)
    whole = minimum(X, y, weights)
    final.coef_, final.intercept_ = whole.coef_, whole.intercept_
    rows = np.arange(0, len(X), 20)
    truth = []
    for i in rows:
        rest = np.arange(len(X)) != i
        truth.append(log_losses(X_test, y_test)(minimum(X[rest], y[rest], weights[rest])))
    truth = np.array(truth).T - log_losses(X_test, y_test)(whole)[:, None]
    for newton_step, tolerance in ((False, 0.04), (True, 0.01)):
        exact = ExactInfluence(final, newton_step=newton_step, **SMALL)
        scores = exact.fit(X, y, sample_weight=weights).transform(X_test, y_test)[:, rows]
        slope, r = slope_and_r(scores, truth)
        assert r > 0.999
        assert abs(slope - 1) < tolerance


def test_methods_that_hold_class_weights_say_so():
    X, y, X_test, y_test = classes(2)
    final = LogisticRegression(class_weight="balanced").fit(X[:60], y[:60])
    for method, held in (
        (FurtherTraining(n_epochs=1, n_seeds=1, leave_out=2), True),
        (ExactInfluence(reweight_others=False), True),
        (ExactInfluence(), False),
        (LeaveOneOut(leave_out=2), False),
    ):
        found = attribute(final, X[:60], y[:60], X_test[:3], y_test[:3], method=method)
        assert ("balanced class weights are held" in found.trust) == held


# ---- sums and means -------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.0, 20.0])
def test_networks_fitted_by_a_solver(alpha):
    """A penalty that is divided by the number of rows: a sum of losses, whose minimum needs no mean."""
    X, y = load_iris(return_X_y=True)
    X = scale(X)
    settings = {"solver": "lbfgs", "alpha": alpha, "hidden_layer_sizes": (), "tol": 1e-12}
    final = MLPClassifier(max_iter=5000, random_state=0, **settings).fit(X, y)
    rows = np.arange(0, 150, 6)
    truth = refits(final, X, y, log_losses(X, y), rows)
    exact = ExactInfluence(final, newton_step=True, **SMALL).fit(X, y)
    slope, r = slope_and_r(exact.transform(X, y)[:, rows], truth)
    assert r > 0.999
    assert abs(slope - 1) < 0.02
    plain = ExactInfluence(final, **SMALL).fit(X, y).transform(X, y)
    bare = ExactInfluence(final, reweight_others=False, **SMALL).fit(X, y).transform(X, y)
    assert_allclose(plain, bare * 150 / 149, atol=1e-4 * np.abs(bare).max())


@pytest.mark.parametrize(
    ("model", "total"),
    [
        (Ridge(), "sum"),
        (MLPRegressor(solver="lbfgs", max_iter=3), "sum"),
        (MLPRegressor(max_iter=3), "sum"),  # one batch of all rows
        (MLPRegressor(max_iter=3, batch_size=10), "rows"),
    ],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_what_a_model_says_of_its_objective(model, total):
    X = np.random.default_rng(0).normal(size=(40, 3))
    fitted = GradDot(model.fit(X, X[:, 0])).fit(X, X[:, 0])
    assert fitted.model_.weighting == Weighting(total)


# ---- against definitions --------------------------------------------------------------------


def changed_weights(weights, y, by_class, weighting, i):
    """Weights of the rows in the objective without row i; the penalty stays."""
    v = weights.copy()
    v[i] = 0
    rest = np.arange(len(v)) != i
    if weighting.balanced is None:
        w = v * by_class[y]
    else:
        mass = v if weighting.balanced == "weights" else rest.astype(float)
        sums = np.bincount(y, mass, len(by_class))
        w = v * (mass.sum() / (len(by_class) * np.maximum(sums, 1e-300)))[y]
    if weighting.total == "mean":
        return w / w.sum()
    return w / (len(w) - 1 if weighting.total == "rows" else 1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("balanced", [None, "weights", "rows"])
@pytest.mark.parametrize("total", ["mean", "rows", "sum"])
def test_scores_are_the_change_of_all_weights(total, balanced, weighted):
    """First order: products times the change of each row's weight, written out."""
    rng = np.random.default_rng(0)
    n, K = 12, 3
    y = np.arange(n) % K
    y[0] = 1
    v = rng.uniform(0.5, 2, n) if weighted else np.ones(n)
    mass = {"weights": v, "rows": np.ones(n)}.get(balanced)
    if balanced is None:
        by_class = np.array([1.0, 2.0, 0.5])
    else:
        by_class = mass.sum() / (K * np.bincount(y, mass))
    weighting = Weighting(total, balanced)
    model = FinalModel(
        nn.Linear(2, K).double(),
        None,
        class_weight=torch.from_numpy(by_class),
        weighting=weighting,
        recipe=Recipe(solved=total == "sum"),
    )
    w = v * by_class[y]
    targets, weights = torch.from_numpy(y), torch.from_numpy(w)
    removal = Removal.of(Objective(model, Rows(torch.zeros(n, 2), targets, weights)))
    derivatives = rng.normal(size=(4, n))  # of m in each row's share, minus sign included
    found = removal(derivatives * w / w.sum())
    unit = {"mean": w.sum(), "rows": n, "sum": 1.0}[total]
    expected = np.stack(
        [
            -derivatives @ (changed_weights(v, y, by_class, weighting, i) - w / unit)
            for i in range(n)
        ],
        axis=1,
    )
    assert_allclose(found, expected * unit / w.sum(), rtol=1e-10)
    sums = removal.sums(derivatives * w / w.sum())
    assert_allclose(
        removal.diagonal(
            (derivatives * w / w.sum())[0], np.broadcast_to(sums[:1], (n, sums.shape[1]))
        ),
        found[0],
        rtol=1e-10,
    )


def test_a_row_that_is_all_there_is():
    model = FinalModel(nn.Linear(2, 1), None)
    removal = Removal.of(Objective(model, Rows(torch.zeros(1, 2), torch.zeros(1))))
    assert_allclose(removal(np.ones((2, 1))), np.ones((2, 1)))


METHODS = [
    (ExactInfluence, {"damping": 0.1}),
    (ExactInfluence, {"damping": 0.1, "newton_step": True}),
    (CGInfluence, {"damping": 0.1, "tol": 1e-10}),
    (LiSSAInfluence, {"damping": 0.1, "tol": 1e-10}),
    (ArnoldiInfluence, {"damping": 0.1, "n_components": 20}),
    (EKFACInfluence, {"damping": 0.1}),
    (GradDot, {"lr": 0.1}),
    (TRAK, {"damping": 0.1, "reweight_others": True}),
    (DataInf, {"damping": 0.1, "reweight_others": True}),
]


@pytest.mark.parametrize(("method", "settings"), METHODS)
def test_centred_rows_and_the_diagonal(method, settings):
    """In a mean, shares of the scores of all rows sum to nothing; self-influence is the diagonal."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20, 4)), rng.integers(3, size=20)
    weights = rng.uniform(0.5, 2, 20)
    made = method(tanh_network(4, 6, 3), criterion=nn.CrossEntropyLoss(), **settings)
    S = made.fit(X, y, sample_weight=weights).transform(X, y)
    share = weights / weights.sum()
    if not settings.get("newton_step"):
        assert_allclose(S @ (1 - share), 0, atol=1e-8 * np.abs(S).max())
        made.set_params(reweight_others=False).fit(X, y, sample_weight=weights)
        bare = made.transform(X, y)
        expected = (bare - share * bare.sum(1, keepdims=True)) / (1 - share)
        assert_allclose(S, expected, atol=1e-7 * np.abs(S).max())
        made.set_params(reweight_others=True).fit(X, y, sample_weight=weights)
    assert_allclose(made.self_influence(), S.diagonal(), atol=1e-8 * np.abs(S).max())


@pytest.mark.parametrize("n_rows", [8, 60])
def test_newton_step_of_a_mean(n_rows):
    """A plain loop: curvature and gradient of the objective without each row, dual and primal."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(n_rows, 4)), rng.integers(3, size=n_rows)
    weights = rng.uniform(0.5, 2, n_rows)
    damping = 0.05
    found = ExactInfluence(
        tanh_network(4, 6, 3), criterion=nn.CrossEntropyLoss(), damping=damping, newton_step=True
    ).fit(X, y, sample_weight=weights)
    assert (found._dual is not None) == (n_rows == 8)
    model = found.model_
    rows = found._objective.rows
    J, f = model.jacobian(rows.inputs), model.outputs(rows.inputs)
    g = torch.einsum("ncp,nc->np", J, model.loss.gradient(f, rows.targets))
    C = torch.einsum("ncp,ncd,ndq->npq", J, model.loss.output_hessian(f, rows.targets), J)
    share = torch.from_numpy(weights / weights.sum())
    before = torch.einsum("n,np->p", share, g)
    eye = torch.eye(g.shape[1]).double()
    expected = []
    for i in range(n_rows):
        rest = share.clone()
        rest[i] = 0
        rest /= rest.sum()
        H = torch.einsum("n,npq->pq", rest, C) + damping * eye
        change = torch.einsum("n,np->p", rest, g) - before
        expected.append(-(g @ torch.linalg.solve(H, change)).numpy())
    assert_allclose(found.transform(X, y), np.array(expected).T, rtol=1e-7, atol=1e-10)
