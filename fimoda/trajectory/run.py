"""A recorded training run."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ..model import unwrapped
from .records import Record
from .saved import buffers_by_name, check_factors, check_steps, rates_of_steps
from .stages import Stage, check_stages
from .store import CheckpointStore, OptimizerState, cloned


class Trajectory(Record):
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
        super().__init__(optimizer, optimizer_params)
        self._kept = 0, 0  # steps and stages at the last checkpoint
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
        lr_factors: Mapping[str, float] | None = None,
        optimizer: str = "SGD",
        optimizer_params: Mapping[str, Any] | None = None,
        optimizer_states: Sequence[Mapping[str, Any]] | None = None,
        optimizer_names: Sequence[str] | None = None,
        batches: Sequence[ArrayLike] | None = None,
        stages: Sequence[Stage] | None = None,
    ) -> Trajectory:
        """Return the run that a training loop has saved.

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
        lr_factors : dict of str to float, default=None
            The part of the learning rate that each parameter has, by name, in an optimiser with parameter
            groups; all of it by default.
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
        run._keep_factors(check_factors(lr_factors or {}))
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
        run._begun = list(stages or ())
        check_stages(run._begun, total)
        return run

    # ---- recording --------------------------------------------------------------------------

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
        self._store.put(step, state, buffers, self._encoded(self._kept, step))
        self._kept = step, len(self._begun)

    def extended(self, directory: str | os.PathLike[str] | None = None) -> Trajectory:
        """Return a copy of this run, which can be recorded further.

        Parameters
        ----------
        directory : path, default=None
            Where its checkpoints are kept; in memory by default.

        Returns
        -------
        Trajectory
        """
        run = Trajectory(self.optimizer, self.optimizer_params, directory)
        run._rates, run._begun = list(self._rates), list(self._begun)
        run._factors = self._factors
        run.batches = None if self.batches is None else list(self.batches)
        for k, step in enumerate(self.steps):
            run._keep(step, self.state(k), self.optimizer_state(k))
        return run

    def __sklearn_clone__(self) -> Trajectory:
        """Let clones of an estimator share the record."""
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

    def state(self, k: int) -> dict[str, Tensor]:
        """Return the ``state_dict`` of the module at checkpoint k.

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
        """Return what the optimiser kept at checkpoint k, by parameter; nothing if not recorded.

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
        run._store.finish(run._encoded())

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Trajectory:
        """Read a run that was recorded in, or saved to, a directory.

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
        records, cut_off = store.resume()
        run = cls()
        run._store = store
        run._decode(records, str(directory))
        run._kept = max(store.steps, default=0), 0
        if cut_off:
            warnings.warn(
                f"the run in directory {str(directory)!r} was cut off before it was saved, or its "
                f"run.pt is damaged: it ends at its last checkpoint, after step {store.steps[-1]}.",
                RuntimeWarning,
                stacklevel=2,
            )
        return run
