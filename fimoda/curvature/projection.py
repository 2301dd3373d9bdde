"""Random projections of gradients, generated in blocks and never held whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model import DEFAULT_BUDGET
from ..row_gradients import FactoredGradients, RowGradients

#: Parameters whose rows of the projection are drawn together, from a generator of their own.
BLOCK = 1024

KINDS = ("rademacher", "gaussian", "product")


class Projection:
    r"""Features :math:`\phi = P^\top g / \sqrt k` with independent entries of variance one in P.

    Inner products of features estimate those of the gradients, with a relative error of order
    :math:`1/\sqrt k`. Block b of P comes from a generator seeded by `seed` and b, so P does not
    depend on how rows are cut into chunks.

    Parameters
    ----------
    n_parameters : int
        Length p of a gradient.
    n_components : int or None
        Number k of features; the projection is the identity if None or at least p.
    kind : {"rademacher", "gaussian", "product"}, default="rademacher"
        Independent signs, independent normal numbers, or signs that are the product of one for
        the input and one for the output that a weight connects. For linear layers on vectors the
        last never meets single parameters: k (in + out) operations a row and layer, not k in out.
        It is unbiased, too, and of larger variance.
    seed : int, default=0
        Seed of P.
    memory_budget : int, default=512 MiB
        Bytes that P may take if it is kept; otherwise it is drawn again for each chunk.
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
        """Features (n, k) of n rows.

        Raises
        ------
        ValueError
            If the projection is a product and the gradients have no factors.
        """
        if self.identity:
            return gradients.dense()
        if self.kind == "product":
            if not isinstance(gradients, FactoredGradients):
                raise ValueError(
                    "projection='product' needs a model whose parameters all belong to linear layers "
                    "on vectors. Use projection='rademacher'."
                )
            return self._product(gradients)
        features: Tensor | None = None
        for start in range(0, self.n_parameters, BLOCK):
            stop = min(start + BLOCK, self.n_parameters)
            part = _columns(gradients, start, stop)
            block = self._block(start // BLOCK, stop - start).to(part)
            features = part @ block if features is None else features.addmm_(part, block)
        if features is None:
            raise ValueError("the model has no parameters to project")
        return features.div_(self.n_components**0.5)

    def _product(self, gradients: FactoredGradients) -> Tensor:
        features = None
        for k, (a, d) in enumerate(zip(gradients.inputs, gradients.signals, strict=True)):
            rng = np.random.default_rng([self.seed, k])
            left = torch.from_numpy(signs(rng, a.shape[1], self.n_components)).to(a)
            right = torch.from_numpy(signs(rng, d.shape[1], self.n_components)).to(d)
            part = (a @ left).mul_(d @ right)
            features = part if features is None else features.add_(part)
        if features is None:
            raise ValueError("the model has no parameters to project")
        return features.div_(self.n_components**0.5)

    def _block(self, number: int, n_rows: int) -> Tensor:
        """Rows of P, (n_rows, k)."""
        if number in self._kept:
            return torch.from_numpy(self._kept[number])
        rng = np.random.default_rng([self.seed, number])
        block: NDArray[Any]
        if self.kind == "gaussian":
            block = rng.standard_normal((n_rows, self.n_components), dtype=np.float32)
        else:
            block = signs(rng, n_rows, self.n_components)
        if self.n_parameters * self.n_components * block.itemsize <= self.memory_budget:
            self._kept[number] = block
        return torch.from_numpy(block)

    def __repr__(self) -> str:
        return f"Projection({self.n_parameters}, {self.n_components}, {self.kind!r})"


def signs(rng: np.random.Generator, n_rows: int, n_columns: int) -> NDArray[np.int8]:
    """Independent signs, (n_rows, n_columns)."""
    n_bits = n_rows * n_columns
    bits = np.unpackbits(np.frombuffer(rng.bytes(-(-n_bits // 8)), dtype=np.uint8), count=n_bits)
    return (2 * bits.view(np.int8) - 1).reshape(n_rows, n_columns)


def _columns(gradients: RowGradients, start: int, stop: int) -> Tensor:
    """Entries [start, stop) of the gradients, (n, stop - start), contiguous."""
    if not isinstance(gradients, FactoredGradients):
        return gradients.dense()[:, start:stop]
    parts: list[tuple[int, Tensor]] = []
    for a, d, place in zip(gradients.inputs, gradients.signals, gradients.places, strict=True):
        offset = 0
        for s in place:
            width = (s.stop - s.start) // d.shape[1]
            first, last = max(start, s.start), min(stop, s.stop)
            if first < last:
                flat = torch.arange(first - s.start, last - s.start, device=a.device)
                row, column = flat // width, flat % width
                parts.append((first, d[:, row] * a[:, offset + column]))
            offset += width
    return torch.cat([part for _, part in sorted(parts, key=lambda p: p[0])], dim=1)
