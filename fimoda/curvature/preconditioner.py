"""EK-FAC as a preconditioner."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from .ekfac import EKFAC
from .layers import LayerDifferentiator
from .operators import Curvature


class EKFACPreconditioner:
    r"""Approximate solutions of :math:`(C + \lambda I) u = v` from the EK-FAC of the same rows.

    Parameters of layers that EK-FAC does not treat are given the mean of its eigenvalues as their
    curvature.

    Parameters
    ----------
    curvature : Curvature
        Any; its model, rows and weights make the EK-FAC.

    Raises
    ------
    ValueError
        If EK-FAC treats no layer of the model.
    """

    def __init__(self, curvature: Curvature):
        model, X = curvature.model, curvature.inputs
        layers = LayerDifferentiator(model, X[:2])
        if not layers.layers:
            raise ValueError(
                "preconditioner='ekfac' needs a Linear or Conv2d layer that EK-FAC can treat; this "
                f"model has none: {', '.join(layers.skipped)}. Use preconditioner=None."
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="EK-FAC does not treat")
            self._ekfac = EKFAC(
                model,
                X,
                curvature.targets,
                curvature.weights,
                memory_budget=curvature.memory_budget,
            )
        self._outside = torch.ones(model.n_parameters, dtype=torch.bool, device=X.device)
        for place in layers.places:
            for s in place:
                self._outside[s] = False
        eigenvalues = torch.cat([block.eigenvalues.flatten() for block in self._ekfac.blocks])
        self._mean = float(eigenvalues.mean())

    def __call__(self, V: Tensor, damping: float) -> Tensor:
        """Approximate solutions for the rows of V (k, p), as rows of the same type."""
        solved = self._ekfac.solve(V.to(self._ekfac.model.dtype), damping).to(V)
        solved[:, self._outside] = V[:, self._outside] / (self._mean + damping)
        return solved
