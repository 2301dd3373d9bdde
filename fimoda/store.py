"""The store on disk: a run's directory of files with digests, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pickle
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

if sys.platform != "win32":
    import fcntl

T = TypeVar("T")

#: Says which run a directory belongs to.
MANIFEST = "run.json"

#: Begins the names of files that are being written. A killed process leaves one behind.
PART = ".part-"

#: Bytes of the digest at the end of a file.
DIGEST_SIZE = 32

#: What readers raise about contents that are not theirs.
_READING = (
    ValueError, EOFError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError, OSError,
)  # fmt: skip


class DamagedFileError(OSError):
    """A file that is not as the run has written it."""

    def __init__(self, path: Path, reason: str):
        super().__init__(errno.EIO, f"{str(path)!r} is damaged: {reason}")
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return OSError, self.args


class Store:
    """A directory that belongs to one run.

    Each file ends with a digest of the run, its own name and its content, so that one that was
    changed, renamed or taken from another run is found out. Directory and files can be read and
    written by their owner only. Nothing in it is unpickled. Messages call it by the user's `parameter`.
    """

    def __init__(self, path: str | os.PathLike[str], parameter: str):
        if not os.fspath(path):
            raise ValueError(f"{parameter} must be the path of a directory, got ''.")
        self.path = Path(path).absolute()
        self.parameter = parameter
        self.run = ""

    def __str__(self) -> str:
        return f"{self.parameter} {str(self.path)!r}"

    # ---- the directory ----------------------------------------------------------------------

    def make(self) -> None:
        """Make the directory unless it is there, and clear what killed runs have left behind.

        Raises OSError if it cannot be made, or belongs to another user or may be written by everybody.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(error.errno, f"{self} cannot be made: {error.strerror}") from error
        self.check()
        for part in self.path.glob(f"{PART}*"):
            with contextlib.suppress(OSError), part.open("rb") as file:
                if _lock(file, wait=False):  # nobody writes it
                    part.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise PermissionError if others own the directory, or everybody may write it."""
        self._check_owner(self.path, self.path.stat())

    def _check_owner(self, path: Path, about: os.stat_result) -> None:
        """Raise PermissionError unless a path is in the hands of this user (or the administrator)."""
        if os.name != "posix":
            return
        if about.st_uid not in (os.geteuid(), 0):
            wrong = f"belongs to another user (number {about.st_uid})"
        elif about.st_mode & stat.S_IWOTH:
            wrong = "can be written by every user (`chmod o-w` mends that)"
        else:
            return
        raise PermissionError(
            errno.EPERM,
            f"{self}: {str(path)!r} {wrong}, so its content cannot be trusted. Choose a directory of "
            "your own.",
        )

    def names(self) -> list[str]:
        """Return the names of all files, but for those that are being written."""
        return sorted(p.name for p in self.path.iterdir() if not p.name.startswith(PART))

    # ---- whose it is ------------------------------------------------------------------------

    def claim(self, run: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest unless there is one, and return what it says: one of several wins."""
        text = json.dumps({"digest": _digest_of_run(run), "run": run}, indent=1)
        if not (self.path / MANIFEST).exists():
            self._write(MANIFEST, lambda file: file.write(text.encode()), new=True)
        found = self.manifest()
        self.run = _digest_of_run(found)
        return found

    def manifest(self) -> dict[str, Any]:
        """Return what the manifest says; FileNotFoundError if there is none, ValueError if damaged."""
        path = self.path / MANIFEST
        reason: object = "it is not as it was written"
        try:
            with path.open("rb") as file:
                self._check_owner(path, os.fstat(file.fileno()))
                known = json.loads(file.read())
            if "digest" not in known and "run" not in known:
                raise ValueError(
                    f"{self} was written by an earlier version of fimoda, without digests that would "
                    "show damage. Choose another directory."
                )
            if known["digest"] == _digest_of_run(known["run"]):
                return known["run"]
        except (FileNotFoundError, PermissionError):
            raise
        except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            reason = error
        raise ValueError(
            f"{self} has an unreadable {MANIFEST}: {reason}. Choose another directory."
        )

    # ---- files ------------------------------------------------------------------------------

    def write(self, name: str, save: Callable[[IO[bytes]], object], new: bool = False) -> None:
        """Write a file whole or not at all; OSError if it cannot be.

        It takes the place of one of its name, unless it is to be `new`: then that one stays.
        """

        def sealed(file: IO[bytes]) -> None:
            digesting = _Digesting(file, self._begun(name))
            try:
                save(digesting)  # type: ignore[arg-type]
            except Exception as error:  # torch makes another error of one in writing
                raise digesting.error or error from error
            file.write(digesting.digest.digest())

        self._write(name, sealed, new)

    def read(self, name: str, load: Callable[[IO[bytes]], T]) -> T:
        """Return what `load` makes of a file, which is checked first.

        Raises FileNotFoundError if there is none, DamagedFileError if it is not as it was written, and
        PermissionError if it belongs to another user, or may be written by everybody.
        """
        path = self.path / name
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DamagedFileError(path, error.strerror or str(error)) from error
        with file:
            about = os.fstat(file.fileno())
            self._check_owner(path, about)
            digest, left = self._begun(name), about.st_size - DIGEST_SIZE
            try:
                while left > 0 and (block := file.read(min(left, 2**20))):
                    digest.update(block)
                    left -= len(block)
                if left != 0 or file.read() != digest.digest():
                    raise ValueError("its content is not what was written")
                file.seek(0)
                return load(file)
            except _READING as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise DamagedFileError(path, reason) from error

    def _begun(self, name: str) -> Any:
        return hashlib.blake2b(f"{self.run}\n{name}\n".encode(), digest_size=DIGEST_SIZE)

    def _write(self, name: str, save: Callable[[IO[bytes]], object], new: bool = False) -> None:
        """Write a temporary file, flush it to the disk, and give it its name in one step."""
        path = self.path / name
        try:
            with self._new_part() as file:
                save(file)
                file.flush()
                os.fsync(file.fileno())
                if sys.platform == "win32":  # where an open file cannot be renamed
                    file.close()
                if new:  # all while it is locked: others clear what is not
                    _link(Path(file.name), path)
                else:
                    os.replace(file.name, path)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self} cannot be written: {error.strerror or error} ({name}). Finished files are "
                "kept; make room or permissions and call again to resume.",
            ) from error

    @contextlib.contextmanager
    def _new_part(self) -> Iterator[Any]:
        """Open a temporary file of the owner's, locked as long as it is written, gone at the end."""
        while True:
            file = tempfile.NamedTemporaryFile(dir=self.path, prefix=PART, delete=False)
            try:
                with file:
                    _lock(file, wait=True)
                    if os.fstat(file.fileno()).st_nlink:  # or else another has cleared it before
                        yield file
                        return
            finally:
                Path(file.name).unlink(missing_ok=True)


class _Digesting:
    """A file that is written in one go, and the digest of what was."""

    def __init__(self, file: IO[bytes], digest: Any):
        self._file, self.digest = file, digest
        self.flush = file.flush
        self.error: OSError | None = None

    def write(self, block: Any) -> int:
        """Write bytes."""
        self.digest.update(block)
        try:
            return self._file.write(block)
        except OSError as error:
            self.error = error
            raise


def _digest_of_run(run: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()


def _lock(file: Any, wait: bool) -> bool:
    """Lock a file, and return whether that has worked; the end of the process unlocks it."""
    if sys.platform == "win32":  # where an open file cannot be removed anyway
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # locked by another, or a file system without locks
        return False
    return True


def _link(part: Path, path: Path) -> None:
    """Give a file its name unless another has it."""
    try:
        os.link(part, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not path.exists():
            part.replace(path)
