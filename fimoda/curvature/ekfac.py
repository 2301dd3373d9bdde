"""EK-FAC: Kronecker-factored eigenbases with corrected eigenvalues, a block a layer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..measured import Measured
from ..model import DEFAULT_BUDGET, FinalModel
from ..row_gradients import bilinear
from .fisher_cosine import cosine_with_fisher
from .layers import Factors, LayerDifferentiator


@dataclass(frozen=True)
class Block:
    r"""The curvature of one layer, :math:`(Q_S \otimes Q_A) \Lambda (Q_S \otimes Q_A)^\top`.

    Parameters
    ----------
    input_basis : Tensor of shape (in, in)
        Eigenvectors of :math:`A = E[a a^\top]`, the homogeneous coordinate of the bias last.
    signal_basis : Tensor of shape (out, out)
        Eigenvectors of :math:`S = E[d d^\top]`.
    eigenvalues : Tensor of shape (out, in)
        :math:`E[(Q_S^\top G Q_A)^2]`, float64.
    place : tuple of slice
        Where weight and bias lie in the parameter vector.
    """

    input_basis: Tensor
    signal_basis: Tensor
    eigenvalues: Tensor
    place: tuple[slice, ...]

    def rotate(self, factors: Factors) -> Factors:
        """The gradients in the eigenbasis."""
        return Factors(factors.inputs @ self.input_basis, factors.signals @ self.signal_basis)


class EKFAC:
    r"""EK-FAC approximation of the Fisher (Gauss-Newton) matrix of a weighted mean loss.

    For each layer, with :math:`G_i = \sum_t d_{it} a_{it}^\top` the gradient of row i at targets
    that the model itself predicts,

    .. math:: C \approx (Q_S \otimes Q_A)\, \mathrm{diag}\Big(\sum_i \tilde w_i
        E\big[(Q_S^\top G_i Q_A)^2\big]\Big) (Q_S \otimes Q_A)^\top,

    :math:`\tilde w_i = w_i / \sum_j w_j`, :math:`Q_A, Q_S` the eigenvectors of :math:`A = \sum_i
    \tilde w_i \sum_t a a^\top` and :math:`S = \sum_i \tilde w_i E[\sum_t d d^\top]`. The scales of
    A and S do not matter. The L2 penalty enters by its diagonal in the eigenbasis.

    Parameters
    ----------
    model : FinalModel
    X, y : Tensor
        Encoded training rows and targets.
    weights : Tensor of shape (n,)
        Weights of the rows in the objective.
    fisher : {"expected", "sampled"}, default="expected"
        Whether the expectation over targets is taken exactly, or by one draw a row.
    seed : int, default=0
        Seed of the draws.
    chunk_size : int, default=None
        Rows at a time; from `memory_budget` by default.
    memory_budget : int, default=512 MiB
        Bytes for factors at a time.
    others : sequence of FinalModel, default=()
        The same network with other parameters: A, S and the eigenvalues are means over all of them.
    scale : float or "matched", default=1.0
        Multiplies the eigenvalues before the penalty is added; "matched" gives the approximation the
        Frobenius norm of the whole matrix, which blocks and a diagonal within each fall short of by
        the cosine between the two (`cosine_with_fisher`).

    Raises
    ------
    ValueError
        If no layer can be treated.
    """

    def __init__(
        self,
        model: FinalModel,
        X: Tensor,
        y: Tensor,
        weights: Tensor,
        *,
        fisher: str = "expected",
        seed: int = 0,
        chunk_size: int | None = None,
        memory_budget: int = DEFAULT_BUDGET,
        others: Sequence[FinalModel] = (),
        scale: float | str = 1.0,
    ):
        self.model = model
        self.differentiate = LayerDifferentiator(model, X[:2])
        skipped = ", ".join(self.differentiate.skipped)
        if not self.differentiate.layers:
            raise ValueError(
                f"EK-FAC treats Linear and Conv2d layers; this model has none that it can: {skipped}. "
                "Use CGInfluence."
            )
        if skipped:
            warnings.warn(
                f"EK-FAC does not treat the layers {skipped}: their parameters contribute nothing "
                "to the scores.",
                UserWarning,
                stacklevel=2,
            )
        self.skipped = list(self.differentiate.skipped)
        self.fisher = fisher
        models = [model, *others]
        self.parts = [
            (
                self.differentiate if one is model else LayerDifferentiator(one, X[:2]),
                one.loss.sample_targets(one.outputs(X), torch.Generator().manual_seed(seed))
                if fisher == "sampled"
                else y,
            )
            for one in models
        ]
        n_cotangents = 1 if fisher == "sampled" else max(2, model.outputs(X[:1]).shape[1])
        row_bytes = 4 * self.differentiate.row_bytes(X, n_cotangents)
        widest = max(f.dense()[0].numel() for f in self._probe(X))
        several = any(f.inputs.shape[1] > 1 for f in self._probe(X))
        row_bytes += 3 * widest * X.element_size() if several else 0
        fitting = int(min(max(memory_budget // row_bytes, 1), 4096))
        self.chunk_size = chunk_size or fitting
        share = (weights.double() / weights.double().sum() / len(models)).to(model.dtype)
        bases = [
            tuple(torch.linalg.eigh(C)[1].to(model.dtype) for C in pair)
            for pair in self._covariances(X, share)
        ]
        self.blocks = [
            Block(
                q_a, q_s, torch.zeros(len(q_s), len(q_a), dtype=torch.float64).to(X.device), place
            )
            for (q_a, q_s), place in zip(bases, self.differentiate.places, strict=True)
        ]
        self._correct(X, share)
        self.scale = self._matched(X, weights) if isinstance(scale, str) else scale
        for block in self.blocks:
            block.eigenvalues.mul_(self.scale).add_(self._penalty(block))

    def _probe(self, X: Tensor) -> list[Factors]:
        return self.differentiate.pull_back(X[:1], lambda f: [torch.ones_like(f)])[0]

    # ---- estimation -------------------------------------------------------------------------

    def _pulled(self, X: Tensor, share: Tensor) -> Iterator[tuple[Tensor, list[list[Factors]]]]:
        """Weights and factors of chunks of rows at each model's own targets, for each cotangent."""
        for differentiate, targets in self.parts:
            rows = zip(
                X.split(self.chunk_size),
                targets.split(self.chunk_size),
                share.split(self.chunk_size),
                strict=True,
            )
            for x, y, w in rows:
                yield w, differentiate.pull_back(x, partial(self.cotangents, y))

    def cotangents(self, y: Tensor, outputs: Tensor) -> list[Tensor]:
        r"""Vectors :math:`v_c` with :math:`\sum_c v_c v_c^\top` the Fisher matrix of the outputs."""
        loss = self.model.loss
        if self.fisher == "sampled":
            return [loss.gradient(outputs, y)]
        return loss.fisher_cotangents(outputs, y)

    def _covariances(self, X: Tensor, share: Tensor) -> list[tuple[Tensor, Tensor]]:
        """A and S of each layer, float64."""
        total: list[tuple[Tensor, Tensor]] = []
        for w, pulled in self._pulled(X, share):
            for k, of_layer in enumerate(zip(*pulled, strict=True)):
                a = of_layer[0].inputs
                first = _second_moment(a, w)
                second = sum((_second_moment(f.signals, w) for f in of_layer), torch.zeros(()))
                if k == len(total):
                    total.append((first, second.to(first)))
                else:
                    total[k] = (total[k][0] + first, total[k][1] + second)
        return total

    def _correct(self, X: Tensor, share: Tensor) -> None:
        """Add the second moments of the rotated gradients to the eigenvalues."""
        for w, pulled in self._pulled(X, share):
            for block, of_layer in zip(self.blocks, zip(*pulled, strict=True), strict=True):
                a = of_layer[0].inputs @ block.input_basis
                rotated = [f.signals @ block.signal_basis for f in of_layer]
                if a.shape[1] == 1:
                    squared = sum(
                        (d[:, 0] ** 2 for d in rotated), torch.zeros_like(rotated[0][:, 0])
                    )
                    block.eigenvalues.add_(((squared * w[:, None]).mT @ a[:, 0] ** 2).double())
                    continue
                for d in rotated:
                    squares = (d.mT @ a).square_().flatten(1)
                    block.eigenvalues.add_((w @ squares).double().view_as(block.eigenvalues))

    def _matched(self, X: Tensor, weights: Tensor) -> float:
        """By how much the norm of the whole matrix is larger than that of the eigenvalues."""
        norm = sum(float(block.eigenvalues.square().sum()) for block in self.blocks) ** 0.5
        if not norm:
            return 1.0

        def quadratic(factors: list[Factors]) -> Tensor:
            rotated = [b.rotate(f) for b, f in zip(self.blocks, factors, strict=True)]
            return _forms([block.eigenvalues for block in self.blocks], rotated, rotated)

        return 1 / cosine_with_fisher(self.parts, self.cotangents, quadratic, norm, X, weights)

    def _penalty(self, block: Block) -> Tensor:
        """Diagonal of the L2 penalty in the eigenbasis, (out, in)."""
        q_a, q_s = block.input_basis.double(), block.signal_basis.double()
        penalty = self.model.penalty
        if penalty is None:
            return torch.zeros_like(block.eigenvalues)
        l2 = torch.cat([penalty[s].unflatten(0, (len(q_s), -1)) for s in block.place], dim=1)
        return q_s.mT**2 @ l2.double() @ q_a**2

    # ---- use --------------------------------------------------------------------------------

    def row_bytes(self, X: Tensor) -> int:
        """Bytes that the compressed gradients of one row take."""
        return self.model.theta.element_size() * sum(f.row_size() for f in self._probe(X))

    def rotated(self, measured: Measured) -> list[Factors]:
        """Return the gradients of what is measured in the eigenbases, compressed."""
        factors = self.differentiate(measured)
        return [b.rotate(f).compressed() for b, f in zip(self.blocks, factors, strict=True)]

    def divide(self, rotated: list[Factors], damping: float) -> list[Tensor]:
        """Solutions in the eigenbases, (m, out, in) of each layer."""
        return [
            f.dense() / (b.eigenvalues + damping).to(f.inputs)
            for b, f in zip(self.blocks, rotated, strict=True)
        ]

    def inner_rowwise(self, a: list[Factors], b: list[Factors], damping: float) -> Tensor:
        """Products of row k of a with the solution of row k of b, (n,), from rotated factors."""
        return _forms([1 / (block.eigenvalues + damping) for block in self.blocks], a, b)

    def solve(self, V: Tensor, damping: float) -> Tensor:
        """Solutions ``(C + damping) u = v`` of the rows of V (k, p), as rows; zero where skipped."""
        self.check_definite(damping)
        solved = torch.zeros_like(V)
        for block in self.blocks:
            q_a, q_s = block.input_basis.to(V), block.signal_basis.to(V)
            parts = [V[:, s].unflatten(1, (len(q_s), -1)) for s in block.place]
            inside = q_s.mT @ torch.cat(parts, 2) @ q_a / (block.eigenvalues + damping).to(V)
            outside = (q_s @ inside @ q_a.mT).split([part.shape[2] for part in parts], dim=2)
            for s, part in zip(block.place, outside, strict=True):
                solved[:, s] = part.flatten(1)
        return solved

    def check_definite(self, damping: float) -> None:
        """Raise ValueError unless the damped eigenvalues are positive."""
        largest = max(float(b.eigenvalues.max()) for b in self.blocks)
        lowest = min(float(b.eigenvalues.min()) for b in self.blocks)
        if lowest + damping <= 1e-13 * largest:
            raise ValueError(
                f"the EK-FAC curvature is singular, and damping={damping:g} does not make it positive "
                f"definite. Raise damping above {1e-8 * largest:.1e}."
            )


def _forms(matrices: Sequence[Tensor], a: list[Factors], b: list[Factors]) -> Tensor:
    """Sums of the entries of a matrix of each layer times those of rows of a and of b, (n,)."""
    total = torch.zeros((), dtype=torch.float64)
    for matrix, f, g in zip(matrices, a, b, strict=True):
        entries = matrix.to(f.inputs)
        if f.inputs.shape[1] == 1:
            signals, inputs = (f.signals * g.signals)[:, 0], (f.inputs * g.inputs)[:, 0]
            part = ((signals @ entries) * inputs).sum(1)
        else:
            part = (f.dense() * g.dense() * entries).flatten(1).sum(1)
        total = total + part.double()
    return total


def inner(matrices: Tensor, factors: Factors) -> Tensor:
    """Inner products of matrices (m, out, in) with the gradients of n rows, (m, n)."""
    if factors.matrices is not None:
        return matrices.flatten(1) @ factors.matrices.flatten(1).mT
    n, positions = factors.inputs.shape[:2]
    found = bilinear(matrices, factors.inputs.flatten(0, 1), factors.signals.flatten(0, 1))
    return found.unflatten(1, (n, positions)).sum(2)


def _second_moment(vectors: Tensor, w: Tensor) -> Tensor:
    """Weighted sum of outer products of vectors (n, T, k), (k, k) in float64."""
    flat = vectors.flatten(0, 1)
    weights = w.repeat_interleave(vectors.shape[1])
    return (flat.mT @ (flat * weights[:, None])).double()
