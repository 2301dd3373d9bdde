"""Eigenpairs of a symmetric matrix in the Krylov space of a few starting vectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def block_krylov(
    product: Callable[[Tensor], Tensor], start: Tensor, n_products: int
) -> tuple[Tensor, Tensor]:
    r"""Rayleigh-Ritz pairs of a symmetric H in the span of :math:`Q, HQ, \dots, H^{q-1} Q`.

    A function of H applied to a vector in the span of Q is approximated by a polynomial of degree
    q - 1, chosen by the spectrum: leading eigenvectors are found, and what matters to Q as well.

    Parameters
    ----------
    product : callable
        ``H v`` for the rows of a matrix (k, p), as rows.
    start : Tensor of shape (b, p)
        Rows that span Q.
    n_products : int
        q, calls of `product`.

    Returns
    -------
    values : Tensor of shape (k,)
        In float64; k is at most b q.
    vectors : Tensor of shape (k, p)
        Orthonormal rows, in the precision of `start`.
    """
    p = start.shape[1]
    newest = _orthonormal(start, start.new_empty(0, p))
    basis, products = newest, start.new_empty(0, p)
    while len(newest):
        products = torch.cat([products, product(newest)])
        n_products -= 1
        if n_products == 0:
            break
        newest = _orthonormal(products[-len(newest) :], basis)[: p - len(basis)]
        basis = torch.cat([basis, newest])
    projected = (basis @ products.mT).double()
    values, rotation = torch.linalg.eigh((projected + projected.mT) / 2)
    return values, rotation.mT.to(basis.dtype) @ basis


def _orthonormal(rows: Tensor, basis: Tensor) -> Tensor:
    """An orthonormal basis of what the rows have outside `basis`, as rows."""
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
