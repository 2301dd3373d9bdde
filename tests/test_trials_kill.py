"""Trial by kill: a run that is killed at any moment and called again ends with the same bits."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from forked import error_of, fork
from sklearn.linear_model import LogisticRegression
from torch import nn

from fimoda import (
    FurtherTraining,
    LeaveOneOut,
    Trajectory,
    further_training_curve,
    subset_removal_curve,
)
from fimoda.store import MANIFEST, PART
from fimoda.training.store import UnitStore

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

N, D = 30, 3


def rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, D)).astype(np.float32)
    return X, np.float32(np.sin(X[:, :1]))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))


SETTINGS = {
    "criterion": nn.MSELoss(),
    "optimizer": "Adam",
    "lr": 0.01,
    "batch_size": 8,
    "chunk_size": 2,
}


def further(directory):
    X, y = rows()
    return (
        FurtherTraining(
            network(), n_epochs=8, n_seeds=[0, 1], leave_out=[1, 2, 3, 4, 5],
            checkpoint_dir=directory, **SETTINGS,
        ).fit(X, y).transform(X[:3], y[:3])
    )  # fmt: skip


def curve(directory):
    X, y = rows()
    return further_training_curve(
        network(), X, y, X[:3], y[:3], epochs=[2, 8], n_seeds=[0, 1], leave_out=[1, 2, 3, 4, 5],
        checkpoint_dir=directory, **SETTINGS,
    ).per_seed  # fmt: skip


def retraining(directory):
    X, y = rows()
    return (
        LeaveOneOut(
            network(), n_epochs=4, n_seeds=[0], leave_out=list(range(8)), checkpoint_dir=directory,
            **SETTINGS,
        ).fit(X, y).transform(X[:3], y[:3])
    )  # fmt: skip


def refits(directory):
    X, y = rows()
    return (
        LeaveOneOut(LogisticRegression(), n_seeds=[0], chunk_size=2, checkpoint_dir=directory)
        .fit(X, y[:, 0] > 0)
        .transform(X[:3], y[:3, 0] > 0)
    )


def removal(directory):
    X, y = rows()
    train = LeaveOneOut(
        network(), n_epochs=4, n_seeds=[0], checkpoint_dir=directory, **SETTINGS
    )  # fmt: skip
    scores = np.random.default_rng(1).random((3, N))
    return subset_removal_curve(
        {"scores": scores}, train, y, X[:3], y[:3], X_train=X, k=[1, 2, 4, 8], task="regression",
        random_state=0,
    ).effects  # fmt: skip


WAYS = {
    "further": further, "curve": curve, "retraining": retraining, "refits": refits, "removal": removal,
}  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed():
    """Scores of each way without a directory."""
    torch.set_num_threads(1)
    return {name: way(None) for name, way in WAYS.items()}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("way", WAYS)
def test_killed_twice_and_resumed(way, seed, undisturbed, tmp_path):
    """At random moments from the first to the last file."""
    run, directory = WAYS[way], tmp_path / "run"
    rng = np.random.default_rng(seed)
    finished = kills = 0
    for _ in range(2):
        first = not finished and seed == 0  # also before anything is written
        wanted, delay = finished + rng.integers(0, 3), rng.uniform(0, 0.01)
        process = fork(lambda: run(directory))
        while os.waitpid(process, os.WNOHANG) == (0, 0):
            begun = first or (directory / MANIFEST).exists()
            if begun and len(list(directory.glob("*.npy"))) >= wanted:
                time.sleep(delay)
                os.kill(process, signal.SIGKILL)
                kills += os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
                break
            time.sleep(0.0005)
        finished = len(list(directory.glob("*.npy")))
    assert kills
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # nothing is damaged
        np.testing.assert_array_equal(run(directory), undisturbed[way])
    assert not list(directory.glob(f"{PART}*"))


# ---- trajectories -----------------------------------------------------------------------------


def recorded(directory, pause: float = 0.0) -> Trajectory:
    torch.manual_seed(0)
    net = nn.Linear(D, 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    X, y = map(torch.from_numpy, rows())
    run = Trajectory("Adam", directory=directory)
    run.begin_stage("first", n_rows=N)
    for step in range(24):
        if step == 12:
            run.begin_stage("second", n_rows=5, rows=range(5))
        optimizer.zero_grad()
        (net(X[:5]) - y[:5]).square().mean().backward()
        optimizer.step()
        run.add_step(0.1 / (step + 1), range(5))
        run.add_checkpoint(net, optimizer)
        time.sleep(pause)
    run.save()
    return run


@pytest.mark.parametrize("seed", range(4))
def test_killed_trajectory(seed, tmp_path):
    """What was recorded up to the last checkpoint is as in a run that was not killed."""
    whole = recorded(tmp_path / "whole")
    process = fork(lambda: recorded(tmp_path / "run", 0.001))
    wanted = 1 + 6 * seed
    while len(list(tmp_path.glob("run/step*"))) < wanted:
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    with pytest.warns(RuntimeWarning, match="was cut off before it was saved"):
        run = Trajectory.load(tmp_path / "run")
    assert run.n_steps == run.steps[-1] >= wanted
    np.testing.assert_array_equal(run.learning_rates, whole.learning_rates[: run.n_steps])
    assert len(run.batches) == run.n_steps
    assert [s.name for s in run.stages] == ["first", "second"][: 1 + (run.n_steps > 12)]
    for k in range(len(run)):
        for name, value in whole.state(k).items():
            assert torch.equal(run.state(k)[name], value)
    with pytest.raises(FileExistsError, match=r"holds a recorded run.*Trajectory\.load"):
        recorded(tmp_path / "run")


# ---- beginning at once ------------------------------------------------------------------------


def test_many_begin_on_one_fresh_directory(undisturbed, tmp_path):
    """As processes, all at the same moment: none fails, and all have the same scores."""

    def work():
        while not (tmp_path / "now").exists():
            pass
        np.testing.assert_array_equal(refits(tmp_path / "run"), undisturbed["refits"])

    processes = [fork(work) for _ in range(8)]
    (tmp_path / "now").touch()
    assert [os.waitpid(process, 0)[1] for process in processes] == [0] * 8


def test_one_of_two_runs_gets_the_directory(tmp_path):
    """200 fresh directories, two threads each: of two different runs exactly one is refused."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for k in range(200):
            told: list[str] = []

            def work(number, directory, told=told):
                try:
                    store = UnitStore(directory, {"number": number})
                    store.put(f"unit-{number}", np.ones(2))
                    told.append("")
                except Exception as error:
                    told.append(f"{type(error).__name__}: {error}")

            for identity in ((0, 1), (0, 0)):
                told.clear()
                directory = tmp_path / f"{k}-{identity[1]}"
                threads = [threading.Thread(target=work, args=(i, directory)) for i in identity]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                refused = sorted(told)[1]
                assert sorted(told)[0] == ""
                if identity == (0, 0):
                    assert refused == ""
                else:
                    assert refused.startswith("ValueError: checkpoint_dir")
                    assert "belongs to another run (number" in refused
    finally:
        sys.setswitchinterval(before)


def test_two_trajectories_on_one_directory(tmp_path):
    """The second to keep a checkpoint is told."""
    first, second = (Trajectory(directory=tmp_path) for _ in range(2))
    for run in (first, second):
        run.add_step(0.1)
    first.add_checkpoint(nn.Linear(2, 1))
    with pytest.raises(FileExistsError, match="holds a recorded run"):
        second.add_checkpoint(nn.Linear(2, 1))
    first.save()
    assert len(Trajectory.load(tmp_path)) == 1


# ---- disks ------------------------------------------------------------------------------------


def test_trajectory_on_a_full_disk(tmp_path):
    """No half of a checkpoint is left, and what was finished can be read."""
    resource = pytest.importorskip("resource")

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
        run = Trajectory(directory=tmp_path / "run")
        run.begin_stage(n_rows=2)
        for size in (10, 300):
            run._store._shapes = {}
            run.add_step(0.1)
            run.add_checkpoint(nn.Linear(size, size))

    last = error_of(work)
    assert last.startswith("OSError: [Errno 27]"), last
    assert f"directory '{tmp_path / 'run'}' cannot be written: File too large" in last
    names = sorted(p.name for p in (tmp_path / "run").iterdir())
    assert names == [MANIFEST, "step-000000001.pt"]
    with pytest.warns(RuntimeWarning, match="after step 1"):
        assert len(Trajectory.load(tmp_path / "run")) == 1
