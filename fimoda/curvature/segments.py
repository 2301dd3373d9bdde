r"""Further training linearised anew at a few points of its run on all rows.

The run is cut into segments. In each, the curvature :math:`H` and the rows' Jacobians stand still
at the middle; the residuals, and the measurements at the end, are those of the run itself. An
adjoint :math:`\lambda` passes through the K steps of a segment as a function of the matrix
:math:`M = P^{1/2} H P^{1/2}` (for plain SGD :math:`(1 - \eta M)^K \lambda`), P the optimiser's
preconditioner. It is evaluated in a Krylov space of M that begins with the rows' Jacobians; outside
that space there is no curvature. With as many segments as steps this is unrolled differentiation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad

from ..measured import Measured
from ..model import FinalModel
from ..row_gradients import RowDifferentiator
from ..rows import Rows
from ..training.linear_steps import LinearSteps, linear_steps
from ..training.noise import seeded
from ..training.observed import ObservedRun
from ..training.optimizers import OptimizerSpec
from .batch_hessian import BatchHessian
from .block_krylov import block_krylov
from .outputs import push_outputs
from .responses import Responses, responses
from .unrolled import leaving_out

#: Rows that go through a product with the Hessian together.
_ROWS = 1024

#: Modes of negative curvature grow at most by exp of this in a segment: real training saturates.
_GROWTH = 0.5

#: Rows whose Jacobians the Krylov spaces begin with, for each vector of the beginning.
_SAMPLE = 4


@dataclass(frozen=True)
class Load:
    """What the rows' residuals over a segment put on adjoints that pass through it.

    One entry for units of adjoint in the parameters; a second, if the optimiser has a velocity.

    Parameters
    ----------
    inside : list of Tensor of shape (n, k)
        Each row's inner products with the modes, times its residuals.
    outside : list of Tensor of shape (n, C)
        Residuals that go with the derivative of each row's outputs outside the modes.
    """

    inside: list[Tensor]
    outside: list[Tensor]


@dataclass(frozen=True)
class Segment:
    """A segment, linearised.

    Parameters
    ----------
    start, end : int
        Its epochs.
    theta : Tensor of shape (p,)
        Parameters in its middle.
    scale : Tensor of shape (p,) or float
        Root of the preconditioner.
    basis : Tensor of shape (k, p)
        Orthonormal modes of the preconditioned curvature.
    response : Responses
        Of the modes, and last of everything outside them.
    load : Load
        Of the rows with their residuals in the run.
    moved, predicted : Tensor of shape (p,)
        By how much the parameters move in the run, and in the linearised one.
    """

    start: int
    end: int
    theta: Tensor
    scale: Tensor | float
    basis: Tensor
    response: Responses
    load: Load
    moved: Tensor
    predicted: Tensor

    def carry(self, error: Tensor) -> Tensor:
        """Where the linearised run is off the real one (p,) at the end, from where it is at the start."""
        inner = self.basis @ (error / self.scale)
        outer = error / self.scale - inner @ self.basis
        kept = self.response.X[0].to(error)
        carried = ((inner * kept[:-1]) @ self.basis + outer * kept[-1]) * self.scale
        return carried + self.predicted - self.moved


@dataclass(frozen=True)
class Segmentation:
    """How a run on all rows is linearised, segment by segment.

    Parameters
    ----------
    model : FinalModel
    X, y : Tensor
        Encoded training rows and targets.
    row_weights : Tensor of shape (n,)
        Weights of the rows in the training objective.
    optimizer : OptimizerSpec
    cuts : tuple of int
        Epochs at which segments begin and end, from 0 on; every horizon is one of them.
    n_components : int
        Most dimensions of a Krylov space.
    block_size : int
        Vectors that span its beginning.
    """

    model: FinalModel
    X: Tensor
    y: Tensor
    row_weights: Tensor
    optimizer: OptimizerSpec
    cuts: tuple[int, ...]
    n_components: int
    block_size: int

    def steps_to_see(self, per_epoch: int) -> set[int]:
        """Steps that the run must be seen at: cuts, and middles of segments."""
        middles = {_middle(a, b, per_epoch) for a, b in self.pairs}
        return middles | {cut * per_epoch for cut in self.cuts}

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return list(itertools.pairwise(self.cuts))

    def linearize(self, run: ObservedRun, hessian: BatchHessian, a: int, b: int) -> Segment:
        """The segment from epoch a to epoch b."""
        per_epoch = run.steps_per_epoch
        middle = run.moments[_middle(a, b, per_epoch)]
        steps = linear_steps(self.optimizer, run.buffers_of(middle.step))
        scale = 1.0 if steps.preconditioner is None else steps.preconditioner.sqrt()
        decay = self._decay(steps)

        def product(U: Tensor) -> Tensor:
            return self._curved(hessian, middle.theta, U * scale, decay) * scale

        start = self._principal_jacobians(middle.theta) * scale
        values, basis = block_krylov(product, start, self.n_components)
        level = 0.0 if decay is None else float((decay * scale**2).mean())
        curved = torch.cat([values, values.new_tensor([level])])
        rates = run.rates[a * per_epoch : b * per_epoch]
        steps.check_stable(float(curved.max()), rates)
        if len(rates) > 1:  # a single step does not grow exponentially
            way = responses(steps, torch.zeros_like(curved[:1]), rates, per_epoch).total.abs()
            curved = torch.maximum(curved, -_GROWTH / way)
        response = responses(steps, curved, rates, per_epoch)
        residuals = run.residuals[a : b + 1]
        return Segment(
            a,
            b,
            middle.theta,
            scale,
            basis,
            response,
            self.load(middle.theta, basis * scale, response, residuals, bool(steps.of_velocity)),
            run.theta(b) - run.theta(a),
            self._predicted(run, steps, a, scale, basis, response),
        )

    def load(
        self,
        theta: Tensor,
        modes: Tensor,
        response: Responses,
        residuals: Tensor,
        velocity: bool,
    ) -> Load:
        """The load of residuals (n_epochs + 1, n, C), with the modes (k, p) as they act on outputs."""
        pushed = push_outputs(self.model, self.X, theta, modes)  # (n, k, C)
        parts = response.to_residuals(residuals)[: 1 + velocity]
        return Load(
            [(pushed.mT * part[:, :, :-1].to(pushed)).sum(1) for part in parts],
            [part[:, :, -1] for part in parts],
        )

    def _predicted(
        self,
        run: ObservedRun,
        steps: LinearSteps,
        a: int,
        scale: Tensor | float,
        basis: Tensor,
        response: Responses,
    ) -> Tensor:
        """Change of the parameters over the segment in the linearised run, (p,)."""
        moment = run.moments[a * run.steps_per_epoch]
        # the response to a unit of adjoint at the end is what a force does to the end
        forces = [(self._gradient(moment.theta, steps) * scale, response.total)]
        velocity = steps.velocity(moment.buffers)
        if velocity is not None:
            forces.append((velocity * scale, response.V[0]))
        moved = torch.zeros_like(moment.theta)
        for force, effect in forces:
            inner = basis @ force
            kept = effect.to(force)
            moved += (inner * kept[:-1]) @ basis + (force - inner @ basis) * kept[-1]
        return moved * scale

    def _gradient(self, theta: Tensor, steps: LinearSteps) -> Tensor:
        """Gradient of the whole objective, (p,)."""
        w = (self.row_weights / self.row_weights.sum()).to(theta)
        decay = self._decay(steps)
        total = torch.zeros_like(theta) if decay is None else theta * decay
        for x, y, share in zip(
            self.X.split(_ROWS), self.y.split(_ROWS), w.split(_ROWS), strict=True
        ):
            total += grad(lambda t, x=x, y=y, s=share: (s * self._losses(t, x, y)).sum())(theta)
        return total

    def _losses(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self.model.loss(self.model.forward(theta, x), y)

    def walk_back(
        self,
        segments: Sequence[Segment],
        gradients: Callable[[int], Tensor],
        horizons: Sequence[int],
        own_residuals: Tensor | None = None,
    ) -> Tensor:
        """Scores (n_horizons, m, n) of all training rows, by one walk back through the segments.

        Parameters
        ----------
        segments : sequence of Segment
            In order, from epoch 0 to the last horizon.
        gradients : callable
            Gradients of the measurements (m, p) after an epoch.
        horizons : sequence of int
            Increasing numbers of epochs.
        own_residuals : Tensor of shape (n_epochs + 1, n, C), default=None
            Residuals of each row when it is the one left out, if they are others.
        """
        share = self.row_weights.double() / self.row_weights.double().sum()
        of_own, of_mean = leaving_out(share)
        adjoints: list[Tensor] = []
        scores = share.new_zeros(0, len(self.X))
        for segment in reversed(segments):
            n_parts = len(segment.load.inside)
            if segment.end in horizons:
                fresh = gradients(segment.end)
                added = [fresh, torch.zeros_like(fresh)][:n_parts]
                adjoints = adjoints or [fresh[:0]] * n_parts
                adjoints = [torch.cat(pair) for pair in zip(added, adjoints, strict=True)]
                scores = torch.cat([scores.new_zeros(len(fresh), len(self.X)), scores])
            real, earlier = self._pass(segment, segment.load, adjoints)
            own = real
            if own_residuals is not None:
                residuals = own_residuals[segment.start : segment.end + 1]
                modes = segment.basis * segment.scale
                load = self.load(segment.theta, modes, segment.response, residuals, n_parts > 1)
                own = self._pass(segment, load, adjoints)[0]
            scores += (real @ share)[:, None] * of_mean - own * of_own
            adjoints = earlier
        return scores.unflatten(0, (len(horizons), -1))

    def _pass(
        self, segment: Segment, load: Load, adjoints: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Inner products with rows (k, n), and adjoints at the segment's start.

        Adjoints (k, p) are those of the parameters and, if there is one, of the velocity.
        """
        basis, response = segment.basis, segment.response
        scales = (segment.scale, 1 / segment.scale)
        own = self.model.theta.new_zeros(len(adjoints[0]), len(self.X), dtype=torch.float64)
        earlier = [torch.zeros_like(adjoint) for adjoint in adjoints]
        for part, adjoint in enumerate(adjoints):
            outer = adjoint * scales[part]
            inner = outer @ basis.mT
            outer.addmm_(inner, basis, alpha=-1)
            own += (inner @ load.inside[part].mT).double()
            pushed = push_outputs(self.model, self.X, segment.theta, outer * segment.scale)
            own += torch.einsum("nmc,nc->mn", pushed.double(), load.outside[part])
            for new, ways in zip(earlier, (response.X, response.V), strict=False):
                kept = ways[part].to(outer)
                new.addmm_(inner * kept[:-1], basis).add_(outer, alpha=float(kept[-1]))
        for new, scale in zip(earlier, scales, strict=False):
            new /= scale
        return own, earlier

    def _principal_jacobians(self, theta: Tensor) -> Tensor:
        """Principal directions of some rows' derivatives of outputs with random signs, (b, p)."""
        generator = torch.Generator().manual_seed(0)
        some = torch.randperm(len(self.X), generator=generator)[: _SAMPLE * self.block_size]
        X = self.X[some.to(self.X.device)]
        n_outputs = self.model.outputs(X[:1]).shape[1]
        signs = torch.randint(0, 2, (len(X), n_outputs), generator=generator) * 2 - 1

        def signed(outputs: Tensor, sign: Tensor) -> Tensor:
            return (outputs * sign).sum(-1)

        model = self.model.at(theta)
        rows = RowDifferentiator(model, X[:2])(Measured(Rows(X, signs.to(theta)), signed)).dense()
        size = rows.norm(dim=1, keepdim=True)
        rows /= torch.where(size > 0, size, 1)
        _, vectors = torch.linalg.eigh((rows @ rows.mT).double())
        return vectors[:, -self.block_size :].mT.to(rows) @ rows

    def _decay(self, steps: LinearSteps) -> Tensor | None:
        """Diagonal of the curvature that penalty and weight decay add, (p,)."""
        l2 = self.model.l2
        if not steps.coupled_decay:
            return l2
        decay = torch.full_like(self.model.theta, steps.coupled_decay)
        return decay if l2 is None else decay + l2

    def _curved(
        self, hessian: BatchHessian, theta: Tensor, U: Tensor, decay: Tensor | None
    ) -> Tensor:
        """Products of the curvature of the whole objective with the rows of U (k, p)."""
        w = (self.row_weights / self.row_weights.sum()).to(U)
        total = torch.zeros_like(U) if decay is None else U * decay
        with seeded(self.model, 0):  # the same dropout in all products
            for x, y, share in zip(
                self.X.split(_ROWS), self.y.split(_ROWS), w.split(_ROWS), strict=True
            ):
                total += hessian(theta, x, y, share, U)[0]
        return total


def _middle(a: int, b: int, per_epoch: int) -> int:
    """Step in the middle of the epochs a to b."""
    return (a + b) * per_epoch // 2
