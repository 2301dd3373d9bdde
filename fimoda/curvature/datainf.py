"""DataInf: the mean of inverses in place of the inverse of the mean, layer by layer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from ..measured import Measure, Measured
from ..model import DEFAULT_BUDGET, FinalModel
from ..row_gradients import (
    DenseGradients,
    FactoredGradients,
    RowDifferentiator,
    RowGradients,
)
from ..rows import Rows


class DataInfSolver:
    r"""Inner products through DataInf's inverse of the empirical Fisher matrix.

    For each layer l, with :math:`\tilde w_j = w_j / \sum_k w_k`,

    .. math:: H_l^{-1} v = \frac{1}{\lambda_l} \sum_j \tilde w_j
        \Big[v - \frac{g_{jl}^\top v}{\lambda_l + \|g_{jl}\|^2} g_{jl}\Big].

    For the scores of m test rows the sum is taken in either of two orders, whichever is cheaper: by
    vectors of the size of the model, one a test row, which is linear in n; or, where all layers are
    linear ones on vectors, by inner products of pairs of training gradients, which their factors
    give at the cost of n (in + out) a row and layer, not m in out.

    Parameters
    ----------
    model : FinalModel
    X, y : Tensor
        Encoded training rows and targets.
    weights : Tensor of shape (n,)
        Weights of the rows in the objective.
    chunk_size : int, default=None
        Rows whose gradients are held at a time; from `memory_budget` by default.
    memory_budget : int, default=512 MiB
        Bytes for gradients and their products.

    Attributes
    ----------
    layers : dict of str to tuple of slice
        Modules that own trainable parameters, and where these lie in the parameter vector.
    mean_squares : Tensor of shape (n_layers,)
        Weighted mean squared entry of the gradients of the loss, by layer.
    """

    def __init__(
        self,
        model: FinalModel,
        X: Tensor,
        y: Tensor,
        weights: Tensor,
        *,
        chunk_size: int | None = None,
        memory_budget: int = DEFAULT_BUDGET,
    ):
        self.model = model
        self.X = X
        self.y = y
        self.share = weights.double() / weights.double().sum()
        self.layers = parameter_layers(model)
        self.memory_budget = memory_budget
        self._differentiate = RowDifferentiator(model, X[:2])
        fitting = memory_budget // (8 * self._differentiate.row_bytes())
        self.chunk_size = chunk_size or int(min(max(fitting, 1), 2048))
        self._kept: list[tuple[slice, list[RowGradients]]] | None = None
        factors = self._differentiate.factors
        if factors and len(X) * self._differentiate.row_bytes() <= memory_budget:
            self._kept = list(self._chunks(X, y, model.loss))
        self._squares = torch.cat(  # (L, n)
            [torch.stack([g.inner_rowwise(g) for g in parts]) for _, parts in self._train()], dim=1
        )
        self.largest_squares = self._squares.amax(1)
        sizes = [sum(s.stop - s.start for s in place) for place in self.layers.values()]
        self.mean_squares = self._squares @ self.share / torch.tensor(sizes).to(self.share)

    def _chunks(
        self, X: Tensor, y: Tensor, measure: Measure
    ) -> Iterator[tuple[slice, list[RowGradients]]]:
        """Gradients a chunk of rows at a time, split into layers."""
        for rows, g in self._differentiate.chunks(Measured(Rows(X, y), measure), self.chunk_size):
            yield rows, self._split(g)

    def _split(self, gradients: RowGradients) -> list[RowGradients]:
        """Gradients in each layer, whose parameters count from zero."""
        if not isinstance(gradients, FactoredGradients):
            dense = gradients.dense()
            return [DenseGradients(_columns(dense, place)) for place in self.layers.values()]
        parts = zip(gradients.inputs, gradients.signals, gradients.places, strict=True)
        return [FactoredGradients([a], [d], [_from_zero(place)]) for a, d, place in parts]

    def _train(self) -> Iterator[tuple[slice, list[RowGradients]]]:
        if self._kept is not None:
            return iter(self._kept)
        return self._chunks(self.X, self.y, self.model.loss)

    def scores(self, X: Tensor, y: Tensor, measure: Measure, damping: Tensor) -> Tensor:
        """Scores (m, n) of the training rows, without their own weight; damping is (n_layers,)."""
        n, L = len(self.X), len(self.layers)
        result = torch.empty(len(X), n, dtype=torch.float64, device=X.device)
        by_pairs = self._differentiate.factors and self._pairs_are_cheaper(len(X))
        product = self._by_pairs if by_pairs else self._by_vectors
        width = 8 * 3 * n * L if by_pairs else 12 * self.model.n_parameters
        step = int(max(1, self.memory_budget // (2 * width)))
        for start in range(0, len(X), step):
            test = slice(start, min(start + step, len(X)))
            result[test] = product(X[test], y[test], measure, damping)
        return result

    def _pairs_are_cheaper(self, n_test: int) -> bool:
        """Whether pairs of training rows take fewer operations than vectors of the model's size."""
        _, parts = next(self._chunks(self.X[:1], self.y[:1], self.model.loss))
        # asked for layers with factors only, which their common type does not say
        factors = sum(g.inputs[0].numel() + g.signals[0].numel() for g in parts)  # type: ignore[attr-defined]
        pairs = len(self.X) * (factors + 2 * n_test * len(parts))
        return pairs < 2 * n_test * self.model.n_parameters

    def diagonal(self, measure: Measure, damping: Tensor) -> Tensor:
        """Score of each training row on itself (n,), by one pass over pairs of rows."""
        result = torch.zeros(len(self.X), dtype=torch.float64, device=self.X.device)
        shrink = self.share / (damping[:, None] + self._squares)  # (L, n)
        test_rows = self._chunks(self.X, self.y, measure)
        for (left, of_test), (_, first) in zip(test_rows, self._train(), strict=True):
            for k, (v, g) in enumerate(zip(of_test, first, strict=True)):
                result[left] += v.inner_rowwise(g) / damping[k]
            for right, second in self._train():
                for k, (v, g, h) in enumerate(zip(of_test, first, second, strict=True)):
                    products = v.inner(h) * g.inner(h)
                    result[left] -= products @ shrink[k, right] / damping[k]
        return result

    def _by_pairs(self, X: Tensor, y: Tensor, measure: Measure, damping: Tensor) -> Tensor:
        """Through inner products of test and training, and of training and training gradients."""
        n = len(self.X)
        kernel = torch.empty(len(self.layers), len(X), n, dtype=torch.float64, device=X.device)
        for test, of_test in self._chunks(X, y, measure):
            for rows, of_train in self._train():
                for k, (v, g) in enumerate(zip(of_test, of_train, strict=True)):
                    kernel[k, test, rows] = v.inner(g)
        shrink = self.share / (damping[:, None] + self._squares)  # (L, n)
        coefficients = kernel * shrink[:, None]
        result = (kernel / damping[:, None, None]).sum(0)
        for left, first in self._train():
            for right, second in self._train():
                for k, (g, h) in enumerate(zip(first, second, strict=True)):
                    result[:, right] -= coefficients[k][:, left] @ g.inner(h) / damping[k]
        return result

    def _by_vectors(self, X: Tensor, y: Tensor, measure: Measure, damping: Tensor) -> Tensor:
        """Through vectors of the size of the model, one a test row: linear in the training rows."""
        of_test = self._split(self._differentiate(Measured(Rows(X, y), measure)))
        sizes = [sum(s.stop - s.start for s in place) for place in self.layers.values()]
        taken = [self.model.theta.new_zeros(len(X), size) for size in sizes]
        shrink = self.share / (damping[:, None] + self._squares)  # (L, n)
        for rows, parts in self._train():
            for k, (v, g) in enumerate(zip(of_test, parts, strict=True)):
                coefficients = v.inner(g) * shrink[k, rows]
                taken[k] += g.combine(coefficients.mT.to(taken[k]))
        result = torch.zeros(len(X), len(self.X), dtype=torch.float64, device=X.device)
        for rows, parts in self._train():
            for k, (v, g) in enumerate(zip(of_test, parts, strict=True)):
                result[:, rows] += (v.inner(g) - g.apply(taken[k]).mT.double()) / damping[k]
        return result


def parameter_layers(model: FinalModel) -> dict[str, tuple[slice, ...]]:
    """Where the trainable parameters of each module that owns some lie in the parameter vector.

    A parameter that several modules share belongs to the first.
    """
    layers: dict[str, list[slice]] = {}
    for name, place in model.slices.items():
        owner = name.rpartition(".")[0] or type(model.module).__name__
        layers.setdefault(owner, []).append(place)
    return {name: tuple(places) for name, places in layers.items()}


def _from_zero(place: tuple[slice, ...]) -> tuple[slice, ...]:
    """The same lengths, one behind the other from zero."""
    ends = list(itertools.accumulate((s.stop - s.start for s in place), initial=0))
    return tuple(slice(a, b) for a, b in itertools.pairwise(ends))


def _columns(dense: Tensor, place: tuple[slice, ...]) -> Tensor:
    return torch.cat([dense[:, s] for s in place], dim=1)
