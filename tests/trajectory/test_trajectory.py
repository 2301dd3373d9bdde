"""Recording: by hand, by skorch's callback, through the stack engine; in memory and on disk."""

from __future__ import annotations

import copy
import pickle

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from problems import tanh_network
from sklearn.base import clone
from skorch import NeuralNetClassifier, NeuralNetRegressor
from skorch.callbacks import EarlyStopping, LRScheduler
from skorch.dataset import ValidSplit
from torch import nn

from fimoda import (
    GradDot,
    Stage,
    TracIn,
    Trajectory,
    TrajectoryRecorder,
    as_final_model,
    train_ensemble,
)
from fimoda.adapters import recorded_trajectory
from fimoda.trajectory import buffers_at, mean_model, model_at, stage_rows

N = 20


def rows(n: int = N):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 3)).astype(np.float32)
    return X, (X @ [[1.0], [2.0], [-1.0]]).astype(np.float32)


def net(recorder: TrajectoryRecorder | None, **params) -> NeuralNetRegressor:
    given = {"max_epochs": 4, "lr": 0.05, "batch_size": 8, "train_split": None, "verbose": 0}
    module = tanh_network(3, 4, 1).float()
    callbacks = [] if recorder is None else [recorder]
    return NeuralNetRegressor(module, **{**given, "callbacks": callbacks, **params})


def same(state, module: nn.Module) -> bool:
    return all(torch.equal(state[k], v) for k, v in module.state_dict().items())


# ---- from checkpoints -------------------------------------------------------------------------


def states(n: int = 3):
    torch.manual_seed(0)
    return [nn.Linear(2, 1).state_dict() for _ in range(n)]


@pytest.mark.parametrize(
    ("lrs", "expected"),
    [
        (0.5, [0.5] * 8),
        ([0.1, 0.2, 0.3], [0.1] * 2 + [0.2] * 3 + [0.3] * 3),
        (np.arange(1, 9), np.arange(1, 9)),
    ],
)
def test_learning_rates(lrs, expected):
    run = Trajectory.from_checkpoints(states(), [2, 5, 7], lrs, n_steps=8)
    assert_allclose(run.learning_rates, expected)
    assert (run.steps, run.n_steps, len(run)) == ([2, 5, 7], 8, 3)


def test_states_are_copies():
    given = states()
    run = Trajectory.from_checkpoints(given, [1, 2, 3], 0.1)
    before = given[1]["weight"].clone()
    given[1]["weight"].zero_()
    assert torch.equal(run.state(1)["weight"], before)


def test_errors_of_from_checkpoints():
    def make(given=None, steps=(1, 2, 3), lrs=0.1, **params):
        return Trajectory.from_checkpoints(
            states() if given is None else given, steps, lrs, **params
        )

    with pytest.raises(ValueError, match="at least one checkpoint, got none"):
        make([], [])
    with pytest.raises(ValueError, match="state_dicts must have one state for each of the 2 steps"):
        make(steps=[1, 2])
    with pytest.raises(ValueError, match=r"steps must not be negative and must increase"):
        make(steps=[1, 1, 2])
    with pytest.raises(ValueError, match="n_steps must be at least 1 and that of the last"):
        make(n_steps=2)
    with pytest.raises(ValueError, match=r"lrs must be one number.*got shape \(2,\)"):
        make(lrs=[0.1, 0.2])
    with pytest.raises(ValueError, match="lrs must be finite"):
        make(lrs=float("nan"))
    with pytest.raises(ValueError, match="rows of each of the 3 steps, got 1"):
        make(batches=[[0]])
    with pytest.raises(ValueError, match="optimizer_states must have one state for each"):
        make(optimizer_states=[{}])
    with pytest.raises(ValueError, match=r"stages must follow one another from step 0 to step 3"):
        make(stages=[Stage("a", 0, 2)])
    other = [*states(2), nn.Linear(3, 1).state_dict()]
    with pytest.raises(
        ValueError, match=r"one architecture: 'weight' has shape \(1, 3\) at step 3"
    ):
        make(other)
    bad = states()
    bad[2]["bias"] += float("inf")
    with pytest.raises(ValueError, match="'bias' is NaN or infinite at step 3"):
        make(bad)


def test_optimizer_states_by_name():
    """With buffers of the module and frozen parameters between those of the optimiser."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 1))
    module[2].weight.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=0.1)
    module(torch.randn(6, 3)).square().sum().backward()
    optimizer.step()
    run = Trajectory.from_checkpoints(
        [module.state_dict()],
        [1],
        0.1,
        optimizer="Adam",
        optimizer_states=[optimizer.state_dict()],
        optimizer_names=[k for k, p in module.named_parameters() if p.requires_grad],
    )
    by_hand = Trajectory(optimizer="Adam")
    by_hand.add_step(0.1)
    by_hand.add_checkpoint(module, optimizer)
    model = as_final_model(module.eval(), np.zeros((2, 3)), criterion=nn.MSELoss())
    expected = torch.cat(
        [optimizer.state[p]["exp_avg_sq"].flatten() for p in module.parameters() if p.requires_grad]
    )
    for one in (run, by_hand):
        found = buffers_at(one, 0, model)
        assert torch.equal(found["exp_avg_sq"], expected)
        assert found["step"] == 1.0
    states = [module.state_dict()], [1], 0.1
    with pytest.raises(ValueError, match=r"7 parameters and state_dicts have 11.*optimizer_names"):
        Trajectory.from_checkpoints(*states, optimizer_states=[optimizer.state_dict()])
    names = [k for k, p in module.named_parameters() if p.requires_grad][::-1]
    with pytest.raises(
        ValueError, match=r"have shape \(4, 3\) for '3.bias', which has shape \(1,\)"
    ):
        Trajectory.from_checkpoints(
            *states, optimizer_states=[optimizer.state_dict()], optimizer_names=names
        )


def test_models_of_checkpoints():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).eval()
    later = copy.deepcopy(module)
    with torch.no_grad():
        later[0].weight += 2
        later[1].running_mean += 4
    run = Trajectory.from_checkpoints([module.state_dict(), later.state_dict()], [1, 2], 0.1)
    model = as_final_model(later, np.zeros((2, 3)), criterion=nn.MSELoss())
    assert same(run.state(0), model_at(run, 0, model).module)
    mean = mean_model(run, [0, 1], model).module
    assert_allclose(mean[0].weight.detach(), (module[0].weight + 1).detach(), rtol=1e-6)
    assert_allclose(mean[1].running_mean, np.full(4, 2.0))
    assert same(run.state(1), model.module)


# ---- stages -----------------------------------------------------------------------------------


def test_rows_of_stages():
    def found(*stages, n=10):
        return [list(rows) for rows in stage_rows(stages, n)]

    everything = list(range(10))
    assert found(Stage("a", 0, 1)) == [everything]
    assert found(Stage("a", 0, 1, 10), Stage("b", 1, 2, 10)) == [everything] * 2
    assert found(Stage("a", 0, 1, 4), Stage("b", 1, 2, 6)) == [everything[:4], everything[4:]]
    named = Stage("a", 0, 1, 2, np.array([3, 5])), Stage("b", 1, 2, 1, np.array([5]))
    assert found(*named) == [[3, 5], [5]]
    with pytest.raises(ValueError, match=r"trained on \[4, 5\] rows, X has 10"):
        found(Stage("a", 0, 1, 4), Stage("b", 1, 2, 5))
    with pytest.raises(ValueError, match="names rows of 'a' outside the 4 rows"):
        found(*named, n=4)


def test_naming_rows():
    run = Trajectory()
    for n in (2, 3):
        run.begin_stage(n_rows=n)
        run.add_step(0.1)
    assert [(s.name, s.start, s.stop) for s in run.stages] == [("stage 0", 0, 1), ("stage 1", 1, 2)]
    assert [list(s.rows) for s in run.name_rows([0, 1], [1, 2, 3]).stages] == [[0, 1], [1, 2, 3]]
    with pytest.raises(ValueError, match="must be the 3 that it was trained on, got 1"):
        run.name_rows([0, 1], [1])
    with pytest.raises(ValueError, match="for each of the 2 stages, got 1"):
        run.name_rows([0, 1])


# ---- skorch -----------------------------------------------------------------------------------


def test_recorder_sees_what_a_loop_sees():
    """Every state, rate and batch of the run, against the same training written out."""
    X, y = rows()
    recorder = TrajectoryRecorder("all", batches=True)
    trained = net(recorder, optimizer__momentum=0.9, iterator_train__shuffle=True).fit(X, y)
    run = recorder.trajectory_
    assert (run.n_steps, run.steps) == (12, list(range(13)))
    assert (run.optimizer, run.optimizer_params["momentum"]) == ("SGD", 0.9)
    assert [len(b) for b in run.batches] == [8, 8, 4] * 4
    for epoch in range(4):
        seen = np.concatenate(run.batches[3 * epoch : 3 * epoch + 3])
        assert sorted(seen) == list(range(N))
    assert not np.array_equal(run.batches[0], run.batches[3])
    again = net(None).initialize().module_
    again.load_state_dict(run.state(0))
    optimizer = torch.optim.SGD(again.parameters(), lr=0.05, momentum=0.9)
    for step, batch in enumerate(run.batches):
        assert same(run.state(step), again)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(again(torch.from_numpy(X[batch])), torch.from_numpy(y[batch]))
        loss.backward()
        optimizer.step()
    assert_allclose(run.state(12)["0.weight"], again[0].weight.detach(), rtol=1e-5)
    assert same(run.state(12), trained.module_)


def test_a_recorded_net_is_an_ordinary_net():
    X, y = rows()
    plain = net(None).fit(X, y)
    recorded = net(TrajectoryRecorder("all", batches=True)).fit(X, y)
    assert_array_equal(recorded.predict(X), plain.predict(X))
    loaded = pickle.loads(pickle.dumps(recorded))
    assert_array_equal(loaded.predict(X), plain.predict(X))
    assert recorded_trajectory(loaded).steps == list(range(13))
    fresh = clone(recorded)
    assert recorded_trajectory(fresh) is None
    assert fresh.callbacks[0].checkpoints == "all"
    fresh.fit(X, y)
    assert len(recorded_trajectory(fresh)) == 13
    assert_array_equal(
        GradDot(recorded).fit(X, y).transform(X, y), GradDot(plain).fit(X, y).transform(X, y)
    )


@pytest.mark.parametrize(
    ("checkpoints", "steps"),
    [(3, [4, 8, 12]), (5, [2, 5, 7, 10, 12]), (100, list(range(1, 13))), ([0, 5], [0, 5, 12])],
)
def test_chosen_checkpoints(checkpoints, steps):
    X, y = rows()
    recorder = TrajectoryRecorder(checkpoints)
    net(recorder).fit(X, y)
    assert recorder.trajectory_.steps == steps


def test_fit_starts_anew_and_partial_fit_goes_on():
    X, y = rows()
    recorder = TrajectoryRecorder(2, batches=True)
    trained = net(recorder).fit(X, y)
    first = recorder.trajectory_
    trained.fit(X, y)
    assert recorder.trajectory_ is not first
    assert recorder.trajectory_.n_steps == 12
    trained.partial_fit(X[:10], y[:10])
    run = recorder.trajectory_
    assert run.steps == [6, 12, 16, 20]
    assert [(s.start, s.stop, s.n_rows) for s in run.stages] == [(0, 12, 20), (12, 20, 10)]
    assert max(map(max, run.batches[12:])) == 9
    assert len(first) == 2


def test_rows_that_are_held_out_have_no_part():
    X, y = rows()
    recorder = TrajectoryRecorder(2, batches=True)
    trained = net(recorder, train_split=ValidSplit(4)).fit(X, y)
    stage = recorder.trajectory_.stages[0]
    assert stage.n_rows == 15
    kept = np.unique(stage.rows)
    assert len(kept) == 15
    scores = TracIn(trained).fit(X, y).transform(X, y)
    assert_array_equal(np.flatnonzero(np.abs(scores).sum(0)), kept)


def test_training_that_ends_early_and_rates_that_change():
    X, y = rows()
    recorder = TrajectoryRecorder(6)
    stop = EarlyStopping(monitor="train_loss", patience=1, threshold=100, threshold_mode="abs")
    trained = net(None, max_epochs=50).set_params(callbacks=[recorder, stop]).fit(X, y)
    assert recorder.trajectory_.n_steps < 150
    assert recorder.trajectory_.steps[-1] == recorder.trajectory_.n_steps
    assert same(recorder.trajectory_.state(-1), trained.module_)
    recorder = TrajectoryRecorder(2)
    schedule = LRScheduler("StepLR", step_size=2, gamma=0.1)
    net(None).set_params(callbacks=[recorder, schedule]).fit(X, y)
    assert_allclose(recorder.trajectory_.learning_rates, [0.05] * 6 + [0.005] * 6)


def test_state_of_adaptive_optimisers():
    X, y = rows()
    recorder = TrajectoryRecorder(2)
    trained = net(recorder, optimizer=torch.optim.AdamW).fit(X, y)
    model = as_final_model(trained, X)
    kept = buffers_at(recorder.trajectory_, 1, model)
    state = trained.optimizer_.state
    expected = [state[p]["exp_avg_sq"].flatten() for p in trained.module_.parameters()]
    assert torch.equal(kept["exp_avg_sq"], torch.cat(expected))
    assert kept["step"] == 12
    without = TrajectoryRecorder(2, optimizer_state=False)
    net(without, optimizer=torch.optim.AdamW).fit(X, y)
    assert buffers_at(without.trajectory_, 1, model) == {}


def test_classes_and_probabilities():
    X, y = rows()
    labels = (y[:, 0] > 0).astype(np.int64)
    recorder = TrajectoryRecorder(2)
    module = nn.Sequential(nn.Linear(3, 2), nn.Softmax(-1))
    trained = NeuralNetClassifier(
        module, max_epochs=2, train_split=None, verbose=0, callbacks=[("record", recorder)]
    ).fit(X, labels)
    assert TracIn(trained).fit(X, labels).transform(X, labels).shape == (N, N)
    assert trained.score(X, labels) >= 0


def test_errors_of_the_recorder():
    X, y = rows()
    with pytest.raises(ValueError, match="checkpoints must be a number, a list of steps or 'all'"):
        net(TrajectoryRecorder("each")).fit(X, y)
    with pytest.raises(ValueError, match="checkpoints must be at least 1"):
        net(TrajectoryRecorder(0)).fit(X, y)
    with pytest.raises(MemoryError, match=r"12 checkpoints take up to .*Set directory"):
        net(TrajectoryRecorder(12, memory_budget=1000)).fit(X, y)


# ---- files ------------------------------------------------------------------------------------


def test_on_disk(tmp_path):
    X, y = rows()
    in_memory = TrajectoryRecorder("all", batches=True)
    on_disk = TrajectoryRecorder("all", batches=True, directory=tmp_path / "run", memory_budget=1)
    for recorder in (in_memory, on_disk):
        trained = net(recorder, optimizer=torch.optim.Adam).fit(X, y)
    loaded = Trajectory.load(tmp_path / "run")
    kept, expected = on_disk.trajectory_, in_memory.trajectory_
    assert all(value is None for value in kept._store._kept.values())  # nothing in memory
    model = as_final_model(trained, X)
    for run in (kept, loaded, pickle.loads(pickle.dumps(kept))):
        assert (run.steps, run.n_steps, run.optimizer) == (list(range(13)), 12, "Adam")
        assert_array_equal(run.learning_rates, expected.learning_rates)
        assert all(map(np.array_equal, run.batches, expected.batches))
        assert [(s.name, s.n_rows) for s in run.stages] == [("stage 0", N)]
        for k in (0, 12):
            assert all(torch.equal(run.state(k)[n], v) for n, v in expected.state(k).items())
        found = buffers_at(run, 12, model)
        assert torch.equal(found["exp_avg_sq"], buffers_at(expected, 12, model)["exp_avg_sq"])
    with pytest.raises(FileExistsError, match="holds a recorded run"):
        net(TrajectoryRecorder(directory=tmp_path / "run")).fit(X, y)


def test_save_and_load(tmp_path):
    run = Trajectory.from_checkpoints(states(), [1, 2, 3], 0.1, stages=[Stage("a", 0, 3, 2)])
    run.name_rows([4, 1])
    run.save(tmp_path / "run")
    loaded = Trajectory.load(tmp_path / "run")
    assert loaded.stages[0].name == "a"
    assert_array_equal(loaded.stages[0].rows, [4, 1])
    assert torch.equal(loaded.state(2)["weight"], run.state(2)["weight"])
    with pytest.raises(FileNotFoundError, match="holds no recorded run"):
        Trajectory.load(tmp_path)
    (tmp_path / "run" / "step-000000002.pt").unlink()
    with pytest.raises(FileNotFoundError, match="lacks the checkpoint of step 2"):
        Trajectory.load(tmp_path / "run")
    with pytest.raises(ValueError, match="directory must be given"):
        run.save()


def test_clones_share_the_record():
    run = Trajectory.from_checkpoints(states(), [1, 2, 3], 0.1)
    attributor = TracIn(nn.Linear(2, 1), trajectory=run)
    assert clone(attributor).trajectory is run
    assert clone(TracIn(trajectory=run)).trajectory is run


# ---- through the stack engine -----------------------------------------------------------------


def test_ensembles_are_trained_as_further_training_trains(tmp_path):
    """Batches of the seed by torch's generator; states, rates and buffers of a plain loop."""
    X, y = rows()
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    params = {
        "n_seeds": [3, 5],
        "checkpoints": "all",
        "n_epochs": 3,
        "optimizer": "AdamW",
        "lr": lambda epoch: 0.1 / (1 + epoch),
        "batch_size": 8,
        "criterion": nn.MSELoss(),
    }
    ensemble = train_ensemble(module, X, y, **params)
    assert len(ensemble) == 2
    assert not torch.allclose(ensemble.models[0].theta, ensemble.models[1].theta)
    for seed, model, run in zip(
        ensemble.seeds, ensemble.models, ensemble.trajectories, strict=True
    ):
        generator = torch.Generator().manual_seed(seed)
        again = copy.deepcopy(module)
        again.load_state_dict(run.state(0))
        optimizer = torch.optim.AdamW(again.parameters(), lr=0.1)
        step = 0
        for epoch in range(3):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + epoch)
            for batch in torch.randperm(N, generator=generator).split(8):
                assert_array_equal(run.batches[step], batch)
                assert run.learning_rates[step] == 0.1 / (1 + epoch)
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(
                    again(torch.from_numpy(X)[batch]), torch.from_numpy(y)[batch]
                )
                loss.backward()
                optimizer.step()
                step += 1
                weight = run.state(step)["0.weight"]
                assert_allclose(weight, again[0].weight.detach(), rtol=1e-4, atol=1e-6)
        assert run.n_steps == step
        assert same(run.state(step), model.module)
        kept = buffers_at(run, step, model)["exp_avg_sq"]
        squares = [optimizer.state[p]["exp_avg_sq"].flatten() for p in again.parameters()]
        assert_allclose(kept, torch.cat(squares), rtol=1e-3, atol=1e-8)
    kept = train_ensemble(module, X, y, **params, directory=tmp_path)
    loaded = Trajectory.load(tmp_path / "seed-5")
    assert torch.equal(loaded.state(4)["2.bias"], ensemble.trajectories[1].state(4)["2.bias"])
    assert torch.equal(kept.models[1].theta, ensemble.models[1].theta)


def test_a_further_stage():
    X, y = rows()
    params = {"n_epochs": 2, "lr": 0.1, "batch_size": 10, "criterion": nn.MSELoss()}
    first = train_ensemble(
        nn.Linear(3, 1), X, y, n_seeds=2, checkpoints=2, random_state=0, **params
    )
    second = train_ensemble(nn.Linear(3, 1), X[:10], y[:10], start=first, checkpoints=1, **params)
    assert second.seeds == first.seeds
    assert first.trajectories[0].n_steps == 4
    run = second.trajectories[0]
    assert run.steps == [2, 4, 6]
    assert [(s.start, s.stop, s.n_rows) for s in run.stages] == [(0, 4, 20), (4, 6, 10)]
    assert torch.equal(run.state(1)["weight"], first.models[0].module.weight.detach())
    again = copy.deepcopy(first.models[0].module)
    for _ in range(2):  # one batch of all rows an epoch
        again.zero_grad()
        nn.functional.mse_loss(again(torch.from_numpy(X[:10])), torch.from_numpy(y[:10])).backward()
        with torch.no_grad():
            for p in again.parameters():
                p -= 0.1 * p.grad
    assert_allclose(run.state(2)["weight"], again.weight.detach(), rtol=1e-5)


def test_n_jobs_does_not_matter():
    X, y = rows()
    params = {"n_seeds": 2, "n_epochs": 2, "random_state": 0, "criterion": nn.MSELoss()}
    with joblib.parallel_config(backend="threading"):
        one, two = (train_ensemble(nn.Linear(3, 1), X, y, n_jobs=n, **params) for n in (1, 2))
    for a, b in zip(one.models, two.models, strict=True):
        assert torch.equal(a.theta, b.theta)


def test_errors_of_train_ensemble():
    X, y = rows()
    params = {"n_epochs": 1, "n_seeds": 1, "criterion": nn.MSELoss()}
    with pytest.raises(ValueError, match=r"checkpoints must be steps between 0 and 1, got \[7\]"):
        train_ensemble(nn.Linear(3, 1), X, y, checkpoints=[7], **params)
    with pytest.raises(ValueError, match="checkpoints must be a number, a list of steps or 'all'"):
        train_ensemble(nn.Linear(3, 1), X, y, checkpoints="some", **params)
    with pytest.raises(ValueError, match="n_epochs must be given"):
        train_ensemble(nn.Linear(3, 1), X, y, criterion=nn.MSELoss())
