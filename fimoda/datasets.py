"""Data sets of examples and benchmarks."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

Split = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[Any], NDArray[Any]]

#: Where the package dataset-fashion-mnist of Debian and Ubuntu puts its files.
_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def split_breast_cancer(test_size: float = 0.1, random_state: int = 0) -> Split:
    """Return breast cancer (569 rows, 30 standardised features), split into training and test rows.

    Parameters
    ----------
    test_size : float, default=0.1
        Share of the test rows.
    random_state : int, default=0
        Seed of the split.

    Returns
    -------
    X_train, X_test, y_train, y_test : ndarray
        Features as float32, labels (1 is benign) as int64.

    Examples
    --------
    >>> from fimoda.datasets import split_breast_cancer
    >>> X_train, X_test, y_train, y_test = split_breast_cancer()
    >>> X_train.shape
    (512, 30)
    """
    X, y = load_breast_cancer(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, test_size=test_size, random_state=random_state, stratify=y
    )
    return *_standardised(X_train, X_test), y_train.astype(np.int64), y_test.astype(np.int64)


def split_concrete(path: str | os.PathLike[str] | None = None) -> Split:
    """Return concrete compressive strength by the protocol of the papers: 927 training, 103 test rows.

    All nine columns, the target included, are standardised with the training rows' statistics.

    Parameters
    ----------
    path : path, default=None
        A comma-separated file with eight features and ``compressive_strength``, or a directory
        that holds it as ``concrete.csv``; by default what ``FIMODA_DATA`` names.

    Returns
    -------
    X_train, X_test, y_train, y_test : ndarray of float32
        Features (n, 8) and targets (n, 1).

    Raises
    ------
    FileNotFoundError
        If there is no such file.

    References
    ----------
    Yeh, "Concrete Compressive Strength", UCI Machine Learning Repository, 1998, CC BY 4.0.
    """
    given = path if path is not None else os.environ.get("FIMODA_DATA")
    if given is None:
        raise FileNotFoundError(
            "Concrete is not part of fimoda: pass the path of concrete.csv or set FIMODA_DATA to "
            "the directory that holds it (UCI Machine Learning Repository, Concrete Compressive "
            "Strength)."
        )
    file = Path(given)
    file = file / "concrete.csv" if file.is_dir() else file
    if not file.exists():
        raise FileNotFoundError(
            f"{str(file)!r} does not exist; see split_concrete for what it holds."
        )
    rows = np.genfromtxt(file, delimiter=",", skip_header=1)
    train, test = _standardised(*train_test_split(rows, test_size=0.1, random_state=0))
    return train[:, :8], test[:, :8], train[:, 8:], test[:, 8:]


def _standardised(
    train: NDArray[Any], test: NDArray[Any]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return both as float32, standardised with the statistics of the training rows."""
    scaler = StandardScaler().fit(train)
    return scaler.transform(train).astype(np.float32), scaler.transform(test).astype(np.float32)


def split_fashion_mnist(
    n_train: int | None = None,
    n_test: int | None = None,
    data_home: str | os.PathLike[str] | None = None,
) -> Split:
    """Return Fashion-MNIST (28 x 28 grey images of ten kinds of clothes), split as it is published.

    The first rows of the 60,000 for training and the first of the 10,000 for testing; both are
    published in random order. Pixels lie in [0, 1].

    Parameters
    ----------
    n_train, n_test : int, default=None
        Numbers of training and test rows; all by default.
    data_home : path, default=None
        Directory with the four files as published (``train-images-idx3-ubyte.gz``,
        ``train-labels-idx1-ubyte.gz``, ``t10k-images-idx3-ubyte.gz``, ``t10k-labels-idx1-ubyte.gz``);
        by default where Debian's and Ubuntu's package dataset-fashion-mnist puts them.

    Returns
    -------
    X_train, X_test, y_train, y_test : ndarray
        Pixels as float32 (n, 784), labels (0 to 9) as int64.

    Raises
    ------
    FileNotFoundError
        If a file is not there.
    ValueError
        If a file is damaged or has fewer rows than asked for.

    References
    ----------
    Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
    Algorithms", arXiv 1708.07747, MIT licence.
    """
    folder = _FASHION_MNIST if data_home is None else Path(data_home)
    X_train, y_train = _images(folder, "train", "n_train", n_train)
    X_test, y_test = _images(folder, "t10k", "n_test", n_test)
    return X_train, X_test, y_train, y_test


def _images(
    folder: Path, part: str, name: str, n_rows: int | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return images as rows of float32, and labels, of one part of Fashion-MNIST."""
    X = _read_idx(folder / f"{part}-images-idx3-ubyte.gz")
    y = _read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
    if len(X) != len(y):
        raise ValueError(
            f"{str(folder)!r} holds {len(X)} images and {len(y)} labels of the part {part!r}, which "
            "must be as many. Get the files again."
        )
    if n_rows is not None and not 1 <= n_rows <= len(X):
        raise ValueError(f"{name} must be between 1 and {len(X)}, or None; got {n_rows!r}.")
    rows = X[:n_rows].reshape(-1, X[0].size)
    return np.divide(rows, 255, dtype=np.float32), y[:n_rows].astype(np.int64)


def _read_idx(file: Path) -> NDArray[np.uint8]:
    """Return the array of bytes in a gzipped file of the idx format."""
    if not file.exists():
        raise FileNotFoundError(
            f"{str(file)!r} does not exist. Fashion-MNIST is not part of fimoda: on Debian and Ubuntu "
            "install it by `apt-get install dataset-fashion-mnist`, elsewhere pass as data_home the "
            "directory that holds its four .gz files (github.com/zalandoresearch/fashion-mnist)."
        )
    try:
        content = gzip.decompress(file.read_bytes())
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{str(file)!r} is damaged ({error}). Get it again.") from error
    # two zeros, the type (8 is an unsigned byte), the number of axes, and their lengths
    n_axes = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    start = 4 + 4 * n_axes
    shape = np.frombuffer(content[4:start], ">u4") if len(content) >= start else np.zeros(0)
    if not n_axes or len(content) != start + int(shape.prod()):
        raise ValueError(
            f"{str(file)!r} is damaged: it is not an idx file of unsigned bytes as long as its head says. "
            "Get it again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape.astype(int))
