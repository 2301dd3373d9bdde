"""Vectors on their way back through a run of further training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..rows import Rows
from ..training.noise import seeded
from ..training.recorded import Moment, RecordedRun
from .batch_hessian import BatchHessian

#: Takes adjoints (k, p) of the state's parts back through the step after a moment, in place, and writes those
#: of its gradient (k, p).
Pull = Callable[[list[Tensor], Moment, Tensor], list[Tensor]]


class Adjoints:
    """Vectors on their way back from test rows, those of later horizons last.

    There is room for all horizons from the beginning. A vector is of the parameters with the statistics that
    training changes, and of what the optimiser keeps.
    """

    def __init__(self, run: RecordedRun, n_vectors: int, n_horizons: int):
        self._model, self._n_vectors = run.model, n_vectors
        theta, p, most = run.last.theta, run.model.n_parameters, n_horizons * n_vectors
        widths = [len(theta), *[p] * len(run.names(run.last))]
        self._parts = [theta.new_zeros(most, width) for width in widths]
        self._pulled = theta.new_empty(most, len(theta))
        self._last = theta.new_zeros(most)
        # much smaller than the last where vectors have been held
        self._size = theta.new_zeros(most, dtype=torch.float64)
        self._live = 0

    def begin(self, first: Tensor) -> None:
        """Begin the way of one more horizon, with vectors (n_vectors, p + b)."""
        self._live += len(first)
        own = slice(len(self._size) - self._live, len(self._size) - self._live + len(first))
        self._parts[0][own] = first
        self._size[own] = self._last[own] = first.norm(dim=1)

    def step(
        self, hessian: BatchHessian, pull: Pull, moment: Moment, batch: Rows
    ) -> tuple[Tensor, Tensor]:
        """Take them back through the step after a moment.

        Returns what leaving out each row does to the batch's gradient along its adjoints (k, B), and these
        (k, p + b).
        """
        model, p = self._model, self._model.n_parameters
        state, *kept = (part[-self._live :] for part in self._parts)
        pulled, statistics = self._pulled[-self._live :], state[:, p:]
        kept = pull([state[:, :p], *kept], moment, pulled[:, :p])
        pulled[:, p:] = statistics
        statistics.zero_()
        with seeded(model, moment.noise):
            left_out = hessian.without_rows(moment.theta, batch, pulled, state)
        if model.l2 is not None:
            state[:, :p].addcmul_(pulled[:, :p], model.l2)
        self._parts = self._parts[: len(kept)]
        return left_out, pulled

    @property
    def n_horizons(self) -> int:
        """Number of horizons whose vectors are on their way."""
        return self._live // self._n_vectors

    def grown(self, most: float | None) -> float:
        """Return the largest factor by which a vector would be larger than it was, if none were held.

        They are held to a factor `most` over an epoch, at the end of which this is called.
        """
        live = slice(len(self._size) - self._live, None)
        size = self._parts[0][live].norm(dim=1)
        if most is not None:
            held = torch.where(size > 0, most * self._last[live] / size, 1).clamp_max(1)
            for part in self._parts:
                part[live] *= held[:, None]
            self._size[live] *= held
            size = size * held
        self._last[live] = size
        ratio = size / torch.where(self._size[live] > 0, self._size[live], torch.inf)
        return float(ratio.max()) if len(ratio) else 0.0
