"""Finished work units on disk, found again by the next call and computed again if damaged."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._identity import versions
from ..store import MANIFEST, DamagedFileError, Store

#: Files that were found damaged since `one_warning` began.
_FOUND: ContextVar[list[Path] | None] = ContextVar("_FOUND", default=None)


class UnitStore:
    """A directory of arrays, one file a work unit, that belongs to one run.

    `identity` says in plain numbers, strings, lists and dicts what the run is, and `variant` tells
    files of the same units apart that were computed in another way. A directory that holds another
    run, or one of other versions of what computes, is refused by a ValueError that names what differs;
    OSError says that it cannot be written, or that others can write it.
    """

    def __init__(
        self, directory: str | os.PathLike[str], identity: dict[str, Any], variant: str = ""
    ):
        self._variant = variant
        self._files = Store(directory, "checkpoint_dir")
        self._files.make()
        others = self._files.names()
        # another process may have begun, and finished units, since the files were listed
        if others and not (self._files.path / MANIFEST).exists():
            raise ValueError(
                f"{self._files} holds other files ({others[0]!r}, ...) and no run of fimoda. Choose an "
                "empty or new directory."
            )
        own = json.loads(json.dumps({**versions(), **identity}))
        found = self._files.claim(own)
        different = [
            f"{key}: there {_short(found.get(key))}, now {_short(own.get(key))}"
            for key in sorted({*found, *own})
            # as text, in which NaN equals itself
            if json.dumps(found.get(key)) != json.dumps(own.get(key))
        ]
        if different:
            raise ValueError(
                f"{self._files} belongs to another run ({'; '.join(different[:4])}). Choose another "
                "directory, or call with the arguments of that run to resume it."
            )

    def of_variant(self, variant: str) -> UnitStore:
        """Return the same directory, for files of another variant."""
        other = copy.copy(self)
        other._variant = variant
        return other

    def agreed(self, name: str, decide: Callable[[], str]) -> str:
        """Return what a file says that `decide` has written, by whichever process came first."""
        with contextlib.suppress(FileNotFoundError, DamagedFileError):
            return str(self.read(name))
        self._write(name, np.array(decide()), new=True)
        return str(self.read(name))

    def path(self, key: str) -> Path:
        """Return the path of a unit's file."""
        return self._files.path / (f"{key}-{self._variant}.npy" if self._variant else f"{key}.npy")

    def has(self, key: str) -> bool:
        """Return whether there is a file of the unit, sound or not."""
        return self.path(key).is_file()

    def read(self, key: str) -> NDArray[Any]:
        """Return the array of a finished unit; OSError if there is none, or it is damaged."""
        return self._files.read(self.path(key).name, lambda file: np.load(file, allow_pickle=False))

    def get(self, key: str, again: Callable[[], NDArray[Any]] | None = None) -> StoredArray | None:
        """Return the array of a finished unit, or None if there is none or it is damaged.

        `again` computes it, should it be damaged later.
        """
        try:
            self._files.read(self.path(key).name, lambda _: None)
        except FileNotFoundError:
            return None
        except DamagedFileError as error:
            _tell([error.path])
            return None
        return StoredArray(self, key, again)

    def put(
        self, key: str, array: NDArray[Any], again: Callable[[], NDArray[Any]] | None = None
    ) -> StoredArray:
        """Keep a finished unit."""
        self._write(key, np.ascontiguousarray(array))
        return StoredArray(self, key, again)

    def _write(self, key: str, array: NDArray[Any], new: bool = False) -> None:
        self._files.write(
            self.path(key).name,
            lambda file: np.lib.format.write_array(file, array, allow_pickle=False),
            new,
        )

    def require_space(self, n_bytes: int) -> None:
        """Raise OSError unless the file system has room for `n_bytes` more."""
        free = shutil.disk_usage(self._files.path).free
        if n_bytes > free:
            raise OSError(
                f"{self._files} needs {n_bytes / 2**20:.0f} MiB and has {free / 2**20:.0f} MiB free. "
                "Free some space, or leave out fewer rows or seeds."
            )


@dataclass(frozen=True)
class StoredArray:
    """An array on disk, read when ``np.asarray`` asks for it: holds no memory and no open file.

    `again` computes it where the file of the unit `key` has vanished or is damaged.
    """

    store: UnitStore
    key: str
    again: Callable[[], NDArray[Any]] | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        try:
            found = self.store.read(self.key)
        except (FileNotFoundError, DamagedFileError):
            if self.again is None:
                raise
            _tell([self.store.path(self.key)])
            found = self.again()
            with contextlib.suppress(OSError):  # is needed now, kept or not
                self.store.put(self.key, found)
        return np.asarray(found, dtype=dtype)


@contextlib.contextmanager
def one_warning() -> Iterator[None]:
    """Say once, at the end of the outermost, which files were found damaged inside."""
    found: list[Path] = []
    token = _FOUND.set(found)
    try:
        yield
    finally:
        _FOUND.reset(token)
        if found:
            _tell(found)


def _tell(paths: list[Path]) -> None:
    """Warn of damaged files, or leave that to `one_warning` around."""
    gathered = _FOUND.get()
    if gathered is not None:
        gathered.extend(paths)
        return
    more = f" and {len(paths) - 1} more files" if len(paths) > 1 else ""
    warnings.warn(
        f"{str(paths[0])!r}{more} in checkpoint_dir vanished or were damaged (their content is not "
        "what was written) and are computed again. Look after the disk if you have not touched them.",
        RuntimeWarning,
        stacklevel=4,
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
