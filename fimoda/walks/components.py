r"""A few combinations of test rows that stand for all of them.

What is carried back from test rows is linear in their gradients G (m, p). Let D be the sizes of the rows'
first-order scores, and U (m, r) an orthonormal basis of combinations of rows of size one. The scores of all
rows are :math:`D U` times those of the r vectors :math:`U^\top D^{-1} G`, but for what the basis leaves out.
One random combination of that, with signs :math:`\epsilon`, goes the same way: the mean square of its
scores is the sum of the squares of all that is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .._validation import is_integer
from ..layers.by_autograd import StateGradients
from ..measured import Measured
from ..model import FinalModel
from ..objective import Objective

#: Training rows along whose gradients the combinations are chosen.
ROWS = 512


class Starts(Protocol):
    """Vectors that are carried back: one for each test row, or combination of these."""

    def __len__(self) -> int: ...
    def __call__(self, model: FinalModel) -> Tensor:
        """Return the vectors (k, p) at the parameters of a model."""


@dataclass(frozen=True)
class OfCombinations:
    """Sums of the gradients of test rows by weights (k, m), of so many rows at a time."""

    test: Measured
    weights: Tensor
    together: int

    def __len__(self) -> int:
        return len(self.weights)

    def __call__(self, model: FinalModel) -> Tensor:
        total = model.theta.new_zeros(len(self.weights), len(model.state))
        parts = zip(
            self.test.split(self.together), self.weights.split(self.together, 1), strict=True
        )
        for rows, weights in parts:
            total.addmm_(weights.to(total), StateGradients(rows)(model))
        return total

    def split(self, size: int) -> list[OfCombinations]:
        """Return parts of at most `size` combinations."""
        parts = self.weights.split(size)
        return [OfCombinations(self.test, weights, self.together) for weights in parts]


@dataclass(frozen=True)
class Components:
    """A basis (m, r) of combinations of test rows of sizes (m,), and signs (m,) for what it leaves out."""

    basis: Tensor
    sizes: Tensor
    signs: Tensor

    @classmethod
    def leading(
        cls, objective: Objective, test: Measured, n_components: float, together: int
    ) -> Components | None:
        """Return the combinations whose products with gradients of training rows are largest.

        So many, or as many as have this part of the sum of squares; None where that is all test rows.
        `together` test rows are differentiated at a time.
        """
        m, fixed = len(test), is_integer(n_components)
        if fixed and n_components >= m - 1:
            return None
        rows = np.unique(np.linspace(0, len(objective) - 1, ROWS).astype(int))
        some = objective.of_rows(objective.rows[rows].alone)
        products = torch.from_numpy(some.pairs(test, together=together))
        sizes = products.norm(dim=1)
        # parts of the largest, so that weights are numbers where a row has no gradient
        sizes = (sizes / sizes.max().clamp_min(1e-300)).clamp_min(1e-12)
        left, values, _ = torch.linalg.svd(products / sizes[:, None], full_matrices=False)
        part = values.square().cumsum(0) / values.square().sum()
        r = int(n_components) if fixed else 1 + int((part < n_components).sum())
        if r >= m - 1:
            return None
        generator = torch.Generator().manual_seed(0)
        signs = 2.0 * torch.randint(0, 2, (m,), generator=generator) - 1
        return cls(left[:, :r], sizes, signs.to(left))

    @property
    def weights(self) -> Tensor:
        """Weights (r + 1, m) of the test rows in the combinations that are carried back."""
        rest = self.signs - self.basis @ (self.basis.mT @ self.signs)
        return torch.cat([self.basis.mT, rest[None]]) / self.sizes

    def of_all(self, values: Tensor) -> Tensor:
        """Return scores (..., m, n) of all test rows from those of the combinations (..., r + 1, n)."""
        return (self.sizes[:, None] * self.basis).to(values) @ values[..., :-1, :]

    def error(self, values: Tensor) -> float:
        """Return the size of what is missing, as a part of the size of all scores, row by row."""
        missing = values[-1].square().sum()
        return float((missing / values.square().sum().clamp_min(1e-300)).sqrt())
