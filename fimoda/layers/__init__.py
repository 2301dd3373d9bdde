"""Gradients of rows, layer by layer: a sum of outer products where a layer's kind has one.

Layers are known by the functions of torch that take their parameters, in one pass through the network
(`recording`). A new kind is one file with a class on `Kind` (the functions, and the gradients from what they
take and from the slopes in their outputs), and one entry of ``kinds.KINDS``. Row gradients, Jacobians,
EK-FAC, projections and kernels then use it; other parameters are differentiated by autograd.
"""

from .differentiation import Cotangents, LayerDifferentiator
from .factors import WRITTEN, Factors, LayerGradients, Vectors
from .lookups import Lookups
from .matrices import Matrices, turned
from .place import Place

__all__ = [
    "WRITTEN",
    "Cotangents",
    "Factors",
    "LayerDifferentiator",
    "LayerGradients",
    "Lookups",
    "Matrices",
    "Place",
    "Vectors",
    "turned",
]
