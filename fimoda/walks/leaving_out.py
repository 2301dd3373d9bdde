r"""Changes of a weighted mean when a row is left out of it.

Leaving row i out of its batch changes the batch's mean gradient :math:`\bar g` by
:math:`-\frac{w_i}{1 - w_i} (g_i - \bar g)`, with :math:`w` the weights of the rows in the mean (1/B).
"""

from __future__ import annotations

import torch
from torch import Tensor


def change(slopes: Tensor, w: Tensor) -> Tensor:
    """Return the changes (k, n) that leaving rows out makes, from slopes (k, n) and weights (n,)."""
    own, others = leaving_out(w)
    return ((slopes @ w)[:, None] * others - slopes * own).double()


def leaving_out(w: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors of a left-out row's gradient and of the mean, by which the mean gets smaller.

    A row that is alone in its batch leaves a gradient of zero behind.
    """
    alone = w >= 1
    factor = w / torch.where(alone, 1, 1 - w)
    return factor, torch.where(alone, 0, factor)
