"""Files of data sets that are not part of the package: where they are, and what is read from them."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch

Split = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[Any], NDArray[Any]]


def find_file(
    path: str | os.PathLike[str] | None, names: str | Sequence[str], title: str, content: str
) -> Path:
    """Return the file of a data set: the one given, or the first of some names in a directory."""
    names = [names] if isinstance(names, str) else names
    given = path if path is not None else os.environ.get("FIMODA_DATA")
    wanted = " or ".join(names)
    if given is None:
        raise FileNotFoundError(
            f"{title} is not part of fimoda: pass as path {wanted}, {content}, or set FIMODA_DATA to "
            "the directory that holds it."
        )
    place = Path(given)
    files = [place / name for name in names] if place.is_dir() else [place]
    for file in files:
        if file.is_file():
            return file
    origin = "path" if path is not None else "FIMODA_DATA"
    raise FileNotFoundError(
        f"{origin} is {str(given)!r}, and there is no file {' or '.join(repr(str(f)) for f in files)}. "
        f"It must be {content}, or the directory that holds it as {wanted}."
    )


def read_lines(file: Path) -> list[str]:
    """Return the lines of a text file, gzipped or not, that are not empty."""
    content = file.read_bytes()
    try:
        packed = content[:2] == b"\x1f\x8b"
        text = (gzip.decompress(content) if packed else content).decode()
    except (EOFError, OSError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{str(file)!r} is damaged ({error}). Get it again.") from error
    return [line.rstrip("\r") for line in text.split("\n") if line.strip()]


def check_subset(subset: str) -> None:
    """Raise an error for a subset that is none."""
    if subset not in ("train", "test"):
        raise ValueError(f"subset must be 'train' or 'test', got {subset!r}.")


def check_n_rows(name: str, n_rows: int | None, most: int) -> None:
    """Raise an error for a number of rows that a file does not have."""
    if n_rows is not None and not 1 <= n_rows <= most:
        raise ValueError(f"{name} must be between 1 and {most}, or None; got {n_rows!r}.")


def bunch(
    data: Any, target: NDArray[Any], n_rows: int | None, return_X_y: bool, **more: Any
) -> Any:
    """Return the first rows and what is said of them, or data and target alone."""
    check_n_rows("n_rows", n_rows, len(target))
    data, target = data[:n_rows], target[:n_rows]
    return (data, target) if return_X_y else Bunch(data=data, target=target, **more)
