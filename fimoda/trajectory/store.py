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
from .._run_directory import MANIFEST, DamagedFileError, RunDirectory

#: What an optimiser keeps, by parameter and by its own names.
OptimizerState = dict[str, dict[str, Any]]


class CheckpointStore:
    """States of a module, and of its optimiser, by the number of steps done.

    Parameters
    ----------
    directory : path, default=None
        Where they are kept, one file each, and read by memory-mapping; in memory by default.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None):
        self._files = None if directory is None else RunDirectory(directory, "directory")
        self._kept: dict[int, dict[str, Any] | None] = {}  # None is on disk
        self._shapes: dict[str, tuple[int, ...]] = {}

    @property
    def _on_disk(self) -> RunDirectory:
        if self._files is None:
            raise ValueError("directory must be given for a run in memory, got None.")
        return self._files

    def begin(self) -> None:
        """Make the directory, if there is one.

        Raises
        ------
        FileExistsError
            If it holds a run.
        """
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

    @property
    def steps(self) -> list[int]:
        """Steps done at each checkpoint."""
        return sorted(self._kept)

    def put(
        self,
        step: int,
        state_dict: Mapping[str, Tensor],
        buffers: OptimizerState,
        record: dict[str, Any] | None = None,
    ) -> None:
        """Keep a checkpoint and, on disk, what was recorded of the run since the one before.

        Raises
        ------
        ValueError
            If it is not finite, of another architecture than the one before, or could not be read.
        FileExistsError
            If the directory was empty at first and another run has come to it.
        OSError
            If it cannot be written.
        """
        state = {name: cloned(v) for name, v in state_dict.items()}
        shapes = {name: tuple(v.shape) for name, v in state.items()}
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
            self.write(file_name(step), {**kept, "record": record})
            self._kept[step] = None
        else:
            self._kept[step] = kept
        self._shapes = shapes

    def write(self, name: str, known: dict[str, Any]) -> None:
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
                self.read(name)
            except DamagedFileError as error:
                raise ValueError(
                    "the optimiser's state or settings hold more than tensors, numbers and text, which "
                    f"cannot be read back from a directory: {error}. Record without them "
                    "(optimizer_state=False), or in memory."
                ) from error

    def get(self, step: int) -> dict[str, Any]:
        """The checkpoint after a number of steps: ``state`` and ``optimizer``."""
        kept = self._kept[step]
        if kept is not None:
            return kept
        try:
            return self.read(file_name(step))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self._files} lacks the checkpoint of step {step} ({file_name(step)}.pt), which its "
                "run was recorded with."
            ) from error

    def read(self, name: str) -> dict[str, Any]:
        """Return what `write` has written.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        DamagedFileError
            If it is not as it was written.
        """
        return self._on_disk.read(f"{name}.pt", _load)

    def resume(self) -> list[int]:
        """Take up a directory's run, and return the steps of its checkpoints.

        Raises
        ------
        FileNotFoundError
            If it holds none.
        ValueError
            If it was written by an earlier version.
        OSError
            If others can write it.
        """
        files = self._on_disk
        names = files.names() if files.path.is_dir() else []
        steps = [int(m[1]) for name in names if (m := re.fullmatch(r"step-(\d+)\.pt", name))]
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
        return sorted(steps)

    def find(self, steps: list[int]) -> None:
        """Look for these checkpoints.

        Raises
        ------
        FileNotFoundError
            If one is missing.
        DamagedFileError
            If one is not as it was written.
        """
        self._kept = dict.fromkeys(steps)
        for step in steps:
            state = self.get(step)["state"]
            self._shapes = {name: tuple(v.shape) for name, v in state.items()}


def _load(file: IO[bytes]) -> dict[str, Any]:
    return torch.load(file.name, mmap=True, weights_only=True)


def file_name(step: int) -> str:
    """Return the name of the checkpoint after so many steps."""
    return f"step-{step:09d}"


def cloned(value: Any) -> Any:
    """A copy of a tensor, in main memory; anything else as it is."""
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value
