r"""Rows chosen one after another, each by what its removal does after those before it.

In the quadratic model the removal of the rows U moves a measurement with gradient t by
:math:`v_U^\top (I - S_{UU})^{-1} r_U`, where :math:`S = B H^{-1} B^\top`, :math:`v = B H^{-1} t` and r is
the rows' `reach`. After the removal of a row j, the effect of the next one is that of its own removal
with

.. math:: v \leftarrow v + S_{:j} (I - S_{jj})^{-1} v_j, \quad
          r \leftarrow r + S_{:j} (I - S_{jj})^{-1} r_j, \quad
          S \leftarrow S + S_{:j} (I - S_{jj})^{-1} S_{j:},

a Cholesky factorisation with pivots, of which only the chosen columns are ever computed. What a group's
removal does to the weights of the others is counted in the gradient, not in the curvature: a scale of
all effects alike, but for the penalty.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .group_removal import Coordinates


class GreedyRemoval:
    """Greedy choices from the rows of an objective, for any measurement.

    `share` (n,) is what the others get of each row's weight: its share of a mean, or zero.
    """

    def __init__(self, coordinates: Coordinates, share: NDArray[np.float64]):
        rows = np.arange(len(coordinates.reach))
        curved = coordinates.loss + coordinates.rest
        self.scale = curved.rsqrt()
        self.factors = coordinates.factors(rows) * self.scale  # S is their inner products
        self.reach = coordinates.reach
        self.share = torch.from_numpy(share).to(curved)
        mean = coordinates.combined(torch.ones(len(rows), 1).to(curved))[:, 0]
        if coordinates.pull is not None:
            mean = mean + coordinates.pull
        self.mean = mean * self.scale

    def rows(self, gradient: Tensor, n_rows: int) -> list[int]:
        """Return the rows whose joint removal raises a measurement with gradient (k,) most, in order."""
        B, C = self.factors, self.reach.shape[1]
        t = gradient * self.scale
        v, r, w = B @ t, self.reach.clone(), B @ self.mean  # (n, C)
        mean, removed = t @ self.mean, torch.zeros(()).to(t)
        hat = torch.einsum("nak,nbk->nab", B, B)
        columns: list[Tensor] = []  # of S, each (n, C, C), scaled so that its product is the update
        eye = torch.eye(C).to(hat)
        chosen: list[int] = []
        for _ in range(n_rows):
            steps = torch.linalg.solve(eye - hat, torch.stack([r, w], dim=2))  # (n, C, 2)
            own, others = torch.einsum("na,nax->xn", v, steps)
            gain = own - self.share * mean - (removed + self.share) * others
            gain[chosen] = -torch.inf
            gain[hat.diagonal(dim1=1, dim2=2).amax(1) > 1 - 1e-9] = -torch.inf  # nothing is left
            j = int(gain.argmax())
            if not torch.isfinite(gain[j]):
                raise ValueError(
                    f"n_rows must be at most {len(chosen)}: without these the curvature is singular. Raise "
                    "damping, or choose fewer rows."
                )
            column = torch.einsum("nak,bk->nab", B, B[j])
            for known in columns:
                column = column + known @ known[j].mT
            root = torch.linalg.cholesky(torch.linalg.inv(eye - hat[j]))
            scaled = column @ root
            mean = mean + (v[j] @ root) @ (root.mT @ w[j])
            removed = removed + self.share[j]
            v, r, w = (one + scaled @ (root.mT @ one[j]) for one in (v, r, w))
            hat = hat + scaled @ scaled.mT
            columns.append(scaled)
            chosen.append(j)
        return chosen
