"""TracIn, Hydra, RepSim and ensembles against their defining sums, by plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from naive import relative
from numpy.testing import assert_allclose, assert_array_equal
from problems import row_gradients, tanh_network
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.preprocessing import normalize
from skorch import NeuralNetClassifier
from torch import nn

from fimoda import (
    SOURCE,
    TRAK,
    DistributionalInfluence,
    EKFACInfluence,
    EnsembleAttributor,
    ExactInfluence,
    GradDot,
    Hydra,
    RepSim,
    Stage,
    TracIn,
    Trajectory,
    TrajectoryRecorder,
    UnrolledDifferentiation,
    as_final_model,
    train_ensemble,
)
from fimoda.trajectory import model_at

N = 30


def gradients(model, X, y):
    return row_gradients(model, model.encode_X(X), model.encode_y(y, 3))


def rows(n: int = N):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 4))
    return X, (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)


def module() -> nn.Sequential:
    return tanh_network(4, 5, 3)


class Convolution(nn.Module):
    """A network whose gradients do not factor."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(6, 3))

    def forward(self, X):
        return self.layers(X.unsqueeze(1))


def recorded(checkpoints=4, network: nn.Module | None = None, **params):
    """Two classifiers, trained for 8 steps of different rates, and their runs."""
    X, y = rows()
    given = {
        "n_seeds": [0, 1],
        "n_epochs": 2,
        "lr": lambda epoch: 0.2 / (1 + epoch),
        "batch_size": 8,
        "optimizer_params": {"momentum": 0.5},
        "criterion": nn.CrossEntropyLoss(),
    }
    network = module() if network is None else network
    return X, y, train_ensemble(network, X, y, checkpoints=checkpoints, **{**given, **params})


# ---- TracIn -----------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [module, Convolution])
def test_trac_in_is_its_defining_sum(network):
    X, y, ensemble = recorded([3, 5, 8], network().double())
    model, run = ensemble.models[0], ensemble.trajectories[0]
    weight = np.linspace(0.5, 2, N)
    rates = [3 * 0.2, 0.2 + 0.1, 3 * 0.1]  # of steps 1-3, 4-5, 6-8
    at = [model_at(run, k, model) for k in range(3)]
    G = [gradients(one, X, y) for one in at]
    expected = sum(rate / 0.5 * g @ g.T for rate, g in zip(rates, G, strict=True))
    expected = expected * weight / weight.sum()
    tracin = TracIn(model, trajectory=run).fit(X, y, weight)
    assert_allclose(tracin.transform(X, y), expected, rtol=1e-8, atol=1e-12)
    assert_allclose(tracin.self_influence(), np.diag(expected), rtol=1e-8)
    small = TracIn(model, trajectory=run, chunk_size=7).fit(X, y, weight)
    assert_allclose(small.transform(X, y), expected, rtol=1e-8, atol=1e-12)


def test_trac_in_of_the_first_checkpoint_and_of_steps_after_the_last():
    """A checkpoint before training stands for no step, the last also for those after it."""
    X, y, ensemble = recorded([0, 4, 8])
    model, run = ensemble.models[0], ensemble.trajectories[0]
    states = [run.state(0), run.state(1)]
    cut = Trajectory.from_checkpoints(states, [0, 4], run.learning_rates, n_steps=8)
    g = gradients(model_at(run, 1, model), X, y)
    scores = TracIn(model, trajectory=cut).fit(X, y).transform(X, y)
    assert_allclose(scores, 1.2 * g @ g.T / N, rtol=1e-8, atol=1e-12)


def test_trac_in_of_stages():
    X, y, ensemble = recorded([2, 6, 8])
    model, run = ensemble.models[0], ensemble.trajectories[0]
    stages = [Stage("a", 0, 4, rows=np.arange(20)), Stage("b", 4, 8, rows=np.arange(15, 30))]
    states = [run.state(k) for k in range(3)]
    staged = Trajectory.from_checkpoints(states, run.steps, 0.1, stages=stages)
    G = [gradients(model_at(run, k, model), X, y) for k in range(3)]
    first = (0.2 * G[0] @ G[0].T + 0.2 * G[1] @ G[1].T) / 20  # steps 1-2, and 3-4 of 3-6
    second = (0.2 * G[1] @ G[1].T + 0.2 * G[2] @ G[2].T) / 15
    one = TracIn(model, trajectory=staged, stage="a").fit(X, y)
    assert_array_equal(one.train_indices_, np.arange(20))
    assert_allclose(one.transform(X, y), first[:, :20], rtol=1e-8, atol=1e-12)
    assert_allclose(one.self_influence(), np.diag(first)[:20], rtol=1e-8)
    both = TracIn(model, trajectory=staged).fit(X, y).transform(X, y)
    first[:, 20:], second[:, :15] = 0, 0
    assert_allclose(both, first + second, rtol=1e-8, atol=1e-12)


def test_projected_trac_in():
    X, y, ensemble = recorded()
    model, run = ensemble.models[0], ensemble.trajectories[0]
    exact = TracIn(model, trajectory=run).fit(X, y)
    whole = TracIn(model, trajectory=run, n_components=model.n_parameters).fit(X, y)
    assert_allclose(whole.transform(X, y), exact.transform(X, y), rtol=1e-8, atol=1e-12)
    assert_allclose(whole.self_influence(), exact.self_influence(), rtol=1e-8)
    draws = [
        TracIn(model, trajectory=run, n_components=16, random_state=s).fit(X, y).transform(X, y)
        for s in range(60)
    ]
    assert relative(draws[0], exact.transform(X, y)) > 0.1
    assert relative(np.mean(draws, axis=0), exact.transform(X, y)) < 0.1  # without bias


# ---- Hydra ------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [module, Convolution])
def test_hydra_is_its_defining_sum_on_a_recorded_run(network):
    X, y, ensemble = recorded("all", network().double())
    model, run = ensemble.models[0], ensemble.trajectories[0]
    weight = np.linspace(0.5, 2, N)
    test = gradients(model, X, y)
    expected = np.zeros((N, N))
    for t in range(8):
        batch = run.batches[t]
        g = gradients(model_at(run, t, model), X, y)
        for i in batch:
            rate = (0.2 if t < 4 else 0.1) / 0.5
            expected[:, i] += rate * weight[i] / weight[batch].sum() * test @ g[i]
    hydra = Hydra(model, trajectory=run).fit(X, y, weight)
    assert_allclose(hydra.transform(X, y), expected, rtol=1e-8, atol=1e-12)
    assert_allclose(hydra.self_influence(), np.diag(expected), rtol=1e-8, atol=1e-12)
    small = Hydra(model, trajectory=run, chunk_size=4).fit(X, y, weight)
    assert_allclose(small.transform(X, y), expected, rtol=1e-8, atol=1e-12)


def test_hydra_of_a_skorch_net_and_of_rows_drawn_twice():
    X, y = rows()
    recorder = TrajectoryRecorder("all", batches=True)
    sampler = torch.utils.data.RandomSampler(range(N), replacement=True, num_samples=2 * N)
    net = NeuralNetClassifier(
        module().float(),
        criterion=nn.CrossEntropyLoss,
        max_epochs=1,
        lr=0.1,
        batch_size=20,
        train_split=None,
        iterator_train__sampler=sampler,
        callbacks=[recorder],
        verbose=0,
    ).fit(X.astype(np.float32), y)
    run, model = recorder.trajectory_, as_final_model(net, X)
    assert any(len(set(batch)) < len(batch) for batch in run.batches)
    test = gradients(model, X, y)
    expected = np.zeros((N, N))
    for t, batch in enumerate(run.batches):
        g = gradients(model_at(run, t, model), X, y)
        for i in batch:
            expected[:, i] += 0.1 / 20 * test @ g[i]
    assert relative(Hydra(net).fit(X, y).transform(X, y), expected) < 1e-5


def test_hydra_is_the_derivative_of_the_run_without_curvature():
    """With few small steps it is unrolled differentiation, but for the share of the others."""
    X, y, ensemble = recorded("all", lr=1e-4, optimizer_params={"momentum": 0.0}, batch_size=N)
    model, run = ensemble.models[0], ensemble.trajectories[0]
    hydra = Hydra(model, trajectory=run).fit(X, y).transform(X, y)
    unrolled = UnrolledDifferentiation(
        model, start=run.state(0), n_epochs=2, n_seeds=[0], lr=1e-4, batch_size=N, order="own"
    )
    centred = (hydra - hydra.mean(1, keepdims=True)) * N / (N - 1)
    assert relative(centred, unrolled.fit(X, y).transform(X, y)) < 1e-3


def test_errors_of_hydra():
    X, y, ensemble = recorded("all")
    model, run = ensemble.models[0], ensemble.trajectories[0]
    states = [run.state(k) for k in range(9)]
    bare = Trajectory.from_checkpoints(states, range(9), 0.1)
    with pytest.raises(ValueError, match=r"Hydra needs the rows of every batch.*batches=True"):
        Hydra(model, trajectory=bare).fit(X, y)
    few = Trajectory.from_checkpoints(states[:2], [0, 8], 0.1, batches=run.batches)
    with pytest.raises(
        ValueError, match=r"before every step; 7 are missing, the first that of step 1"
    ):
        Hydra(model, trajectory=few).fit(X, y)
    far = Trajectory.from_checkpoints(states, range(9), 0.1, n_steps=9, batches=[[N]] * 9)
    with pytest.raises(ValueError, match=r"row 30 in a batch of 'stage 0', which has 30 rows"):
        Hydra(model, trajectory=far).fit(X, y)


# ---- what they share --------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "NAdam", "RMSprop", "Adagrad"])
def test_what_the_recorder_says_of_the_optimiser_is_what_it_takes(optimizer):
    X, y = rows()
    X = X.astype(np.float32)
    recorder = TrajectoryRecorder()
    net = NeuralNetClassifier(
        module().float(),
        criterion=nn.CrossEntropyLoss,
        optimizer=getattr(torch.optim, optimizer),
        optimizer__weight_decay=0.01,
        max_epochs=2,
        callbacks=[recorder],
        train_split=None,
        verbose=0,
    ).fit(X, y)
    settings = recorder.trajectory_.optimizer_params
    getattr(torch.optim, optimizer)(net.module_.parameters(), lr=0.1, **settings)
    assert settings["weight_decay"] == 0.01
    if optimizer != "NAdam":  # has no preconditioned form
        assert np.abs(SOURCE(net, segments=2).fit(X, y).transform(X[:3], y[:3])).max() > 0


@pytest.mark.parametrize("cls", [TracIn, Hydra, SOURCE])
def test_the_recorder_of_the_net_is_found(cls):
    X, y = rows()
    X = X.astype(np.float32)
    recorder = TrajectoryRecorder("all", batches=True)

    def train(callbacks):
        return NeuralNetClassifier(
            module().float(),
            criterion=nn.CrossEntropyLoss,
            max_epochs=2,
            callbacks=callbacks,
            train_split=None,
            verbose=0,
        ).fit(X.astype(np.float32), y)

    net = train([recorder])
    params = {"segments": 2} if cls is SOURCE else {}
    found = cls(net, **params).fit(X, y)
    assert found.trajectory_ is recorder.trajectory_
    given = cls(net, trajectory=recorder.trajectory_, **params).fit(X, y)
    assert_array_equal(found.transform(X, y), given.transform(X, y))
    with pytest.raises(ValueError, match=rf"{cls.__name__} needs checkpoints of the training run"):
        cls(train([]), **params).fit(X, y)
    unfitted = cls(clone(net), **params).fit(X, y)  # records while it is fitted
    assert len(unfitted.trajectory_) == len(recorder.trajectory_)
    other = recorded()[2]
    wide = train_ensemble(
        nn.Linear(4, 3).double(), X, y, n_seeds=1, n_epochs=1, criterion=nn.CrossEntropyLoss()
    )
    with pytest.raises(ValueError, match="checkpoints of another architecture than estimator"):
        cls(other.models[0], trajectory=wide.trajectories[0], **params).fit(X, y)
    with pytest.raises(ValueError, match=r"trained on \[30\] rows, X has 12"):
        cls(net, **params).fit(X[:12], y[:12])


# ---- RepSim -----------------------------------------------------------------------------------


def test_representations_and_similarities():
    X, y = rows()
    net = module()
    inputs = torch.from_numpy(X)
    last = torch.tanh(net[0](inputs)).detach().numpy()
    first = net[0](inputs).detach().numpy()

    def scores(**params):
        attributor = RepSim(net, criterion=nn.CrossEntropyLoss(), **params).fit(X, y)
        found = attributor.transform(X[:6], y[:6])
        diagonal = np.diag(attributor.transform(X, y))
        assert_allclose(attributor.self_influence(), diagonal, rtol=1e-8, atol=1e-12)
        return found

    assert_allclose(scores(), normalize(last[:6]) @ normalize(last).T, rtol=1e-8, atol=1e-12)
    assert_allclose(scores(metric="dot"), last[:6] @ last.T, rtol=1e-8, atol=1e-12)
    distance = np.linalg.norm(last[:6, None] - last, axis=2)
    assert_allclose(scores(metric="euclidean"), -distance, rtol=1e-8, atol=1e-12)
    assert_allclose(scores(metric="dot", layer="0"), first[:6] @ first.T, rtol=1e-8)
    assert_allclose(scores(layer="1"), scores(), rtol=1e-8)


def test_repsim_of_convolutions_and_of_zero():
    X, y = rows()
    net = Convolution().double()
    inside = net.layers[0](torch.from_numpy(X).unsqueeze(1)).flatten(1).detach().numpy()
    found = RepSim(net, layer="layers.0", criterion=nn.CrossEntropyLoss()).fit(X, y)
    assert_allclose(found.transform(X, y), normalize(inside) @ normalize(inside).T, rtol=1e-6)
    zero = RepSim(Ridge().fit(X, y)).fit(np.vstack([X, np.zeros(4)]), np.r_[y, 0])
    assert_array_equal(zero.transform(X, y)[:, -1], np.zeros(N))


def test_errors_of_repsim():
    X, y = rows()

    def fit(network, **params):
        return RepSim(network, criterion=nn.CrossEntropyLoss(), **params).fit(X, y)

    with pytest.raises(ValueError, match=r"layer must be the name of a part.*0, 1, 2.*got 'last'"):
        fit(module(), layer="last")
    twice = nn.Linear(4, 4).double()
    with pytest.raises(ValueError, match="must be used once and give one tensor"):
        fit(nn.Sequential(twice, nn.ReLU(), twice), layer="0")
    with pytest.raises(MemoryError, match="raise memory_budget"):
        fit(module(), memory_budget=10)


# ---- ensembles --------------------------------------------------------------------------------


def test_models_need_no_estimator_beside_them():
    """What is measured is the first model's, not that of a network that nobody asked for."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 3))
    y = X.sum(1) + rng.normal(size=40)
    models = [Ridge(alpha).fit(X, y) for alpha in (0.1, 1.0, 10.0)]
    mean = np.mean([ExactInfluence(one).fit(X, y).transform(X[:5], y[:5]) for one in models], 0)
    method = ExactInfluence()
    for whole in (
        EnsembleAttributor(attributor=method, models=models),
        DistributionalInfluence(method=method, models=models),
    ):
        assert_allclose(whole.fit(X, y).transform(X[:5], y[:5]), mean, rtol=1e-10)
    X, y, ensemble = recorded()
    given = {"attributor": GradDot(), "models": ensemble, "criterion": nn.CrossEntropyLoss()}
    found = [
        EnsembleAttributor(estimator, **given).fit(X, y).transform(X[:5], y[:5])
        for estimator in (None, ensemble.models[1])
    ]
    assert_allclose(*found, rtol=1e-10)


def test_an_ensemble_is_the_mean_over_its_models():
    X, y, ensemble = recorded()
    for method in (
        GradDot(n_epochs=2),
        EKFACInfluence(),
        SOURCE(segments=2),
        TracIn(n_components=9, random_state=0),
    ):
        whole = EnsembleAttributor(ensemble.models[0], attributor=method, models=ensemble).fit(X, y)
        each = []
        for model, run in zip(ensemble.models, ensemble.trajectories, strict=True):
            one = clone(method).set_params(estimator=model)
            if "trajectory" in one.get_params():
                one.set_params(trajectory=run)
            each.append(one.fit(X, y))
        apart = np.stack([one.transform(X[:5], y[:5]) for one in each])
        assert_allclose(whole.transform(X[:5], y[:5]), apart.mean(0), rtol=1e-10)
        assert_allclose(whole.scores_sem_, apart.std(0, ddof=1) / np.sqrt(2), rtol=1e-8)
        diagonal = np.mean([one.self_influence() for one in each], axis=0)
        assert_allclose(whole.self_influence(), diagonal, rtol=1e-8)
        assert method.estimator is None  # the template stays as it is


def test_trak_averages_its_own_way():
    X, y, ensemble = recorded()
    trak = TRAK(n_components=16, random_state=0)
    whole = EnsembleAttributor(ensemble.models[0], attributor=trak, models=ensemble).fit(X, y)
    own = TRAK(ensemble.models[0], models=[ensemble.models[1]], n_components=16, random_state=0)
    assert_allclose(whole.transform(X, y), own.fit(X, y).transform(X, y), rtol=1e-10)
    assert len(whole.members_) == 1


def test_models_are_trained_with_seeds_and_recorded():
    X, y, ensemble = recorded()
    params = {
        "n_epochs": 2,
        "lr": lambda epoch: 0.2 / (1 + epoch),
        "batch_size": 8,
        "optimizer_params": {"momentum": 0.5},
        "criterion": nn.CrossEntropyLoss(),
    }
    method = SOURCE(segments=2)
    here = EnsembleAttributor(module(), attributor=method, n_seeds=[0, 1], checkpoints=4, **params)
    given = EnsembleAttributor(module(), attributor=method, models=ensemble)
    given.set_params(criterion=nn.CrossEntropyLoss())
    assert_allclose(here.fit(X, y).transform(X, y), given.fit(X, y).transform(X, y), rtol=1e-10)
    assert here.seeds_ == [0, 1]


def test_skorch_nets_bring_their_runs_along():
    X, y = rows()
    X = X.astype(np.float32)

    def train(seed):
        torch.manual_seed(seed)
        return NeuralNetClassifier(
            nn.Sequential(nn.Linear(4, 3)),
            criterion=nn.CrossEntropyLoss,
            max_epochs=3,
            batch_size=10,
            train_split=None,
            callbacks=[TrajectoryRecorder(3)],
            verbose=0,
        ).fit(X, y)

    nets = [train(0), train(1)]
    whole = EnsembleAttributor(nets[0], attributor=SOURCE(), models=nets).fit(X, y)
    apart = [SOURCE(net).fit(X, y).transform(X, y) for net in nets]
    assert_allclose(whole.transform(X, y), np.mean(apart, axis=0), rtol=1e-6)
    assert clone(whole).models is nets


def test_estimators_that_are_not_networks_are_fitted_again():
    X, y = rows()
    ridge = Ridge(alpha=2.0).fit(X, y)
    whole = EnsembleAttributor(ridge, n_seeds=3).fit(X, y)
    assert len(whole.members_) == 3
    assert_allclose(whole.transform(X, y), GradDot(ridge).fit(X, y).transform(X, y), rtol=1e-8)
    with pytest.raises(ValueError, match="models must hold at least one fitted model"):
        EnsembleAttributor(ridge, models=[]).fit(X, y)


def test_an_ensemble_of_a_stage():
    X, y, first = recorded(2)
    X2, y2 = X[:12] + 0.1, y[:12]
    second = train_ensemble(
        module(), X2, y2, start=first, n_epochs=1, criterion=nn.CrossEntropyLoss(), checkpoints=1
    )
    both = np.vstack([X, X2]), np.r_[y, y2]
    method = SOURCE(segments=2, stage=1)
    whole = EnsembleAttributor(module(), attributor=method, models=second)
    whole.set_params(criterion=nn.CrossEntropyLoss()).fit(*both)
    assert_array_equal(whole.train_indices_, np.arange(N, N + 12))
    assert whole.transform(X[:3], y[:3]).shape == (3, 12)


def test_errors_of_ensembles_name_the_trajectory():
    X, y, _ = recorded()
    bare = [module(), module()]
    with pytest.raises(ValueError, match="SOURCE needs checkpoints of the training run"):
        EnsembleAttributor(
            bare[0], attributor=SOURCE(), models=bare, criterion=nn.CrossEntropyLoss()
        ).fit(X, y)
