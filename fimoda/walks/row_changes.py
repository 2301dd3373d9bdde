"""Changes of one row at a time, and what each does to the mean gradients of a run along vectors.

A row is left out, the others taking its weight, or gets another target.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..measured import Measured
from ..objective import Objective
from ..rows import Rows
from ..training.noise import seeded
from ..training.recorded import Moment, RecordedRun
from .batch_hessian import BatchHessian
from .leaving_out import change
from .second_order import left_out_to_second_order, relabelled_to_second_order
from .statistics_hessian import StatisticsHessian

#: A moment, and the batches of an epoch there: indices (B,) with their rows (`RecordedRun.draws`).
Draw = tuple[Moment, Iterator[tuple[Tensor, Rows]]]


class RowChange(ABC):
    """A change of one row at a time, in as many columns."""

    @property
    @abstractmethod
    def n_columns(self) -> int:
        """Number of rows that are changed, each alone."""

    @abstractmethod
    def of_batch(
        self,
        run: RecordedRun,
        moment: Moment,
        hessian: BatchHessian,
        left_out: Tensor,
        along: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the columns (b,) of rows that the next step has, and what their changes do (k, b).

        That is the change of the batch's gradient along vectors (k, p); `left_out` (k, B) is that without
        each of its rows.
        """

    @property
    @abstractmethod
    def measured(self) -> Sequence[Measured | None]:
        """Rows, and what of them a change of the mean gradient is made of; None are all by their loss."""

    @abstractmethod
    def of_slopes(self, slopes: list[Tensor], at: Objective) -> Tensor:
        """Return the changes (k, n_columns) of the mean gradient of all rows along k vectors.

        Of what is `measured` there are the slopes (k, ...) along these, at the parameters of an objective.
        """

    @abstractmethod
    def of_epoch(
        self, run: RecordedRun, draw: Draw, hessian: BatchHessian, along: Tensor
    ) -> Tensor:
        """Return the same with the noise and the statistics of batches: those of an epoch that was drawn."""

    @abstractmethod
    def to_second_order(
        self, at: Objective, B: int, squares: Tensor | None, along: Tensor
    ) -> Tensor:
        """Return what the second derivatives (k, p) of steps add to the changes (k, n_columns)."""


@dataclass(frozen=True)
class LeftOut(RowChange):
    """Each of `n_rows` rows is left out."""

    n_rows: int

    @property
    def n_columns(self) -> int:
        return self.n_rows

    def of_batch(
        self,
        run: RecordedRun,
        moment: Moment,
        hessian: BatchHessian,
        left_out: Tensor,
        along: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return run.batch(moment)[0], left_out

    @property
    def measured(self) -> Sequence[Measured | None]:
        return [None]

    def of_slopes(self, slopes: list[Tensor], at: Objective) -> Tensor:
        theta = at.model.theta
        return change(slopes[0].to(theta), at.rows.shares.to(theta))

    def of_epoch(
        self, run: RecordedRun, draw: Draw, hessian: BatchHessian, along: Tensor
    ) -> Tensor:
        moment, batches = draw
        slopes = along.new_empty(len(along), self.n_rows)
        of_statistics = torch.zeros_like(slopes)
        for index, rows in batches:
            with seeded(run.model, moment.noise):
                if isinstance(hessian, StatisticsHessian):
                    both = hessian.slopes_and_statistics(moment.theta, rows, along)
                    slopes[:, index], of_statistics[:, index] = both
                else:
                    slopes[:, index] = hessian.slopes(moment.theta, rows, along)
        found = change(slopes, run.rows.shares.to(run.model.theta))
        return found + of_statistics / run.steps_per_epoch

    def to_second_order(
        self, at: Objective, B: int, squares: Tensor | None, along: Tensor
    ) -> Tensor:
        return left_out_to_second_order(at, B, squares, along)


@dataclass(frozen=True)
class Relabelled(RowChange):
    """Each of some `rows` (n_columns,) gets another target: `known` as it is, it is then as in `changed`."""

    rows: Tensor
    known: Measured
    changed: Measured

    @classmethod
    def of(cls, rows: NDArray[np.int64], known: Measured, changed: Measured) -> Relabelled:
        """Return the change of these rows, on the device of their targets."""
        return cls(torch.as_tensor(rows, device=known.targets.device), known, changed)

    @property
    def n_columns(self) -> int:
        return len(self.rows)

    def of_batch(
        self,
        run: RecordedRun,
        moment: Moment,
        hessian: BatchHessian,
        left_out: Tensor,
        along: Tensor,
    ) -> tuple[Tensor, Tensor]:
        index, batch = run.rows_in(moment)
        columns, places = self._columns_in(index, len(run.rows))
        found = self._slopes(hessian, moment, batch, columns, places, along)
        return columns, batch.shares[places] * found

    @property
    def measured(self) -> Sequence[Measured | None]:
        return [self.known, self.changed]

    def of_slopes(self, slopes: list[Tensor], at: Objective) -> Tensor:
        before, after = slopes
        return self.changed.rows.shares * after - self.known.rows.shares * before

    def of_epoch(
        self, run: RecordedRun, draw: Draw, hessian: BatchHessian, along: Tensor
    ) -> Tensor:
        moment, batches = draw
        total = torch.zeros(len(along), self.n_columns, dtype=torch.float64, device=along.device)
        for index, batch in batches:
            columns, places = self._columns_in(index, len(run.rows))
            total[:, columns] = self._slopes(hessian, moment, batch, columns, places, along)
        return self.known.rows.shares * total

    def to_second_order(
        self, at: Objective, B: int, squares: Tensor | None, along: Tensor
    ) -> Tensor:
        return relabelled_to_second_order(at, B, squares, along, self.known, self.changed)

    def _columns_in(self, index: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Return the columns whose rows are in a batch of rows (B,) out of n, and their places there."""
        place = torch.full((n,), -1, device=index.device)
        place[index] = torch.arange(len(index), device=index.device)
        found = place[self.rows]
        columns = (found >= 0).nonzero()[:, 0]
        return columns, found[columns]

    def _slopes(
        self,
        hessian: BatchHessian,
        moment: Moment,
        batch: Rows,
        columns: Tensor,
        places: Tensor,
        along: Tensor,
    ) -> Tensor:
        """Return how the slopes along vectors (k, p) of some rows of a batch change, (k, n_some).

        By their new weight, too, as a part of the old one.
        """
        model, new = hessian.model, self.changed.targets[columns]
        if not len(columns):
            return along.new_zeros(len(along), 0).double()
        if not (model.is_stochastic or model.statistics):  # the others of its batch do not matter
            batch, places = batch[places], torch.arange(len(places), device=places.device)
        targets = batch.targets.clone()
        targets[places] = new
        slopes = []
        for rows in (batch, replace(batch, targets=targets)):
            with seeded(model, moment.noise):
                slopes.append(hessian.slopes(moment.theta, rows, along)[:, places].double())
        before, after = slopes
        return self.ratio[columns] * after - before

    @property
    def ratio(self) -> Tensor:
        """New weights (n_columns,) as parts of the old ones; rows without weight have none."""
        return self.changed.share_ratio(self.known)
