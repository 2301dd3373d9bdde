"""Nystroem's approximation of a kernel of shared leaves, by some of the rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from .ensemble import Floats

#: Eigenvalues of the landmarks' kernel that count as zero, in parts of the largest.
_ZERO = 1e-12


@dataclass(frozen=True, eq=False)
class Landmarks:
    r"""Dense features of rows whose products approximate :math:`K = \Phi \Phi^\top + c`.

    .. math:: F = K_{\cdot R} K_{RR}^{-1/2}

    R are the landmarks. What is left, :math:`K - F F^\top`, has no negative eigenvalue.

    Parameters
    ----------
    features : sparse array of shape (n_landmarks, n_leaves)
        Of the landmarks.
    root : ndarray of shape (n_landmarks, rank)
        The inverse square root of their kernel.
    constant : float
    """

    features: csr_array
    root: Floats
    constant: float

    @classmethod
    def of(cls, features: csr_array, constant: float, rows: NDArray[np.int64]) -> Landmarks:
        """Return the approximation by some rows of the features (n, n_leaves)."""
        chosen = csr_array(features[rows])
        squares, modes = np.linalg.eigh((chosen @ chosen.T).toarray() + constant)
        kept = squares > _ZERO * squares.max()
        return cls(chosen, modes[:, kept] / np.sqrt(squares[kept]), constant)

    def __call__(self, features: csr_array) -> Floats:
        """Return the dense features (n, rank) of rows, from theirs (n, n_leaves)."""
        found: Floats = ((features @ self.features.T).toarray() + self.constant) @ self.root
        return found

    def error(self, features: csr_array) -> float:
        """Return the part of the kernel's trace that the approximation leaves out, its constant apart."""
        own = float(features.multiply(features).sum())
        whole = own + features.shape[0] * self.constant
        return max(0.0, whole - float((self(features) ** 2).sum())) / max(own, 1e-300)
