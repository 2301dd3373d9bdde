"""The size of the whole Fisher matrix, all layers together, from the gradients of a few rows."""

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


def squared_norm_of_fisher(
    parts: Sequence[tuple[LayerDifferentiator, Tensor]],
    cotangents: Callable[[Tensor, Tensor], list[Tensor]],
    X: Tensor,
    weights: Tensor,
) -> float:
    r"""Squared Frobenius norm of the Fisher matrix, a mean over models.

    With :math:`s_{ic}` the derivative of row i's outputs along its cotangent c, in all layers,

    .. math:: \|C\|_F^2 = \sum_{i,j} \tilde w_i \tilde w_j \sum_{c,c'} (s_{ic}^\top s_{jc'})^2.

    Of many rows up to 512 stand for all, always the same ones; pairs of a row with itself count as
    much as among all rows. Of many vectors a row's sum of cotangents with random signs stands for
    them, which leaves the expectation over pairs of different rows as it is.

    Parameters
    ----------
    parts : sequence of (LayerDifferentiator, Tensor)
        Each model, with the targets (n, ...) of its rows.
    cotangents : callable
        Vectors :math:`v_c` with :math:`\sum_c v_c v_c^\top` the Fisher matrix of outputs, from
        targets and outputs.
    X : Tensor
        Encoded rows.
    weights : Tensor of shape (n,)
    """
    share = weights.double() / weights.double().sum()
    generator = torch.Generator().manual_seed(0)
    differentiate, targets = parts[0]
    one = differentiate.pull_back(X[:1], partial(cotangents, targets[:1]))
    weighty = torch.nonzero(share.cpu()).flatten()
    combined = len(parts) * len(one) * len(weighty) > _VECTORS
    size = min(max(_VECTORS // len(parts), _LEAST), _MOST)
    rows = weighty[torch.randperm(len(weighty), generator=generator)[:size]].to(X.device)

    def chosen_cotangents(targets: Tensor, outputs: Tensor) -> list[Tensor]:
        found = torch.stack(cotangents(targets, outputs))
        if not combined:
            return list(found)
        signs = torch.randint(0, 2, (*found.shape[:2], 1), generator=generator) * 2 - 1
        return [(found * signs.to(found)).sum(0)]

    vectors: list[list[Factors]] = []
    for differentiate, targets in parts:
        vectors += differentiate.pull_back(X[rows], partial(chosen_cotangents, targets[rows]))
    gram = torch.zeros((), device=X.device)
    for of_layer in zip(*vectors, strict=True):
        gram = gram + _gram(of_layer)
    n, number = len(rows), len(vectors)
    chosen = share[rows]
    squares = gram.double().square().view(number, n, number, n).sum((0, 2)) / len(parts) ** 2
    pairs = squares * torch.outer(chosen, chosen)
    itself, mass, among_all = pairs.trace(), chosen.square().sum(), share.square().sum()
    found = itself / mass * among_all
    if n > 1:
        found += (pairs.sum() - itself) / (chosen.sum() ** 2 - mass) * (1 - among_all)
    return float(found)


def _gram(of_layer: Sequence[Factors]) -> Tensor:
    """Inner products of the gradients of all rows and cotangents in a layer."""
    a = torch.cat([f.inputs for f in of_layer])
    d = torch.cat([f.signals for f in of_layer])
    if a.shape[1] == 1:
        return (a[:, 0] @ a[:, 0].mT) * (d[:, 0] @ d[:, 0].mT)
    gram = a.new_zeros(len(a), len(a))
    for some in d.split(max(1, _NUMBERS // (len(a) * a.shape[2])), dim=2):
        flat = (some.mT @ a).flatten(1)
        gram.addmm_(flat, flat.mT)
    return gram
