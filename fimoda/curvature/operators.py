"""Curvature of the training objective as matrices known by their products."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from ..measured import Measured
from ..model import DEFAULT_BUDGET, FinalModel
from ..row_gradients import RowDifferentiator
from ..rows import Rows
from .jacobian import FactoredJacobian, factored_jacobian


class Curvature(ABC):
    r"""A symmetric matrix :math:`C = \sum_i \tilde w_i C_i` (p, p), a mean over training rows.

    :math:`\tilde w_i = w_i / \sum_j w_j` (1/n without weights). The matrix is never formed:
    products go over the whole training set, a chunk of rows at a time.

    Parameters
    ----------
    model : FinalModel
    X, y : Tensor
        Encoded training rows and targets.
    weights : Tensor of shape (n,)
        Weights of the rows in the objective.
    penalty : bool, default=False
        Whether the second derivative of the L2 penalty, ``diag(penalty)``, is added.
    memory_budget : int, default=512 MiB
        Bytes for what a product needs at a time.
    """

    def __init__(
        self,
        model: FinalModel,
        X: Tensor,
        y: Tensor,
        weights: Tensor,
        *,
        penalty: bool = False,
        memory_budget: int = DEFAULT_BUDGET,
    ):
        self.model = model
        self.X = X
        self.y = y
        self.weights = (weights / weights.sum()).to(model.dtype)
        self.penalty = penalty
        self.memory_budget = memory_budget

    @property
    def shape(self) -> tuple[int, int]:
        return (self.model.n_parameters, self.model.n_parameters)

    def matmat(self, V: Tensor) -> Tensor:
        """Products ``C v`` of the rows of V (k, p), as rows."""
        product = torch.zeros_like(V)
        chunk = self._chunk_size(len(V))
        for start in range(0, len(self.X), chunk):
            product += self._product(V, slice(start, start + chunk))
        if self.penalty and self.model.penalty is not None:
            product += V * self.model.penalty
        return product

    @abstractmethod
    def _product(self, V: Tensor, rows: slice) -> Tensor:
        """The part of ``C v`` that comes from some of the rows."""

    def _chunk_size(self, n_vectors: int) -> int:
        row_bytes = 4 * n_vectors * self._activation_bytes
        return int(min(max(self.memory_budget // row_bytes, 1), len(self.X)))

    @cached_property
    def _activation_bytes(self) -> int:
        return activation_bytes(self.model, self.X)

    def linear_operator(self) -> LinearOperator:
        """The same matrix for scipy, on float64 vectors."""

        def columns(V: np.ndarray) -> np.ndarray:
            rows = torch.from_numpy(np.ascontiguousarray(V.reshape(V.shape[0], -1).T))
            product = self.matmat(rows.to(self.model.device, self.model.dtype))
            return product.double().cpu().numpy().T.reshape(V.shape)

        return LinearOperator(self.shape, matvec=columns, matmat=columns, dtype=np.float64)

    @property
    def double(self) -> Curvature:
        """The same matrix in float64."""
        return self._with(
            model=self.model.double,
            X=_double(self.X),
            y=_double(self.y),
            weights=self.weights.double(),
        )

    def restricted(self, rows: NDArray[np.int64]) -> Curvature:
        """The curvature of some rows, weighted so that its mean over random subsets is this one."""
        X, y, weights = self.X[rows], self.y[rows], self.weights[rows]
        return self._with(X=X, y=y, weights=weights * (len(self.X) / len(rows)))

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what is found again from the rest: for copies and pickles."""
        kept = {name: getattr(type(self), name, None) for name in vars(self)}
        return {k: vars(self)[k] for k, v in kept.items() if not isinstance(v, cached_property)}

    def _with(self, **parts: Any) -> Curvature:
        other = copy.copy(self)
        vars(other).update(parts)
        return other

    def dense(self) -> Tensor:
        """The matrix itself, (p, p); for small models."""
        eye = torch.eye(self.shape[0], dtype=self.model.dtype, device=self.model.device)
        product = self.matmat(eye)
        return (product + product.mT) / 2


class GaussNewton(Curvature):
    r"""Generalised Gauss-Newton matrix, :math:`C_i = J_i^\top W_i J_i`.

    :math:`J_i = \partial f_i / \partial\theta` (C, p) and :math:`W_i = \partial^2\ell_i/\partial
    f^2` (C, C). Positive semi-definite for losses that are convex in the outputs.
    """

    def _product(self, V: Tensor, rows: slice) -> Tensor:
        w = self.weights[rows, None, None]
        if self._jacobian is not None:
            jacobian = self._jacobian[rows]
            return jacobian.pull((jacobian.push(V) @ self._output_hessian[rows]) * w)

        def outputs(theta: Tensor) -> Tensor:
            return self.model.forward(theta, self.X[rows])

        f, pull_back, *_ = vjp(outputs, self.model.theta)
        pushed = vmap(lambda v: jvp(outputs, (self.model.theta,), (v,))[1], out_dims=1)(V)
        curved = pushed @ self.model.loss.output_hessian(f, self.y[rows])  # (b, k, C)
        return vmap(pull_back, in_dims=1)(curved * w)[0]

    def _chunk_size(self, n_vectors: int) -> int:
        if self._jacobian is None:
            return super()._chunk_size(n_vectors)
        fitting = self.memory_budget // (2 * self._jacobian.row_bytes(n_vectors))
        return int(min(max(fitting, 1), len(self.X)))

    @cached_property
    def _jacobian(self) -> FactoredJacobian | None:
        return factored_jacobian(self.model, self.X, self.memory_budget // 2)

    @cached_property
    def _output_hessian(self) -> Tensor:
        return self.model.loss.output_hessian(self.model.outputs(self.X), self.y)

    def restricted(self, rows: NDArray[np.int64]) -> Curvature:
        other = super().restricted(rows)
        if self._jacobian is not None:
            of = torch.from_numpy(rows).to(self.X.device)
            vars(other)["_jacobian"] = self._jacobian[of]
            vars(other)["_output_hessian"] = self._output_hessian[of]
        return other


class Hessian(Curvature):
    r"""True second derivative, :math:`C_i = \partial^2\ell_i/\partial\theta^2`; may be indefinite."""

    def _product(self, V: Tensor, rows: slice) -> Tensor:
        def objective(theta: Tensor) -> Tensor:
            losses = self.model.loss(self.model.forward(theta, self.X[rows]), self.y[rows])
            return (self.weights[rows] * losses).sum()

        gradient = grad(objective)
        return vmap(lambda v: jvp(gradient, (self.model.theta,), (v,))[1])(V)


class EmpiricalFisher(Curvature):
    r"""Second moment of the gradients of the loss, :math:`C_i = g_i g_i^\top`."""

    def _product(self, V: Tensor, rows: slice) -> Tensor:
        gradients = self._differentiate(Measured(Rows(self.X[rows], self.y[rows]), self.model.loss))
        return gradients.combine(gradients.apply(V) * self.weights[rows, None])

    @cached_property
    def _differentiate(self) -> RowDifferentiator:
        return RowDifferentiator(self.model, self.X[:2])

    def _chunk_size(self, n_vectors: int) -> int:
        own = self.memory_budget // (2 * self._differentiate.row_bytes())
        return max(1, min(super()._chunk_size(n_vectors), own))


class SampledFisher(EmpiricalFisher):
    r"""Second moment of the gradients at targets sampled from the model itself.

    A classifier's target is one draw from its predicted probabilities; under squared error it is
    the output plus Gaussian noise of the variance that the loss stands for. In expectation this is
    the Gauss-Newton matrix.

    Parameters
    ----------
    model : FinalModel
        As in `Curvature`, like all but `seed`.
    X, y : Tensor
        Encoded training rows, and targets, which are not used.
    weights : Tensor of shape (n,)
        Weights of the rows in the objective.
    seed : int, default=0
        Seed of the draws.
    penalty : bool, default=False
        Whether ``diag(penalty)`` is added.
    memory_budget : int, default=512 MiB
        Bytes for what a product needs at a time.

    Raises
    ------
    ValueError
        If the loss is not the negative log-likelihood of a distribution that can be sampled.
    """

    def __init__(
        self,
        model: FinalModel,
        X: Tensor,
        y: Tensor,
        weights: Tensor,
        *,
        seed: int = 0,
        penalty: bool = False,
        memory_budget: int = DEFAULT_BUDGET,
    ):
        targets = model.loss.sample_targets(model.outputs(X), torch.Generator().manual_seed(seed))
        super().__init__(model, X, targets, weights, penalty=penalty, memory_budget=memory_budget)


def activation_bytes(model: FinalModel, X: Tensor) -> int:
    """Bytes of what one row leaves in a forward pass, with its inputs and outputs."""
    sizes: list[int] = []

    def note(saved: Tensor) -> Tensor:
        sizes.append(saved.numel() * saved.element_size())
        return saved

    def saved(n: int) -> int:
        sizes.clear()
        theta = model.theta.clone().requires_grad_()
        x = X[:1].expand(n, *X.shape[1:])
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), torch.enable_grad():
            outputs = model.forward(theta, x)
        return sum(sizes) + sum(t.numel() * t.element_size() for t in (x, outputs))

    return saved(2) - saved(1)  # without parameters, of which there is one set


def _double(values: Tensor) -> Tensor:
    return values.double() if values.is_floating_point() else values


#: Curvatures by the name that attributors take.
CURVATURES: dict[str, type[Curvature]] = {
    "gauss-newton": GaussNewton,
    "hessian": Hessian,
    "empirical-fisher": EmpiricalFisher,
    "sampled-fisher": SampledFisher,
}
