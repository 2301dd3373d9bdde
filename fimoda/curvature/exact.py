"""Exact solutions with the Gauss-Newton matrix or any other, by one eigendecomposition."""

from __future__ import annotations

import torch
from torch import Tensor

from ..model import DEFAULT_BUDGET, FinalModel
from ..row_gradients import Measure
from .kernel import OutputKernel
from .operators import Curvature


class PrimalSolver:
    r"""Solutions :math:`(C + \lambda I)^{-1} v` from the eigenvectors of C (p, p).

    One decomposition, in float64, serves every right-hand side and every damping.

    Parameters
    ----------
    curvature : Curvature
    memory_budget : int, default=512 MiB
        Bytes that the matrix and its eigenvectors may take.

    Raises
    ------
    MemoryError
        If the matrix does not fit.
    """

    def __init__(self, curvature: Curvature, memory_budget: int = DEFAULT_BUDGET):
        p = curvature.shape[0]
        if 3 * 8 * p * p > memory_budget:
            raise MemoryError(
                f"a dense curvature matrix of {p} parameters takes {3 * 8 * p * p / 2**20:.0f} MiB "
                f"with its eigenvectors, more than memory_budget={memory_budget / 2**20:.0f} MiB. "
                "Raise memory_budget, or use CGInfluence, ArnoldiInfluence or EKFACInfluence."
            )
        self.eigenvalues, self.eigenvectors = torch.linalg.eigh(curvature.double.dense())

    def solve(self, V: Tensor, damping: float) -> Tensor:
        """Solutions for the rows of V (k, p), as rows, in float64."""
        shifted = self.eigenvalues + damping
        check_definite(shifted, self.eigenvalues, damping)
        return (V.double() @ self.eigenvectors / shifted) @ self.eigenvectors.mT


class DualGaussNewton:
    r"""Influence with the Gauss-Newton matrix, in the space of the training rows' outputs.

    With :math:`B = \tilde W^{1/2} J` (nC, p), :math:`\tilde W` the loss' second derivatives in
    the outputs times each row's share of the mean, :math:`C = B^\top B` and

    .. math:: (C + \lambda)^{-1} B^\top = B^\top (B B^\top + \lambda)^{-1},

    so that everything is inner products of Jacobians. One eigendecomposition of
    :math:`B B^\top` (nC, nC), in float64, serves every test row and every damping.

    Parameters
    ----------
    model : FinalModel
    X, y : Tensor
        Encoded training rows and targets.
    weights : Tensor of shape (n,)
        Weights of the rows in the objective.
    memory_budget : int, default=512 MiB
        Bytes for Jacobians or their factors at a time.

    Raises
    ------
    ValueError
        If the loss is not convex in the outputs, or a row's gradient is not in the range of its
        second derivative (then no matrix :math:`B^\top` reaches it).
    """

    def __init__(
        self,
        model: FinalModel,
        X: Tensor,
        y: Tensor,
        weights: Tensor,
        memory_budget: int = DEFAULT_BUDGET,
    ):
        self.model = model.double
        self.kernel = OutputKernel(self.model, _double(X), memory_budget)
        outputs = self.model.outputs(_double(X))
        self.share = (weights.double() / weights.double().sum())[:, None]  # (n, 1)
        values, vectors = torch.linalg.eigh(self.model.output_hessian(outputs, y))
        largest = values.abs().amax(1, keepdim=True)
        if bool((values < -1e-10 * largest).any()):
            raise ValueError("the loss is not convex in the outputs: use curvature='hessian'.")
        inside = values > 1e-12 * largest
        root = torch.where(inside, values.clamp_min(0), 0).sqrt()
        inverse = torch.where(inside, 1 / root.clamp_min(1e-300), 0)
        residual = torch.einsum("nca,nc->na", vectors, self.model.loss.gradient(outputs, y))
        if bool(((residual.abs() > 1e-6 * residual.norm(dim=1, keepdim=True)) & ~inside).any()):
            raise ValueError(
                "the gradient of a row's loss in its outputs is outside the range of its second "
                "derivative (a loss with flat pieces): use curvature='empirical-fisher'."
            )
        # B = root' J: (n, C, C) maps outputs to scaled eigen-directions of each row's W
        self.root = torch.einsum("nca,na->nca", vectors, root) * self.share[:, :, None].sqrt()
        self.reach = inverse * residual * self.share.sqrt()  # row i's share of g_i = B_i' reach_i
        n, c = residual.shape
        gram = self.kernel()
        gram = torch.einsum("nca,ncmd,mdb->namb", self.root, gram, self.root).reshape(n * c, n * c)
        self.eigenvalues, self.eigenvectors = torch.linalg.eigh((gram + gram.mT) / 2)

    def scores(self, X: Tensor, y: Tensor, measure: Measure, damping: float) -> Tensor:
        """Scores (n_test, n) of all training rows for the test rows X."""
        outputs = self.model.outputs(_double(X))
        slope = torch.func.grad(lambda f: measure(f, y).sum())(outputs)  # (m, C)
        pushed = torch.einsum("mc,mcnd,nda->mna", slope, self.kernel(_double(X)), self.root)
        shifted = self.eigenvalues.clamp_min(0) + damping
        check_definite(shifted, self.eigenvalues, damping)
        modes = pushed.flatten(1) @ self.eigenvectors / shifted
        solved = (modes @ self.eigenvectors.mT).unflatten(1, self.reach.shape)
        return (solved * self.reach).sum(2)


def check_definite(shifted: Tensor, eigenvalues: Tensor, damping: float) -> None:
    """Raise ValueError unless the damped eigenvalues are positive."""
    scale = float(eigenvalues.abs().max())
    if float(shifted.min()) <= 1e-13 * scale:
        lowest = float(eigenvalues.min())
        what = (
            "singular"
            if lowest > -1e-10 * scale
            else f"indefinite (lowest eigenvalue {lowest:.2e})"
        )
        raise ValueError(
            f"the curvature is {what}, and damping={damping:g} does not make it positive definite. "
            f"Raise damping above {max(-lowest, 1e-8 * scale):.1e}."
        )


def _double(X: Tensor) -> Tensor:
    return X.double() if X.is_floating_point() else X
