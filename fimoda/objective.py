"""The training objective: the one thing that solvers, runs and trajectories are about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .derivatives import gradient
from .measured import Measured
from .model import DEFAULT_BUDGET, FinalModel
from .named_parameters import Function
from .padding import order_by_length
from .row_gradients import RowDifferentiator, RowGradients
from .rows import Rows

#: From gradients of two lots of rows to a number for each pair, or for each row.
Product = Callable[[RowGradients, RowGradients], Tensor]

#: Rows whose gradients are held at a time, at most.
MOST_ROWS = 4096

#: Rows that go through the network together where nothing of a row is kept.
_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Objective:
    r"""The objective that a model was trained to minimise on its rows.

    .. math:: F(\theta) = \sum_i s_i \ell_i(\theta) + \frac12 \sum_k (\lambda_k + d_k) \theta_k^2

    with :math:`s_i` the share of row i, :math:`\lambda` the penalty of the loss and d the weight decay
    of the optimiser (``l2`` and ``decay`` of the model).

    Parameters
    ----------
    model : FinalModel
    rows : Rows
        Training rows.
    memory_budget : int, default=512 MiB
        Bytes for what is held of rows at a time.
    chunk_size : int, default=None
        Rows whose gradients are held at a time; from `memory_budget` by default.
    """

    model: FinalModel
    rows: Rows
    memory_budget: int = DEFAULT_BUDGET
    chunk_size: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields: what is found again from them stays out of copies and pickles."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def losses(self) -> Measured:
        """The training rows, measured by their loss."""
        return Measured(self.rows, self.model.loss)

    @cached_property
    def outputs(self) -> Tensor:
        """Outputs (n, C) of the rows at the final model."""
        return self.model.outputs(self.rows.inputs)

    @cached_property
    def n_outputs(self) -> int:
        """Number C of outputs."""
        return self.model.outputs(self.rows[:1].inputs).shape[1]

    @cached_property
    def fitting(self) -> int:
        """Number of rows whose outputs fit the memory budget, in float64 and twice."""
        return max(1, self.memory_budget // (16 * self.n_outputs))

    @property
    def together(self) -> int:
        """Number of rows that go through the network together where nothing of a row is kept."""
        return min(_ROWS, self.fitting)

    def drawn_targets(self, generator: torch.Generator) -> Tensor:
        """Return targets of the rows, drawn from the distributions that the model predicts."""
        model = self.model
        return torch.cat(
            [
                model.loss.sample_targets(model.outputs(rows.inputs), generator, rows.targets)
                for rows in self.rows.split(self.fitting)
            ]
        )

    @cached_property
    def differentiate(self) -> RowDifferentiator:
        """Gradients of rows, by factors where the network has them."""
        return RowDifferentiator(self.model, self.rows[:2].inputs)

    @property
    def double(self) -> Objective:
        """The same objective in float64, made anew each time: nothing of it is kept."""
        return replace(self, model=self.model.double, rows=self.rows.double)

    def at(self, model: FinalModel) -> Objective:
        """Return the objective of another model on the same rows."""
        return replace(self, model=model)

    def of_rows(self, rows: Rows) -> Objective:
        """Return the objective of the same model on other rows."""
        return replace(self, rows=rows)

    def restricted(self, rows: NDArray[np.int64]) -> Objective:
        """Return the objective of some rows, weighted so that its mean over random subsets is this one."""
        some = self.rows[rows]
        return self.of_rows(some.scaled(len(self) / len(some)))

    # ---- values and gradients ---------------------------------------------------------------

    def value(self, theta: Tensor | None = None) -> float:
        """Return the objective in float64, at the final model unless parameters (p,) are given."""
        theta = self.model.theta if theta is None else theta
        total = 0.0
        for rows in self.rows.split(self.together):
            outputs = self.model.outputs(rows.inputs, theta).double()
            total += float((rows.shares * self.model.loss(outputs, rows.targets)).sum())
        penalty = self.model.penalty
        if penalty is not None:
            total += 0.5 * float((penalty.double() * theta.double().square()).sum())
        return total

    def gradient(self, theta: Tensor | None = None) -> Tensor:
        """Return the gradient (p,), at the final model unless parameters (p,) are given."""
        theta = self.model.theta if theta is None else theta
        penalty = self.model.penalty
        total = torch.zeros_like(theta) if penalty is None else theta * penalty
        for rows in self.rows.split(self.together):
            total += gradient(self.model, self._share_of_loss(rows), theta)
        return total

    def _share_of_loss(self, rows: Rows) -> Function:
        """Return the part of the objective, without the penalty, that comes from some of its rows."""
        losses, shares = self.losses_of(rows), rows.shares.to(self.model.theta)
        return lambda parameters: (shares * losses(parameters)).sum()

    def losses_of(self, rows: Rows) -> Function:
        """Return the losses (n,) of rows as a function of the named parameters."""
        model = self.model
        return lambda parameters: model.loss(
            model.call(parameters, rows.inputs, grouped=True), rows.targets
        )

    # ---- gradients of rows ------------------------------------------------------------------

    def chunk(self, share_of_budget: float = 0.5, most: int = MOST_ROWS) -> int:
        """Return how many rows' gradients fit that part of the memory budget, at most so many."""
        fitting = int(self.memory_budget * share_of_budget) // self.differentiate.row_bytes()
        return self.chunk_size or int(min(max(fitting, 1), len(self.rows), most))

    def row_gradients(
        self, measured: Measured | None = None, most: int | None = None
    ) -> Iterator[tuple[slice, RowGradients]]:
        """Yield the gradients of rows in chunks, with the slice that each chunk is of them.

        Parameters
        ----------
        measured : Measured, default=None
            Rows and what is differentiated; the training rows' losses by default.
        most : int, default=None
            Rows of a chunk, at most; what fits the memory budget by default.
        """
        measured = self.losses if measured is None else measured
        return self.differentiate.chunks(
            measured, self.chunk(), most or self.chunk_size or MOST_ROWS
        )

    def mapped(
        self, features: Callable[[RowGradients], Tensor], measured: Measured | None = None
    ) -> Tensor:
        """Return features (n, k) of rows' gradients."""
        measured, back = _by_length(self.losses if measured is None else measured)
        chunks = self.row_gradients(measured)
        return torch.cat([features(gradients) for _, gradients in chunks])[back]

    def along(self, vectors: Tensor, measured: Measured | None = None) -> Tensor:
        """Return the inner products (n, k) of rows' gradients with vectors (k, p), in float64."""
        return self.mapped(lambda gradients: gradients.apply(vectors).double(), measured)

    def combined(self, coefficients: Tensor, measured: Measured | None = None) -> Tensor:
        """Return linear combinations (k, p) of rows' gradients with coefficients (n, k)."""
        theta = self.model.theta
        total = theta.new_zeros(coefficients.shape[1], len(theta))
        for at, gradients in self.row_gradients(measured):
            total += gradients.combine(coefficients[at].to(theta))
        return total

    def pairs(
        self,
        test: Measured,
        train: Measured | None = None,
        product: Product = RowGradients.inner,
        prepared: Callable[[RowGradients], RowGradients] = lambda gradients: gradients,
        together: int = MOST_ROWS,
    ) -> NDArray[np.float64]:
        """Return the products (m, n) of the gradients of all pairs of test and training rows.

        Those of test rows are `prepared` first, so many `together` at most, and as many are held as fit half
        the memory budget.
        """
        test, back = _by_length(test)
        train, train_back = _by_length(self.losses if train is None else train)
        result = np.empty((len(test), len(train)))
        chunks = ((at, prepared(left)) for at, left in self.row_gradients(test, together))
        for held in _held(chunks, self.memory_budget // 2):
            for rows, right in self.row_gradients(train):
                for at, left in held:
                    result[at, rows] = product(left, right).cpu().numpy()
        return result[back][:, train_back]

    def rowwise(
        self,
        own: Measured,
        train: Measured | None = None,
        product: Product = RowGradients.inner_rowwise,
    ) -> NDArray[np.float64]:
        """Return the products (n,) of the gradients of each training row, measured in two ways."""
        own, back = _by_length(own)
        train, _ = _by_length(self.losses if train is None else train)
        pairs = zip(self.row_gradients(own), self.row_gradients(train), strict=True)
        return np.concatenate([product(a, b).cpu().numpy() for (_, a), (_, b) in pairs])[back]

    @cached_property
    def mean_squared_gradient(self) -> float:
        """Mean squared entry of the rows' gradients, by share: the unit of a damping."""
        losses, _ = _by_length(self.losses)
        shares, total = losses.rows.shares.cpu(), 0.0
        for at, rows in self.row_gradients(losses):
            total += float(rows.inner_rowwise(rows).cpu() @ shares[at])
        return total / self.model.n_parameters


def _held(
    chunks: Iterable[tuple[slice, RowGradients]], n_bytes: int
) -> Iterator[list[tuple[slice, RowGradients]]]:
    """Yield lists of chunks of gradients, written out as far as so many bytes go, that fit them."""
    held: list[tuple[slice, RowGradients]] = []
    left = n_bytes
    for at, gradients in chunks:
        if held and gradients.n_bytes > left:
            yield held
            held, left = [], n_bytes
        kept = gradients.written_out(left)
        held.append((at, kept))
        left -= kept.n_bytes
    if held:
        yield held


def _by_length(measured: Measured) -> tuple[Measured, Any]:
    """Return rows from the shortest to the longest, if they differ, and the index that puts them back."""
    order = order_by_length(measured.inputs)
    if order is None:
        return measured, slice(None)
    return measured[order], order.argsort().cpu().numpy()
