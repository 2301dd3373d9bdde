"""Checkpoints of a run, in memory or on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
        self.directory = None if directory is None else Path(directory).absolute()
        self._kept: dict[int, dict[str, Any] | None] = {}  # None is on disk
        self._shapes: dict[str, tuple[int, ...]] = {}

    def path(self, name: str) -> Path:
        """File of this name in the directory."""
        if self.directory is None:
            raise ValueError("directory must be given for a run in memory, got None.")
        return self.directory / f"{name}.pt"

    @property
    def steps(self) -> list[int]:
        """Steps done at each checkpoint."""
        return sorted(self._kept)

    def put(self, step: int, state_dict: Mapping[str, Tensor], buffers: OptimizerState) -> None:
        """Keep a checkpoint.

        Raises
        ------
        ValueError
            If it is not finite, or of another architecture than the one before.
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
        self._shapes = shapes
        kept = {"state": state, "optimizer": buffers}
        if self.directory is not None:
            torch.save(kept, self.path(file_name(step)))
            self._kept[step] = None
        else:
            self._kept[step] = kept

    def get(self, step: int) -> dict[str, Any]:
        """The checkpoint after a number of steps: ``state`` and ``optimizer``."""
        kept = self._kept[step]
        if kept is not None:
            return kept
        return torch.load(self.path(file_name(step)), mmap=True, weights_only=True)

    def find(self, steps: list[int]) -> None:
        """Take up the files of an earlier run.

        Raises
        ------
        FileNotFoundError
            If one is missing.
        """
        for step in steps:
            if not self.path(file_name(step)).exists():
                raise FileNotFoundError(
                    f"directory {str(self.directory)!r} lacks the checkpoint of step {step} "
                    f"({file_name(step)}.pt), which its run was recorded with."
                )
        self._kept = dict.fromkeys(steps)


def file_name(step: int) -> str:
    return f"step-{step:09d}"


def cloned(value: Any) -> Any:
    """A copy of a tensor, in main memory; anything else as it is."""
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value
