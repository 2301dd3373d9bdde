"""EK-FAC as a preconditioner."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from ..layers import LayerDifferentiator
from .ekfac import EKFAC
from .operators import Curvature


class EKFACPreconditioner:
    r"""Approximate solutions of :math:`(C + \lambda I) u = v` from the EK-FAC of the same rows.

    Parameters of layers that EK-FAC does not treat are given the mean of its eigenvalues as their
    curvature. ValueError if it treats no layer of the model.
    """

    def __init__(self, curvature: Curvature):
        objective = replace(curvature.objective, chunk_size=None)
        layers = LayerDifferentiator(objective.model, objective.rows[:2].inputs)
        if not layers.layers:
            raise ValueError(
                "preconditioner='ekfac' needs a Linear or Conv2d layer that EK-FAC can treat; this "
                f"model has none: {', '.join(layers.skipped)}. Use preconditioner=None."
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="EK-FAC does not treat")
            self._ekfac = EKFAC(objective)
        self._outside = torch.ones_like(objective.model.theta, dtype=torch.bool)
        for place in layers.places:
            for s in place.slices:
                self._outside[s] = False
        eigenvalues = torch.cat([block.eigenvalues.flatten() for block in self._ekfac.blocks])
        self._mean = float(eigenvalues.mean())

    def __call__(self, V: Tensor, damping: float) -> Tensor:
        """Return approximate solutions for the rows of V (k, p), as rows of the same type."""
        solved = self._ekfac.solve(V.to(self._ekfac.objective.model.dtype), damping).to(V)
        solved[:, self._outside] = V[:, self._outside] / (self._mean + damping)
        return solved
