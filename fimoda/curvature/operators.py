"""Curvature of the training objective as matrices known by their products."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from ..measured import Measured
from ..model import FinalModel
from ..objective import Objective
from ..row_gradients import RowGradients
from ..rows import Inputs, Rows, mapped, parts, taken
from .jacobian import factored_jacobian, product_bytes


class Curvature(ABC):
    r"""A symmetric matrix :math:`C = \sum_i s_i C_i` (p, p), a mean over training rows by share.

    The matrix is never formed: products go over the whole training set, a chunk of rows at a time. With
    `penalty` the second derivative of the L2 penalty, ``diag(penalty)``, is added.
    """

    def __init__(self, objective: Objective, *, penalty: bool = False):
        self.objective = objective
        self.penalty = penalty
        self.weights = objective.rows.shares.to(objective.model.dtype)

    @property
    def model(self) -> FinalModel:
        """The model of the objective."""
        return self.objective.model

    @property
    def inputs(self) -> Inputs:
        """Inputs of the rows."""
        return self.objective.rows.inputs

    @property
    def targets(self) -> Tensor:
        """Encoded targets of the rows."""
        return self.objective.rows.targets

    @property
    def memory_budget(self) -> int:
        """Bytes for what a product needs at a time."""
        return self.objective.memory_budget

    def __len__(self) -> int:
        return len(self.objective)

    @property
    def shape(self) -> tuple[int, int]:
        return (self.model.n_parameters, self.model.n_parameters)

    def matmat(self, V: Tensor) -> Tensor:
        """Return the products ``C v`` of the rows of V (k, p), as rows."""
        product = torch.zeros_like(V)
        chunk = self._chunk_size(len(V))
        for start in range(0, len(self), chunk):
            product += self._product(V, slice(start, start + chunk))
        if self.penalty and self.model.penalty is not None:
            product += V * self.model.penalty
        return product

    @abstractmethod
    def _product(self, V: Tensor, rows: slice) -> Tensor:
        """Return the part of ``C v`` that comes from some of the rows."""

    def _chunk_size(self, n_vectors: int) -> int:
        row_bytes = 4 * n_vectors * self._activation_bytes
        return int(min(max(self.memory_budget // row_bytes, 1), len(self)))

    @cached_property
    def _activation_bytes(self) -> int:
        return activation_bytes(self.model, self.inputs)

    def linear_operator(self) -> LinearOperator:
        """Return the same matrix for scipy, on float64 vectors."""

        def columns(V: np.ndarray) -> np.ndarray:
            rows = torch.from_numpy(np.ascontiguousarray(V.reshape(V.shape[0], -1).T))
            product = self.matmat(rows.to(self.model.device, self.model.dtype))
            return product.double().cpu().numpy().T.reshape(V.shape)

        return LinearOperator(self.shape, matvec=columns, matmat=columns, dtype=np.float64)

    @property
    def double(self) -> Curvature:
        """The same matrix in float64."""
        return self._with(objective=self.objective.double, weights=self.weights.double())

    def restricted(self, rows: NDArray[np.int64]) -> Curvature:
        """Return the curvature of some rows, weighted so that its mean over random subsets is this one."""
        return self._with(
            objective=self.objective.of_rows(self.objective.rows[rows]),
            weights=self.weights[rows] * (len(self) / len(rows)),
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but what is found again from the rest: for copies and pickles."""
        kept = {name: getattr(type(self), name, None) for name in vars(self)}
        return {k: vars(self)[k] for k, v in kept.items() if not isinstance(v, cached_property)}

    def _with(self, **changes: Any) -> Curvature:
        other = copy.copy(self)
        vars(other).update(changes)
        return other

    def dense(self) -> Tensor:
        """Return the matrix itself, (p, p); for small models."""
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

        inputs = taken(self.inputs, rows)

        def outputs(theta: Tensor) -> Tensor:
            return self.model.forward(theta, inputs)

        f, pull_back, *_ = vjp(outputs, self.model.theta)
        pushed = vmap(lambda v: jvp(outputs, (self.model.theta,), (v,))[1], out_dims=1)(V)
        curved = pushed @ self.model.loss.output_hessian(f, self.targets[rows])  # (b, k, C)
        return vmap(pull_back, in_dims=1)(curved * w)[0]

    def _chunk_size(self, n_vectors: int) -> int:
        if self._jacobian is None:
            return super()._chunk_size(n_vectors)
        fitting = self.memory_budget // (2 * product_bytes(self._jacobian, n_vectors))
        return int(min(max(fitting, 1), len(self)))

    @cached_property
    def _jacobian(self) -> RowGradients | None:
        return factored_jacobian(self.objective, self.memory_budget // 2)

    @cached_property
    def _output_hessian(self) -> Tensor:
        return self.model.loss.output_hessian(self.model.outputs(self.inputs), self.targets)

    def restricted(self, rows: NDArray[np.int64]) -> Curvature:
        other = super().restricted(rows)
        if self._jacobian is not None:
            of = torch.from_numpy(rows).to(self.model.device)
            vars(other)["_jacobian"] = self._jacobian[of]
            vars(other)["_output_hessian"] = self._output_hessian[of]
        return other


class Hessian(Curvature):
    r"""True second derivative, :math:`C_i = \partial^2\ell_i/\partial\theta^2`; may be indefinite."""

    def _product(self, V: Tensor, rows: slice) -> Tensor:
        inputs, targets = taken(self.inputs, rows), self.targets[rows]

        def objective(theta: Tensor) -> Tensor:
            losses = self.model.loss(self.model.forward(theta, inputs), targets)
            return (self.weights[rows] * losses).sum()

        gradient = grad(objective)
        return vmap(lambda v: jvp(gradient, (self.model.theta,), (v,))[1])(V)


class EmpiricalFisher(Curvature):
    r"""Second moment of the gradients of the loss, :math:`C_i = g_i g_i^\top`."""

    def _product(self, V: Tensor, rows: slice) -> Tensor:
        some = Rows(taken(self.inputs, rows), self.targets[rows])
        gradients = self.objective.differentiate(Measured(some, self.model.loss))
        return gradients.combine(gradients.apply(V) * self.weights[rows, None])

    def _chunk_size(self, n_vectors: int) -> int:
        own = self.memory_budget // (2 * self.objective.differentiate.row_bytes())
        return max(1, min(super()._chunk_size(n_vectors), own))


class SampledFisher(EmpiricalFisher):
    """Second moment of the gradients at targets sampled from the model itself.

    A classifier's target is one draw from its predicted probabilities; under squared error it is
    the output plus Gaussian noise of the variance that the loss stands for. In expectation this is
    the Gauss-Newton matrix. The targets of the objective are not used. ValueError if the loss is not the
    negative log-likelihood of a distribution that can be sampled.
    """

    def __init__(self, objective: Objective, *, seed: int = 0, penalty: bool = False):
        generator = torch.Generator().manual_seed(seed)
        targets = objective.model.loss.sample_targets(objective.outputs, generator)
        rows = replace(objective.rows, targets=targets)
        super().__init__(objective.of_rows(rows), penalty=penalty)


def activation_bytes(model: FinalModel, inputs: Inputs) -> int:
    """Return the bytes of what one row leaves in a forward pass, with its inputs and outputs."""
    sizes: list[int] = []

    def note(saved: Tensor) -> Tensor:
        sizes.append(saved.numel() * saved.element_size())
        return saved

    def saved(n: int) -> int:
        sizes.clear()
        theta = model.theta.clone().requires_grad_()
        x = mapped(lambda part: part[:1].expand(n, *part.shape[1:]), inputs)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), torch.enable_grad():
            outputs = model.forward(theta, x)
        return sum(sizes) + sum(t.numel() * t.element_size() for t in (*parts(x), outputs))

    return saved(2) - saved(1)  # without parameters, of which there is one set


#: Curvatures by the name that attributors take.
CURVATURES: dict[str, type[Curvature]] = {
    "gauss-newton": GaussNewton,
    "hessian": Hessian,
    "empirical-fisher": EmpiricalFisher,
    "sampled-fisher": SampledFisher,
}
