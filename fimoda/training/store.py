"""Finished work units on disk: written whole or not at all, and found again by the next call."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._identity import versions

MANIFEST = "run.json"

#: Begins the names of files that are being written. A killed process leaves one behind.
PART = ".part-"


@dataclass(frozen=True)
class StoredArray:
    """An array on disk, read when ``np.asarray`` asks for it: holds no memory and no open file."""

    path: Path

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(np.load(self.path), dtype=dtype)


class UnitStore:
    """A directory of arrays, one file a work unit, that belongs to one run.

    Parameters
    ----------
    directory : path
        Made if it does not exist.
    identity : dict
        What the run is: plain numbers, strings and lists. A directory that holds another run is
        refused.

    Raises
    ------
    ValueError
        If the directory belongs to another run; the message names what differs.
    OSError
        If the directory cannot be written.
    """

    def __init__(self, directory: str | os.PathLike[str], identity: dict[str, Any]):
        self.directory = Path(directory).absolute()
        self.identity = json.loads(json.dumps({**versions(), **identity}))
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                error.errno,
                f"checkpoint_dir {str(self.directory)!r} cannot be made: {error.strerror}",
            ) from error
        manifest = self.directory / MANIFEST
        if manifest.exists():
            self._check_same_run(manifest)
        else:
            names = [p.name for p in self.directory.iterdir()]
            others = [name for name in names if not name.startswith(PART)]
            if others:
                raise ValueError(
                    f"checkpoint_dir {str(self.directory)!r} holds other files ({others[0]!r}, ...) "
                    "and no run of fimoda. Choose an empty or new directory."
                )
            self._write(manifest, json.dumps(self.identity, indent=1).encode())

    def _check_same_run(self, manifest: Path) -> None:
        try:
            found = json.loads(manifest.read_text())
        except (OSError, ValueError) as error:
            raise ValueError(
                f"checkpoint_dir {str(self.directory)!r} has an unreadable {MANIFEST}: {error}. "
                "Choose another directory."
            ) from error
        keys = sorted(set(found) | set(self.identity))
        different = [k for k in keys if found.get(k) != self.identity.get(k)]
        if different:
            shown = "; ".join(
                f"{k}: there {_short(found.get(k))}, now {_short(self.identity.get(k))}"
                for k in different[:4]
            )
            raise ValueError(
                f"checkpoint_dir {str(self.directory)!r} belongs to another run ({shown}). Choose "
                "another directory, or call with the arguments of that run to resume it."
            )

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}.npy"

    def has(self, key: str) -> bool:
        """Whether the unit is finished."""
        return self.get(key) is not None

    def get(self, key: str) -> StoredArray | None:
        """The array of a finished unit, or None. A file that was cut off is as good as none."""
        try:
            np.load(self._path(key), mmap_mode="r")  # its header, and whether its length agrees
        except (FileNotFoundError, ValueError, EOFError):
            return None
        return StoredArray(self._path(key))

    def put(self, key: str, array: NDArray[Any]) -> StoredArray:
        """Keep a finished unit."""
        self._write(self._path(key), array)
        return StoredArray(self._path(key))

    def require_space(self, n_bytes: int) -> None:
        """Raise OSError unless the file system has room for `n_bytes` more."""
        free = shutil.disk_usage(self.directory).free
        if n_bytes > free:
            raise OSError(
                f"checkpoint_dir {str(self.directory)!r} needs {n_bytes / 2**20:.0f} MiB and has "
                f"{free / 2**20:.0f} MiB free. Free some space, or leave out fewer rows or seeds."
            )

    def _write(self, path: Path, content: bytes | NDArray[Any]) -> None:
        """Write a temporary file, flush it to the disk, and give it its name in one step."""
        part = None
        try:
            with tempfile.NamedTemporaryFile(dir=self.directory, prefix=PART, delete=False) as f:
                part = Path(f.name)
                if isinstance(content, bytes):
                    f.write(content)
                else:
                    np.lib.format.write_array(f, np.ascontiguousarray(content), allow_pickle=False)
                f.flush()
                os.fsync(f.fileno())
            part.replace(path)
        except OSError as error:
            raise OSError(
                error.errno,
                f"checkpoint_dir {str(self.directory)!r} cannot be written: {error.strerror or error}. "
                "Finished units are kept; make room or permissions and call again to resume.",
            ) from error
        finally:
            if part is not None:
                part.unlink(missing_ok=True)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
