"""Stationary segments in the space of randomly projected gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from ..measured import Measure, Measured
from ..objective import Objective
from ..row_gradients import RowGradients
from ..rows import Rows
from .projected_kernel import output_functions
from .projection import Projection
from .stationary import Segment, Stationary


class ProjectedStationary(Stationary):
    r"""Segments with the Gauss-Newton matrix of projected gradients of an output function.

    For classification that is the margin, in which the loss has slope :math:`-(1 - p)` and curvature
    :math:`p (1 - p)`; for regression the outputs. The mean gradients of the training rows are kept,
    so that test rows cost little. A preconditioner is averaged over segments, which have one
    projection.
    """

    def __init__(self, final: Objective, segments: Sequence[Segment], project: Projection):
        super().__init__(final, segments)
        self.project = project
        scales = [s.dynamics.preconditioner for s in segments]
        given = [P for P in scales if P is not None]
        self._root = torch.stack(given).mean(0).sqrt() if given else None
        self._chunk = final.chunk(0.25)
        self._modes: list[tuple[Tensor, Tensor]] = []
        self._means: list[Tensor] = []
        for segment in segments:
            self._add(segment)

    def _add(self, segment: Segment) -> None:
        """Keep modes of the curvature, and mean gradients, of a segment."""
        theta, k = self.final.model.theta, self.project.n_components
        mean = theta.new_zeros(len(segment), k)
        H = torch.zeros(k, k, dtype=torch.float64, device=theta.device)
        for objective in segment.objectives:
            functions = output_functions(objective)
            for start in range(0, len(segment), self._chunk):
                rows = objective.rows[start : start + self._chunk]
                outputs = objective.model.outputs(rows.inputs).double()
                slopes, curved = _derivatives(objective, functions, outputs, rows.targets)
                of_functions = [objective.differentiate(Measured(rows, f)) for f in functions]
                features = torch.stack([self._features(g) for g in of_functions], 1)  # (b, F, k)
                mean[start : start + self._chunk] += (
                    slopes[..., None].to(features) * features
                ).sum(1)
                curved = curved * (rows.shares / len(segment.objectives))[:, None, None]
                weighted = curved.to(features) @ features
                H += (weighted.flatten(0, 1).mT @ features.flatten(0, 1)).double()
        penalty = segment.objectives[0].model.l2
        own = 0.0 if penalty is None else float(penalty.mean())
        H.diagonal().add_(segment.dynamics.coupled_decay + own)
        values, vectors = torch.linalg.eigh((H + H.mT) / 2)
        self._modes.append((values.clamp_min(0) + segment.dynamics.decoupled_decay, vectors))
        self._means.append(mean / len(segment.objectives))

    def with_rows(self, rows: Rows) -> Self:
        found = super().with_rows(rows)
        found._means = [self._mean_gradients(segment) for segment in found.segments]
        return found

    def _mean_gradients(self, segment: Segment) -> Tensor:
        """Return the mean gradients (n, k) of the rows of a segment."""
        mean = self.final.model.theta.new_zeros(len(segment), self.project.n_components)
        for objective in segment.objectives:
            for at, gradients in objective.row_gradients(most=self._chunk):
                mean[at] += self._features(gradients)
        return mean / len(segment.objectives)

    def _features(self, gradients: RowGradients) -> Tensor:
        if self._root is not None:
            gradients = RowGradients.of(gradients.dense() * self._root)
        return self.project(gradients)

    def start(self, test: Measured) -> Tensor:
        chunks = self.final.row_gradients(test, self._chunk)
        return torch.cat([self._features(gradients) for _, gradients in chunks]).double()

    def respond(self, k: int, adjoint: Tensor) -> Tensor:
        values, vectors = self._modes[k]
        return adjoint @ vectors * self.segments[k].dynamics.gathered(values) @ vectors.mT

    def carry(self, k: int, adjoint: Tensor) -> Tensor:
        values, vectors = self._modes[k]
        return adjoint @ vectors * self.segments[k].dynamics.carried(values) @ vectors.mT

    def products(self, k: int, response: Tensor) -> Tensor:
        return response @ self._means[k].double().mT

    def rowwise(self, k: int, response: Tensor, rows: Tensor) -> Tensor:
        return (response * self._means[k][rows].double()).sum(1)


def _derivatives(
    objective: Objective, functions: list[Measure], outputs: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Return first (n, F) and second (n, F, F) derivatives of rows' losses in the functions."""
    loss = objective.model.loss
    if loss.has_probabilities:
        missing = torch.sigmoid(-functions[0](outputs, targets))  # 1 - p
        return -missing[:, None], (missing * (1 - missing))[:, None, None]
    return loss.gradient(outputs, targets), loss.output_hessian(outputs, targets)
