"""DataInf: the mean of inverses in place of the inverse of the mean, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..layers import LayerGradients
from ..measured import Measured
from ..model import FinalModel
from ..objective import MOST_ROWS, Objective
from ..padding import order_by_length
from ..row_gradients import RowGradients


class DataInfSolver:
    r"""Inner products through DataInf's inverse of the empirical Fisher matrix.

    For each layer l, of the modules that own trainable parameters,

    .. math:: H_l^{-1} v = \frac{1}{\lambda_l} \sum_j s_j
        \Big[v - \frac{g_{jl}^\top v}{\lambda_l + \|g_{jl}\|^2} g_{jl}\Big].

    For the scores of m test rows the sum is taken in either of two orders, whichever is cheaper: by
    vectors of the size of the model, one a test row, which is linear in n; or, where all layers are
    linear ones on vectors, by inner products of pairs of training gradients, which their factors
    give at the cost of n (in + out) a row and layer, not m in out. ``mean_squares`` (n_layers,) are
    the mean squared entries of the gradients of the loss.
    """

    def __init__(self, objective: Objective):
        order = order_by_length(objective.rows.inputs)
        self._order = slice(None) if order is None else order
        self._back = slice(None) if order is None else order.argsort()
        self.objective = objective.of_rows(objective.rows[self._order])
        self.layers = parameter_layers(objective.model)
        self._differentiate = objective.differentiate
        self.chunk_size = objective.chunk(1 / 8, 2048)
        # a weight that a hook computes of others in its layer has factors apart from the layer's bias
        first = self._differentiate(self.objective.losses[:1]).places
        own = [place.slices for place in first] == list(self.layers.values())
        self._by_factors = self._differentiate.factors and own
        self._kept: list[tuple[slice, list[LayerGradients]]] | None = None
        held = len(objective) * self._differentiate.row_bytes()
        if self._by_factors and held <= objective.memory_budget:
            self._kept = list(self._chunks(self.objective.losses))
        self._squares = torch.cat(  # (L, n)
            [torch.stack([g.inner_rowwise(g) for g in layers]) for _, layers in self._train()],
            dim=1,
        )
        self.largest_squares = self._squares.amax(1)
        sizes = [sum(s.stop - s.start for s in place) for place in self.layers.values()]
        shares = self.objective.rows.shares
        self.mean_squares = self._squares @ shares / torch.tensor(sizes).to(shares)

    def _chunks(self, measured: Measured) -> Iterator[tuple[slice, list[LayerGradients]]]:
        """Yield gradients a chunk of rows at a time, layer by layer."""
        most = self.objective.chunk_size or MOST_ROWS
        for rows, gradients in self._differentiate.chunks(measured, self.chunk_size, most):
            yield rows, self._split(gradients)

    def _split(self, gradients: RowGradients) -> list[LayerGradients]:
        """Return the gradients in each layer."""
        if self._by_factors and gradients.factors is not None:
            return list(gradients.factors)
        return gradients.of_layers(list(self.layers.values()))

    def _train(self) -> Iterator[tuple[slice, list[LayerGradients]]]:
        return self._chunks(self.objective.losses) if self._kept is None else iter(self._kept)

    def _shrink(self, damping: Tensor) -> Tensor:
        """Return what a product with each row is divided by, (L, n), as a factor with its share."""
        return self.objective.rows.shares / (damping[:, None] + self._squares)

    def scores(self, test: Measured, damping: Tensor) -> Tensor:
        """Return scores (m, n) of the training rows, without their shares; damping is (n_layers,)."""
        by_pairs = self._by_factors and self._pairs_are_cheaper(len(test))
        return self._in_blocks(test, damping, None, by_pairs)[:, self._back]

    def scores_of(self, rows: Measured, test: Measured, damping: Tensor) -> Tensor:
        """Return the same (m, k) of other rows, for which the training rows' curvature stands."""
        return self._in_blocks(test, damping, rows, by_pairs=False)

    def _in_blocks(
        self, test: Measured, damping: Tensor, rows: Measured | None, by_pairs: bool
    ) -> Tensor:
        """Return scores (m, ...) of the training rows in their order, or of other rows."""
        n, L, model = len(self.objective), len(self.layers), self.objective.model
        width = n if rows is None else len(rows)
        result = torch.empty(len(test), width, dtype=torch.float64, device=damping.device)
        largest = max(sum(s.stop - s.start for s in place) for place in self.layers.values())
        vectors = model.theta.element_size() * (model.n_parameters + 2 * largest)
        each = 8 * 3 * n * L if by_pairs else vectors
        step = int(max(1, self.objective.memory_budget // 2 // each))
        for start in range(0, len(test), step):
            some = slice(start, min(start + step, len(test)))
            if by_pairs:
                result[some] = self._by_pairs(test[some], damping)
            else:
                result[some] = self._by_vectors(test[some], damping, rows)
        return result

    def _pairs_are_cheaper(self, n_test: int) -> bool:
        """Return whether pairs of training rows take less than vectors of the model's size."""
        gradients = self._differentiate(self.objective.losses[:1])
        sizes = [f.inputs.numel() + f.signals.numel() for f in gradients.factors or ()]
        pairs = len(self.objective) * (sum(sizes) + 2 * n_test * len(sizes))
        return pairs < 2 * n_test * self.objective.model.n_parameters

    def diagonal(self, own: Measured, damping: Tensor) -> Tensor:
        """Return the score of each training row on itself (n,), by one pass over pairs of rows."""
        own = own[self._order]
        result = torch.zeros(len(own), dtype=torch.float64, device=damping.device)
        shrink = self._shrink(damping)
        for (left, of_test), (_, first) in zip(self._chunks(own), self._train(), strict=True):
            for k, (v, g) in enumerate(zip(of_test, first, strict=True)):
                result[left] += v.inner_rowwise(g) / damping[k]
            for right, second in self._train():
                for k, (v, g, h) in enumerate(zip(of_test, first, second, strict=True)):
                    products = v.inner(h) * g.inner(h)
                    result[left] -= products @ shrink[k, right] / damping[k]
        return result[self._back]

    def _by_pairs(self, some: Measured, damping: Tensor) -> Tensor:
        """Return scores by inner products of test and training, and of pairs of training gradients."""
        n, L = len(self.objective), len(self.layers)
        kernel = torch.empty(L, len(some), n, dtype=torch.float64, device=damping.device)
        for test, of_test in self._chunks(some):
            for rows, of_train in self._train():
                for k, (v, g) in enumerate(zip(of_test, of_train, strict=True)):
                    kernel[k, test, rows] = v.inner(g)
        coefficients = kernel * self._shrink(damping)[:, None]
        result = (kernel / damping[:, None, None]).sum(0)
        for left, first in self._train():
            for right, second in self._train():
                for k, (g, h) in enumerate(zip(first, second, strict=True)):
                    result[:, right] -= coefficients[k][:, left] @ g.inner(h) / damping[k]
        return result

    def _by_vectors(self, some: Measured, damping: Tensor, rows: Measured | None = None) -> Tensor:
        """Return scores by vectors of the size of the model, one a test row: linear in n."""
        of_test = self._split(self._differentiate(some))
        taken: list[Tensor] = []
        shrink = self._shrink(damping)
        for at, layers in self._train():
            for k, (v, g) in enumerate(zip(of_test, layers, strict=True)):
                coefficients = (v.inner(g) * shrink[k, at]).mT
                part = g.combine(coefficients.to(self.objective.model.theta).unsqueeze(2))
                if k < len(taken):
                    taken[k] += part
                else:
                    taken.append(part)
        n = len(self.objective) if rows is None else len(rows)
        result = torch.zeros(len(some), n, dtype=torch.float64, device=damping.device)
        for at, layers in self._train() if rows is None else self._chunks(rows):
            for k, (v, g) in enumerate(zip(of_test, layers, strict=True)):
                left = v.inner(g) - g.apply(taken[k])[:, :, 0].mT.double()
                result[:, at] += left / damping[k]
        return result


def parameter_layers(model: FinalModel) -> dict[str, tuple[slice, ...]]:
    """Return where the trainable parameters of each module that owns some lie in the vector.

    A parameter that several modules share belongs to the first.
    """
    layers: dict[str, list[slice]] = {}
    for name, place in model.slices.items():
        owner = name.rpartition(".")[0] or type(model.module).__name__
        layers.setdefault(owner, []).append(place)
    return {name: tuple(places) for name, places in layers.items()}
