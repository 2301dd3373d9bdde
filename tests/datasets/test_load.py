"""Loaders of files that are not part of the package, on small files of the same formats."""

from __future__ import annotations

import gzip
import os

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fimoda.datasets import load_cifar10, load_heloc, load_sst2

NAMES = [f"x{i}" for i in range(21)] + ["MSinceMostRecentDelq", "MSinceMostRecentInqexcl7days"]
SENTENCES = {"train": ["good , good", 'a "bad" one', "so\x85so"], "dev": ["bad", "fine"]}
LABELS = {"train": [1, 0, 1], "dev": [0, 1]}


@pytest.fixture
def sst2(tmp_path):
    for part, sentences in SENTENCES.items():
        lines = [f"{y}\t{x}" for x, y in zip(sentences, LABELS[part], strict=True)]
        name = "sentence" if part == "train" else "content"
        text = "\n".join([f"label\t{name}", *lines, ""])
        (tmp_path / f"sst2_{part}.tsv.gz").write_bytes(gzip.compress(text.encode()))
    return tmp_path


@pytest.fixture
def cifar10(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "X_train": rng.integers(256, size=(6, 32, 32, 3), dtype=np.uint8),
        "y_train": rng.integers(10, size=6),
        "X_test": rng.integers(256, size=(3, 32, 32, 3), dtype=np.uint8),
        "y_test": rng.integers(10, size=3),
        "names": np.array([f"class {i}" for i in range(10)]),
    }
    np.savez_compressed(tmp_path / "cifar10_small.npz", **arrays)
    return tmp_path, arrays


@pytest.fixture
def heloc(tmp_path):
    """Directory with 30 rows, three of which have no value, and the numbers."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 50, size=(30, 23))
    X[rng.random(X.shape) < 0.1] = -8
    X[::5, -2:] = -7
    X[[3, 11, 20]] = -9
    y = rng.integers(2, size=30)
    rows = [",".join([("Bad", "Good")[t], *map(str, x)]) for x, t in zip(X, y, strict=True)]
    text = "\n".join([",".join(["RiskPerformance", *NAMES]), *rows])
    (tmp_path / "heloc.csv.gz").write_bytes(gzip.compress(text.encode()))
    return tmp_path, X, y


# ---- what they return -----------------------------------------------------------------------


def test_sst2(sst2):
    for subset, part in (("train", "train"), ("test", "dev")):
        found = load_sst2(sst2, subset=subset)
        assert found.data == SENTENCES[part]
        assert_array_equal(found.target, LABELS[part])
    assert found.target.dtype == np.int64
    assert found.target_names == ["negative", "positive"]
    assert "Sentiment" in found.DESCR


def test_sst2_as_glue_has_it(tmp_path):
    (tmp_path / "train.tsv").write_text("sentence\tlabel\r\nvery good\t1\r\nvery bad\t0\r\n")
    for path in (tmp_path, tmp_path / "train.tsv"):
        X, y = load_sst2(path, return_X_y=True)
        assert X == ["very good", "very bad"]
        assert_array_equal(y, [1, 0])


def test_cifar10(cifar10):
    folder, arrays = cifar10
    for subset in ("train", "test"):
        found = load_cifar10(folder, subset=subset)
        assert found.data.dtype == np.float32
        assert found.data.flags.c_contiguous
        images = arrays[f"X_{subset}"]
        assert_allclose(found.data[1, 2], images[1, :, :, 2] / 255, rtol=1e-6)
        assert found.data.shape == (len(images), 3, 32, 32)
        assert_array_equal(found.target, arrays[f"y_{subset}"])
    assert found.target_names[3] == "class 3"


def test_heloc_as_it_is(heloc):
    folder, X, y = heloc
    parts = [load_heloc(folder, subset=subset, prepared=False) for subset in ("train", "test")]
    data, target = (np.concatenate([part[key] for part in parts]) for key in ("data", "target"))
    some = (X != -9).any(axis=1)
    assert [len(part.data) for part in parts] == [24, 3]
    order, expected = np.lexsort(data.T), np.lexsort(X[some].T)
    assert_array_equal(data[order], X[some][expected])
    assert_array_equal(target[order], y[some][expected])
    assert parts[0].feature_names == NAMES
    assert parts[0].target_names == ["Bad", "Good"]


def test_heloc_prepared(heloc):
    folder, _, _ = heloc
    raw, X = (load_heloc(folder, prepared=prepared).data for prepared in (False, True))
    assert_allclose(X.mean(0), 0, atol=1e-5)
    assert_allclose(X.std(0), 1, rtol=1e-5)
    for k, name in enumerate(NAMES):
        column, known = raw[:, k].astype(float), raw[raw[:, k] >= 0, k].astype(float)
        column[column == -7] = known.max() if name.startswith("MSince") else known.mean()
        column[column < 0] = known.mean()
        assert_allclose(X[:, k], (column - column.mean()) / column.std(), rtol=1e-4, atol=1e-5)
    test = load_heloc(folder, subset="test").data
    assert np.abs(test.mean(0)).max() > 0.1  # standardised as the training rows are


@pytest.mark.parametrize("load", [load_sst2, load_cifar10, load_heloc])
def test_first_rows_and_the_environment(load, sst2, cifar10, heloc, monkeypatch):
    everything = load(sst2)  # all three are in one directory
    monkeypatch.setenv("FIMODA_DATA", str(sst2))
    X, y = load(n_rows=2, return_X_y=True)
    assert_array_equal(X, everything.data[:2])
    assert_array_equal(y, everything.target[:2])


# ---- what they refuse -----------------------------------------------------------------------


@pytest.mark.parametrize("load", [load_sst2, load_cifar10, load_heloc])
def test_wrong_arguments(load, sst2, cifar10, heloc):
    with pytest.raises(ValueError, match="subset must be 'train' or 'test', got 'dev'"):
        load(sst2, subset="dev")
    for number in (0, 1_000):
        with pytest.raises(ValueError, match=rf"n_rows must be between 1 and \d+.*got {number}"):
            load(sst2, n_rows=number)


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (load_sst2, "sst2_dev.tsv.gz"),
        (load_cifar10, "cifar10_small.npz"),
        (load_heloc, "heloc.csv"),
    ],
)
def test_no_file(load, name, tmp_path, monkeypatch):
    monkeypatch.delenv("FIMODA_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=rf"not part of fimoda: pass as path.*{name}.*FIM"):
        load(subset="test")
    with pytest.raises(FileNotFoundError, match=rf"^path is .*no file .*{name}.* It must be") as e:
        load(tmp_path, subset="test")
    assert str(tmp_path) in str(e.value)
    monkeypatch.setenv("FIMODA_DATA", str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError, match=r"^FIMODA_DATA is .*absent"):
        load()


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (load_sst2, "sst2_train.tsv.gz"),
        (load_cifar10, "cifar10_small.npz"),
        (load_heloc, "heloc.csv.gz"),
    ],
)
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_files(load, name, damage, sst2, cifar10, heloc):
    file = sst2 / name
    content = bytearray(file.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2 : len(content) // 2 + 8] = bytes(8)
    else:
        content = bytearray()
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}' (is damaged|must be)"):
        load(sst2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text\tscore\nfine\t1", r"its first line is 'text\\tscore'"),
        ("label\tsentence\n1\tfine\n2\tfine", r"sentence 2 is '2\\tfine'"),
        ("label\tsentence\n1 fine", "sentence 1 is '1 fine'"),
    ],
)
def test_other_sentences(tmp_path, text, message):
    (tmp_path / "train.tsv").write_text(text)
    with pytest.raises(ValueError, match=rf"must be a file of two columns.*{message}"):
        load_sst2(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"names": None}, "names"),
        ({"X_train": np.zeros((6, 3, 32, 32), np.uint8)}, r"uint8 of shape \(6, 3, 32, 32\)"),
        ({"X_train": np.zeros((6, 32, 32, 3))}, "float64"),
        ({"y_train": np.zeros(5, int)}, r"y_train has shape \(5,\)"),
    ],
)
def test_other_images(cifar10, changed, message):
    folder, arrays = cifar10
    content = {k: v for k, v in {**arrays, **changed}.items() if v is not None}
    np.savez(folder / "cifar10_small.npz", **content)
    with pytest.raises(ValueError, match=rf"must be an \.npz file with X_train.*{message}"):
        load_cifar10(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("RiskPerformance", "Risk"), "first line has 24 columns: Risk, x0"),
        ((",x7", ""), "first line has 23 columns"),
        (("Good,", "Fair,"), "row 1 is 'Fair,"),
        (("Good,", "Good,high"), "could not convert"),
    ],
)
def test_other_tables(heloc, change, message):
    file = heloc[0] / "heloc.csv.gz"
    text = gzip.decompress(file.read_bytes()).decode()
    file.write_bytes(gzip.compress(text.replace(*change).encode()))
    with pytest.raises(ValueError, match=rf"must be a comma-separated file.*{message}"):
        load_heloc(file)


# ---- the files themselves -------------------------------------------------------------------


@pytest.mark.skipif("FIMODA_DATA" not in os.environ, reason="FIMODA_DATA is not set")
def test_the_published_files():
    assert [len(load_heloc(subset=s).target) for s in ("train", "test")] == [8883, 988]
    assert [len(load_sst2(subset=s).target) for s in ("train", "test")] == [67_349, 872]
    assert load_cifar10(subset="test", n_rows=5).data.shape == (5, 3, 32, 32)
