"""Curvature of the training objective as matrices known by their products."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from ..derivatives import Linearization
from ..formulas import by_formulas
from ..hessians import hessian_products
from ..model import FinalModel
from ..objective import Objective
from ..row_gradients import RowGradients
from ..rows import Inputs, mapped, parts
from .chain_gauss_newton import MANY_OUTPUTS, ChainGaussNewton
from .jacobian import factored_jacobian, product_bytes
from .rowwise_gauss_newton import RowwiseGaussNewton

#: Bytes of a product with factors that stay in a processor's cache.
_CACHED = 32 * 2**20


@dataclass(frozen=True, eq=False)
class Curvature(ABC):
    r"""A symmetric matrix :math:`C = \sum_i s_i C_i` (p, p), a mean over training rows by share.

    The matrix is never formed: products go over the whole training set, a chunk of rows at a time. With
    `penalty` the second derivative of the L2 penalty, ``diag(penalty)``, is added.
    """

    #: Whether it may have negative eigenvalues.
    signed: ClassVar[bool] = False

    objective: Objective
    penalty: bool = False

    def __len__(self) -> int:
        return len(self.objective)

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields: what is found again from them stays out of copies and pickles."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def model(self) -> FinalModel:
        """The model of the objective."""
        return self.objective.model

    @property
    def shape(self) -> tuple[int, int]:
        return (self.model.n_parameters, self.model.n_parameters)

    @cached_property
    def _shares(self) -> Tensor:
        return self.objective.rows.shares.to(self.model.dtype)

    def matmat(self, V: Tensor) -> Tensor:
        """Return the products ``C v`` of the rows of V (k, p), as rows."""
        product = self._of_all_rows(V)
        if self.penalty and self.model.penalty is not None:
            product += V * self.model.penalty
        return product

    def _of_all_rows(self, V: Tensor) -> Tensor:
        """Return ``C v`` without the penalty."""
        product = torch.zeros_like(V)
        chunk = self._chunk_size(len(V))
        for start in range(0, len(self), chunk):
            product += self._product(V, slice(start, start + chunk))
        return product

    @abstractmethod
    def _product(self, V: Tensor, at: slice) -> Tensor:
        """Return the part of ``C v`` that comes from some of the rows."""

    def _chunk_size(self, n_vectors: int) -> int:
        row_bytes = 4 * n_vectors * self._activation_bytes
        return int(min(max(self.objective.memory_budget // row_bytes, 1), len(self)))

    @cached_property
    def _activation_bytes(self) -> int:
        return activation_bytes(self.model, self.objective.rows.inputs)

    def linear_operator(self) -> LinearOperator:
        """Return the same matrix for scipy, on float64 vectors."""

        def columns(V: np.ndarray) -> np.ndarray:
            rows = torch.from_numpy(np.ascontiguousarray(V.reshape(V.shape[0], -1).T))
            product = self.matmat(rows.to(self.model.device, self.model.dtype))
            return product.double().cpu().numpy().T.reshape(V.shape)

        return LinearOperator(self.shape, matvec=columns, matmat=columns, dtype=np.float64)

    @property
    def double(self) -> Self:
        """The same matrix in float64."""
        return replace(self, objective=self.objective.double)

    def restricted(self, rows: NDArray[np.int64]) -> Self:
        """Return the curvature of some rows, weighted so that its mean over random subsets is this one."""
        return replace(self, objective=self.objective.restricted(rows))

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

    def _of_all_rows(self, V: Tensor) -> Tensor:
        kept = self._chain is not None or self._jacobian is not None
        if kept or self._by_rows is None or not self._by_rows.takes_less(len(V)):
            return super()._of_all_rows(V)
        return self._by_rows.matmat(V)

    def _product(self, V: Tensor, at: slice) -> Tensor:
        w = self._shares[at, None, None]
        if self._chain is not None:
            return self._chain(V, at, self._output_hessian[at] * w)
        if self._jacobian is not None:
            jacobian = self._jacobian[at]
            return jacobian.pull((jacobian.push(V) @ self._output_hessian[at]) * w)

        rows = self.objective.rows[at]

        linear = Linearization(
            self.model, lambda named: self.model.call(named, rows.inputs, grouped=True)
        )
        pushed = linear.push(V).transpose(0, 1)  # (b, k, C)
        bent = self.model.loss.curved(linear.outputs, rows.targets, pushed) * w
        return linear.pull(bent.transpose(0, 1))

    def _chunk_size(self, n_vectors: int) -> int:
        if self._chain is not None:
            return self._chain.chunk_size(n_vectors)
        if self._jacobian is None:
            return super()._chunk_size(n_vectors)
        budget = min(self.objective.memory_budget, _CACHED)
        fitting = budget // (2 * product_bytes(self._jacobian, n_vectors))
        return int(min(max(fitting, 1), len(self)))

    @cached_property
    def _chain(self) -> ChainGaussNewton | None:
        few = self.objective.n_outputs < MANY_OUTPUTS
        return (
            None if few else ChainGaussNewton.of(self.objective, self.objective.memory_budget // 4)
        )

    @cached_property
    def _jacobian(self) -> RowGradients | None:
        bent = len(self) * self.objective.n_outputs**2 * self.model.theta.element_size()
        return factored_jacobian(self.objective, self.objective.memory_budget // 2 - bent)

    @cached_property
    def _by_rows(self) -> RowwiseGaussNewton | None:
        return RowwiseGaussNewton.of(self.objective)

    @cached_property
    def _output_hessian(self) -> Tensor:
        return self.model.loss.output_hessian(self.objective.outputs, self.objective.rows.targets)

    def restricted(self, rows: NDArray[np.int64]) -> Self:
        other = super().restricted(rows)
        kept = "_jacobian" if self._chain is None else "_chain"
        whole = getattr(self, kept)
        if whole is not None:
            of = torch.from_numpy(rows).to(self.model.device)
            vars(other)[kept] = whole[of]
            vars(other)["_output_hessian"] = self._output_hessian[of]
        return other


class Hessian(Curvature):
    r"""True second derivative, :math:`C_i = \partial^2\ell_i/\partial\theta^2`; may be indefinite."""

    signed = True

    def _product(self, V: Tensor, at: slice) -> Tensor:
        rows = self.objective.rows[at]
        losses = self.objective.losses_of(rows)
        return hessian_products(self.model, losses, rows.shares.to(V), V)[0]


class EmpiricalFisher(Curvature):
    r"""Second moment of the gradients of the loss, :math:`C_i = g_i g_i^\top`."""

    def _product(self, V: Tensor, at: slice) -> Tensor:
        gradients = self.objective.differentiate(self.objective.losses[at])
        return gradients.combine(gradients.apply(V) * self._shares[at, None])

    def _chunk_size(self, n_vectors: int) -> int:
        own = self.objective.memory_budget // (2 * self.objective.differentiate.row_bytes())
        return max(1, min(super()._chunk_size(n_vectors), own))


def sampled_fisher(
    objective: Objective, penalty: bool = False, *, seed: int = 0
) -> EmpiricalFisher:
    """Return the second moment of the gradients at targets sampled from the model itself.

    A classifier's target is one draw from its predicted probabilities; under squared error it is
    the output plus Gaussian noise of the variance that the loss stands for. In expectation this is
    the Gauss-Newton matrix. The targets of the objective are not used. ValueError if the loss is not the
    negative log-likelihood of a distribution that can be sampled.
    """
    generator = torch.Generator().manual_seed(seed)
    loss, rows = objective.model.loss, objective.rows
    targets = objective.drawn_targets(generator)
    drawn = objective.at(replace(objective.model, loss=loss.likelihood))
    return EmpiricalFisher(drawn.of_rows(replace(rows, targets=targets)), penalty)


def activation_bytes(model: FinalModel, inputs: Inputs) -> int:
    """Return the bytes of what one row leaves in a pass forward by formulas, with inputs and outputs."""
    sizes: list[int] = []

    def note(saved: Tensor) -> None:
        sizes.append(saved.numel() * saved.element_size())

    def saved(n: int) -> int:
        sizes.clear()
        theta = model.theta.clone().requires_grad_()
        x = mapped(lambda part: part[:1].expand(n, *part.shape[1:]), inputs)
        kept = torch.autograd.graph.saved_tensors_hooks(note, lambda nothing: nothing)
        with by_formulas(model.is_recurrent), kept, torch.enable_grad():
            outputs = model.forward(theta, x)
        return sum(sizes) + sum(t.numel() * t.element_size() for t in (*parts(x), outputs))

    return saved(2) - saved(1)  # without parameters, of which there is one set


#: Curvatures of an objective by the name that attributors take.
CURVATURES: dict[str, Callable[..., Curvature]] = {
    "gauss-newton": GaussNewton,
    "hessian": Hessian,
    "empirical-fisher": EmpiricalFisher,
    "sampled-fisher": sampled_fisher,
}
