"""Random projections of gradients, generated in blocks and never held whole unless they are sparse."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_matrix
from torch import Tensor

from ..layers import Factors
from ..model import DEFAULT_BUDGET
from ..row_gradients import RowGradients
from ..training.products import fast_float32_products

#: Parameters whose rows of a dense projection are drawn together, from a generator of their own.
BLOCK = 1024

#: Nonzero entries of a parameter in a sparse projection.
NONZEROS = 4

#: Rows, and numbers in all, of the gradients that a sparse projection meets at a time.
_SPARSE_ROWS, _SPARSE_SIZE = 128, 2**21

KINDS = ("rademacher", "gaussian", "product", "sparse")


class Projection:
    r"""Features :math:`\phi = P^\top g / \sqrt k` with uncorrelated entries of variance one in P.

    Inner products of features estimate those of the gradients without bias, with a relative error
    of order :math:`1/\sqrt k`. P does not depend on how rows are cut into chunks: block b of a
    dense P comes from a generator seeded by `seed` and b, and is kept where P fits the memory budget.

    Parameters
    ----------
    n_parameters : int
        Length p of a gradient.
    n_components : int or None
        Number k of features; the projection is the identity if None or at least p.
    kind : {"rademacher", "gaussian", "product", "sparse"}, default="rademacher"
        Independent signs (p k operations a row); independent normal numbers; signs that are the
        product of one for the input and one for the output that a weight connects; or four
        nonzero entries for each parameter, one in each quarter of the features, with signs. The
        product is for linear layers on vectors, where it never meets single parameters: k (in +
        out) operations a row and layer; its variance is larger, up to three times and, for inner
        products of a row with itself, more. The sparse one takes 4 p operations a row, and its
        variance is that of signs.
    seed : int, default=0
    memory_budget : int, default=512 MiB
    """

    def __init__(
        self,
        n_parameters: int,
        n_components: int | None,
        kind: str = "rademacher",
        *,
        seed: int = 0,
        memory_budget: int = DEFAULT_BUDGET,
    ):
        self.n_parameters = n_parameters
        self.identity = n_components is None or n_components >= n_parameters
        self.n_components = (
            n_parameters if n_components is None else min(n_components, n_parameters)
        )
        self.kind = kind
        self.seed = seed
        self.memory_budget = memory_budget
        self._kept: dict[int, NDArray[Any]] = {}

    def __call__(self, gradients: RowGradients) -> Tensor:
        """Return the features (n, k) of n rows; ValueError if a product has no factors to go by."""
        if self.n_parameters == 0:
            raise ValueError("the model has no parameters to project")
        if self.identity:
            return gradients.dense()
        if self.kind == "sparse":
            return self._sparse(gradients)
        if self.kind == "product":
            if gradients.factors is None:
                raise ValueError(
                    "projection='product' needs a model whose parameters all belong to linear layers "
                    "on vectors. Use projection='sparse'."
                )
            return self._product(gradients.factors)
        return self._dense(gradients)

    def __repr__(self) -> str:
        return f"Projection({self.n_parameters}, {self.n_components}, {self.kind!r})"

    # ---- independent entries ----------------------------------------------------------------

    def _dense(self, gradients: RowGradients) -> Tensor:
        parts = gradients.entries(BLOCK)
        part, block = next(parts), self._block(0)
        block = block.to(part)
        with fast_float32_products(lambda: part[:, :256].mT @ block):
            features = part.mT @ block
            for number, part in enumerate(parts, start=1):
                features.addmm_(part.mT, self._block(number).to(part))
        return features.div_(self.n_components**0.5)

    def _block(self, number: int) -> Tensor:
        """Return BLOCK rows of P (the last block has fewer), (BLOCK, k)."""
        if number in self._kept:
            return torch.from_numpy(self._kept[number])
        n_rows = min(BLOCK, self.n_parameters - number * BLOCK)
        rng = np.random.default_rng([self.seed, number])
        block: NDArray[Any]
        if self.kind == "gaussian":
            block = rng.standard_normal((n_rows, self.n_components), dtype=np.float32)
        else:
            block = signs(rng, n_rows, self.n_components)
        if self.n_parameters * self.n_components * block.itemsize <= self.memory_budget:
            self._kept[number] = block
        return torch.from_numpy(block)

    # ---- products of signs ------------------------------------------------------------------

    def _product(self, layers: list[Factors]) -> Tensor:
        features = torch.zeros(())
        for k, layer in enumerate(layers):
            a, d = layer.inputs[:, 0], layer.signals[:, 0, 0]
            rng = np.random.default_rng([self.seed, k])
            left = torch.from_numpy(signs(rng, a.shape[1], self.n_components)).to(a)
            right = torch.from_numpy(signs(rng, d.shape[1], self.n_components)).to(d)
            features = (a @ left).mul_(d @ right).add_(features.to(a))
        return features.div_(self.n_components**0.5)

    # ---- few entries ------------------------------------------------------------------------

    @cached_property
    def _entries(self) -> csc_matrix:
        """Return the transpose of P / sqrt(k), (k, p), its nonzero entries parameter by parameter."""
        p, k, s = self.n_parameters, self.n_components, min(NONZEROS, self.n_components)
        rng = np.random.default_rng(self.seed)
        ends = np.arange(s + 1) * k // s
        places = rng.integers(ends[:-1], ends[1:], size=(p, s), dtype=np.int32)
        values = signs(rng, p, s) / np.float32(s**0.5)
        starts = np.arange(0, p * s + 1, s)
        return csc_matrix((values.ravel(), places.ravel(), starts), shape=(k, p))

    def _sparse(self, gradients: RowGradients) -> Tensor:
        features = []
        for rows in range(0, len(gradients), _SPARSE_ROWS):
            few = gradients[rows : rows + _SPARSE_ROWS]
            step = max(1, _SPARSE_SIZE // len(few))
            total = torch.zeros(())
            for number, part in enumerate(few.entries(step)):
                columns = self._entries[:, number * step : (number + 1) * step]
                total = torch.from_numpy(columns @ part.cpu().numpy()).to(part).add_(total.to(part))
            features.append(total.mT)
        return torch.cat(features)


def signs(rng: np.random.Generator, n_rows: int, n_columns: int) -> NDArray[np.int8]:
    """Return independent signs, (n_rows, n_columns)."""
    n_bits = n_rows * n_columns
    bits = np.unpackbits(np.frombuffer(rng.bytes(-(-n_bits // 8)), dtype=np.uint8), count=n_bits)
    return (2 * bits.view(np.int8) - 1).reshape(n_rows, n_columns)
