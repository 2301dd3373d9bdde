"""Trial by damage: the scores are the same bits, with a warning, or a sentence names the file."""

from __future__ import annotations

import os
import pickle
import shutil
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from fimoda import FurtherTraining, LeaveOneOut, Trajectory, train_on_subsets
from fimoda import store as store_module
from fimoda.store import MANIFEST, PART, Store

D = 3


def rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(12, D)).astype(np.float32)
    return X, X @ np.float32([1, -2, 0.5])


def further(directory, **changes):
    """Two seeds, two stacks each."""
    X, y = rows()
    torch.manual_seed(0)
    settings = {"n_seeds": [0, 1], "leave_out": [1, 4, 7], "chunk_size": 2, "lr": 0.05}
    return FurtherTraining(
        nn.Linear(D, 1),
        criterion=nn.MSELoss(),
        n_epochs=1,
        optimizer="SGD",
        batch_size=4,
        checkpoint_dir=directory,
        **{**settings, **changes},
    ).fit(X, y[:, None])


def scores(method):
    X, y = rows()
    return method.transform(X[:3], y[:3, None])


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A finished run, another of the same shapes, and the scores."""
    folder = tmp_path_factory.mktemp("kept")
    expected = scores(further(folder / "run"))
    further(folder / "other", lr=0.01)
    return folder, expected


def units(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.npy"))


# ---- what may happen to files -----------------------------------------------------------------


def flip(part: float) -> Callable[[Path, Path], None]:
    """Turn one bit, at a part of the way through the file."""

    def act(file: Path, _: Path) -> None:
        content = bytearray(file.read_bytes())
        content[int(part * (len(content) - 1))] ^= 16
        file.write_bytes(content)

    return act


def cut(part: float) -> Callable[[Path, Path], None]:
    def act(file: Path, _: Path) -> None:
        content = file.read_bytes()
        file.write_bytes(content[: int(part * len(content))])

    return act


def zero(begin: float, end: float) -> Callable[[Path, Path], None]:
    def act(file: Path, _: Path) -> None:
        content = bytearray(file.read_bytes())
        a, b = int(begin * len(content)), int(end * len(content))
        content[a:b] = bytes(b - a)
        file.write_bytes(content)

    return act


def swap(file: Path, _: Path) -> None:
    second = units(file.parent)[2]
    first = file.read_bytes()
    file.write_bytes(second.read_bytes())
    second.write_bytes(first)


def rename(file: Path, _: Path) -> None:
    file.replace(units(file.parent)[2])


def of_another_run(file: Path, other: Path) -> None:
    shutil.copy(other / file.name, file)


def as_directory(file: Path, _: Path) -> None:
    file.unlink()
    file.mkdir()


def without_digest(file: Path, _: Path) -> None:
    """As an earlier version has written it."""
    np.save(file, np.load(file))


def of_other_shape(file: Path, _: Path) -> None:
    with file.open("wb") as f:
        np.save(f, np.ones((1, 2, D + 5), np.float32))


def as_zip(file: Path, _: Path) -> None:
    with file.open("wb") as f:
        np.savez(f, a=np.load(units(file.parent)[2]))


def remove(file: Path, _: Path) -> None:
    file.unlink()


def longer(file: Path, _: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0" * 16)


def no_permission(file: Path, _: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("everything may be read by root")
    file.chmod(0)


DAMAGES = {
    **{f"flip {part}": flip(part) for part in (0, 0.05, 0.2, 0.4, 0.5, 0.6, 0.75, 0.9, 1)},
    **{f"cut {part}": cut(part) for part in (0, 0.01, 0.3, 0.5, 0.8, 0.999)},
    **{f"zero {a}": zero(a, b) for a, b in ((0, 0.1), (0.4, 0.6), (0.5, 1), (0, 1))},
    "swap": swap,
    "rename": rename,
    "of another run": of_another_run,
    "directory": as_directory,
    "no digest": without_digest,
    "other shape": of_other_shape,
    "zip": as_zip,
    "removed": remove,
    "longer": longer,
    "no permission": no_permission,
}


@pytest.mark.parametrize("when", ["before fit", "after fit"])
@pytest.mark.parametrize("name", DAMAGES)
def test_unit(name, when, kept, tmp_path):
    """A damaged unit is computed again: the same bits, one warning."""
    folder, expected = kept
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    method = further(run) if when == "after fit" else None
    DAMAGES[name](units(run)[0], folder / "other")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if name == "directory" and method is None:  # it cannot be replaced
            with pytest.raises(OSError, match=units(run)[0].name):
                further(run)
            return
        found = scores(further(run) if method is None else method)
    np.testing.assert_array_equal(found, expected)
    said = [str(w.message) for w in said if "checkpoint_dir" in str(w.message)]
    silent = name == "removed" and when == "before fit"  # as if never computed
    assert len(said) == (0 if silent else 1), said
    if name != "directory":  # mended on the disk, too
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(scores(further(run)), expected)


def test_every_unit_is_damaged(kept, tmp_path):
    """One warning for all, in each call."""
    folder, expected = kept
    shutil.copytree(folder / "run", tmp_path / "run")
    for unit in units(tmp_path / "run"):
        flip(0.5)(unit, tmp_path)
    with pytest.warns(RuntimeWarning, match=r"and 3 more files in checkpoint_dir") as said:
        method = further(tmp_path / "run")
    assert len(said) == 1
    for unit in units(tmp_path / "run"):
        flip(0.7)(unit, tmp_path)
    with pytest.warns(RuntimeWarning, match=r"and 3 more files in checkpoint_dir") as said:
        np.testing.assert_array_equal(scores(method), expected)
    assert len(said) == 1


@pytest.mark.parametrize("way", ["as it is", "pickled"])
def test_the_whole_directory_vanishes_after_fit(way, kept, tmp_path):
    folder, expected = kept
    shutil.copytree(folder / "run", tmp_path / "run")
    method = further(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    if way == "pickled":
        method = pickle.loads(pickle.dumps(method))
    with pytest.warns(RuntimeWarning, match="vanished or were damaged"):
        np.testing.assert_array_equal(scores(method), expected)


def test_retrained_networks(tmp_path):
    X, y = rows()

    def fitted():
        torch.manual_seed(0)
        return LeaveOneOut(
            nn.Linear(D, 1), criterion=nn.MSELoss(), n_epochs=1, n_seeds=[0], lr=0.1, chunk_size=5,
            optimizer="SGD", batch_size=4, checkpoint_dir=tmp_path,
        ).fit(X, y[:, None])  # fmt: skip

    method = fitted()
    expected = scores(method)
    flip(0.6)(units(tmp_path)[0], tmp_path)
    with pytest.warns(RuntimeWarning, match="are computed again"):
        np.testing.assert_array_equal(scores(method), expected)
    flip(0.6)(units(tmp_path)[1], tmp_path)
    with pytest.warns(RuntimeWarning, match="are computed again"):
        np.testing.assert_array_equal(scores(fitted()), expected)


# ---- manifests --------------------------------------------------------------------------------

MANIFESTS = {
    "flipped": flip(0.5),
    "cut": cut(0.5),
    "empty": cut(0),
    "zeroed": zero(0, 1),
    "directory": as_directory,
    "not JSON": lambda file, _: file.write_bytes(b"\xff\xfe"),
    "a list": lambda file, _: file.write_text("[1, 2]"),
    "a number": lambda file, _: file.write_text("3"),
    "another run's": of_another_run,
    "an earlier version's": lambda file, _: file.write_text('{"lr": 0.05}'),
    "removed": remove,
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest(name, kept, tmp_path):
    folder, _ = kept
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    MANIFESTS[name](run / MANIFEST, folder / "other")
    with pytest.raises((ValueError, OSError), match=f"checkpoint_dir '{run}'"):
        further(run)


# ---- trajectories -----------------------------------------------------------------------------


def recorded(directory) -> Trajectory:
    torch.manual_seed(0)
    net = nn.Linear(D, 1)
    run = Trajectory(directory=directory)
    run.begin_stage(n_rows=4)
    for step in range(6):
        run.add_step(0.1 + step, [step % 4])
        if step % 2:
            with torch.no_grad():
                net.weight += 1
            run.add_checkpoint(net)
    return run


def content(run: Trajectory) -> list[torch.Tensor]:
    return [value for k in range(len(run)) for value in run.state(k).values()]


TRAJECTORY_DAMAGES = {
    name: act
    for name, act in DAMAGES.items()
    if name not in ("swap", "rename", "no digest", "zip", "removed")
} | {
    "no digest": lambda file, _: torch.save(torch.load(file, weights_only=True), file),
    "swap": lambda file, _: shutil.copy(file.with_name("step-000000004.pt"), file),
    "removed": remove,
}


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("name", TRAJECTORY_DAMAGES)
def test_checkpoint(name, saved, tmp_path):
    """There is nothing to compute it from: both reading and loading say which file it is."""
    file = "step-000000002.pt"
    run = recorded(tmp_path / "run")
    other = recorded(tmp_path / "other")
    if saved:
        run.save()
        other.save()
    TRAJECTORY_DAMAGES[name](tmp_path / "run" / file, tmp_path / "other")
    with pytest.raises(OSError, match=file):
        content(run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(OSError, match=file if saved or name != "removed" else "lacks"):
            Trajectory.load(tmp_path / "run")


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_of_a_trajectory(name, tmp_path):
    recorded(tmp_path / "run").save()
    recorded(tmp_path / "other").save()
    MANIFESTS[name](tmp_path / "run" / MANIFEST, tmp_path / "other")
    with pytest.raises((ValueError, OSError), match=f"{tmp_path}/run"):
        Trajectory.load(tmp_path / "run")


@pytest.mark.parametrize("act", [flip(0.5), cut(0.4), cut(0), zero(0, 1), as_directory, remove])
def test_record_of_a_trajectory(act, tmp_path):
    """Each checkpoint holds what was recorded since the one before."""
    run = recorded(tmp_path)
    run.save()
    act(tmp_path / "run.pt", tmp_path)
    with pytest.warns(RuntimeWarning, match="ends at its last checkpoint, after step 6"):
        loaded = Trajectory.load(tmp_path)
    np.testing.assert_array_equal(loaded.learning_rates, run.learning_rates)
    assert [one.tolist() for one in loaded.batches] == [one.tolist() for one in run.batches]
    assert [(s.name, s.start, s.stop, s.n_rows) for s in loaded.stages] == [("stage 0", 0, 6, 4)]
    assert all(map(torch.equal, content(loaded), content(run)))


def test_cut_off_after_it_was_saved(tmp_path):
    """Saved, recorded further as a second stage, and killed before it was saved again."""
    run = recorded(tmp_path)
    run.add_step(9.0, [3])
    run.save()
    loaded = Trajectory.load(tmp_path)
    assert (loaded.steps, loaded.n_steps) == ([2, 4, 6], 7)
    run.begin_stage(n_rows=2, rows=[0, 3])
    run.add_step(0.5, [1])
    run.add_checkpoint(nn.Linear(D, 1))
    with pytest.warns(RuntimeWarning, match="after step 8"):
        loaded = Trajectory.load(tmp_path)
    np.testing.assert_array_equal(loaded.learning_rates, run.learning_rates)
    assert [one.tolist() for one in loaded.batches] == [one.tolist() for one in run.batches]
    assert [(s.start, s.stop) for s in loaded.stages] == [(0, 7), (7, 8)]
    np.testing.assert_array_equal(loaded.stages[1].rows, [0, 3])
    loaded.add_step(0.1, [0])
    with pytest.raises(ValueError, match="one architecture"):  # also after loading
        loaded.add_checkpoint(nn.Linear(D + 1, 1))


def test_earlier_version_of_a_trajectory(tmp_path):
    recorded(tmp_path)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"earlier version .*from_checkpoints"):
        Trajectory.load(tmp_path)
    with pytest.raises(FileExistsError, match="holds a recorded run"):
        Trajectory(directory=tmp_path)


def test_state_that_cannot_be_read_back(tmp_path):
    """Said with the first checkpoint, not by `load`."""
    run = Trajectory(directory=tmp_path, optimizer_params={"momentum": np.float64(0.5)})
    run.add_step(0.1)
    with pytest.raises(ValueError, match="optimizer_state=False"):
        run.add_state(nn.Linear(2, 1).state_dict(), {"weight": {"own": Path("x")}})
    run = Trajectory(directory=tmp_path / "other", optimizer_params={"momentum": np.float64(0.5)})
    run.add_step(0.1)
    run.add_state(nn.Linear(2, 1).state_dict())
    run.save()
    assert Trajectory.load(tmp_path / "other").optimizer_params == {"momentum": 0.5}


# ---- owners -----------------------------------------------------------------------------------


class Marker:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_modes(tmp_path):
    before = os.umask(0)
    try:
        further(tmp_path / "run")
        recorded(tmp_path / "trajectory").save()
    finally:
        os.umask(before)
    for directory in ("run", "trajectory"):
        assert stat.S_IMODE((tmp_path / directory).stat().st_mode) == 0o700
        modes = {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / directory).iterdir()}
        assert modes == {0o600}


@pytest.mark.parametrize("what", ["directory", MANIFEST, "unit"])
def test_what_everybody_may_write_is_refused(what, kept, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(kept[0] / "run", run)
    path = {"directory": run, MANIFEST: run / MANIFEST, "unit": units(run)[1]}[what]
    path.chmod(path.stat().st_mode | 0o002)
    with pytest.raises(PermissionError, match=r"can be written by every user .*cannot be trusted"):
        further(run)
    record = tmp_path / "trajectory"
    recorded(record)
    path = {"directory": record, MANIFEST: record / MANIFEST, "unit": next(record.glob("s*"))}[what]
    path.chmod(path.stat().st_mode | 0o002)
    with pytest.raises(PermissionError, match="can be written by every user"):
        Trajectory.load(record)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("what", ["directory", MANIFEST, "unit"])
def test_what_belongs_to_another_user_is_refused(what, kept, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(kept[0] / "run", run)
    os.chown({"directory": run, MANIFEST: run / MANIFEST, "unit": units(run)[1]}[what], 12345, -1)
    with pytest.raises(PermissionError, match="belongs to another user"):
        further(run)


def test_planted_objects_are_not_executed(kept, tmp_path):
    """Neither bare pickles, nor arrays of objects, nor those with a digest that fits."""
    folder, expected = kept
    run, marker = tmp_path / "run", tmp_path / "marker"
    shutil.copytree(folder / "run", run)
    planted = np.array([Marker(marker)], object)
    files = units(run)
    files[0].write_bytes(pickle.dumps(Marker(marker)))
    np.save(files[1], planted, allow_pickle=True)
    store = Store(run, "x")
    store.claim(store.manifest())
    store.write(files[2].name, lambda file: np.lib.format.write_array(file, planted))
    store.write(files[3].name, lambda file: pickle.dump(Marker(marker), file))
    with pytest.warns(RuntimeWarning, match="are computed again"):
        np.testing.assert_array_equal(scores(further(run)), expected)
    record = tmp_path / "trajectory"
    recorded(record)
    store = Store(record, "x")
    store.claim(store.manifest())
    store.write("step-000000002.pt", lambda file: torch.save(Marker(marker), file))
    with pytest.raises(OSError, match=r"step-000000002\.pt"):
        Trajectory.load(record)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Marker(marker)))
    assert marker.exists()  # it would have


def test_refits_keep_numbers_and_read_nothing_else(tmp_path):
    """Of scikit-learn estimators there are measurements on disk; planted pickles are not run."""
    X, y = rows()
    run, marker = tmp_path / "run", tmp_path / "marker"
    subsets = np.random.default_rng(0).permuted(np.tile([True, False], (4, 6)), axis=1)

    def measured():
        outcomes = train_on_subsets(
            Ridge(), X, y, subsets, X[:3], y[:3], n_seeds=[0], checkpoint_dir=run, chunk_size=2
        )
        return outcomes.measured

    expected = measured()
    for unit in units(run):
        assert not np.load(unit).dtype.hasobject
    units(run)[0].write_bytes(pickle.dumps([Marker(marker)]))
    np.save(units(run)[1], np.array([Marker(marker)], object), allow_pickle=True)
    with pytest.warns(RuntimeWarning, match="are computed again"):
        np.testing.assert_array_equal(measured(), expected)
    assert not marker.exists()


# ---- what others leave behind -----------------------------------------------------------------


def test_parts_of_killed_runs_are_cleared(tmp_path):
    """Those of a writer that is alive, here in another process, are not."""
    code = (
        "import runpy, sys\n"
        f"Store = runpy.run_path({store_module.__file__!r})['Store']\n"
        f"files = Store({str(tmp_path)!r}, 'x')\n"
        "def save(file):\n"
        "    file.write(b'half'); file.flush(); print('begun', flush=True); sys.stdin.readline()\n"
        "    file.write(b'whole')\n"
        "files.write('unit', save)\n"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for writer in writers:
        assert writer.stdout.readline() == "begun\n"
    (tmp_path / f"{PART}of-an-earlier-version").write_bytes(b"x")
    assert len(list(tmp_path.glob(f"{PART}*"))) == 3
    writers[0].kill()
    writers[0].wait()
    files = Store(tmp_path, "checkpoint_dir")
    files.make()
    assert len(list(tmp_path.glob(f"{PART}*"))) == 1
    writers[1].communicate("\n")
    assert writers[1].returncode == 0
    assert [p.name for p in tmp_path.iterdir()] == ["unit"]
    assert files.read("unit", lambda file: file.read()[:9]) == b"halfwhole"
