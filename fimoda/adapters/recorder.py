"""Recording of the training of skorch nets."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import skorch
import torch
from skorch.callbacks import Callback
from skorch.dataset import get_len
from torch.utils.data import Subset

from ..model import unwrapped
from ..trajectory import Trajectory
from .wrappers import last_step


class TrajectoryRecorder(Callback):
    """Records the training of a skorch net for methods that look along the run.

    The net stays an ordinary skorch net. ``fit`` starts a new record; ``partial_fit``, and ``fit``
    with ``warm_start``, go on with it as a new stage. Attributors find the record of the net that
    they are given. Training that ends early is recorded up to there.

    Parameters
    ----------
    checkpoints : int, list of int or "all", default=6
        How many checkpoints of each call to ``fit``, evenly spaced, the last at its end; or after
        which of its steps; or after every step and before the first, as `Hydra` needs. The end of
        training is always kept.
    batches : bool, default=False
        Whether to record which rows are in each batch. Needs ``iterator_train`` to be torch's
        DataLoader without workers.
    optimizer_state : bool, default=True
        Whether to keep the optimiser's buffers at the checkpoints; Adam and RMSprop need them.
    directory : path, default=None
        Where checkpoints are kept and read by memory-mapping; in memory by default. A new ``fit``
        needs another or an empty directory.
    memory_budget : int, default=2 GiB
        Bytes that checkpoints may take in memory.

    Attributes
    ----------
    trajectory_ : Trajectory
        The record.

    Raises
    ------
    MemoryError
        When training starts, if the checkpoints would not fit `memory_budget`.
    ValueError
        If batches cannot be recorded, or parameter groups have learning rates of their own.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from skorch import NeuralNetRegressor
    >>> from fimoda import TrajectoryRecorder
    >>> net = NeuralNetRegressor(
    ...     torch.nn.Linear(3, 1),
    ...     max_epochs=4,
    ...     batch_size=5,
    ...     verbose=0,
    ...     train_split=None,
    ...     callbacks=[TrajectoryRecorder(checkpoints=2)],
    ... )
    >>> X = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    >>> net = net.fit(X, X[:, :1])
    >>> net.callbacks[0].trajectory_.steps
    [8, 16]
    """

    def __init__(
        self,
        checkpoints: int | list[int] | str = 6,
        batches: bool = False,
        optimizer_state: bool = True,
        directory: str | os.PathLike[str] | None = None,
        memory_budget: int = 2 * 2**30,
    ):
        self.checkpoints = checkpoints
        self.batches = batches
        self.optimizer_state = optimizer_state
        self.directory = directory
        self.memory_budget = memory_budget

    def initialize(self) -> TrajectoryRecorder:
        """Forget the run before."""
        if hasattr(self, "trajectory_"):
            del self.trajectory_
        return self

    def on_train_begin(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Begin a stage with the first epoch."""
        self.planned_: set[int] | None = None

    def on_epoch_begin(
        self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any
    ) -> None:
        """Look at the rows, once, and listen to which of them are taken."""
        if self.planned_ is None:
            self._begin(net, dataset_train)
        if self.batches:
            self.listener_ = _Listener(dataset_train)

    def _begin(self, net: Any, rows: Any) -> None:
        """Begin a stage."""
        optimizer = net.optimizer_
        settings = dict(optimizer.defaults)
        settings.pop("lr")
        taken = inspect.signature(type(optimizer)).parameters
        if not any(one.kind is one.VAR_KEYWORD for one in taken.values()):
            # AdamW keeps an entry that it does not take
            settings = {key: value for key, value in settings.items() if key in taken}
        if not hasattr(self, "trajectory_"):
            name = type(optimizer).__name__
            self.trajectory_ = Trajectory(name, settings, self.directory)
        run = self.trajectory_
        # rows that train_split holds out have no part in the stage
        inside = np.asarray(rows.indices) if isinstance(rows, Subset) else None
        run.begin_stage(n_rows=len(rows), rows=inside)
        batch = net.get_params_for("iterator_train").get("batch_size", net.batch_size)
        per_epoch = 1 if batch == -1 else -(-len(rows) // batch)
        self.planned_ = self._plan(per_epoch * net.max_epochs, run.n_steps)
        state = net.module_.state_dict().values()
        size = sum(v.numel() * v.element_size() for v in state) * (1 + 2 * self.optimizer_state)
        needed = size * (len(self.planned_) + len(run))
        if self.directory is None and needed > self.memory_budget:
            raise MemoryError(
                f"{len(self.planned_)} checkpoints take up to {needed / 2**20:.0f} MiB, more than "
                f"memory_budget={self.memory_budget / 2**20:.0f} MiB. Set directory to keep them on "
                "disk, record fewer checkpoints, or raise memory_budget."
            )
        if run.n_steps in self.planned_:
            self._keep(net)

    def _plan(self, n_steps: int, before: int) -> set[int]:
        """Return the steps of the whole run to keep."""
        chosen: Iterable[int]
        if isinstance(self.checkpoints, str | bool):
            if self.checkpoints != "all":
                raise ValueError(
                    f"checkpoints must be a number, a list of steps or 'all', got {self.checkpoints!r}."
                )
            chosen = range(n_steps + 1)
        elif isinstance(self.checkpoints, int):
            if self.checkpoints < 1:
                raise ValueError(f"checkpoints must be at least 1, got {self.checkpoints}.")
            number = min(self.checkpoints, n_steps)
            chosen = [round(n_steps * (k + 1) / number) for k in range(number)]
        else:
            chosen = self.checkpoints
        return {before + int(step) for step in chosen}

    def on_batch_begin(
        self, net: Any, batch: Any = None, training: bool | None = None, **kwargs: Any
    ) -> None:
        """Record the step that is about to be taken."""
        if not training:
            return
        rows = self.listener_.last() if self.batches else None
        if rows is not None and len(rows) != get_len(batch[0]):
            raise ValueError(
                "batches=True needs iterator_train to be torch's DataLoader with num_workers=0 and "
                "its own collation; this one does not tell which rows it takes. Set batches=False."
            )
        groups = net.optimizer_.param_groups
        if len({float(group["lr"]) for group in groups}) == 1:
            self.trajectory_.add_step(groups[0]["lr"], rows)
            return
        names = {id(p): name for name, p in unwrapped(net.module_).named_parameters()}
        own = [(names.get(id(p)), float(group["lr"])) for group in groups for p in group["params"]]
        self.trajectory_.add_step({name: rate for name, rate in own if name is not None}, rows)

    def on_batch_end(
        self, net: Any, batch: Any = None, training: bool | None = None, **kwargs: Any
    ) -> None:
        """Keep the parameters, if it is time."""
        everything = self.checkpoints == "all"  # also where training goes on for longer
        if training and (everything or self.trajectory_.n_steps in (self.planned_ or ())):
            self._keep(net)

    def on_epoch_end(
        self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any
    ) -> None:
        """Stop listening."""
        if self.batches:
            self.listener_.close()
            del self.listener_

    def on_train_end(self, net: Any, X: Any = None, y: Any = None, **kwargs: Any) -> None:
        """Keep the final parameters."""
        if not hasattr(self, "trajectory_"):
            return
        if hasattr(self, "listener_"):  # interrupted
            self.on_epoch_end(net)
        if self.trajectory_.n_steps not in self.trajectory_.steps:
            self._keep(net)
        if self.directory is not None:
            self.trajectory_.save()

    def _keep(self, net: Any) -> None:
        optimizer = net.optimizer_ if self.optimizer_state else None
        self.trajectory_.add_checkpoint(net.module_, optimizer)


class _Listener:
    """Hears which rows a DataLoader asks a data set for, by the hook that it has for batches."""

    def __init__(self, rows: Any):
        self._rows = rows
        self._asked: list[int] = []
        fetch: Callable[[list[int]], Any] | None = getattr(rows, "__getitems__", None)

        def asked(indices: list[int]) -> Any:
            self._asked = [int(i) for i in indices]
            return [rows[i] for i in indices] if fetch is None else fetch(indices)

        rows.__getitems__ = asked

    def last(self) -> list[int]:
        """Return the rows of the batch that was asked for last, numbered within the data set."""
        return self._asked

    def close(self) -> None:
        """Leave the data set as it was."""
        del self._rows.__getitems__


def recorded_trajectory(estimator: Any) -> Trajectory | None:
    """Return the record that a fitted skorch net's `TrajectoryRecorder` has made, if it has one."""
    model = last_step(estimator)
    if isinstance(model, skorch.NeuralNet):
        for _, callback in getattr(model, "callbacks_", []):
            if isinstance(callback, TrajectoryRecorder) and hasattr(callback, "trajectory_"):
                _check_ends_at(callback.trajectory_, model)
                return callback.trajectory_
    return None


def _check_ends_at(run: Trajectory, net: skorch.NeuralNet) -> None:
    """Raise ValueError unless the run ends at the parameters of the net, in the net's own type."""

    def is_net(k: int) -> bool:
        kept = run.state(k)
        parameters = dict(unwrapped(net.module_).named_parameters())
        return all(
            torch.equal(kept[name].to(p.dtype), p.detach().cpu()) for name, p in parameters.items()
        )

    if not len(run) or is_net(len(run) - 1):
        return
    same = [run.steps[k] for k in range(len(run)) if is_net(k)]
    where = (
        f"they are those after step {same[-1]}" if same else "they are at none of its checkpoints"
    )
    raise ValueError(
        f"the run that was recorded does not end at the model: it has {run.n_steps} steps, and the net's "
        f"parameters have changed since ({where}). Train without load_best=True, or pass as trajectory "
        "the part of the run that leads to the model (Trajectory.from_checkpoints)."
    )
