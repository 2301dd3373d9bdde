"""Sentences: SST-2."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._files import bunch, check_subset, find_file, read_lines

_SST2_FILE = (
    "a file of two columns with a tab between them, gzipped or not, whose first line is their names, label "
    "(0 or 1) and that of the sentences (SST-2 of gluebenchmark.com)"
)

_SST2 = """Stanford Sentiment Treebank in two classes (SST-2), as in GLUE.

67,349 training sentences and phrases of film reviews, negative (class 0) or positive (class 1), and 872 for
testing (the development set of GLUE, whose test labels are not published).
"""


def load_sst2(
    path: str | os.PathLike[str] | None = None,
    *,
    subset: str = "train",
    n_rows: int | None = None,
    return_X_y: bool = False,
) -> Any:
    """Return SST-2: sentences of film reviews, negative or positive.

    Parameters
    ----------
    path : path, default=None
        A file of two columns with a tab between them, gzipped or not, whose first line is their names,
        ``label`` (0 or 1) and any other for the sentences, or a directory that holds ``sst2_train.tsv.gz``
        and ``sst2_dev.tsv.gz`` (or ``train.tsv`` and ``dev.tsv``, as GLUE has them); by default what
        ``FIMODA_DATA`` names.
    subset : {"train", "test"}, default="train"
        Training sentences or those of the development set. Given a file, it is taken as the subset asked for.
    n_rows : int, default=None
        Number of sentences, the first of the subset; all by default.
    return_X_y : bool, default=False
        Return ``(data, target)`` in place of the Bunch.

    Returns
    -------
    data : ``sklearn.utils.Bunch``
        ``data``, a list of n strings; ``target``, int64 (n,), 1 for positive; ``target_names``; ``DESCR``.
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
    Socher et al., "Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank", EMNLP
    2013.
    """
    check_subset(subset)
    part = "train" if subset == "train" else "dev"
    names = (f"sst2_{part}.tsv.gz", f"sst2_{part}.tsv", f"{part}.tsv")
    sentences, labels = _read_sst2(find_file(path, names, "SST-2", _SST2_FILE))
    return bunch(
        sentences, labels, n_rows, return_X_y, target_names=["negative", "positive"], DESCR=_SST2
    )


def _read_sst2(file: Path) -> tuple[list[str], NDArray[np.int64]]:
    """Return the sentences and labels of a file."""
    head, *lines = read_lines(file) or [""]
    columns = head.split("\t")
    if len(columns) != 2 or columns.count("label") != 1:
        raise ValueError(f"{str(file)!r} must be {_SST2_FILE}; its first line is {head[:100]!r}.")
    rows = [line.split("\t") for line in lines]
    at = columns.index("label")
    for number, row in enumerate(rows, start=1):
        if len(row) != 2 or row[at] not in ("0", "1"):
            raise ValueError(
                f"{str(file)!r} must be {_SST2_FILE}; sentence {number} is {lines[number - 1][:100]!r}. Get "
                "it again."
            )
    return [row[1 - at] for row in rows], np.array([row[at] for row in rows]).astype(np.int64)
