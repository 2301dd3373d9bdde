"""Models and results on disk, for the command line."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import joblib
from torch import nn

from .top_rows import printable

#: Kinds of tables, and what writes them.
WRITERS = {".csv": "to_csv", ".parquet": "to_parquet"}

#: Libraries one of which a kind of file needs.
_ENGINES = {
    ".parquet": ("pyarrow", "fastparquet"), ".feather": ("pyarrow",), ".skops": ("skops",),
}  # fmt: skip

#: Beginnings of cells that spreadsheets take for formulas.
_FORMULA = re.compile(r"[=+\-@\t\r\n]")


class UsageError(Exception):
    """Something the user can mend; printed without a traceback."""


def suffix(path: str) -> str:
    """Return the kind of a file, ``.csv`` for ``rows.CSV``."""
    return Path(path).suffix.lower()


def note(what: str) -> None:
    """Tell the user something that is no result."""
    print(printable(what), file=sys.stderr)


def check_engine(path: str) -> None:
    """Raise unless there is a library for this kind of file."""
    needed = _ENGINES.get(suffix(path), ())
    if needed and not any(map(find_spec, needed)):
        raise UsageError(f"{path}: {suffix(path)} files need {needed[0]}: pip install {needed[0]}.")


# ---- models -------------------------------------------------------------------------------------


def load_model(path: str, trust: str | None) -> Any:
    """Load a model.

    `trust` is None for nothing that could run code, empty for everything, or otherwise the types of
    a .skops file that may be loaded, separated by commas.
    """
    if not Path(path).is_file():
        raise UsageError(f"--model: there is no file {path}.")
    check_engine(path)
    try:
        model = _load_skops(path, trust) if suffix(path) == ".skops" else _load_pickle(path, trust)
    except UsageError:
        raise
    except Exception as error:  # an unpickler raises whatever it meets
        raise UsageError(
            f"--model: {path} cannot be loaded ({type(error).__name__}: {error}). It must hold a fitted "
            "model, saved by joblib.dump, pickle.dump or skops, and be loaded with the libraries "
            "that it was saved with."
        ) from error
    if isinstance(model, nn.Module):
        raise UsageError(
            f"--model: {path} holds a torch.nn.Module, which does not know what it was trained with. "
            "Save a fitted skorch net of it, or call fimoda.attribute(..., criterion=...)."
        )
    return model


def _load_skops(path: str, trust: str | None) -> Any:
    from skops import io

    unknown = io.get_untrusted_types(file=path)
    trusted = unknown if trust == "" else (trust or "").split(",")
    refused = [one for one in unknown if one not in trusted]
    if refused:
        raise UsageError(
            f"--model: {path} holds types that skops does not know to be safe: {', '.join(refused)}. "
            "Loading them may run code. If you trust whoever made the file, add --trust, or "
            f"--trust {','.join(unknown)}."
        )
    if unknown:
        note(f"{path}: trusted as you said: {', '.join(unknown)}.")
    return io.load(path, trusted=unknown)


def _load_pickle(path: str, trust: str | None) -> Any:
    if trust is None:
        raise UsageError(
            f"--model: {path} is a pickle: loading it runs whatever code it holds. If you trust whoever "
            "made the file, add --trust. Files of skops (.skops) can be looked at before they run."
        )
    if trust:
        raise UsageError(
            f"--trust: {path} is a pickle, which is trusted as a whole or not at all: give --trust "
            f"without types, got {trust!r}."
        )
    return joblib.load(path)


# ---- results ------------------------------------------------------------------------------------


def check_out(
    path: str, kinds: Collection[str], inputs: Mapping[str, str], overwrite: bool
) -> None:
    """Raise unless results may be written to a path that ends in one of `kinds`; write nothing.

    The files in `inputs`, by their options, are never overwritten; others only with `overwrite`.
    """
    if suffix(path) not in kinds:
        raise UsageError(f"--out must end in {', '.join(kinds)}, got {path!r}.")
    out = Path(path).resolve()
    if not out.parent.is_dir():
        raise UsageError(f"--out: there is no directory {out.parent}.")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise UsageError(f"--out: files cannot be made in the directory {out.parent}.")
    check_engine(path)
    if not out.exists():
        return
    for option, other in inputs.items():
        if Path(other).exists() and out.samefile(other):
            raise UsageError(
                f"--out: {path} is the file of {option}, which is never overwritten. Choose another name."
            )
    if out.is_dir():
        raise UsageError(f"--out: {path} is a directory. Give the name of a file.")
    if not overwrite:
        raise UsageError(f"--out: {path} exists. Choose another name, or add --overwrite.")


def write_whole(path: str, save: Callable[[Path], object]) -> None:
    """Write a file whole or not at all, by `save`: until it is written, an older one stays."""
    out = Path(path).resolve()
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".part-") as beside:
            part = Path(beside) / out.name
            save(part)
            with part.open("rb") as written:
                os.fsync(written.fileno())
            if out.exists():
                shutil.copymode(out, part)
            part.replace(out)
    except OSError as error:
        raise UsageError(
            f"--out: {path} cannot be written ({error.strerror or error}). What was there is as it was."
        ) from error


def without_formulas(label: Any) -> Any:
    """Return a label that no spreadsheet takes for a formula: with a quote before one that it would."""
    if not isinstance(label, str) or not _FORMULA.match(label):
        return label
    try:
        float(label)
    except ValueError:
        return f"'{label}"
    return label
