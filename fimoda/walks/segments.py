r"""Further training linearised anew at a few points of its run on all rows.

The run is cut into segments. In each, the curvature :math:`H` and the rows' Jacobians stand still
at the middle; the residuals, and the measurements at the end, are those of the run itself. An
adjoint :math:`\lambda` passes through the K steps of a segment as a function of the matrix
:math:`M = P^{1/2} H P^{1/2}` (for plain SGD :math:`(1 - \eta M)^K \lambda`), P the optimiser's
preconditioner. It is evaluated in a Krylov space of M that begins with the rows' Jacobians; outside
that space there is no curvature. With as many segments as steps this is unrolled differentiation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..derivatives import push_outputs
from ..measured import Measured
from ..objective import Objective
from ..rows import Rows
from ..training.linear_steps import LinearSteps, linear_steps
from ..training.noise import seeded
from ..training.recorded import ObservedRun
from ..training.run import Run
from .batch_hessian import batch_hessian
from .block_krylov import block_krylov
from .responses import Responses, responses

#: Rows that go through a product with the Hessian together, at most.
_ROWS = 1024

#: Modes of negative curvature grow at most by exp of this in a segment: real training saturates.
_GROWTH = 0.5

#: Part of the memory budget for derivatives of outputs, first or second, that are summed up over rows.
LOAD = 1 / 8

#: Rows whose Jacobians the Krylov spaces begin with, for each vector of the beginning.
_SAMPLE = 4


@dataclass(frozen=True)
class Load:
    """The load that the rows' residuals over a segment put on adjoints that pass through it.

    One entry for units of adjoint in the parameters; a second, if the optimiser has a velocity.
    """

    inside: list[Tensor]  # (n, k): each row's inner products with the modes, times its residuals
    outside: list[Tensor]  # (n, C): residuals, for the derivative of outputs outside the modes


@dataclass(frozen=True, eq=False)
class Segment:
    """A segment from one step to another, linearised in its middle."""

    start: int
    end: int
    inside: slice  # knots of the run, both ends included
    theta: Tensor  # parameters in the middle, (p,)
    scale: Tensor | float  # root of the preconditioner, (p,)
    basis: Tensor  # orthonormal modes of the preconditioned curvature, (k, p)
    response: Responses  # of the modes, and last of everything outside them
    load: Load  # of the rows with their residuals in the run
    moved: Tensor  # by how much the parameters (p,) move in the run
    predicted: Tensor  # and in the linearised one

    def carry(self, error: Tensor) -> Tensor:
        """Return where the linearised run is off the real one (p,) at the end, from that at the start."""
        carried = _in_modes(self.basis, error / self.scale, self.response.X[0]) * self.scale
        return carried + self.predicted - self.moved

    def pass_back(
        self, objective: Objective, adjoints: Sequence[Tensor], others: Tensor | None = None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return inner products with rows (m, n), with `others` too, and the adjoints at the start.

        Adjoints (m, p) are those of the parameters and, if there is one, of the velocity. `others` are
        residuals (n_knots, n, C) in place of those of the run.
        """
        real, earlier = self._passed(objective, self.load, adjoints)
        if others is None:
            return real, real, earlier
        residuals = others[self.inside]
        modes = self.basis * self.scale
        load = _load(objective, self.theta, modes, self.response, residuals, len(self.load.inside))
        return real, self._passed(objective, load, adjoints)[0], earlier

    def _passed(
        self, objective: Objective, load: Load, adjoints: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return inner products (m, n) with rows of this load, and the adjoints at the start."""
        model, inputs = objective.model, objective.rows.inputs
        scales = (self.scale, 1 / self.scale)
        own = adjoints[0].new_zeros(len(adjoints[0]), len(objective), dtype=torch.float64)
        earlier = [torch.zeros_like(adjoint) for adjoint in adjoints]
        for part, adjoint in enumerate(adjoints):
            outer = adjoint * scales[part]
            inner = outer @ self.basis.mT
            outer.addmm_(inner, self.basis, alpha=-1)
            own += (inner @ load.inside[part].mT).double()
            moves = outer * self.scale
            for rows in load_chunks(objective, len(moves)):
                pushed = push_outputs(model, inputs[rows], self.theta, moves)
                of_rows = load.outside[part][rows]
                own[:, rows] += torch.einsum("nmc,nc->mn", pushed.double(), of_rows)
            for new, ways in zip(earlier, (self.response.X, self.response.V), strict=False):
                kept = ways[part].to(outer)
                new.addmm_(inner * kept[:-1], self.basis).add_(outer, alpha=float(kept[-1]))
        for new, scale in zip(earlier, scales, strict=False):
            new /= scale
        return own, earlier


def middle(a: int, b: int) -> int:
    """Return the step in the middle of the steps a to b."""
    return (a + b) // 2


def linearize(
    run: Run,
    observed: ObservedRun,
    a: int,
    b: int,
    n_components: int,
    block_size: int,
    kinks: float | None,
) -> Segment:
    """Return the segment from step a to step b, which are knots, with modes in a Krylov space.

    It has at most `n_components` dimensions, and begins with `block_size` vectors. The curvature of
    kinks has the sharpness `kinks`, or is left out.
    """
    inside = slice(observed.knot(a), observed.knot(b) + 1)
    knots = observed.knots[inside]
    moment = observed.moments[middle(a, b)]
    steps = linear_steps(run.optimizer, observed.buffers_of(moment.step))
    scale = 1.0 if steps.preconditioner is None else steps.preconditioner.sqrt()
    objective = _decayed(run.objective.at(run.model.at(moment.theta)), steps)
    hessian, penalty = batch_hessian(objective.model, kinks), objective.model.penalty

    bends = 8 * objective.n_outputs**2  # bytes of a row's second derivative in its outputs
    size = int(min(max(LOAD * objective.memory_budget // bends, 1), _ROWS))

    def product(U: Tensor) -> Tensor:
        U = U * scale
        total = torch.zeros_like(U) if penalty is None else U * penalty
        with seeded(objective.model, 0):  # the same dropout in all products
            for rows in objective.rows.split(size):
                hessian(moment.theta, rows, U, total)
        return total * scale

    start = _principal_jacobians(objective, block_size) * scale
    values, basis = block_krylov(product, start, n_components)
    level = 0.0 if penalty is None else float((penalty * scale**2).mean())
    curved = torch.cat([values, values.new_tensor([level])])
    rates = observed.rates[a:b]
    steps.check_stable(float(curved.max()), rates)
    if len(rates) > 1:  # a single step does not grow exponentially
        way = responses(steps, torch.zeros_like(curved[:1]), rates, knots).total.abs()
        curved = torch.maximum(curved, -_GROWTH / way)
    response = responses(steps, curved, rates, knots)
    residuals, n_parts = observed.residuals[inside], 1 + bool(steps.of_velocity)
    load = _load(objective, moment.theta, basis * scale, response, residuals, n_parts)
    moved = observed.theta(b) - observed.theta(a)

    first = observed.moments[a]
    # the response to a unit of adjoint at the end is what a force does to the end
    force = objective.gradient(first.theta) * scale
    predicted = _in_modes(basis, force, response.total)
    velocity = steps.velocity(first.buffers)
    if velocity is not None:
        predicted += _in_modes(basis, velocity * scale, response.V[0])
    return Segment(
        a, b, inside, moment.theta, scale, basis, response, load, moved, predicted * scale
    )


def _in_modes(basis: Tensor, vector: Tensor, kept: Tensor) -> Tensor:
    """Return a vector (p,) times a number for each mode, and a last one outside them."""
    inner, kept = basis @ vector, kept.to(vector)
    return (inner * kept[:-1]) @ basis + (vector - inner @ basis) * kept[-1]


def _load(
    objective: Objective,
    theta: Tensor,
    modes: Tensor,
    response: Responses,
    residuals: Tensor,
    n_parts: int,
) -> Load:
    """Return the load of residuals (n_knots, n, C) on modes (k, p), some rows at a time."""
    model, inputs = objective.model, objective.rows.inputs
    inside: list[list[Tensor]] = [[] for _ in range(n_parts)]
    for rows in load_chunks(objective, len(modes)):
        pushed = push_outputs(model, inputs[rows], theta, modes)  # (b, k, C)
        along = pushed @ residuals[:, rows].to(pushed).permute(1, 2, 0)  # (b, k, n_knots)
        for number, part in enumerate(response.to_modes(along)[:n_parts]):
            inside[number].append(part.to(pushed))
    outside = response.to_residuals(residuals)[:n_parts]
    return Load([torch.cat(parts) for parts in inside], list(outside))


def load_chunks(objective: Objective, n_vectors: int) -> list[slice]:
    """Return slices of rows whose derivatives of outputs along vectors take `LOAD` of the budget."""
    # the derivatives, as they come and joined, once in float64
    row_bytes = objective.n_outputs * n_vectors * (2 * objective.model.theta.element_size() + 8)
    step = max(1, int(LOAD * objective.memory_budget) // row_bytes)
    return [slice(start, start + step) for start in range(0, len(objective), step)]


def _decayed(objective: Objective, steps: LinearSteps) -> Objective:
    """Return the objective with the weight decay of these steps in its penalty."""
    theta, decay = objective.model.theta, steps.coupled_decay
    own = torch.full_like(theta, decay) if decay else None
    return objective.at(replace(objective.model, decay=own))


def _principal_jacobians(objective: Objective, block_size: int) -> Tensor:
    """Return principal directions (b, p) of some rows' derivatives of outputs with random signs."""
    generator = torch.Generator().manual_seed(0)
    some = torch.randperm(len(objective), generator=generator)[: _SAMPLE * block_size]
    inputs = objective.rows[some].inputs
    signs = torch.randint(0, 2, (len(some), objective.n_outputs), generator=generator) * 2 - 1

    def signed(outputs: Tensor, sign: Tensor) -> Tensor:
        return (outputs * sign).sum(-1)

    signs = signs.to(objective.model.theta)
    gradients = objective.differentiate(Measured(Rows(inputs, signs), signed)).dense()
    size = gradients.norm(dim=1, keepdim=True)
    gradients /= torch.where(size > 0, size, 1)
    _, vectors = torch.linalg.eigh((gradients @ gradients.mT).double())
    return vectors[:, -block_size:].mT.to(gradients) @ gradients
