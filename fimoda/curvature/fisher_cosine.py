"""How much of the whole Fisher matrix, all layers together, an approximation holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from .layers import Factors, LayerDifferentiator

#: About as many derivatives are compared with one another, of as many rows at most and at least.
_VECTORS, _MOST, _LEAST = 1024, 512, 16

#: Numbers in a part of the gradients of a layer with positions.
_NUMBERS = 2**24


def cosine_with_fisher(
    parts: Sequence[tuple[LayerDifferentiator, Tensor]],
    cotangents: Callable[[Tensor, Tensor], list[Tensor]],
    quadratic: Callable[[list[Factors]], Tensor],
    norm: float,
    X: Tensor,
    weights: Tensor,
) -> float:
    r"""Cosine of the angle between a matrix and the Fisher matrix, a mean over models.

    With :math:`s_{ic}` the derivative of row i's outputs along its cotangent c, in all layers,

    .. math:: \cos = \frac{\langle \hat C, C \rangle}{\|\hat C\|_F \|C\|_F}, \quad
        \langle \hat C, C \rangle = \sum_{i,c} \tilde w_i \, s_{ic}^\top \hat C s_{ic}, \quad
        \|C\|_F^2 = \sum_{i,j} \tilde w_i \tilde w_j \sum_{c,c'} (s_{ic}^\top s_{jc'})^2.

    Where that is many pairs of vectors, up to 512 draws of rows in proportion to their weights stand
    for all rows, always the same ones, and two sums of cotangents with random signs for those of a
    row, one on each side of a pair; pairs of two draws have the right expectation. Rows with large
    gradients weigh on the product and on the norm alike, so that their quotient hardly depends on
    the draw.

    Parameters
    ----------
    parts : sequence of (LayerDifferentiator, Tensor)
        Each model, with the targets (n, ...) of its rows.
    cotangents : callable
        Vectors :math:`v_c` with :math:`\sum_c v_c v_c^\top` the Fisher matrix of outputs, from
        targets and outputs.
    quadratic : callable
        :math:`s^\top \hat C s` (n,) of the factors of n rows' gradients.
    norm : float
        :math:`\|\hat C\|_F`.
    X : Tensor
        Encoded rows.
    weights : Tensor of shape (n,)
    """
    share = (weights.double() / weights.double().sum()).cpu()
    generator = torch.Generator().manual_seed(0)
    differentiate, targets = parts[0]
    one = differentiate.pull_back(X[:1], partial(cotangents, targets[:1]))
    rows = torch.nonzero(share).flatten()
    drawn = len(parts) * len(one) * len(rows) > _VECTORS
    if drawn:  # in proportion to their weights, and with replacement
        size = min(max(_VECTORS // len(parts), _LEAST), _MOST)
        rows = torch.multinomial(share, size, replacement=True, generator=generator)
        share = torch.full((size,), 1 / size, dtype=torch.float64)
    else:
        share = share[rows]
    rows, share = rows.to(X.device), share.to(X.device)

    def chosen_cotangents(targets: Tensor, outputs: Tensor) -> list[Tensor]:
        found = torch.stack(cotangents(targets, outputs))
        if not drawn:
            return list(found)
        signs = torch.randint(0, 2, (2, *found.shape[:2], 1), generator=generator) * 2 - 1
        return list((found * signs.to(found)).sum(1))

    vectors, others = [], []
    for differentiate, targets in parts:
        pulled = differentiate.pull_back(X[rows], partial(chosen_cotangents, targets[rows]))
        vectors += pulled[:1] if drawn else pulled
        others += pulled[1:] if drawn else pulled
    gram = torch.zeros((), device=X.device)
    for sides in zip(zip(*vectors, strict=True), zip(*others, strict=True), strict=True):
        gram = gram + _gram(*sides)
    forms = sum(map(quadratic, vectors), torch.zeros_like(share))
    product = float(forms @ share) / len(parts)
    n, number = len(rows), len(vectors)
    pairs = gram.double().square().view(number, n, number, n).sum((0, 2)) / len(parts) ** 2
    square = float(share @ (pairs @ share))
    if drawn:  # pairs of two draws alone have the right expectation
        square = (square - float(share**2 @ pairs.diagonal())) * n / (n - 1)
    return product / (norm * square**0.5) if product > 0 and square > 0 else 1.0


def _gram(left: Sequence[Factors], right: Sequence[Factors]) -> Tensor:
    """Inner products of the gradients of all rows and cotangents in a layer."""
    a, b = (torch.cat([f.inputs for f in side]) for side in (left, right))
    d, e = (torch.cat([f.signals for f in side]) for side in (left, right))
    if a.shape[1] == 1:
        return (a[:, 0] @ b[:, 0].mT) * (d[:, 0] @ e[:, 0].mT)
    gram = a.new_zeros(len(a), len(b))
    size = max(1, _NUMBERS // (len(a) * a.shape[2]))
    for some, same in zip(d.split(size, dim=2), e.split(size, dim=2), strict=True):
        gram.addmm_((some.mT @ a).flatten(1), (same.mT @ b).flatten(1).mT)
    return gram
