"""A recorded training run."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from .._run_directory import DamagedFileError
from ..model import unwrapped
from .records import Progress, decoded, encoded
from .saved import buffers_by_name, check_steps, rates_of_steps
from .stages import Stage, check_stages
from .store import CheckpointStore, OptimizerState, cloned

_RUN = "run"


class Trajectory:
    """A recorded training run: checkpoints, learning rates, batches and stages.

    Made by `TrajectoryRecorder` (skorch), by `train_ensemble`, or by `from_checkpoints`; in a training
    loop of one's own, `begin_stage`, `add_step` and `add_checkpoint` record.

    Parameters
    ----------
    optimizer : str, default="SGD"
        Name of the ``torch.optim`` class.
    optimizer_params : dict, default=None
        Its settings (momentum, weight_decay, betas, ...).
    directory : path, default=None
        Where checkpoints are kept, one file each, and read by memory-mapping; in memory by default.

    Attributes
    ----------
    batches : list of ndarray of int or None
        Rows of each step's batch, numbered within the stage; None if they were not recorded.

    Raises
    ------
    FileExistsError
        If the directory holds a run already.

    Examples
    --------
    >>> import torch
    >>> from fimoda import Trajectory
    >>> net = torch.nn.Linear(3, 1)
    >>> trajectory = Trajectory(optimizer="SGD")
    >>> for step in range(10):
    ...     trajectory.add_step(lr=0.1)
    >>> trajectory.add_checkpoint(net)
    >>> trajectory.steps, trajectory.n_steps
    ([10], 10)
    """

    def __init__(
        self,
        optimizer: str = "SGD",
        optimizer_params: Mapping[str, Any] | None = None,
        directory: str | os.PathLike[str] | None = None,
    ):
        self.optimizer = optimizer
        self.optimizer_params = dict(optimizer_params or {})
        self.batches: list[NDArray[np.int64]] | None = None
        self._rates: list[float] = []
        self._stages: list[Stage] = []
        self._recorded = Progress()
        self._store = CheckpointStore(directory)
        self._store.begin()

    @classmethod
    def from_checkpoints(
        cls,
        state_dicts: Sequence[Mapping[str, Tensor]],
        steps: Sequence[int],
        lrs: float | ArrayLike,
        *,
        n_steps: int | None = None,
        optimizer: str = "SGD",
        optimizer_params: Mapping[str, Any] | None = None,
        optimizer_states: Sequence[Mapping[str, Any]] | None = None,
        optimizer_names: Sequence[str] | None = None,
        batches: Sequence[ArrayLike] | None = None,
        stages: Sequence[Stage] | None = None,
    ) -> Trajectory:
        """A run from what a training loop has saved.

        Parameters
        ----------
        state_dicts : sequence of dict of str to Tensor
            ``state_dict()`` of the module at each checkpoint.
        steps : sequence of int
            Optimiser steps done at each checkpoint, increasing; 0 is before training.
        lrs : float or array-like
            Learning rate: one for all steps, one for each step, or one for each checkpoint, that of
            the steps since the checkpoint before it (and, for the last, of those after it).
        n_steps : int, default=None
            Steps of the whole run; those of the last checkpoint by default.
        optimizer : str, default="SGD"
            Name of the ``torch.optim`` class.
        optimizer_params : dict, default=None
            Its settings.
        optimizer_states : sequence of dict, default=None
            ``state_dict()`` of the optimiser at each checkpoint.
        optimizer_names : sequence of str, default=None
            Names of the optimiser's parameters in its order; all entries of the module's
            ``state_dict()`` by default, as for ``module.parameters()`` without buffers.
        batches : sequence of array-like of int, default=None
            Rows of each step's batch.
        stages : sequence of Stage, default=None
            Parts of the run with rows of their own; one by default.

        Returns
        -------
        Trajectory

        Raises
        ------
        ValueError
            If there is no checkpoint, numbers do not match, or checkpoints are of different
            architectures.

        Examples
        --------
        >>> import torch
        >>> from fimoda import Trajectory
        >>> nets = [torch.nn.Linear(3, 1) for _ in range(3)]
        >>> states = [net.state_dict() for net in nets]
        >>> Trajectory.from_checkpoints(states, steps=[10, 20, 30], lrs=0.1).n_steps
        30
        """
        numbers = [int(step) for step in steps]
        total = check_steps(numbers, n_steps, state_dicts, optimizer_states)
        run = cls(optimizer, optimizer_params)
        run._rates = rates_of_steps(lrs, numbers, total)
        if batches is not None:
            run.batches = [np.asarray(rows, dtype=np.int64) for rows in batches]
            if len(run.batches) != total:
                raise ValueError(
                    f"batches must name the rows of each of the {total} steps, got {len(run.batches)} "
                    "batches."
                )
        for k, step in enumerate(numbers):
            own = state_dicts[k]
            buffers = {}
            if optimizer_states is not None:
                buffers = buffers_by_name(optimizer_states[k], own, optimizer_names or list(own))
            run._store.put(step, own, buffers)
        run._stages = list(stages or ())
        check_stages(run._stages, total)
        return run

    # ---- recording --------------------------------------------------------------------------

    def begin_stage(
        self, name: str | None = None, n_rows: int | None = None, rows: ArrayLike | None = None
    ) -> None:
        """Say that the steps from here on are taken on other rows.

        Parameters
        ----------
        name : str, default=None
            ``"stage 0"`` and so on by default.
        n_rows : int, default=None
            Number of rows.
        rows : array-like of int, default=None
            The rows, see `Stage`.
        """
        self._stages = self.stages if self._stages else []
        found = None if rows is None else np.asarray(rows, dtype=np.int64)
        number = n_rows if found is None else len(found)
        name = f"stage {len(self._stages)}" if name is None else name
        self._stages.append(Stage(name, self.n_steps, self.n_steps, number, found))

    def add_step(self, lr: float, rows: ArrayLike | None = None) -> None:
        """Record a step of the optimiser.

        Parameters
        ----------
        lr : float
            Its learning rate.
        rows : array-like of int, default=None
            Rows of its batch, numbered within the stage.
        """
        if rows is not None:
            self.batches = self.batches or []
            self.batches.append(np.asarray(rows, dtype=np.int64))
        self._rates.append(float(lr))

    def add_checkpoint(
        self, module: nn.Module, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Keep the parameters after the last recorded step.

        Parameters
        ----------
        module : nn.Module
        optimizer : torch.optim.Optimizer, default=None
            Its state is kept too.
        """
        module = unwrapped(module)
        state = {} if optimizer is None else optimizer.state
        buffers = {
            name: {k: cloned(v) for k, v in state[p].items()}
            for name, p in module.named_parameters()
            if p in state
        }
        self.add_state(module.state_dict(), buffers)

    def add_state(
        self, state_dict: Mapping[str, Tensor], buffers: OptimizerState | None = None
    ) -> None:
        """Keep parameters after the last recorded step that are no module's.

        Parameters
        ----------
        state_dict : dict of str to Tensor
            Parameters by name.
        buffers : dict, default=None
            What the optimiser keeps of each.
        """
        self._keep(self.n_steps, state_dict, buffers or {})

    def _keep(self, step: int, state: Mapping[str, Tensor], buffers: OptimizerState) -> None:
        """Keep a checkpoint, and what was recorded since the last."""
        self._store.put(step, state, buffers, self._record(self._recorded, step))
        self._recorded = Progress(step, len(self._stages))

    def _record(self, since: Progress, stop: int | None = None) -> dict[str, Any]:
        """What was recorded since a moment, up to a step."""
        batches = None if self.batches is None else self.batches[since.steps : stop]
        return encoded(
            since,
            (self.optimizer, self.optimizer_params),
            self._rates[since.steps : stop],
            batches,
            self.stages[since.stages :],
        )

    def extended(self, directory: str | os.PathLike[str] | None = None) -> Trajectory:
        """A copy of this run, which can be recorded further.

        Parameters
        ----------
        directory : path, default=None
            Where its checkpoints are kept; in memory by default.

        Returns
        -------
        Trajectory
        """
        run = Trajectory(self.optimizer, self.optimizer_params, directory)
        run._rates, run._stages = list(self._rates), self.stages
        run.batches = None if self.batches is None else list(self.batches)
        for k, step in enumerate(self.steps):
            run._keep(step, self.state(k), self.optimizer_state(k))
        return run

    def __sklearn_clone__(self) -> Trajectory:
        """Clones of an estimator share the record."""
        return self

    # ---- what was recorded ------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        return (
            f"Trajectory({self.optimizer}, {self.n_steps} steps, {len(self)} checkpoints, "
            f"{len(self.stages)} stages)"
        )

    @property
    def steps(self) -> list[int]:
        """Steps done at each checkpoint."""
        return self._store.steps

    @property
    def n_steps(self) -> int:
        """Steps of the whole run."""
        return len(self._rates)

    @property
    def learning_rates(self) -> NDArray[np.float64]:
        """Learning rate of each step."""
        return np.array(self._rates)

    @property
    def stages(self) -> list[Stage]:
        """Parts of the run with rows of their own; at least one."""
        if not self._stages:
            return [Stage("stage 0", 0, self.n_steps)]
        return [*self._stages[:-1], replace(self._stages[-1], stop=self.n_steps)]

    def name_rows(self, *rows: ArrayLike) -> Trajectory:
        """Say which of the rows that are attributed to each stage was trained on.

        Parameters
        ----------
        *rows : array-like of int
            Row indices, for each stage.

        Returns
        -------
        self : Trajectory
        """
        stages, own = self.stages, [np.asarray(one, dtype=np.int64) for one in rows]
        if len(own) != len(stages):
            raise ValueError(
                f"rows must be given for each of the {len(stages)} stages, got {len(own)}."
            )
        for stage, found in zip(stages, own, strict=True):
            if stage.n_rows not in (None, len(found)):
                raise ValueError(
                    f"rows of {stage.name!r} must be the {stage.n_rows} that it was trained on, got "
                    f"{len(found)}."
                )
        self._stages = [replace(s, rows=r, n_rows=len(r)) for s, r in zip(stages, own, strict=True)]
        return self

    def state(self, k: int) -> dict[str, Tensor]:
        """The ``state_dict`` of the module at checkpoint k.

        Parameters
        ----------
        k : int
            Number of the checkpoint, from 0.

        Returns
        -------
        dict of str to Tensor
        """
        return self._store.get(self.steps[k])["state"]

    def optimizer_state(self, k: int) -> OptimizerState:
        """What the optimiser kept at checkpoint k, by parameter; empty if it was not recorded.

        Parameters
        ----------
        k : int
            Number of the checkpoint, from 0.

        Returns
        -------
        dict of str to dict
        """
        return self._store.get(self.steps[k])["optimizer"]

    # ---- files ------------------------------------------------------------------------------

    def save(self, directory: str | os.PathLike[str] | None = None) -> None:
        """Write the run to a directory, from which `load` reads it.

        Parameters
        ----------
        directory : path, default=None
            The run's own by default.
        """
        run = self if directory is None else self.extended(directory)
        run._store.write(_RUN, {"steps": run.steps, "record": run._record(Progress())})

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Trajectory:
        """A run that was recorded in, or saved to, a directory.

        Of a run that was cut off before it was saved, there is what was recorded up to its last
        checkpoint.

        Parameters
        ----------
        directory : path

        Returns
        -------
        Trajectory

        Raises
        ------
        FileNotFoundError
            If there is none, or a checkpoint is missing.
        OSError
            If a checkpoint is damaged, or the directory belongs to another user.
        ValueError
            If the directory holds another kind of run, or one of an earlier version.

        Warns
        -----
        RuntimeWarning
            If the run was cut off before it was saved.
        """
        store = CheckpointStore(directory)
        steps = store.resume()
        try:
            known = store.read(_RUN)
        except (FileNotFoundError, DamagedFileError):
            known = {"steps": [], "record": None}
        late = steps if not known["steps"] else [k for k in steps if k > known["steps"][-1]]
        if known["record"] is None and not late:
            raise FileNotFoundError(
                f"directory {str(directory)!r} holds the beginning of a run, and no checkpoint of it. "
                "Delete it and record the run again."
            )
        store.find(sorted({*known["steps"], *late}))
        records = [store.get(step)["record"] for step in late]
        if known["record"] is not None:
            records.insert(0, known["record"])
        found = decoded(records, str(directory))
        if late:
            warnings.warn(
                f"the run in directory {str(directory)!r} was cut off before it was saved, or its "
                f"{_RUN}.pt is damaged: it ends at its last checkpoint, after step {late[-1]}.",
                RuntimeWarning,
                stacklevel=2,
            )
        run = cls(*found.optimizer)
        run._store, run._rates = store, found.rates
        run.batches, run._stages = found.batches, found.stages
        run._recorded = Progress(steps[-1] if steps else 0, 0)
        return run
