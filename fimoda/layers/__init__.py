"""Gradients of rows, layer by layer: a sum of outer products where a layer's kind has one.

A new kind is one file with a class on `Kind` (where a row meets the layer: its inputs and the
gradients in its outputs, position by position), and one entry of ``kinds.KINDS``. Row gradients,
Jacobians, EK-FAC, projections and kernels then use it; parameters of layers of other kinds are
differentiated by autograd.
"""

from .base import Factors, Kind, LayerGradients, Matrices, Place
from .differentiation import Cotangents, Layer, LayerDifferentiator, trainable_layers

__all__ = [
    "Cotangents",
    "Factors",
    "Kind",
    "Layer",
    "LayerDifferentiator",
    "LayerGradients",
    "Matrices",
    "Place",
    "trainable_layers",
]
