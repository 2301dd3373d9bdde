"""Loaders on small files of the published formats."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fimoda.datasets import split_breast_cancer, split_concrete, split_fashion_mnist

PARTS = {"train": 12, "t10k": 5}


def idx(array: np.ndarray) -> bytes:
    """The idx format: type, number of axes, lengths, bytes."""
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def fashion(tmp_path):
    """Directory with small files, and what is in them."""
    rng = np.random.default_rng(0)
    content = {}
    for part, n in PARTS.items():
        images, labels = rng.integers(256, size=(n, 28, 28)), rng.integers(10, size=n)
        content[part] = images, labels
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return tmp_path, content


@pytest.mark.parametrize(("n_train", "n_test"), [(None, None), (7, 2), (12, 5)])
def test_fashion_mnist(fashion, n_train, n_test):
    folder, content = fashion
    for data_home in (folder, str(folder)):
        X_train, X_test, y_train, y_test = split_fashion_mnist(n_train, n_test, data_home)
        for X, y, part, n in (
            (X_train, y_train, "train", n_train),
            (X_test, y_test, "t10k", n_test),
        ):
            images, labels = content[part]
            assert X.dtype == np.float32
            assert y.dtype == np.int64
            assert_array_equal(X, images[:n].reshape(-1, 784).astype(np.float32) / np.float32(255))
            assert_array_equal(y, labels[:n])
            assert 0 <= X.min() < X.max() == 1


@pytest.mark.parametrize(("name", "value"), [("n_train", 13), ("n_test", 6), ("n_train", 0)])
def test_fashion_mnist_has_so_many_rows(fashion, name, value):
    most = PARTS["train" if name == "n_train" else "t10k"]
    with pytest.raises(ValueError, match=f"{name} must be between 1 and {most}.*got {value}"):
        split_fashion_mnist(**{name: value}, data_home=fashion[0])


def test_fashion_mnist_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist") as caught:
        split_fashion_mnist(data_home=tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "short", "long", "head", "type", "no gzip"])
def test_fashion_mnist_is_damaged(fashion, damage):
    file = fashion[0] / "t10k-images-idx3-ubyte.gz"
    packed = file.read_bytes()
    content = gzip.decompress(packed)
    file.write_bytes(
        {
            "cut": packed[: len(packed) // 2],
            "short": gzip.compress(content[:-1]),
            "long": gzip.compress(content + b"0"),
            "head": gzip.compress(content[:6]),
            "type": gzip.compress(content[:2] + b"\x0d" + content[3:]),
            "no gzip": content,
        }[damage]
    )
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte.gz' is damaged"):
        split_fashion_mnist(data_home=fashion[0])


def test_fashion_mnist_of_two_origins(fashion):
    (fashion[0] / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(3))))
    with pytest.raises(ValueError, match="12 images and 3 labels of the part 'train'"):
        split_fashion_mnist(data_home=fashion[0])


def test_breast_cancer():
    X_train, X_test, y_train, y_test = split_breast_cancer()
    assert X_train.shape == (512, 30)
    assert X_test.shape == (57, 30)
    assert abs(X_train.mean(0)).max() < 1e-5
    assert set(y_train) == set(y_test) == {0, 1}


def test_concrete(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    header = ",".join([f"x{i}" for i in range(8)] + ["compressive_strength"])
    np.savetxt(
        tmp_path / "concrete.csv",
        rng.normal(3, 2, size=(50, 9)),
        delimiter=",",
        header=header,
        comments="",
    )
    X_train, X_test, y_train, y_test = split_concrete(tmp_path)
    assert [len(part) for part in (X_train, X_test, y_train, y_test)] == [45, 5, 45, 5]
    assert np.abs(X_train.mean(0)).max() < 1e-5
    monkeypatch.delenv("FIMODA_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="FIMODA_DATA"):
        split_concrete()
