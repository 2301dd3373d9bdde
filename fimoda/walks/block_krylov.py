"""Eigenpairs of a symmetric matrix in the Krylov space of a few starting vectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def block_krylov(
    product: Callable[[Tensor], Tensor], start: Tensor, n_components: int
) -> tuple[Tensor, Tensor]:
    r"""Return Rayleigh-Ritz pairs of a symmetric H in the span of :math:`Q, HQ, H^2 Q, \dots`.

    A function of H applied to a vector in the span of Q is approximated by a polynomial, chosen by
    the spectrum: leading eigenvectors are found, and what matters to Q as well. `product` takes rows
    (k, p) to those of ``H v``, and rows of `start` (b, p) span Q. Values (k,) are float64; vectors (k, p)
    are orthonormal rows, at most `n_components`: from p on the whole space, whatever the start.
    """
    p = start.shape[1]
    if n_components >= p:
        start = torch.eye(p).to(start)
    basis = products = start[:0]
    newest = _orthonormal(start, basis)[-n_components:]
    while len(newest):
        basis, products = torch.cat([basis, newest]), torch.cat([products, product(newest)])
        room = n_components - len(basis)
        if room == 0:
            break
        newest = _orthonormal(products[-len(newest) :], basis)[-room:]
    projected = (basis @ products.mT).double()
    values, rotation = torch.linalg.eigh((projected + projected.mT) / 2)
    return values, rotation.mT.to(basis.dtype) @ basis


def _orthonormal(rows: Tensor, basis: Tensor) -> Tensor:
    """Return an orthonormal basis, as rows, of what the rows have outside `basis`; the leading ones last."""
    size = rows.norm(dim=1, keepdim=True)
    rows = rows / torch.where(size > 0, size, 1)
    for _ in range(2):  # once more, against rounding
        rows = rows - (rows @ basis.mT) @ basis
    values, vectors = torch.linalg.eigh((rows @ rows.mT).double())
    kept = values > 1e3 * torch.finfo(rows.dtype).eps * max(float(values[-1]), 1e-30)
    kept &= values > torch.finfo(rows.dtype).eps
    found = (vectors[:, kept] / values[kept].sqrt()).mT.to(rows) @ rows
    found = found - (found @ basis.mT) @ basis
    return torch.linalg.qr(found.mT)[0].mT if len(found) else found
