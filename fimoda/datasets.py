"""Data sets of examples and benchmarks."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

Split = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def split_breast_cancer(test_size: float = 0.1, random_state: int = 0) -> Split:
    """Breast cancer (569 rows, 30 standardised features), split into training and test rows.

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
    scaler = StandardScaler().fit(X_train)
    return (
        scaler.transform(X_train).astype(np.float32),
        scaler.transform(X_test).astype(np.float32),
        y_train.astype(np.int64),
        y_test.astype(np.int64),
    )


def split_concrete(path: str | os.PathLike[str] | None = None) -> Split:
    """Concrete compressive strength by the protocol of the papers: 927 training, 103 test rows.

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
    train, test = train_test_split(rows, test_size=0.1, random_state=0)
    scaler = StandardScaler().fit(train)
    train, test = (scaler.transform(part).astype(np.float32) for part in (train, test))
    return train[:, :8], test[:, :8], train[:, 8:], test[:, 8:]
