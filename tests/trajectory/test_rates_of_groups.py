"""Runs whose parameters have learning rates of their own, and the methods that follow them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from problems import row_gradients, tanh_network
from skorch import NeuralNetClassifier
from skorch.callbacks import LRScheduler
from torch import nn

from fimoda import SOURCE, Hydra, TracIn, Trajectory, TrajectoryRecorder, as_final_model
from fimoda.adapters import recorded_trajectory
from fimoda.trajectory import model_at

N, BATCH = 24, 8
GROUPS = [("0.*", {"lr": 0.02}), ("*.bias", {"lr": 0.4})]
PARTS = {"0.weight": 0.05, "0.bias": 0.05, "2.weight": 0.25, "2.bias": 1.0}


def rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, 4))
    return X, (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)


def trained(checkpoints="all", groups=GROUPS, **changes) -> NeuralNetClassifier:
    """Six steps, whose learning rates all fall by a half with the second epoch."""
    settings = {
        "max_epochs": 2,
        "lr": 0.1,
        "batch_size": BATCH,
        "criterion": nn.CrossEntropyLoss,
        "optimizer__param_groups": groups,
        "iterator_train__shuffle": True,
        "train_split": None,
        "verbose": 0,
        "callbacks": [
            TrajectoryRecorder(checkpoints, batches=True),
            LRScheduler(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5),
        ],
    }
    torch.manual_seed(0)
    network = tanh_network(4, 5, 3).double()
    return NeuralNetClassifier(network, **{**settings, **changes}).fit(*rows())


def gradients(model) -> torch.Tensor:
    X, y = rows()
    return row_gradients(model, model.encode_X(X), model.encode_y(y, 3))


def scale(model) -> np.ndarray:
    return np.concatenate(
        [np.full(part.numel(), PARTS[name]) for name, part in model.views(model.theta).items()]
    )


def test_the_recorder_keeps_proportions(tmp_path):
    recorder = TrajectoryRecorder(2, directory=tmp_path / "run")
    run = recorded_trajectory(trained(callbacks=[recorder]))
    assert run.lr_factors == pytest.approx(PARTS)
    assert_allclose(run.learning_rates, [0.4] * 6)
    loaded = Trajectory.load(tmp_path / "run")
    assert loaded.lr_factors == run.lr_factors
    assert run.extended().lr_factors == run.lr_factors
    alike = trained(groups=[("*.bias", {"lr": 0.1})], callbacks=[TrajectoryRecorder(2)])
    assert recorded_trajectory(alike).lr_factors == {}


def test_trac_in_takes_each_parameter_at_its_rate():
    X, y = rows()
    net = trained([3, 6])
    run, model = recorded_trajectory(net), as_final_model(net, X)
    s, expected = scale(model), np.zeros((N, N))
    for k, rate in ((0, 3 * 0.4), (1, 3 * 0.2)):
        G = np.asarray(gradients(model_at(run, k, model)))
        expected += rate * (G * s) @ G.T / N
    for settings in ({}, {"chunk_size": 5}, {"memory_budget": 20_000}):
        found = TracIn(net, **settings).fit(X, y)
        assert_allclose(found.transform(X, y), expected, rtol=1e-8, atol=1e-12)
        assert_allclose(found.self_influence(), np.diag(expected), rtol=1e-8)
    many = TracIn(net, n_components=4000, random_state=0).fit(X, y)
    assert np.corrcoef(many.transform(X, y).ravel(), expected.ravel())[0, 1] > 0.95
    assert_allclose(many.self_influence(), np.diag(many.transform(X, y)), rtol=1e-8)


def test_hydra_takes_each_parameter_at_its_rate():
    X, y = rows()
    net = trained()
    run, model = recorded_trajectory(net), as_final_model(net, X)
    s, expected = scale(model), np.zeros((N, N))
    last = np.asarray(gradients(model))
    for t, batch in enumerate(run.batches):
        G = np.asarray(gradients(model_at(run, t, model)))[batch]
        expected[:, batch] += run.learning_rates[t] * (last * s) @ G.T / len(batch)
    found = Hydra(net, reweight_others=False).fit(X, y)
    assert_allclose(found.transform(X, y), expected, rtol=1e-8, atol=1e-12)
    own = found.self_influence()
    at_its_end = np.zeros(N)
    for t, batch in enumerate(run.batches):
        G = np.asarray(gradients(model_at(run, t, model)))[batch]
        at_its_end[batch] += run.learning_rates[t] * ((last * s)[batch] * G).sum(1) / len(batch)
    assert_allclose(own, at_its_end, rtol=1e-8)


def test_a_final_model_alone_and_checkpoints_of_ones_own():
    X, y = rows()
    net = trained([6])
    model = as_final_model(net, X)
    G, s = np.asarray(gradients(model)), scale(model)
    alone = TracIn(net, trajectory="final", n_epochs=1).fit(X, y)
    assert_allclose(alone.transform(X, y), 3 * 0.4 * (G * s) @ G.T / N, rtol=1e-8, atol=1e-12)
    states = [net.module_.state_dict()]
    own = Trajectory.from_checkpoints(states, [3], 0.4, lr_factors=PARTS)
    found = TracIn(net, trajectory=own).fit(X, y)
    assert_allclose(found.transform(X, y), alone.transform(X, y), rtol=1e-10)


def test_errors():
    X, y = rows()
    net = trained([6])
    with pytest.raises(ValueError, match=r"SOURCE takes one learning rate.*Use TracIn or Hydra"):
        SOURCE(net, segments=1).fit(X, y)
    states = [net.module_.state_dict()]
    some = Trajectory.from_checkpoints(states, [3], 0.4, lr_factors={"0.weight": 0.5})
    with pytest.raises(ValueError, match=r"but none of '0\.bias'"):
        TracIn(net, trajectory=some).fit(X, y)
    for part in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="lr_factors must be positive numbers"):
            Trajectory.from_checkpoints(states, [3], 0.4, lr_factors={"0.weight": part})
    run = Trajectory()
    run.add_step({"a": 0.0, "b": 0.0})
    run.add_step({"a": 0.1, "b": 0.2})
    run.add_step({"a": 0.2, "b": 0.4})
    run.add_step(0.0)
    for lr in ({"a": 0.1, "b": 0.1}, 0.1, {"a": 0.1}):
        with pytest.raises(ValueError, match="must stay in proportion"):
            run.add_step(lr)
    assert run.lr_factors == {"a": 0.5, "b": 1.0}
    assert run.learning_rates.tolist() == [0.0, 0.2, 0.4, 0.0]
