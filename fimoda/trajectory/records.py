"""Records of a run beside its states, and the form in which files hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .stages import Stage


class Record:
    """A run's optimiser and, for each step, the learning rate, the rows and the stage."""

    def __init__(self, optimizer: str, optimizer_params: Mapping[str, Any] | None):
        self.optimizer = optimizer
        self.optimizer_params = dict(optimizer_params or {})
        self.batches: list[NDArray[np.int64]] | None = None
        self._rates: list[float] = []
        self._begun: list[Stage] = []  # the last one goes on

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
        self._begun = self.stages if self._begun else []
        found = None if rows is None else np.asarray(rows, dtype=np.int64)
        number = n_rows if found is None else len(found)
        name = f"stage {len(self._begun)}" if name is None else name
        self._begun.append(Stage(name, self.n_steps, self.n_steps, number, found))

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
        begun = self._begun or [Stage("stage 0", 0, 0)]
        return [*begun[:-1], replace(begun[-1], stop=self.n_steps)]

    def name_rows(self, *rows: ArrayLike) -> Self:
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
        self._begun = [replace(s, rows=r, n_rows=len(r)) for s, r in zip(stages, own, strict=True)]
        return self

    # ---- files ------------------------------------------------------------------------------

    def _encoded(self, since: tuple[int, int] = (0, 0), stop: int | None = None) -> dict[str, Any]:
        """Return the record as tensors, numbers and text, without the steps and stages before."""
        steps, stages = since
        settings = self.optimizer_params.items()
        plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in settings}
        batches = None
        if self.batches is not None:
            part = self.batches[steps:stop]
            flat = np.concatenate([np.empty(0, np.int64), *part])
            batches = torch.from_numpy(flat), torch.tensor([len(one) for one in part])
        return {
            "since": since,
            "optimizer": (self.optimizer, plain),
            "rates": torch.tensor(self._rates[steps:stop], dtype=torch.float64),
            "batches": batches,
            "stages": [
                (
                    s.name,
                    s.start,
                    s.stop,
                    s.n_rows,
                    None if s.rows is None else torch.tensor(s.rows),
                )
                for s in self.stages[stages:]
            ],
        }

    def _decode(self, records: Sequence[dict[str, Any]], directory: str) -> None:
        """Take over what encoded records tell, one after another; FileNotFoundError if one is missing."""
        self.optimizer, self.optimizer_params = records[-1]["optimizer"]
        for record in records:
            steps, stages = record["since"]
            if steps > self.n_steps:
                raise FileNotFoundError(
                    f"directory {directory!r} lacks the checkpoint of step {steps}, without which the "
                    "steps after it are not known."
                )
            self._rates[steps:] = record["rates"].tolist()
            if record["batches"] is not None:
                flat, sizes = (part.numpy() for part in record["batches"])
                cut = np.split(flat.copy(), np.cumsum(sizes)[:-1]) if len(sizes) else []
                self.batches = (self.batches or [])[:steps] + cut
            self._begun[stages:] = [
                Stage(name, start, stop, n_rows, None if rows is None else rows.numpy().copy())
                for name, start, stop, n_rows, rows in record["stages"]
            ]
        begun = [stage for stage in self._begun if stage.start <= self.n_steps]  # none to come
        ends = [*(stage.start for stage in begun[1:]), self.n_steps]
        self._begun = [replace(stage, stop=stop) for stage, stop in zip(begun, ends, strict=True)]
