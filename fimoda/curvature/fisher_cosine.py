"""The part of the whole Fisher matrix, all layers together, that an approximation holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ..layers import Factors, LayerDifferentiator
from ..rows import Rows

#: About as many derivatives are compared with one another, of as many rows at most and at least.
_VECTORS, _MOST, _LEAST = 1024, 512, 16


def cosine_with_fisher(
    parts: Sequence[tuple[LayerDifferentiator, Tensor]],
    cotangents: Callable[[Tensor, Tensor], list[Tensor]],
    quadratic: Callable[[list[Factors]], Tensor],
    norm: float,
    rows: Rows,
) -> float:
    r"""Return the cosine of the angle between a matrix and the Fisher matrix, a mean over models.

    With :math:`g_{ic}` the derivative of row i's outputs along its cotangent c, in all layers,

    .. math:: \cos = \frac{\langle \hat C, C \rangle}{\|\hat C\|_F \|C\|_F}, \quad
        \langle \hat C, C \rangle = \sum_{i,c} s_i \, g_{ic}^\top \hat C g_{ic}, \quad
        \|C\|_F^2 = \sum_{i,j} s_i s_j \sum_{c,c'} (g_{ic}^\top g_{jc'})^2.

    Where that is many pairs of vectors, up to 512 draws of rows in proportion to their weights stand
    for all rows, always the same ones, and two sums of cotangents with random signs for those of a
    row, one on each side of a pair; pairs of two draws have the right expectation. Rows with large
    gradients weigh on the product and on the norm alike, so that their quotient hardly depends on
    the draw.

    `parts` has each model with the targets of its rows; `cotangents` gives, from targets and outputs,
    vectors :math:`v_c` with :math:`\sum_c v_c v_c^\top` the Fisher matrix of outputs; `quadratic` gives
    :math:`g^\top \hat C g` (n,) from the factors of n rows' gradients.
    """
    share, generator = rows.shares.cpu(), torch.Generator().manual_seed(0)
    differentiate, targets = parts[0]
    outputs = differentiate.model.outputs(rows[:1].inputs)
    used = torch.nonzero(share).flatten()
    drawn = len(parts) * len(cotangents(targets[:1], outputs)) * len(used) > _VECTORS
    if drawn:  # in proportion to their weights, and with replacement
        size = min(max(_VECTORS // len(parts), _LEAST), _MOST)
        used = torch.multinomial(share, size, replacement=True, generator=generator)
        share = torch.full((size,), 1 / size, dtype=torch.float64)
    else:
        share = share[used]
    used, share = used.to(rows.device), share.to(rows.device)

    def chosen_cotangents(targets: Tensor, outputs: Tensor) -> list[Tensor]:
        found = torch.stack(cotangents(targets, outputs))
        if not drawn:
            return list(found)
        signs = torch.randint(0, 2, (2, *found.shape[:2], 1), generator=generator) * 2 - 1
        return list((found * signs.to(found)).sum(1))

    one_side, other_side = [], []  # by model, the factors of each layer
    for differentiate, targets in parts:
        pulled = differentiate.pull_back(
            rows[used].inputs, partial(chosen_cotangents, targets[used])
        )
        if drawn:
            one_side.append([f.of(0) for f in pulled])
            other_side.append([f.of(1) for f in pulled])
        else:
            one_side.append([f.each() for f in pulled])
            other_side.append(one_side[-1])
    gram = torch.zeros((), device=rows.device)
    for layers in zip(zip(*one_side, strict=True), zip(*other_side, strict=True), strict=True):
        a, b = (type(of_models[0]).together(of_models) for of_models in layers)
        gram = gram + a.inner(b)
    n, models = len(used), len(parts)
    forms = torch.stack([quadratic(of_layers).view(n, -1).sum(1) for of_layers in one_side])
    product = float(forms.sum(0) @ share) / models
    pairs = gram.square().view(models, n, -1, models, n, len(gram) // (models * n))
    pairs = pairs.sum((0, 2, 3, 5)) / models**2
    square = float(share @ (pairs @ share))
    if drawn:  # pairs of two draws alone have the right expectation
        square = (square - float(share**2 @ pairs.diagonal())) * n / (n - 1)
    return product / (norm * square**0.5) if product > 0 and square > 0 else 1.0
