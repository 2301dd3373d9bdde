"""Tables: breast cancer, concrete and HELOC."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from ._files import Split, bunch, check_subset, find_file, read_lines

_HELOC_FILE = (
    "a comma-separated file, gzipped or not, with the column RiskPerformance (Bad or Good) and 23 columns of "
    "numbers (FICO Community, Explainable Machine Learning Challenge)"
)

_HELOC = """Home Equity Line of Credit (HELOC), from FICO's Explainable Machine Learning Challenge.

10,459 applicants as published, 23 numbers from credit reports and whether they were more than 90 days late
within two years (Bad, class 0) or not (Good, class 1). -9 stands for no record, -8 for no usable value, -7
for a condition never met.
"""

#: Columns where -7 means that nothing has ever happened: months since the last delinquency or inquiry.
_NEVER = ("MSinceMostRecentDelq", "MSinceMostRecentInqexcl7days")


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
    file = find_file(
        path,
        "concrete.csv",
        "Concrete",
        "a comma-separated file with eight features and compressive_strength (UCI Machine Learning "
        "Repository, Concrete Compressive Strength)",
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


def load_heloc(
    path: str | os.PathLike[str] | None = None,
    *,
    subset: str = "train",
    n_rows: int | None = None,
    prepared: bool = True,
    return_X_y: bool = False,
) -> Any:
    """Return HELOC: risk of applicants for a line of credit, as numbers from their credit reports.

    Rows without any value are left out (9,871 of 10,459 remain); the rest are split at random, with a fixed
    seed, into 8,883 training and 988 test rows.

    Parameters
    ----------
    path : path, default=None
        A comma-separated file, gzipped or not, with the column ``RiskPerformance`` (Bad or Good) and 23
        columns of numbers, or a directory that holds it as ``heloc.csv.gz`` or ``heloc.csv``; by default what
        ``FIMODA_DATA`` names.
    subset : {"train", "test"}, default="train"
        Training or test rows.
    n_rows : int, default=None
        Number of rows, the first of the subset; all by default.
    prepared : bool, default=True
        Replace special values and standardise, as in the paper: "never" (-7) in the two columns of months
        since something happened becomes the largest value, every other special value the column's mean.
        Largest values, means and scales are those of the training rows. With False, numbers are as in the
        file.
    return_X_y : bool, default=False
        Return ``(data, target)`` in place of the Bunch.

    Returns
    -------
    data : ``sklearn.utils.Bunch``
        ``data``, float32 (n, 23); ``target``, int64 (n,), 1 for Good; ``target_names``; ``feature_names``, a
        list of 23; ``DESCR``.
    (data, target) : tuple
        With ``return_X_y=True``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged, has other columns or fewer rows than asked for.

    References
    ----------
    FICO Community, "Explainable Machine Learning Challenge", 2018. Prepared as in Wei et al.,
    "Final-Model-Only Data Attribution with a Unifying View of Gradient-Based Methods", NeurIPS 2025, arXiv
    2412.03906.
    """
    check_subset(subset)
    file = find_file(path, ("heloc.csv.gz", "heloc.csv"), "HELOC", _HELOC_FILE)
    names, X, y = _read_heloc(file)
    some = (X != -9).any(axis=1)
    X_train, X_test, y_train, y_test = train_test_split(
        X[some], y[some], test_size=0.1, random_state=0
    )
    if prepared:
        X_train, X_test = _standardised(*_without_special_values(names, X_train, X_test))
    X, y = (X_train, y_train) if subset == "train" else (X_test, y_test)
    return bunch(
        X.astype(np.float32),
        y,
        n_rows,
        return_X_y,
        target_names=["Bad", "Good"],
        feature_names=names,
        DESCR=_HELOC,
    )


def _read_heloc(file: Path) -> tuple[list[str], NDArray[np.float64], NDArray[np.int64]]:
    """Return the names of the features, their values and the targets as they are in the file."""
    head, *rows = list(csv.reader(read_lines(file))) or [[]]
    names = [name for name in head if name != "RiskPerformance"]
    if len(names) != 23 or len(head) != 24:
        raise ValueError(
            f"{str(file)!r} must be {_HELOC_FILE}; its first line has {len(head)} columns: "
            f"{', '.join(head[:30])}."
        )
    at = head.index("RiskPerformance")
    for number, row in enumerate(rows, start=1):
        if len(row) != 24 or row[at] not in ("Bad", "Good"):
            raise ValueError(
                f"{str(file)!r} must be {_HELOC_FILE}; row {number} is {','.join(row)[:100]!r}. Get it "
                "again."
            )
    try:
        X = np.array([row[:at] + row[at + 1 :] for row in rows], dtype=float)
    except ValueError as error:
        raise ValueError(f"{str(file)!r} must be {_HELOC_FILE}: {error}.") from error
    return names, X, np.array([row[at] == "Good" for row in rows], dtype=np.int64)


def _without_special_values(
    names: list[str], train: NDArray[Any], test: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return both with the largest value or the mean of the training rows where there is none."""
    known = np.where(train < 0, np.nan, train)
    never, unknown = np.nanmax(known, axis=0), np.nanmean(known, axis=0)
    counts = np.isin(names, _NEVER)

    def filled(X: NDArray[Any]) -> NDArray[Any]:
        return np.where((X == -7) & counts, never, np.where(X < 0, unknown, X))

    return filled(train), filled(test)
