"""Long work survives: kill, Ctrl-C, full disks, other runs' directories, too little memory."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fimoda import FurtherTraining, further_training_curve
from fimoda.store import MANIFEST, PART
from fimoda.training.store import UnitStore

N, D = 60, 4


def hinge(outputs, targets):
    """A measurement of the user's own."""
    return (1 - outputs.squeeze(-1) * targets.squeeze(-1)).clamp_min(0)


def problem():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, D)).astype(np.float32)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(D, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))
    return net, X, np.sin(X[:, 0])


def settings(**changes):
    """Twelve units: three stacks for each of four seeds."""
    run = {
        "n_seeds": [4, 2, 7, 1],
        "leave_out": [3, 8, 30, 31, 59],
        "chunk_size": 2,
        "optimizer": "SGD",
        "lr": 0.01,
        "batch_size": 16,
        "criterion": nn.MSELoss(),
    }
    return {**run, **changes}


N_UNITS = 12


def class_scores(directory, n_epochs=2, **changes):
    net, X, y = problem()
    gold = FurtherTraining(net, n_epochs=n_epochs, checkpoint_dir=directory, **settings(**changes))
    return gold.fit(X, y).transform(X[:5], y[:5])


def curve_scores(directory, n_epochs=2, **changes):
    net, X, y = problem()
    changes = {"measurement": hinge, **changes}
    curve = further_training_curve(
        *(net, X, y, X[:5], y[:5]),
        epochs=[1, n_epochs],
        checkpoint_dir=directory,
        **settings(**changes),
    )
    return curve.per_seed


WAYS = {"class": class_scores, "curve": curve_scores}

#: Epochs that make a unit take long enough to be interrupted between two.
LONG = 120


def start(way: str, directory: Path, *, limit: int = 0, **changes) -> subprocess.Popen:
    """The same run in a process of its own, as the leader of a group."""
    code = (
        "import resource, signal, sys\n"
        # a shell's background job, and all it starts, would ignore Ctrl-C
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        f"if {limit}:\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "import torch, test_store\n"
        "torch.set_num_threads(1)\n"
        f"test_store.WAYS[{way!r}]({str(directory)!r}, **{changes!r})\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a limit of the size of files would cut bytecode short, for everyone who imports it next
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )


def units(directory: Path) -> dict[str, tuple[int, int]]:
    """Finished units, with what changes when one is written again."""
    stats = {path.name: path.stat() for path in directory.glob("*.npy")}
    return {name: (s.st_ino, s.st_mtime_ns) for name, s in stats.items()}


def wait_for_units(process: subprocess.Popen, directory: Path, n: int) -> None:
    deadline = time.monotonic() + 120
    while not directory.exists() or len(units(directory)) < n:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)


# ---- resume ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_kill_and_resume(way, tmp_path):
    """Killed without warning, resumed with the same arguments, the same bits."""
    directory = tmp_path / "run"
    process = start(way, directory, n_epochs=LONG)
    wait_for_units(process, directory, 3)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL
    finished = units(directory)
    assert 3 <= len(finished) < N_UNITS
    resumed = WAYS[way](directory, n_epochs=LONG)
    assert len(units(directory)) == N_UNITS
    assert {name: units(directory)[name] for name in finished} == finished  # not done again
    np.testing.assert_array_equal(resumed, WAYS[way](None, n_epochs=LONG))
    np.testing.assert_array_equal(resumed, WAYS[way](directory, n_epochs=LONG))


def test_interrupt_and_resume(tmp_path):
    """Ctrl-C reaches the process and its workers, as in a terminal."""
    directory = tmp_path / "run"
    process = start("curve", directory, n_epochs=LONG, n_jobs=2)
    wait_for_units(process, directory, 2)
    os.killpg(process.pid, signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 1, 130)
    assert "KeyboardInterrupt" in messages
    finished = units(directory)
    assert 2 <= len(finished) < N_UNITS
    assert not list(directory.glob(f"{PART}*"))
    resumed = curve_scores(directory, n_epochs=LONG)
    assert {name: units(directory)[name] for name in finished} == finished
    np.testing.assert_array_equal(resumed, curve_scores(None, n_epochs=LONG))


def test_kill_before_the_first_file_is_named(tmp_path):
    """What a process killed inside its first write leaves behind is no foreign file."""
    (tmp_path / f"{PART}abc").write_bytes(b"{")
    np.testing.assert_array_equal(class_scores(tmp_path), class_scores(None))


def test_more_seeds_extend_a_run(tmp_path):
    first = curve_scores(tmp_path, n_seeds=[4, 2])
    finished = units(tmp_path)
    more = curve_scores(tmp_path)
    assert {name: units(tmp_path)[name] for name in finished} == finished
    np.testing.assert_array_equal(more[..., :2], first)
    np.testing.assert_array_equal(more, curve_scores(None))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kept", [0, 5, 64, -1])
def test_a_truncated_unit_is_computed_again(way, kept, tmp_path):
    expected = WAYS[way](tmp_path)
    victim = sorted(tmp_path.glob("*.npy"))[5]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:kept])
    np.testing.assert_array_equal(WAYS[way](tmp_path), expected)
    assert victim.read_bytes() == whole


def test_resuming_computes_nothing_again(tmp_path):
    expected = class_scores(tmp_path)
    before = units(tmp_path)
    np.testing.assert_array_equal(class_scores(tmp_path, n_jobs=2), expected)
    assert units(tmp_path) == before


# ---- directories ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 0.02}, "lr: there 0.01, now 0.02"),
        ({"n_epochs": 3}, r"epochs: there \[2\], now \[3\]"),
        ({"batch_size": 8}, "batch_size: there 16, now 8"),
        ({"leave_out_mode": "drop"}, "leave_out_mode: there 'mask', now 'drop'"),
        ({"optimizer": "Adam"}, "optimizer: there 'SGD', now 'Adam'"),
        (
            {"optimizer_params": {"momentum": 0.9}},
            r"optimizer_params: there {}, now {'momentum': 0.9}",
        ),
        ({"criterion": nn.L1Loss()}, "model: there"),
    ],
)
def test_another_run_is_refused(changes, named, tmp_path):
    class_scores(tmp_path)
    before = units(tmp_path)
    with pytest.raises(ValueError, match=f"belongs to another run .*{named}"):
        class_scores(tmp_path, **changes)
    assert units(tmp_path) == before


def test_other_data_or_measurements_are_refused(tmp_path):
    curve_scores(tmp_path)
    with pytest.raises(ValueError, match=r"belongs to another run .*measurement: there"):
        curve_scores(tmp_path, measurement=lambda outputs, targets: 2 * hinge(outputs, targets))
    with pytest.raises(ValueError, match=r"belongs to another run .*measurement: there"):
        curve_scores(tmp_path, measurement="loss")
    net, X, y = problem()
    X[7, 0] += 1
    gold = FurtherTraining(net, n_epochs=1, checkpoint_dir=tmp_path, **settings())
    with pytest.raises(ValueError, match=r"belongs to another run .*X: there"):
        gold.fit(X, y)


def test_a_schedule_that_differs_late_is_refused(tmp_path):
    run = {"n_epochs": 12, "n_seeds": [1]}
    class_scores(tmp_path, lr=lambda epoch: 0.01, **run)
    with pytest.raises(ValueError, match=r"belongs to another run .*lr: there"):
        class_scores(tmp_path, lr=lambda epoch: 0.01 if epoch < 11 else 0.001, **run)
    class_scores(tmp_path, lr=lambda epoch: 0.02 / 2, **run)  # the same, written otherwise


def test_foreign_files_are_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds other files \('thesis.txt'"):
        class_scores(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_unreadable_manifest_is_refused(tmp_path):
    class_scores(tmp_path, n_seeds=[1])
    (tmp_path / MANIFEST).write_text('{"lr": ')
    with pytest.raises(ValueError, match=f"unreadable {MANIFEST}"):
        class_scores(tmp_path, n_seeds=[1])


@pytest.mark.parametrize("where", ["below a file", "a file", "/proc"])
def test_directory_that_cannot_be_made(where, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    directory = {"below a file": file / "run", "a file": file, "/proc": Path("/proc/fimoda")}[where]
    with pytest.raises(OSError, match=f"checkpoint_dir '{directory}' cannot be made") as caught:
        class_scores(directory)
    assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.EPERM)


def test_relative_directory(tmp_path, monkeypatch):
    """The run is found again after the working directory has changed, and after pickling."""
    monkeypatch.chdir(tmp_path)
    net, X, y = problem()
    gold = FurtherTraining(net, n_epochs=1, checkpoint_dir="run", **settings()).fit(X, y)
    expected = gold.transform(X[:5], y[:5])
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(gold.transform(X[:5], y[:5]), expected)
    again = pickle.loads(pickle.dumps(gold))
    np.testing.assert_array_equal(again.transform(X[:5], y[:5]), expected)


def test_more_units_than_open_files(tmp_path):
    net, X, y = problem()
    n_open = len(os.listdir("/proc/self/fd"))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    run = settings(n_seeds=60, leave_out=[1], chunk_size=1, random_state=0)
    gold = FurtherTraining(net, n_epochs=1, checkpoint_dir=tmp_path, **run)
    resource.setrlimit(resource.RLIMIT_NOFILE, (n_open + 50, before[1]))
    try:
        scores = gold.fit(X, y).transform(X[:5], y[:5])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert len(units(tmp_path)) == 120
    run = {**run, "checkpoint_dir": None}
    plain = FurtherTraining(net, n_epochs=1, **run).fit(X, y).transform(X[:5], y[:5])
    np.testing.assert_array_equal(scores, plain)


# ---- disk and memory ------------------------------------------------------------------------


def test_disk_that_takes_no_more(tmp_path):
    """A file larger than the system allows: the error is clear, finished units stay."""
    directory = tmp_path / "run"
    run = {"leave_out_mode": "drop", "chunk_size": 5, "n_seeds": [4]}  # 1 model, then 5
    numbers = sum(p.numel() for p in problem()[0].parameters())
    process = start("class", directory, limit=4 * 4 * numbers, **run)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 1
    last = messages.strip().splitlines()[-1]
    assert last.startswith("OSError: [Errno 27]"), messages
    assert f"checkpoint_dir '{directory}' cannot be written: File too large" in last
    assert "Finished files are kept" in last
    finished = units(directory)
    assert len(finished) == 1
    assert sorted(p.name for p in directory.iterdir()) == sorted([*finished, MANIFEST])
    resumed = class_scores(directory, **run)
    assert {name: units(directory)[name] for name in finished} == finished
    np.testing.assert_array_equal(resumed, class_scores(None, **run))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(directory)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small file system is not permitted here")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def test_full_disk(small_disk):
    directory = small_disk / "run"
    store = UnitStore(directory, {"run": 1})
    kept = np.arange(1000.0)
    store.put("kept", kept)
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as f:
        while True:
            f.write(bytes(4096))
    with pytest.raises(OSError, match="cannot be written: No space left") as caught:
        store.put("lost", kept)
    assert caught.value.errno == errno.ENOSPC
    assert store.get("lost") is None
    np.testing.assert_array_equal(store.get("kept"), kept)
    assert sorted(p.name for p in directory.iterdir()) == ["kept.npy", MANIFEST]
    filler.unlink()
    np.testing.assert_array_equal(store.put("lost", kept), kept)


def test_disk_too_small_for_the_run(small_disk):
    """Said before anything is trained."""
    with pytest.raises(OSError, match=r"needs .* MiB and has .* MiB free"):
        class_scores(small_disk / "run", n_seeds=list(range(1000)))
    assert [p.name for p in (small_disk / "run").iterdir()] == [MANIFEST]


def test_read_only_directory(small_disk):
    class_scores(small_disk / "run", n_seeds=[1])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    class_scores(small_disk / "run", n_seeds=[1])  # all there: nothing to write
    with pytest.raises(OSError, match="cannot be written: Read-only file system"):
        class_scores(small_disk / "run", n_seeds=[1, 2])
    with pytest.raises(OSError, match="cannot be made: Read-only file system"):
        class_scores(small_disk / "other")


def test_space_is_checked_against_the_disk(tmp_path):
    store = UnitStore(tmp_path, {})
    store.require_space(1)
    with pytest.raises(OSError, match=r"needs \d+ MiB and has \d+ MiB free.*fewer rows or seeds"):
        store.require_space(2**60)


@pytest.mark.parametrize("way", WAYS)
def test_memory_is_checked_before_training(way, tmp_path):
    epochs = set()

    def rate(epoch):
        epochs.add(epoch)
        return 0.01

    with pytest.raises(MemoryError, match=r"4 seeds x 6 models .*memory_budget.*checkpoint_dir"):
        WAYS[way](None, lr=rate, memory_budget=100)
    assert epochs == {0}  # the second epoch was never asked for
    WAYS[way](tmp_path, memory_budget=100)  # on disk there is room


def test_memory_of_seeds_to_come_is_checked():
    """With n_seeds="auto", not after the first rounds are trained."""
    numbers = sum(p.numel() for p in problem()[0].parameters())
    five, twenty = (seeds * 6 * 4 * numbers for seeds in (5, 20))
    auto = {"n_seeds": "auto", "sem_tol": 1e-6, "max_seeds": 20, "random_state": 0}
    with pytest.raises(MemoryError, match=r"20 seeds x 6 models .*max_seeds"):
        class_scores(None, memory_budget=five, **auto)
    class_scores(None, memory_budget=twenty, n_epochs=1, **auto)


# ---- the store itself -----------------------------------------------------------------------


def test_units_come_back(tmp_path):
    store = UnitStore(tmp_path, {"lr": 0.1, "rows": (1, 2)})
    arrays = {"a": np.arange(6.0).reshape(1, 2, 3), "b": np.ones((2, 2), np.float32).T[:1]}
    for key, array in arrays.items():
        assert not store.has(key)
        assert store.get(key) is None
        np.testing.assert_array_equal(store.put(key, array), array)
    again = UnitStore(tmp_path, {"rows": [1, 2], "lr": 0.1})
    for key, array in arrays.items():
        assert again.has(key)
        found = np.asarray(again.get(key))
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype


def test_nothing_half_written_is_left_by_an_interrupt(tmp_path, monkeypatch):
    """Ctrl-C in the middle of a write, at the moment the file would get its name."""
    store = UnitStore(tmp_path, {})

    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with contextlib.suppress(KeyboardInterrupt):
            store.put("a", np.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == [MANIFEST]
    assert not store.has("a")
