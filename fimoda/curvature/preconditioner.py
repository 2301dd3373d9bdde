"""EK-FAC as a preconditioner."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from .ekfac import EKFAC
from .operators import Curvature


class EKFACPreconditioner:
    r"""Approximate solutions of :math:`(C + \lambda I) u = v` from the EK-FAC of the same rows."""

    def __init__(self, curvature: Curvature):
        self._ekfac = EKFAC(replace(curvature.objective, chunk_size=None))

    def __call__(self, V: Tensor, damping: float) -> Tensor:
        """Return approximate solutions for the rows of V (k, p), as rows of the same type."""
        return self._ekfac.solve(V.to(self._ekfac.objective.model.dtype), damping).to(V)
