"""Checkpoints of a run, in memory or on disk."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from typing import IO, Any

import torch
from torch import Tensor

from .._identity import versions
from ..store import MANIFEST, DamagedFileError, Store

#: What an optimiser keeps, by parameter and by its own names.
OptimizerState = dict[str, dict[str, Any]]

#: Name of the file of a run that has come to its end.
_RUN = "run"


class CheckpointStore:
    """States of a module, and of its optimiser, by the number of steps done.

    They are kept in a directory, one file each, and read by memory-mapping; without one, in memory.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None):
        self._files = None if directory is None else Store(directory, "directory")
        self._kept: dict[int, dict[str, Any] | None] = {}  # None is on disk
        self._shapes: dict[str, tuple[int, ...]] = {}

    @property
    def _on_disk(self) -> Store:
        if self._files is None:
            raise ValueError("directory must be given for a run in memory, got None.")
        return self._files

    @property
    def steps(self) -> list[int]:
        """Steps done at each checkpoint."""
        return sorted(self._kept)

    def begin(self) -> None:
        """Make the directory, if there is one; raise FileExistsError if it holds a run."""
        if self._files is None:
            return
        self._files.make()
        names = self._files.names()
        if MANIFEST in names or any(name.endswith(".pt") for name in names):
            self._refuse()

    def _refuse(self) -> None:
        raise FileExistsError(
            f"{self._on_disk} holds a recorded run. Choose an empty one, or read that run with "
            "Trajectory.load, which gives what was recorded of it even if it was cut off."
        )

    # ---- writing ----------------------------------------------------------------------------

    def put(
        self,
        step: int,
        state_dict: Mapping[str, Tensor],
        buffers: OptimizerState,
        record: dict[str, Any] | None = None,
    ) -> None:
        """Keep a checkpoint and, on disk, what was recorded of the run since the one before.

        ValueError if it is not finite, of another architecture than the one before, or could not be read;
        FileExistsError if the directory was empty at first and another run has come to it.
        """
        state = {name: cloned(v) for name, v in state_dict.items()}
        shapes = _shapes(state)
        known = self._shapes or shapes
        if shapes != known:
            wrong = next(k for k in {**known, **shapes} if known.get(k) != shapes.get(k))
            raise ValueError(
                f"checkpoints must be of one architecture: {wrong!r} has shape {shapes.get(wrong)} at "
                f"step {step} and {known.get(wrong)} before."
            )
        bad = [k for k, v in state.items() if not bool(torch.isfinite(v).all())]
        if bad:
            raise ValueError(
                f"checkpoints must be finite: {bad[0]!r} is NaN or infinite at step {step}. Training "
                "has diverged; lower lr."
            )
        kept = {"state": state, "optimizer": buffers}
        if self._files is not None:
            self._write(_file_name(step), {**kept, "record": record})
        self._kept[step] = kept if self._files is None else None
        self._shapes = shapes

    def finish(self, record: dict[str, Any]) -> None:
        """Write what was recorded of the whole run to its directory."""
        self._write(_RUN, {"steps": self.steps, "record": record})

    def _write(self, name: str, known: dict[str, Any]) -> None:
        """Write a file of tensors and numbers; the first one makes the directory this run's."""
        files = self._on_disk
        first = not files.run
        if first:
            own = {"trajectory": secrets.token_hex(16), **versions()}
            if files.claim(own) != own:
                files.run = ""
                self._refuse()
        files.write(f"{name}.pt", lambda file: torch.save(known, file))
        if first:  # what an optimiser of the user's own keeps may be of any kind
            try:
                self._read(name)
            except DamagedFileError as error:
                raise ValueError(
                    "the optimiser's state or settings hold more than tensors, numbers and text, which "
                    f"cannot be read back from a directory: {error}. Record without them "
                    "(optimizer_state=False), or in memory."
                ) from error

    # ---- reading ----------------------------------------------------------------------------

    def get(self, step: int) -> dict[str, Any]:
        """Return the checkpoint after a number of steps: ``state`` and ``optimizer``."""
        kept = self._kept[step]
        if kept is not None:
            return kept
        try:
            return self._read(_file_name(step))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self._files} lacks the checkpoint of step {step} ({_file_name(step)}.pt), which its "
                "run was recorded with."
            ) from error

    def _read(self, name: str) -> dict[str, Any]:
        return self._on_disk.read(f"{name}.pt", _load)

    def resume(self) -> tuple[list[dict[str, Any]], bool]:
        """Take up a directory's run; return the records of its parts, and whether it was cut off.

        FileNotFoundError if it holds none, or a checkpoint is missing; ValueError for another kind of
        run, or an earlier version; OSError if it is damaged, or others can write the directory.
        """
        files = self._on_disk
        names = files.names() if files.path.is_dir() else []
        if MANIFEST not in names:
            if any(name.endswith(".pt") for name in names):
                raise ValueError(
                    f"{files} has no {MANIFEST}: its run was recorded by an earlier version of fimoda, "
                    "without digests that would show damage. Record it again, or pass what its files "
                    "hold (torch.load) to Trajectory.from_checkpoints."
                )
            raise FileNotFoundError(
                f"{files} holds no recorded run (no {MANIFEST}). Name the directory that a "
                "TrajectoryRecorder or Trajectory.save has written."
            )
        files.check()
        found = files.manifest()
        if "trajectory" not in found:
            raise ValueError(f"{files} holds a run of another kind, and no recorded one.")
        files.claim(found)
        try:
            known = self._read(_RUN)
        except (FileNotFoundError, DamagedFileError):
            known = {"steps": [], "record": None}
        present = sorted(int(m[1]) for n in names if (m := re.fullmatch(r"step-(\d+)\.pt", n)))
        late = [step for step in present if step > max(known["steps"], default=-1)]
        records = [known["record"]] * (known["record"] is not None)
        if not records and not late:
            raise FileNotFoundError(
                f"{files} holds the beginning of a run, and no checkpoint of it. Delete it and record "
                "the run again."
            )
        for step in (*known["steps"], *late):
            self._kept[step] = None
            kept = self.get(step)
            self._shapes = _shapes(kept["state"])
            records += [kept["record"]] * (step in late)
        return records, bool(late)


def _load(file: IO[bytes]) -> dict[str, Any]:
    return torch.load(file.name, mmap=True, weights_only=True)


def _file_name(step: int) -> str:
    return f"step-{step:09d}"


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def cloned(value: Any) -> Any:
    """Return a copy of a tensor, in main memory; anything else as it is."""
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value
