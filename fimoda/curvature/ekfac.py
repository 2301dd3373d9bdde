"""EK-FAC: Kronecker-factored eigenbases with corrected eigenvalues, a block a layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..layers import Factors, LayerDifferentiator, LayerGradients, Place, turned
from ..measured import Measured
from ..model import FinalModel
from ..objective import MOST_ROWS, Objective
from ..padding import chunks, order_by_length
from ..row_gradients import RowGradients
from .fisher_cosine import cosine_with_fisher

#: Outputs, at most, over whose targets the expectation is exact, by a backward pass each.
MOST_EXPECTED = 128


def fisher_of(objective: Objective, fisher: str) -> str:
    """Return "expected" or "sampled"; "auto" is the first where there are up to 128 outputs."""
    if fisher != "auto":
        return fisher
    return "expected" if objective.n_outputs <= MOST_EXPECTED else "sampled"


@dataclass(frozen=True)
class Block:
    r"""The curvature of one layer, :math:`(Q_S \otimes Q_A) \Lambda (Q_S \otimes Q_A)^\top`.

    With the eigenvectors :math:`Q_A` (in, in) of :math:`A = E[a a^\top]`, the homogeneous coordinate of
    the bias last, :math:`Q_S` (out, out) of :math:`S = E[d d^\top]`, and the float64 eigenvalues
    :math:`\Lambda = E[(Q_S^\top G Q_A)^2]` (out, in). A basis of None is that of the coordinates.
    """

    input_basis: Tensor | None
    signal_basis: Tensor | None
    eigenvalues: Tensor
    place: Place

    def rotate(self, factors: Factors) -> Factors:
        """Return the gradients in the eigenbasis."""
        return factors.rotated(self.input_basis, self.signal_basis)

    def diagonal(self, values: Tensor) -> Tensor:
        """Return the diagonal (out, in), in the eigenbasis, of a diagonal matrix (p,)."""
        squares = [None if q is None else q.double() ** 2 for q in self._bases]
        return turned(self.place.matrices(values[None])[0].double(), *squares)

    def solved(self, gradients: LayerGradients, damping: float) -> LayerGradients:
        """Return the layer's solutions of ``(C + damping) u = v`` for gradients v of rows."""
        q_a, q_s = self._bases
        inside = gradients.rotated(q_a, q_s).divided(self.eigenvalues + damping)
        return inside.rotated(*(None if q is None else q.mT for q in (q_a, q_s)))

    def solve(self, vectors: Tensor, damping: float) -> Tensor:
        """Return the layer's solutions (k, out, in) of ``(C + damping) u = v`` for vectors (k, p)."""
        q_a, q_s = (None if q is None else q.to(vectors) for q in self._bases)
        inside = turned(self.place.matrices(vectors), q_a, q_s)
        inside = inside / (self.eigenvalues + damping).to(vectors)
        back = [None if q is None else q.mT for q in (q_a, q_s)]
        return turned(inside, *back)

    def carried(self, matrices: Tensor, other: Block) -> Tensor:
        """Return matrices (k, out, in) of this eigenbasis in that of the same layer's other block."""
        turns = [
            a if b is None else b if a is None else a.mT @ b
            for a, b in zip(self._bases, other._bases, strict=True)
        ]
        return turned(matrices, *turns)

    @property
    def _bases(self) -> tuple[Tensor | None, Tensor | None]:
        return self.input_basis, self.signal_basis


class EKFAC:
    r"""EK-FAC approximation of the Fisher (Gauss-Newton) matrix of an objective.

    For each layer, with :math:`G_i = \sum_t d_{it} a_{it}^\top` the gradient of row i at targets
    that the model itself predicts,

    .. math:: C \approx (Q_S \otimes Q_A)\, \mathrm{diag}\Big(\sum_i s_i
        E\big[(Q_S^\top G_i Q_A)^2\big]\Big) (Q_S \otimes Q_A)^\top,

    :math:`s_i` the shares, :math:`Q_A, Q_S` the eigenvectors of :math:`A = \sum_i s_i \sum_t a
    a^\top` and :math:`S = \sum_i s_i E[\sum_t d d^\top]`. The scales of A and S do not matter. Of rows that
    are padded A has the positions in use alone. The L2 penalty enters by its diagonal in the eigenbasis.

    The expectation over targets is exact ("expected"), or of one draw a row ("sampled"). With `others`,
    the same network with other parameters, A, S and the eigenvalues are means over all of them. `scale`
    multiplies the eigenvalues before the penalty is added; "matched" gives the approximation the
    Frobenius norm of the whole matrix, which blocks and a diagonal within each fall short of by the
    cosine between the two (`cosine_with_fisher`).
    """

    def __init__(
        self,
        objective: Objective,
        *,
        fisher: str = "expected",
        seed: int = 0,
        others: Sequence[FinalModel] = (),
        scale: float | str = 1.0,
    ):
        self.objective = objective
        self.fisher = fisher
        rows, model = objective.rows, objective.model
        few = rows[:2].inputs
        self.differentiate = LayerDifferentiator(model, few)
        self._order = order_by_length(rows.inputs)
        self.parts = [
            (
                self.differentiate if one is model else LayerDifferentiator(one, few),
                objective.at(one).drawn_targets(torch.Generator().manual_seed(seed))
                if fisher == "sampled"
                else rows.targets,
            )
            for one in (model, *others)
        ]
        share = (rows.shares / len(self.parts)).to(model.dtype)
        self.blocks = []
        layers = zip(self._covariances(share), self.differentiate.places, strict=True)
        for (A, S), place in layers:
            q_a, q_s = (
                None if C is None else torch.linalg.eigh(C)[1].to(model.dtype) for C in (A, S)
            )
            shape = place.matrices(model.theta[None]).shape[1:]
            zeros = torch.zeros(shape, dtype=torch.float64, device=model.device)
            self.blocks.append(Block(q_a, q_s, zeros, place))
        self._correct(share)
        self.scale = self._matched() if isinstance(scale, str) else scale
        for block in self.blocks:
            block.eigenvalues.mul_(self.scale)
            if model.penalty is not None:
                block.eigenvalues.add_(block.diagonal(model.penalty))

    @property
    def chunk_size(self) -> int:
        """Rows whose factors are held at a time."""
        n_cotangents = 1 if self.fisher == "sampled" else max(2, self.objective.n_outputs)
        row_bytes = 4 * self.differentiate.row_bytes(n_cotangents) + self._written_out
        fitting = self.objective.memory_budget // row_bytes
        return self.objective.chunk_size or int(min(max(fitting, 1), MOST_ROWS))

    @property
    def _most(self) -> int:
        """Rows, at most, whose factors are held at a time, however few positions they have."""
        most = self.objective.memory_budget // 4 // max(1, self._written_out)
        return self.objective.chunk_size or int(min(max(most, 1), MOST_ROWS))

    @property
    def _written_out(self) -> int:
        """The bytes of a row's gradients in the widest layer in which they are written out."""
        samples = [part for part in self.differentiate.samples if not part.at_one_position]
        widest = max((part.matrix_numbers for part in samples), default=0)
        return 3 * widest * self.objective.model.theta.element_size()

    # ---- estimation -------------------------------------------------------------------------

    def _pulled(self, share: Tensor) -> Iterator[tuple[Tensor, list[Factors]]]:
        """Yield shares and factors of chunks of rows at each model's own targets, for all cotangents."""
        inputs, order = self.objective.rows.inputs, self._order
        if order is not None:
            inputs, share = inputs[order], share[order]
        for differentiate, targets in self.parts:
            targets = targets if order is None else targets[order]
            for at in chunks(inputs, self.chunk_size, self._most):
                cotangents = partial(self.cotangents, targets[at])
                yield share[at], differentiate.pull_back(inputs[at], cotangents)

    def cotangents(self, targets: Tensor, outputs: Tensor) -> list[Tensor]:
        r"""Return vectors :math:`v_c` with :math:`\sum_c v_c v_c^\top` the Fisher matrix of outputs."""
        loss = self.objective.model.loss
        if self.fisher == "sampled":
            return [loss.likelihood.gradient(outputs, targets)]
        return loss.fisher_cotangents(outputs, targets)

    def _covariances(self, share: Tensor) -> list[list[Tensor | None]]:
        """Return A and S of each layer, float64; None where the basis is that of the coordinates."""
        total: list[list[Tensor | None]] = []
        for w, factors in self._pulled(share):
            if self._order is not None:  # rows are padded
                factors = [f.in_use() for f in factors]
            found = [list(f.covariances(w)) for f in factors]
            for layer, own in zip(total, found, strict=False):
                layer[:] = [
                    b if a is None or b is None else a + b for a, b in zip(layer, own, strict=True)
                ]
            total = total or found
        return total

    def _correct(self, share: Tensor) -> None:
        """Add the second moments of the rotated gradients to the eigenvalues."""
        for w, factors in self._pulled(share):
            for block, f in zip(self.blocks, factors, strict=True):
                block.eigenvalues.add_(block.rotate(f).second_moment(w).double())

    def _matched(self) -> float:
        """Return by how much the norm of the whole matrix is larger than that of the eigenvalues."""
        norm = sum(float(block.eigenvalues.square().sum()) for block in self.blocks) ** 0.5
        if not norm:
            return 1.0

        def quadratic(factors: list[Factors]) -> Tensor:
            rotated = [b.rotate(f) for b, f in zip(self.blocks, factors, strict=True)]
            return _forms([block.eigenvalues for block in self.blocks], rotated, rotated)

        rows = self.objective.rows
        return 1 / cosine_with_fisher(self.parts, self.cotangents, quadratic, norm, rows)

    # ---- use --------------------------------------------------------------------------------

    def row_bytes(self) -> int:
        """Return the bytes that the compressed gradients of one row take."""
        samples = self.differentiate.samples
        numbers = sum(min(part.row_numbers(), part.matrix_numbers) for part in samples)
        return self.objective.model.theta.element_size() * numbers

    def trace(self) -> float:
        """Return the trace, with the L2 penalty but without what an optimiser's weight decay adds to it."""
        model = self.objective.model
        total = sum(float(block.eigenvalues.sum()) for block in self.blocks)
        if model.penalty is not None:
            total -= float(model.penalty.double().sum())
        if total > 0 and model.l2 is not None:
            total += float(model.l2.double().sum())
        return total

    def solved_bytes(self) -> int:
        """Return the bytes that the solution for one row takes."""
        numbers = sum(part.matrix_numbers for part in self.differentiate.samples)
        return self.objective.model.theta.element_size() * numbers

    def rotated(self, measured: Measured) -> list[LayerGradients]:
        """Return the gradients of what is measured in the eigenbases, compressed."""
        factors = self.differentiate(measured)
        return [b.rotate(f).compressed() for b, f in zip(self.blocks, factors, strict=True)]

    def chunks(
        self, measured: Measured, most: int = MOST_ROWS
    ) -> Iterator[tuple[slice, list[LayerGradients]]]:
        """Yield the rotated gradients of a chunk of rows at a time."""
        size = min(self.chunk_size, most)
        for start in range(0, len(measured), size):
            at = slice(start, min(start + size, len(measured)))
            yield at, self.rotated(measured[at])

    def solved(self, gradients: RowGradients, damping: float) -> RowGradients:
        """Return the solutions of ``(C + damping) u = v`` for gradients v of rows."""
        blocks = zip(self.blocks, gradients.parts, strict=True)
        return replace(gradients, parts=[b.solved(part, damping) for b, part in blocks])

    def divide(self, rotated: list[LayerGradients], damping: float) -> list[LayerGradients]:
        """Return the solutions in the eigenbases, layer by layer."""
        blocks = zip(self.blocks, rotated, strict=True)
        return [f.divided(b.eigenvalues + damping) for b, f in blocks]

    def inner_rowwise(
        self, a: list[LayerGradients], b: list[LayerGradients], damping: float
    ) -> Tensor:
        """Return the products (n,) of row k of a with the solution of row k of b, both rotated."""
        return _forms([1 / (block.eigenvalues + damping) for block in self.blocks], a, b)

    def solve(self, V: Tensor, damping: float) -> Tensor:
        """Return the solutions ``(C + damping) u = v`` of the rows of V (k, p)."""
        self.check_definite(damping)
        solved = torch.zeros_like(V)
        for block in self.blocks:
            block.place.fill(solved, block.solve(V, damping))
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


def _forms(
    metrics: Sequence[Tensor], a: Sequence[LayerGradients], b: Sequence[LayerGradients]
) -> Tensor:
    """Return sums (n,) over layers of the entries of rows of a times those of b, times a metric."""
    layers = zip(a, b, metrics, strict=True)
    return torch.stack([f.inner_rowwise(g, metric) for f, g, metric in layers]).sum(0)
