r"""The removal of a row, as far as it changes the weights of the others.

Methods that are linear in the training rows' gradients begin with the product of a test row with
:math:`s_j g_j`, the share of each row in the objective times its gradient. A row that leaves takes
its share with it, and changes those of the others: in a mean over rows, or where classes are balanced.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..objective import Objective


@dataclass(frozen=True, eq=False)
class Removal:
    r"""Turns products with the rows' shares of the gradient into scores of their removal.

    Without row i the weights of the rows of class c, against that of the penalty, are
    :math:`1 + \rho_{i,c}` times as large as before. To first order

    .. math:: S_{z,i} = (1 + \rho_{i,c(i)}) B_{z,i} - \sum_c \rho_{i,c} \sum_{j \in c} B_{z,j},

    B the products. Where only the mean is taken anew, :math:`\rho_i = s_i / (1 - s_i)` for all classes
    and this is :math:`(B_{z,i} - s_i \sum_j B_{z,j}) / (1 - s_i)`, in gradients
    :math:`(g_i - \bar g) / (n - 1)` instead of :math:`g_i / n`.

    """

    group: NDArray[np.int64]  # class of each row (n,), or zeros where classes do not matter
    growth: NDArray[np.float64]  # rho, (n, K)
    #: Gradient (p,) of a penalty that grows as the rows do, where it does not cancel their sum.
    pull: Tensor | None = None

    @classmethod
    def of(
        cls,
        objective: Objective,
        reweight_others: bool = True,
        groups: NDArray[np.bool_] | None = None,
    ) -> Removal:
        """Read it off an objective, whose shares have class weights in them.

        Without `reweight_others` the weights of the others stay as they are: the field's formula. With
        `groups` (k, n) the growth (k, K) is that of their removal, each together.
        """
        n, model, share = len(objective), objective.model, objective.rows.shares
        masks = None if groups is None else torch.from_numpy(groups).to(share)
        n_removals = n if masks is None else len(masks)
        if not reweight_others:
            return cls(np.zeros(n, dtype=np.int64), np.zeros((n_removals, 1)))
        kind = model.weighting
        at_minimum = kind.total == "sum" and model.recipe.solved
        penalty = None if kind.total != "sum" or at_minimum else model.penalty
        by_class = model.class_weight if kind.balanced is not None else None
        group = (
            torch.zeros_like(share).long() if by_class is None else objective.rows.targets.long()
        )
        K = 1 if by_class is None else len(by_class)

        def taken(mass: Tensor) -> Tensor:
            """Return what each removal takes of a mass (n,) by class, (k, K)."""
            of_rows = functional.one_hot(group, K) * mass[:, None]
            return of_rows if masks is None else masks @ of_rows

        factors = share.new_ones(n_removals, K)
        if by_class is not None:
            v = (
                torch.ones_like(share)
                if kind.balanced == "rows"
                else share / by_class.double()[group]
            )
            factors = _balanced(taken(v), share.new_zeros(K).index_add(0, group, v))
        if kind.total == "rows":
            removed = taken(torch.ones_like(share)).sum(1, keepdim=True)
            factors = factors * (n / (n - removed).clamp_min(1))
        elif not at_minimum:  # a sum may be taken for a mean, if its penalty grows as the rows do
            sums = share.new_zeros(K).index_add(0, group, share)
            left = factors @ sums - (factors * taken(share)).sum(1)
            factors = factors / _positive(left)[:, None]
        return cls(
            group.cpu().numpy(),
            (factors - 1).cpu().numpy(),
            None if penalty is None else penalty * model.theta,
        )

    @property
    def changes_others(self) -> bool:
        """True if there is anything to do."""
        return bool(self.growth.any())

    @property
    def own(self) -> NDArray[np.float64]:
        r"""Factors (n,) of the rows' own products, :math:`1 + \rho_{i,c(i)}`."""
        return 1 + self.growth[np.arange(len(self.group)), self.group]

    def sums(self, products: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sums (m, K) of products (m, n) over the rows of each class."""
        return products @ self.members()

    def members(self) -> NDArray[np.float64]:
        """Return the membership (n, K) of the rows in the classes, zeros and ones."""
        return np.eye(self.growth.shape[1])[self.group]

    def __call__(
        self, products: NDArray[np.float64], pulled: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """Return the scores (m, n) from products (m, n), and those with `pull` (m,) if there is one."""
        if not self.changes_others:
            return products
        scores = products * self.own
        scores -= self.sums(products) @ self.growth.T
        if pulled is not None:
            scores -= np.outer(pulled, self.growth[:, 0])
        return scores

    def diagonal(
        self,
        products: NDArray[np.float64],
        sums: NDArray[np.float64],
        pulled: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float64]:
        """Return the rows' scores on themselves (n,), from own products and their `sums` (n, K)."""
        scores = products * self.own - (sums * self.growth).sum(1)
        return scores if pulled is None else scores - pulled * self.growth[:, 0]


def _balanced(taken: Tensor, by_class: Tensor) -> Tensor:
    r"""Return factors (k, K) of the balanced weights :math:`V / (K V_c)` when (k, K) is taken of V (K,)."""
    factors = 1 - taken.sum(1, keepdim=True) / by_class.sum()
    # a class that loses all its rows has no others whose weight could matter
    return factors / _positive(1 - taken / by_class)


def _positive(left: Tensor) -> Tensor:
    """Return what is left of a whole, or one where a row that is all of it leaves nothing."""
    return torch.where(left > 1e-12, left, 1.0)
