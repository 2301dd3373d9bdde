"""Weight decay of the optimiser is a penalty of the objective: against refits by hand."""

from __future__ import annotations

import numpy as np
import pytest
import skorch
import torch
import torch.nn.functional as F
from numpy.testing import assert_allclose
from sklearn.base import clone
from torch import nn

from fimoda import (
    SOURCE,
    ArnoldiInfluence,
    CGInfluence,
    EKFACInfluence,
    ExactInfluence,
    FurtherTraining,
    GradDot,
    LiSSAInfluence,
    TrajectoryRecorder,
)
from fimoda.adapters import as_final_model

N, D = 120, 5


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(N + 40, D))
    y = (X @ rng.normal(size=(D, 3)) + 3 * rng.normal(size=(N + 40, 3))).argmax(1)
    return X[:N], y[:N], X[N:], y[N:]


def softmax_net(optimizer=torch.optim.SGD, n_epochs=1, lr=1.0, **params):
    torch.manual_seed(0)
    return skorch.NeuralNetClassifier(
        nn.Linear(D, 3).double(),
        criterion=nn.CrossEntropyLoss,
        optimizer=optimizer,
        lr=lr,
        max_epochs=n_epochs,
        batch_size=-1,
        train_split=None,
        verbose=0,
        **params,
    )


def losses(weight, bias, X, y):
    outputs = torch.from_numpy(X) @ weight.mT + bias.unsqueeze(-2)
    targets = torch.from_numpy(y).expand(outputs.shape[:-1])
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none").view_as(
        targets
    )


def refits(net, rows, left_out):
    """Losses of test rows after training without each row, minus those of the net; plain torch."""
    X, y, X_test, y_test = rows
    fresh = clone(net).initialize()
    shares = torch.ones(len(left_out), N, dtype=torch.float64)
    shares[torch.arange(len(left_out)), torch.from_numpy(left_out)] = 0
    shares /= N - 1
    weight, bias = (
        p.detach().expand(len(left_out), *p.shape).clone().requires_grad_()
        for p in (fresh.module_.weight, fresh.module_.bias)
    )
    given = {k: v for k, v in net.get_params_for("optimizer").items() if k != "lr"}
    optimizer = net.optimizer([weight, bias], lr=net.lr, **given)
    for _ in range(net.max_epochs):
        optimizer.zero_grad()
        (shares * losses(weight, bias, X, y)).sum().backward()
        optimizer.step()
    with torch.no_grad():
        found = losses(weight, bias, X_test, y_test).mT
        own = losses(net.module_.weight, net.module_.bias, X_test, y_test)
    return (found - own[:, None]).numpy()


def agreement(scores, truth):
    """Correlation, slope and agreement in sign."""
    a, b = scores.ravel(), truth.ravel()
    return np.corrcoef(a, b)[0, 1], a @ b / (a @ a), np.mean(np.sign(a) == np.sign(b))


LEFT_OUT = np.arange(0, N, 4)


@pytest.fixture(scope="module")
def decayed(rows):
    """Convex softmax regression with weight decay, trained to convergence, and its refits."""
    net = softmax_net(n_epochs=300, lr=2.0, optimizer__weight_decay=0.05).fit(*rows[:2])
    return net, refits(net, rows, LEFT_OUT)


def fitted(method, net, rows, **settings):
    made = method(net, **settings).fit(*rows[:2])
    return made.transform(*rows[2:])[:, LEFT_OUT]


def test_exact_influence_follows_the_refits(decayed, rows):
    net, truth = decayed
    r, slope, sign = agreement(fitted(ExactInfluence, net, rows, damping=0.0), truth)
    assert r > 0.997
    assert abs(slope - 1) < 0.1
    assert sign > 0.99
    newton = fitted(ExactInfluence, net, rows, damping=0.0, newton_step=True)
    r, slope, sign = agreement(newton, truth)
    assert r > 0.999
    assert abs(slope - 1) < 0.03
    assert sign > 0.99
    bare = fitted(ExactInfluence, net, rows, damping=0.0, reweight_others=False)
    exact = fitted(ExactInfluence, net, rows, damping=0.0)
    assert np.abs((bare - truth).mean(1)).max() > 2 * np.abs((exact - truth).mean(1)).max()


@pytest.mark.parametrize(
    ("method", "settings", "least"),
    [
        (CGInfluence, {"damping": 0.0}, 0.997),
        (LiSSAInfluence, {"damping": 0.0}, 0.997),
        (ArnoldiInfluence, {"damping": 0.0, "n_components": 18}, 0.997),
        (EKFACInfluence, {"damping": 0.0}, 0.9),
        (ExactInfluence, {}, 0.997),
        (CGInfluence, {}, 0.997),
        (EKFACInfluence, {}, 0.9),
        (GradDot, {}, 0.85),
    ],
)
def test_other_methods_follow_the_refits(decayed, rows, method, settings, least):
    net, truth = decayed
    r, _, sign = agreement(fitted(method, net, rows, **settings), truth)
    assert r > least
    assert sign > (0.99 if least > 0.99 else 0.75)


def test_further_training_has_the_decay_once(decayed, rows):
    net, truth = decayed
    gold = FurtherTraining(net, n_epochs=300, n_seeds=1, leave_out=LEFT_OUT)
    found = gold.fit(*rows[:2]).transform(*rows[2:])
    assert gold.model_.l2 is None
    assert agreement(found, truth)[0] > 0.999


def test_adam_with_coupled_decay(rows):
    net = softmax_net(torch.optim.Adam, 400, 0.05, optimizer__weight_decay=0.05).fit(*rows[:2])
    truth = refits(net, rows, LEFT_OUT)
    r, slope, _ = agreement(fitted(ExactInfluence, net, rows, damping=0.0), truth)
    assert r > 0.997
    assert abs(slope - 1) < 0.1


def test_adamw(rows):
    """Decoupled decay, preconditioned: eps is large, so that the second moments stand still."""
    settings = {"optimizer__weight_decay": 0.05, "optimizer__eps": 1.0}
    net = softmax_net(torch.optim.AdamW, 400, 1.0, **settings).fit(*rows[:2])
    truth = refits(net, rows, LEFT_OUT)
    r, slope, sign = agreement(fitted(ExactInfluence, net, rows, damping=0.0), truth)
    assert r > 0.997
    assert abs(slope - 1) < 0.1
    assert sign > 0.97
    decay = as_final_model(net, rows[0]).decay
    state = [net.optimizer_.state[p] for p in net.module_.parameters()]
    square = torch.cat([s["exp_avg_sq"].flatten() for s in state])
    step = float(state[0]["step"])
    assert_allclose(decay, 0.05 * ((square / (1 - 0.999**step)).sqrt() + 1.0))


# ---- what the adapter reads -----------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer", ["SGD", "Adam", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "Adamax"]
)
def test_coupled_decay_of_every_optimizer(rows, optimizer):
    net = softmax_net(getattr(torch.optim, optimizer), optimizer__weight_decay=0.3).initialize()
    model = as_final_model(net, rows[0])
    assert_allclose(model.decay, np.full(18, 0.3))
    assert model.l2 is None
    assert_allclose(model.penalty, model.decay)
    assert_allclose(model.to(torch.float32).penalty, np.full(18, 0.3), rtol=1e-6)


def test_groups_constants_and_what_is_unknown(rows):
    plain = softmax_net().initialize()
    assert as_final_model(plain, rows[0]).decay is None
    fresh = softmax_net(torch.optim.AdamW, optimizer__weight_decay=0.3).initialize()
    assert as_final_model(fresh, rows[0]).decay is None  # no second moments yet
    groups = [("weight", {"weight_decay": 0.1})]
    net = softmax_net(optimizer__param_groups=groups).initialize()
    assert_allclose(as_final_model(net, rows[0]).decay, [0.1] * 15 + [0.0] * 3)
    net = softmax_net(optimizer__weight_decay=0.3).initialize()
    net.module_.bias.requires_grad_(False)
    assert_allclose(as_final_model(net, rows[0]).decay, [0.3] * 15)


@pytest.mark.parametrize("n_rows", [5, 60])
def test_curvature_with_decay_is_dense(rows, n_rows):
    """In the space of outputs, where decay shifts the damping, and in that of parameters."""
    X, y = rows[0][:n_rows], rows[1][:n_rows]
    net = softmax_net(optimizer__weight_decay=0.3).initialize()
    weights = np.random.default_rng(0).uniform(0.5, 2, n_rows)
    made = ExactInfluence(net, damping=0.01, reweight_others=False)
    scores = made.fit(X, y, sample_weight=weights).transform(X, y)
    assert (made._dual is not None) == (n_rows == 5)
    model = made.model_
    rows = made._objective.rows
    J, f = model.jacobian(rows.inputs), model.outputs(rows.inputs)
    g = torch.einsum("ncp,nc->np", J, model.loss.gradient(f, rows.targets))
    share = torch.from_numpy(weights / weights.sum())
    C = torch.einsum("n,ncp,ncd,ndq->pq", share, J, model.loss.output_hessian(f, rows.targets), J)
    H = C + 0.31 * torch.eye(18).double()
    assert_allclose(scores, (g @ torch.linalg.solve(H, g.mT)) * share, rtol=1e-8, atol=1e-12)
    newton = made.set_params(newton_step=True).fit(X, y, sample_weight=weights).transform(X, y)
    parts = torch.einsum(
        "n,ncp,ncd,ndq->npq", share, J, model.loss.output_hessian(f, rows.targets), J
    )
    expected = [share[i] * g @ torch.linalg.solve(H - parts[i], g[i]) for i in range(n_rows)]
    assert_allclose(newton, torch.stack(expected, 1), rtol=1e-7, atol=1e-12)


def test_source_takes_the_decay_of_its_run_once(rows):
    """The final model's own decay would come on top of that of the recorded optimiser."""
    X, y, X_test, y_test = rows
    net = softmax_net(n_epochs=30, optimizer__weight_decay=0.3, callbacks=[TrajectoryRecorder()])
    net.fit(X, y)
    source = SOURCE(net, curvature="exact", segments=1).fit(X, y)
    assert all(
        o.model.decay is None for segment in source._walk.segments for o in segment.objectives
    )
    assert source._walk.segments[0].dynamics.coupled_decay == 0.3
    assert np.isfinite(source.transform(X_test, y_test)).all()
