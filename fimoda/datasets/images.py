"""Images: Fashion-MNIST and CIFAR-10."""

from __future__ import annotations

import gzip
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._files import Split, bunch, check_n_rows, check_subset, find_file

#: Where the package dataset-fashion-mnist of Debian and Ubuntu puts its files.
_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

_CIFAR10_FILE = (
    "an .npz file with X_train and X_test, uint8 (n, 32, 32, 3), y_train and y_test, 0 to 9, and names, "
    "the ten classes (made from the images of cs.toronto.edu/~kriz/cifar.html by numpy.savez_compressed)"
)

_CIFAR10 = """CIFAR-10, or a part of it: 32 x 32 colour images of ten kinds of animals and vehicles.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""


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
    X_train, y_train = _fashion_images(folder, "train", "n_train", n_train)
    X_test, y_test = _fashion_images(folder, "t10k", "n_test", n_test)
    return X_train, X_test, y_train, y_test


def _fashion_images(
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
    check_n_rows(name, n_rows, len(X))
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


def load_cifar10(
    path: str | os.PathLike[str] | None = None,
    *,
    subset: str = "train",
    n_rows: int | None = None,
    return_X_y: bool = False,
) -> Any:
    """Return CIFAR-10 (32 x 32 colour images of ten kinds of things), or the part of it that a file holds.

    Parameters
    ----------
    path : path, default=None
        An .npz file with ``X_train`` and ``X_test``, uint8 (n, 32, 32, 3), ``y_train`` and ``y_test``, 0
        to 9, and ``names``, or a directory that holds it as ``cifar10_small.npz`` or ``cifar10.npz``; by
        default what ``FIMODA_DATA`` names.
    subset : {"train", "test"}, default="train"
        Training or test rows.
    n_rows : int, default=None
        Number of rows, the first of the subset; all by default.
    return_X_y : bool, default=False
        Return ``(data, target)`` in place of the Bunch.

    Returns
    -------
    data : ``sklearn.utils.Bunch``
        ``data``, float32 (n, 3, 32, 32) in [0, 1], channels first as convolutions of torch take them;
        ``target``, int64 (n,); ``target_names``, a list of ten; ``DESCR``.
    (data, target) : tuple
        With ``return_X_y=True``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, holds something else or fewer rows than asked for.

    References
    ----------
    Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    check_subset(subset)
    file = find_file(path, ("cifar10_small.npz", "cifar10.npz"), "CIFAR-10", _CIFAR10_FILE)
    X, y, names = _read_arrays(file, f"X_{subset}", f"y_{subset}", "names")
    if X.dtype != np.uint8 or X.shape[1:] != (32, 32, 3) or y.shape != (len(X),):
        raise ValueError(
            f"{str(file)!r} must be {_CIFAR10_FILE}; X_{subset} is {X.dtype} of shape {X.shape}, "
            f"y_{subset} has shape {y.shape}."
        )
    data = np.divide(X.transpose(0, 3, 1, 2), 255, dtype=np.float32, order="C")
    labels, classes = y.astype(np.int64), [str(name) for name in names]
    return bunch(data, labels, n_rows, return_X_y, target_names=classes, DESCR=_CIFAR10)


def _read_arrays(file: Path, *keys: str) -> list[NDArray[Any]]:
    """Return arrays of an .npz file."""
    try:
        with np.load(file) as content:
            return [content[key] for key in keys]
    except KeyError as error:
        raise ValueError(f"{str(file)!r} must be {_CIFAR10_FILE}: {error.args[0]}.") from error
    except (EOFError, OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{str(file)!r} is damaged ({error}). Get it again.") from error
