"""The damped second moment of feature vectors, factored."""

from __future__ import annotations

import torch
from torch import Tensor

#: Rows whose products and solutions are taken at a time.
_ROWS = 2048


class FeatureKernel:
    r"""Solutions with :math:`\sum_j s_j \sum_f \phi_{jf} \phi_{jf}^\top + \lambda I`, by Cholesky.

    Features are (n, F, k), and shares (n,); ``gram`` (k, k) is the second moment, float64.
    """

    def __init__(self, features: Tensor, share: Tensor):
        k = features.shape[2]
        self.gram = torch.zeros(k, k, dtype=torch.float64, device=features.device)
        for part, w in zip(features.split(_ROWS), share.to(features).split(_ROWS), strict=True):
            flat = part.flatten(0, 1)
            self.gram += flat.mT @ (flat * w.repeat_interleave(part.shape[1])[:, None])
        self._factored: tuple[float, Tensor] | None = None

    def solve(self, V: Tensor, damping: float) -> Tensor:
        """Return the solutions of the rows of V (m, k), as rows."""
        factor = self.factor(damping)
        solved = [torch.cholesky_solve(v.double().mT, factor).mT.to(V) for v in V.split(_ROWS)]
        return torch.cat(solved)

    def factor(self, damping: float) -> Tensor:
        """Return the Cholesky factor of the damped kernel, kept for the last damping."""
        if self._factored is None or self._factored[0] != damping:
            damped = self.gram.clone()
            damped.diagonal().add_(damping)
            factor, failed = torch.linalg.cholesky_ex(damped)
            diagonal = factor.diagonal()
            if int(failed) or float(diagonal.min()) <= 1e-7 * float(diagonal.max()):
                scale = float(self.gram.trace()) or 1.0
                raise ValueError(
                    f"the kernel of the projected gradients is singular, and damping={damping:g} does "
                    f"not make it positive definite. Raise damping above {1e-8 * scale:.1e}."
                )
            self._factored = damping, factor
        return self._factored[1]
