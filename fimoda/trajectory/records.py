"""Records of a run beside its states, and the form in which files hold them."""

from __future__ import annotations

import math
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
        self._factors: dict[str, float] | None = None  # not known before a step that moves
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

    def add_step(self, lr: float | Mapping[str, float], rows: ArrayLike | None = None) -> None:
        """Record a step of the optimiser.

        Parameters
        ----------
        lr : float or dict of str to float
            Its learning rate, or that of each parameter by name; these must stay in proportion.
        rows : array-like of int, default=None
            Rows of its batch, numbered within the stage.
        """
        rates = lr if isinstance(lr, Mapping) else {"": lr}
        highest = float(max(rates.values()))
        if highest:  # a step at rest says nothing of proportions
            self._keep_factors({name: float(rate) / highest for name, rate in rates.items()})
        if rows is not None:
            self.batches = self.batches or []
            self.batches.append(np.asarray(rows, dtype=np.int64))
        self._rates.append(highest)

    def _keep_factors(self, factors: dict[str, float]) -> None:
        """Keep the parts of a step's learning rate, or check that they are those of the others."""
        own = {} if set(factors.values()) <= {1.0} else factors
        kept = own if self._factors is None else self._factors
        if kept.keys() != own.keys() or any(
            not math.isclose(kept[name], own[name], rel_tol=1e-6) for name in own
        ):
            raise ValueError(
                "learning rates of parameters must stay in proportion to one another in all steps of a "
                "Trajectory. Give groups schedules of one shape, or no learning rates of their own."
            )
        self._factors = kept

    @property
    def n_steps(self) -> int:
        """Steps of the whole run."""
        return len(self._rates)

    @property
    def learning_rates(self) -> NDArray[np.float64]:
        """Learning rate of each step; the largest, where parameters differ in theirs."""
        return np.array(self._rates)

    @property
    def lr_factors(self) -> dict[str, float]:
        """Part of the step's learning rate that each parameter has, by name; empty where all have it."""
        return dict(self._factors or {})

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
        return ({"factors": self._factors} if self._factors else {}) | {
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
        self._factors = records[-1].get("factors")
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
